// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/ranks.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mnemo::nn {

/// What all ranks throw alike: after it they can go on together.
class SharedError : public Error {
  public:
    using Error::Error;
};

namespace detail {

/// All ranks call it, those where nothing is wrong with an empty text; all throw what the first rank says.
[[noreturn]] inline void fail_together(Ranks& ranks, const char* what, const std::string& failure) {
    const std::string own = failure.empty() ? failure : text("mnemo: ", what, ": rank ", ranks.rank(), ": ", failure);
    const at::Tensor bytes = at::empty({static_cast<std::int64_t>(own.size())}, at::kByte);
    std::copy(own.begin(), own.end(), bytes.data_ptr<std::uint8_t>());
    for (const at::Tensor& theirs : ranks.gather(bytes)) {
        const auto* data = theirs.data_ptr<std::uint8_t>();
        if (theirs.numel() > 0) throw SharedError(std::string(data, data + theirs.numel()));
    }
    throw SharedError(text("mnemo: ", what, ": a rank failed without saying why"));
}

/// What others are told of an exception; LibTorch's end with a stack.
inline std::string failure_of(const std::exception& e) {
    const std::string what = dynamic_cast<const Error*>(&e) != nullptr ? e.what() : first_line(e);
    return what.empty() ? "it failed" : what;
}

/// Numbers of an agreement that a rank may meet with another one: in a step of training one fails where others are in a
/// retrieval, or have ended.
inline constexpr std::size_t kAgreed = 13;

/// Numbers that all ranks must have alike, with their names for a message. Called by all ranks together; every rank
/// finds the same first difference and throws the same Error. `failure` is what has gone wrong on this rank before.
/// Returns everybody's numbers, [ranks][n].
template <std::size_t N>
std::vector<std::array<std::int64_t, N>> agree(Ranks& ranks, const char* what, const char* const (&names)[N],
                                               std::array<std::int64_t, N> own, std::size_t compared,
                                               const std::string& failure = {}) {
    at::Tensor row = at::empty({1, static_cast<std::int64_t>(N) + 1}, at::kLong);
    std::copy(own.begin(), own.end(), row.data_ptr<std::int64_t>());
    row.data_ptr<std::int64_t>()[N] = failure.empty() ? 0 : 1;
    const auto world = static_cast<std::size_t>(ranks.size());
    const auto rows = ranks.gather(row, std::vector<std::int64_t>(world, 1));
    std::vector<std::array<std::int64_t, N>> all(world);
    bool failed = false;
    for (std::size_t r = 0; r < world; ++r) {
        std::copy_n(rows[r].template data_ptr<std::int64_t>(), N, all[r].begin());
        failed = failed || rows[r].template data_ptr<std::int64_t>()[N] != 0;
    }
    if (failed) fail_together(ranks, what, failure);
    for (std::size_t i = 0; i < compared; ++i)
        for (std::size_t r = 1; r < world; ++r)
            if (all[r][i] != all[0][i])
                throw SharedError(text("mnemo: ", what, ": rank ", r, ": ", names[i], ": expected ", all[0][i],
                                       " as on rank 0, got ", all[r][i]));
    return all;
}

/// All ranks: what fails on one fails on all.
void together(Ranks& ranks, const char* what, auto&& work) {
    std::string failure;
    try {
        work();
    } catch (const SharedError&) { // all know it
        throw;
    } catch (const std::exception& e) {
        if (ranks.broken()) throw; // nobody is left to be told
        failure = failure_of(e);
    }
    const char* const names[kAgreed] = {};
    agree(ranks, what, names, std::array<std::int64_t, kAgreed>{}, 0, failure);
}

} // namespace detail

} // namespace mnemo::nn
