// SPDX-License-Identifier: MIT
#include <mnemo/stemmer/stemmer.hpp>
#include <mnemo/text/words.hpp>

int main() {
    const mnemo::EnglishWords<mnemo::SnowballStemmer> english;
    int motor = 0;
    english.each("The motors were motoring.", [&](std::string_view word) { motor += word == "motor"; });
    return motor == 2 ? 0 : 1;
}
