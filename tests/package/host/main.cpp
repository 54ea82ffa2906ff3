// SPDX-License-Identifier: MIT
// A stranger's program: a file that is no checkpoint is refused in words.
#include <mnemo/host/llama2c_host.hpp>
#include <mnemo/mnemo.hpp>

#include <cstdio>

int main(int, char** arguments) {
    try {
        mnemo::Llama2cHost host(std::make_shared<mnemo::Llama2cModel>(mnemo::Llama2cModel::open(arguments[0])));
    } catch (const mnemo::Error& error) {
        std::printf("%s\n", error.what());
        return 0;
    }
    return 1;
}
