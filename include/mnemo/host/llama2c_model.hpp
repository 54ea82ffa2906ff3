// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/file.hpp>
#include <mnemo/text/hash.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mnemo {

/// The shape of a llama2.c model.
struct Llama2cConfig {
    index_t dim = 0, hidden_dim = 0; // of a state, inside a feed-forward block
    index_t layers = 0, heads = 0;
    index_t kv_heads = 0; // keys and values are shared by heads / kv_heads heads
    index_t vocab_size = 0;
    index_t seq_len = 0;         // most positions
    bool tied_classifier = true; // the output matrix is the embedding

    index_t head_size() const { return dim / heads; }
    index_t kv_dim() const { return head_size() * kv_heads; }
    friend bool operator==(const Llama2cConfig&, const Llama2cConfig&) = default;
};

/// The weights of a llama2.c checkpoint, as they lie in the file; each block holds all layers, one after another.
struct Llama2cWeights {
    Llama2cConfig config;
    std::span<const float> embedding;      // [vocab, dim]
    std::span<const float> attention_norm; // [layers, dim]
    std::span<const float> wq, wk, wv, wo; // [layers, dim | kv_dim | kv_dim | dim, dim]
    std::span<const float> ffn_norm;       // [layers, dim]
    std::span<const float> w1, w2, w3;     // [layers, hidden, dim], [layers, dim, hidden], [layers, hidden, dim]
    std::span<const float> final_norm;     // [dim]
    std::span<const float> classifier;     // [vocab, dim]

    /// The bytes of a checkpoint, which must outlive the result and be aligned for floats: version 0 (run.c's own) or
    /// 1; the quantised version 2 is refused. Every size is checked against the bytes that are there before it is
    /// used; bytes that are left over are an Error, too. `source` names the file in errors.
    static Llama2cWeights parse(std::span<const std::byte> bytes, const std::string& source) {
        return Reader{bytes, source}.read();
    }

    /// Of the shape and of all weights; the same for both versions of a file.
    std::string hash() const {
        Hash64 hash;
        hash.add(text(config.dim, ' ', config.hidden_dim, ' ', config.layers, ' ', config.heads, ' ', config.kv_heads,
                      ' ', config.vocab_size, ' ', config.tied_classifier));
        for (const auto block :
             {embedding, attention_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3, final_norm, classifier})
            hash.add(std::as_bytes(block));
        return hash.text();
    }

    /// Writes a checkpoint of version 0, which run.c itself reads. Throws Error if a block has not the size that the
    /// config asks for.
    void save(const std::string& path) const {
        const Llama2cConfig& c = config;
        const std::vector<float> rotation(static_cast<std::size_t>(c.seq_len * c.head_size())); // obsolete tables
        const std::pair<std::span<const float>, index_t> blocks[] = {
            {embedding, c.vocab_size * c.dim},
            {attention_norm, c.layers * c.dim},
            {wq, c.layers * c.dim * c.dim},
            {wk, c.layers * c.kv_dim() * c.dim},
            {wv, c.layers * c.kv_dim() * c.dim},
            {wo, c.layers * c.dim * c.dim},
            {ffn_norm, c.layers * c.dim},
            {w1, c.layers * c.hidden_dim * c.dim},
            {w2, c.layers * c.hidden_dim * c.dim},
            {w3, c.layers * c.hidden_dim * c.dim},
            {final_norm, c.dim},
            {rotation, c.seq_len * c.head_size()},
            {classifier, c.tied_classifier ? 0 : c.vocab_size * c.dim}};
        std::vector<std::int32_t> header;
        for (const index_t n : {c.dim, c.hidden_dim, c.layers, c.heads, c.kv_heads,
                                c.tied_classifier ? c.vocab_size : -c.vocab_size, c.seq_len})
            header.push_back(static_cast<std::int32_t>(n));
        AtomicFile file(path);
        file.write(std::as_bytes(std::span(header)));
        for (const auto& [values, size] : blocks) {
            if (size > 0 && static_cast<index_t>(values.size()) != size)
                fail(path, ": expected a block of ", size, " weights, got ", values.size());
            if (size > 0) file.write(std::as_bytes(values));
        }
        file.commit();
    }

  private:
    struct Reader {
        static constexpr std::uint32_t kMagic = 0x616b3432; // "ak42"
        static constexpr std::size_t kVersion1Header = 256;
        static constexpr index_t kMostPositions = 65536;

        std::span<const std::byte> bytes;
        const std::string& source;
        std::size_t at = 0;

        Llama2cWeights read() {
            std::uint32_t magic = 0;
            if (bytes.size() < sizeof magic)
                fail(source, ": expected a llama2.c checkpoint, got ", bytes.size(), " bytes");
            std::memcpy(&magic, bytes.data(), sizeof magic);
            Llama2cWeights w;
            if (magic == kMagic)
                read_version_1(w);
            else
                read_version_0(w);
            if (at != bytes.size())
                fail(source, ": expected ", at, " bytes for the sizes in its header, got ", bytes.size());
            return w;
        }

