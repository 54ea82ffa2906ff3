// SPDX-License-Identifier: MIT
#include "catch.hpp"

#include <mnemo/text/shards.hpp>

#include <algorithm>

using namespace mnemo;

TEST_CASE("every batch goes to one rank, in order where a memory is shared") {
    for (index_t batches = 0; batches < 14; ++batches)
        for (const index_t world : {1, 2, 4})
            for (const index_t group : {1, 2, 4}) {
                if (world % group != 0) continue;
                std::vector<index_t> dealt, in_turn;
                std::size_t steps = 0;
                for (index_t rank = 0; rank < world; ++rank) {
                    const auto mine = sequential_shard(batches, world, rank, group);
                    if (rank == 0) steps = mine.size();
                    REQUIRE(mine.size() == steps);
                    for (std::size_t i = 0; i < mine.size(); ++i) {
                        if (mine[i] < 0) continue;
                        dealt.push_back(mine[i]);
                        // Within a step the ranks of a group hold neighbours.
                        if (rank % group > 0)
                            REQUIRE(mine[i] == sequential_shard(batches, world, rank - 1, group)[i] + 1);
                    }
                    for (const index_t batch : interleaved_shard(batches, world, rank))
                        if (batch >= 0) in_turn.push_back(batch);
                }
                for (auto* all : {&dealt, &in_turn}) {
                    std::sort(all->begin(), all->end());
                    REQUIRE(static_cast<index_t>(all->size()) == batches);
                    for (index_t i = 0; i < batches; ++i) REQUIRE((*all)[static_cast<std::size_t>(i)] == i);
                }
            }
    REQUIRE_THROWS_AS(sequential_shard(4, 4, 0, 3), Error);
    REQUIRE_THROWS_AS(interleaved_shard(4, 2, 2), Error);
}

TEST_CASE("steps of a predefined order stay together when they are shuffled") {
    const auto order = shuffle_steps(10, 4, 5);
    REQUIRE_NOTHROW(check_order(order, 10));
    std::size_t i = 0;
    while (i < order.size()) {
        const index_t step = order[i] / 4;
        for (index_t j = step * 4; j < std::min<index_t>(10, step * 4 + 4); ++j) REQUIRE(order[i++] == j);
    }
    REQUIRE(shuffle_steps(40, 4, 5) != shuffle_steps(40, 4, 6));
    REQUIRE_THROWS_WITH(check_order({0, 1}, 3), Catch::Contains("segments"));
    REQUIRE_THROWS_WITH(check_order({0, 0}, 2), Catch::Contains("got 0 twice"));
    REQUIRE_THROWS_WITH(check_order({0, 2}, 2), Catch::Contains("got 2"));
}
