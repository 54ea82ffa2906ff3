// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <atomic>
#include <concepts>
#include <exception>
#include <thread>
#include <vector>

namespace mnemo {

namespace archetype {
struct Task {
    void operator()(index_t task, index_t thread) const;
};
} // namespace archetype

/// Whoever runs the parallel parts of a policy: `run(tasks, f)` calls f(task, thread) once for each task in [0, tasks),
/// with thread in [0, threads()), and returns when all are done. The library starts no threads of its own accord; a
/// host's pool fits in by these two members.
template <class X>
concept Executor = requires(const X& x) {
    { x.threads() } -> std::convertible_to<index_t>;
    x.run(index_t{}, archetype::Task{});
};

/// The calling thread.
struct Serial {
    index_t threads() const { return 1; }
    void run(index_t tasks, auto&& f) const {
        for (index_t i = 0; i < tasks; ++i) f(i, index_t{0});
    }
};

/// `count` threads, started for each call: right for work of milliseconds and more. Rethrows the first exception.
struct Threads {
    index_t count = 1;
    index_t threads() const { return std::max<index_t>(count, 1); }
    void run(index_t tasks, auto&& f) const {
        const index_t workers = std::min(threads(), tasks);
        if (workers <= 1) return Serial{}.run(tasks, f);
        std::atomic<index_t> next{0};
        std::atomic<bool> failed{false};
        std::exception_ptr error;
        const auto work = [&](index_t thread) {
            try {
                for (index_t i = next++; i < tasks && !failed; i = next++) f(i, thread);
            } catch (...) {
                if (!failed.exchange(true)) error = std::current_exception();
            }
        };
        std::vector<std::jthread> pool;
        for (index_t t = 1; t < workers; ++t) pool.emplace_back(work, t);
        work(0);
        pool.clear(); // joins
        if (error) std::rethrow_exception(error);
    }
};
static_assert(Executor<Serial> && Executor<Threads>);

} // namespace mnemo