        template <class T> T number(const char* field) {
            T value;
            if (bytes.size() - at < sizeof value)
                fail(source, ": ", field, ": expected ", sizeof value, " bytes at ", at, ", got the end of the file");
            std::memcpy(&value, bytes.data() + at, sizeof value);
            at += sizeof value;
            return value;
        }
        index_t positive(const char* field, index_t most = INT32_MAX) {
            const auto value = number<std::int32_t>(field);
            if (value < 1 || value > most) fail(source, ": ", field, ": expected 1 to ", most, ", got ", value);
            return value;
        }
        Llama2cConfig header(bool sign_unties) {
            Llama2cConfig c;
            c.dim = positive("dim"), c.hidden_dim = positive("hidden_dim"), c.layers = positive("n_layers");
            c.heads = positive("n_heads"), c.kv_heads = positive("n_kv_heads");
            const std::int64_t vocab = number<std::int32_t>("vocab_size"); // 64 bits: it is negated
            c.vocab_size = sign_unties && vocab < 0 ? -vocab : vocab;
            c.tied_classifier = vocab > 0;
            if (c.vocab_size < 1 || c.vocab_size > INT32_MAX)
                fail(source, ": vocab_size: expected a number from 1 to ", INT32_MAX, ", got ", vocab);
            c.seq_len = positive("seq_len", kMostPositions);
            if (c.dim % c.heads != 0) fail(source, ": n_heads: expected a divisor of dim ", c.dim, ", got ", c.heads);
            if (c.head_size() % 2 != 0)
                fail(source, ": n_heads: expected heads of an even width, as they are rotated in pairs, got ",
                     c.head_size());
            if (c.kv_heads > c.heads || c.heads % c.kv_heads != 0)
                fail(source, ": n_kv_heads: expected a divisor of n_heads ", c.heads, ", got ", c.kv_heads);
            return c;
        }
        /// A block of floats; its size is a product that need not fit 64 bits.
        std::span<const float> block(const char* name, std::initializer_list<index_t> shape) {
            const std::size_t room = (bytes.size() - at) / sizeof(float);
            std::size_t count = 1;
            for (const index_t extent : shape) {
                if (count > room / static_cast<std::size_t>(extent))
                    fail(source, ": ", name, ": expected ", extent, " x ", count, " floats or more at byte ", at,
                         ", got ", room);
                count *= static_cast<std::size_t>(extent);
            }
            // Both headers are multiples of 4 bytes.
            const auto* first = reinterpret_cast<const float*>(bytes.data() + at);
            at += count * sizeof(float);
            return {first, count};
        }

        void read_version_0(Llama2cWeights& w) {
            const Llama2cConfig c = w.config = header(true);
            w.embedding = block("embedding", {c.vocab_size, c.dim});
            w.attention_norm = block("attention norm", {c.layers, c.dim});
            read_attention(w);
            w.ffn_norm = block("feed-forward norm", {c.layers, c.dim});
            read_feed_forward(w);
            w.final_norm = block("final norm", {c.dim});
            block("rotation tables", {2, c.seq_len, c.head_size() / 2}); // obsolete; they are computed
            w.classifier = c.tied_classifier ? w.embedding : block("classifier", {c.vocab_size, c.dim});
        }
        void read_version_1(Llama2cWeights& w) {
            number<std::uint32_t>("magic");
            const auto version = number<std::int32_t>("version");
            if (version == 2)
                fail(source, ": version 2 holds quantised weights, which are not supported: export version 0 or 1");
            if (version != 1) fail(source, ": version: expected 1, got ", version);
            Llama2cConfig& c = w.config = header(false);
            c.tied_classifier = number<std::uint8_t>("shared classifier") != 0;
            if (bytes.size() < kVersion1Header)
                fail(source, ": expected a header of ", kVersion1Header, " bytes, got ", bytes.size());
            at = kVersion1Header;
            w.attention_norm = block("attention norm", {c.layers, c.dim});
            w.ffn_norm = block("feed-forward norm", {c.layers, c.dim});
            w.final_norm = block("final norm", {c.dim});
            w.embedding = block("embedding", {c.vocab_size, c.dim});
            read_attention(w);
            read_feed_forward(w);
            w.classifier = c.tied_classifier ? w.embedding : block("classifier", {c.vocab_size, c.dim});
        }
        void read_attention(Llama2cWeights& w) {
            const Llama2cConfig& c = w.config;
            w.wq = block("wq", {c.layers, c.dim, c.dim}), w.wk = block("wk", {c.layers, c.kv_dim(), c.dim});
            w.wv = block("wv", {c.layers, c.kv_dim(), c.dim}), w.wo = block("wo", {c.layers, c.dim, c.dim});
        }
        void read_feed_forward(Llama2cWeights& w) {
            const Llama2cConfig& c = w.config;
            w.w1 = block("w1", {c.layers, c.hidden_dim, c.dim}), w.w2 = block("w2", {c.layers, c.dim, c.hidden_dim});
            w.w3 = block("w3", {c.layers, c.hidden_dim, c.dim});
        }
    };
};

/// A llama2.c checkpoint, mapped: processes that use the same file share one copy. Constant, so threads may share it.
class Llama2cModel {
  public:
    static Llama2cModel open(const std::string& path) {
        Llama2cModel model;
        model.file_ = MappedFile::open(path);
        model.weights_ = Llama2cWeights::parse(model.file_.bytes(), path);
        return model;
    }
    const Llama2cConfig& config() const { return weights_.config; }
    const Llama2cWeights& weights() const { return weights_; }

  private:
    Llama2cModel() = default;
    MappedFile file_; // its bytes do not move with it
    Llama2cWeights weights_;
};

} // namespace mnemo
