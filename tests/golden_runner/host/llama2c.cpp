// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/host/llama2c_decoder.hpp>
#include <mnemo/host/llama2c_sampler.hpp>

GOLDEN("hosts.llama2c") {
    using namespace mnemo;
    const Llama2cModel model = Llama2cModel::open(fixture.companion("model").string());
    Llama2cDecoder decoder(model.weights());
    std::vector<float> logits, prehead, ffn_in;
    for (const std::int32_t token : fixture.tokens("in.tokens")) {
        decoder.forward(token);
        logits.insert(logits.end(), decoder.logits().begin(), decoder.logits().end());
        prehead.insert(prehead.end(), decoder.prehead().begin(), decoder.prehead().end());
        ffn_in.insert(ffn_in.end(), decoder.ffn_in().begin(), decoder.ffn_in().end());
    }
    const golden::Tolerance tolerance{2e-5, 2e-5};
    check.close("out.logits", logits, tolerance);
    check.close("out.prehead", prehead, tolerance);
    check.close("out.knn_key", ffn_in, tolerance);

    const auto generated = [&](const std::string& name, Llama2cSampler sampler) {
        decoder.reset();
        std::vector<std::int32_t> ids;
        std::int32_t token = 1;
        for (index_t i = 0; i < fixture.size(name, 0); ++i) {
            decoder.forward(token);
            ids.push_back(token = sampler(decoder.logits()));
        }
        check.equal(name, ids);
    };
    generated("out.greedy", Llama2cSampler());
    for (const std::string& name : fixture.names("out.sample_")) { // sample_t<temperature>_p<top-p>_s<seed>
        const auto number = [&](const std::string& mark) { return name.substr(name.find(mark) + mark.size()); };
        generated(name, Llama2cSampler(std::stof(number("_t")), std::stof(number("_p")),
                                       std::stoull(name.substr(name.rfind("_s") + 2))));
    }
}

BAD_FILES("llama2c") {
    const auto model = mnemo::Llama2cModel::open(file.string());
    return {{"dim", model.config().dim}, {"vocab", model.config().vocab_size}};
}
