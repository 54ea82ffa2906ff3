// SPDX-License-Identifier: MIT
#include "catch.hpp"

#include <mnemo/store/ring.hpp>

using namespace mnemo;

TEST_CASE("a ring keeps the newest entries, oldest first by age") {
    RingStore ring(1, 4);
    std::vector<std::int32_t> all;
    std::int32_t next = 0;
    for (const index_t n : {3, 0, 2, 1, 9, 4, 1}) {
        std::vector<float> keys;
        std::vector<std::int32_t> values;
        for (index_t i = 0; i < n; ++i) {
            keys.push_back(static_cast<float>(next) / 2), values.push_back(next);
            all.push_back(next++);
        }
        ring.append(Rows(keys.data(), n, 1), values);
        const auto size = std::min<index_t>(4, next);
        REQUIRE(ring.size() == size);
        REQUIRE(ring.keys().rows == size);
        for (index_t age = 0; age < size; ++age) {
            const std::int32_t expected = next - static_cast<std::int32_t>(size - age);
            REQUIRE(ring.value(ring.slot(age)) == expected);
            REQUIRE(ring.keys()[ring.slot(age)][0] == static_cast<float>(expected) / 2);
        }
    }
    ring.clear();
    REQUIRE(ring.size() == 0);
    const float key = 7;
    const std::int32_t value = 7;
    ring.append(Rows(&key, 1, 1), std::span(&value, 1));
    REQUIRE(ring.value(ring.slot(0)) == 7);
}

TEST_CASE("a ring without room remembers nothing, and wrong sizes are named") {
    RingStore ring(2, 0);
    const float keys[] = {1, 2};
    const std::int32_t values[] = {5, 6};
    ring.append(Rows(keys, 1, 2), std::span(values, 1));
    REQUIRE(ring.size() == 0);
    REQUIRE_THROWS_WITH(ring.append(Rows(keys, 1, 2), values), Catch::Contains("values"));
    REQUIRE_THROWS_WITH(ring.append(Rows(keys, 2, 1), values), Catch::Contains("width of the keys"));
    REQUIRE_THROWS_AS(RingStore(0, 5), Error);
}
