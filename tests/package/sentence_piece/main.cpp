// SPDX-License-Identifier: MIT
#include <mnemo/sentence_piece/sentence_piece.hpp>

int main() {
    try {
        (void)mnemo::SentencePiece::parse("no model");
    } catch (const mnemo::Error&) {
        return 0;
    }
    return 1;
}
