// SPDX-License-Identifier: MIT
#pragma once

// Processes of a test on the loopback, started as a launcher would: by their environment.
#include "../error_of.hpp"

#include <mnemo/dist/ranks.hpp>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <netinet/in.h>
#include <string>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

inline void require(bool holds, const std::string& what) {
    if (!holds) mnemo::fail("expected ", what);
}

/// The work of a process that a launcher has started as a rank; what main returns.
template <class F> int run_as_rank(F&& work) {
    const char *rank = std::getenv("RANK"), *world = std::getenv("WORLD_SIZE");
    try {
        work(mnemo::nn::RanksOptions::from_environment());
        std::printf("ok      rank %s of %s\n", rank, world);
        return 0;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "rank %s: %s\n", rank, e.what());
        return 1;
    }
}

inline int free_port() {
    const int s = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    const bool bound = s >= 0 && ::bind(s, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                       ::getsockname(s, reinterpret_cast<sockaddr*>(&address), &size) == 0;
    ::close(s);
    if (!bound) mnemo::fail("expected a free port on the loopback");
    return ntohs(address.sin_port);
}

struct Start {
    int world = 1;
    bool through_store = false;
    std::chrono::milliseconds timeout = std::chrono::seconds(10); // of the ranks
    std::chrono::seconds limit{60};                               // a process that takes longer hangs
    int lost = -1;                                                // a rank that is not expected to end by itself
};

/// Starts the processes; true if all but `lost`, which is killed at the end, end well within the limit. The parent must
/// not have used LibTorch: threads do not survive a fork.
inline bool start(const char* what, const Start& how,
                  const std::function<void(const mnemo::nn::RanksOptions&)>& child_work) {
    const std::string port = std::to_string(free_port());
    std::vector<pid_t> children;
    std::fflush(nullptr);
    for (int rank = 0; rank < how.world; ++rank) {
        const pid_t child = ::fork();
        if (child == 0) {
            try {
                ::setenv("RANK", std::to_string(rank).c_str(), 1);
                ::setenv("WORLD_SIZE", std::to_string(how.world).c_str(), 1);
                ::setenv("MASTER_ADDR", "127.0.0.1", 1);
                ::setenv("MASTER_PORT", port.c_str(), 1);
                auto options = mnemo::nn::RanksOptions::from_environment();
                options.timeout = how.timeout;
                options.through_store = how.through_store;
                child_work(options);
                std::fflush(nullptr);
                std::_Exit(0);
            } catch (const std::exception& e) {
                std::fprintf(stderr, "%s, rank %d of %d: %s\n", what, rank, how.world, e.what());
                std::_Exit(1);
            }
        }
        children.push_back(child);
    }
    bool passed = true;
    const auto end = std::chrono::steady_clock::now() + how.limit;
    for (int rank = 0; rank < how.world; ++rank) {
        if (rank == how.lost) continue;
        const pid_t child = children[static_cast<std::size_t>(rank)];
        int status = 0;
        while (::waitpid(child, &status, WNOHANG) == 0) {
            if (std::chrono::steady_clock::now() > end) {
                std::fprintf(stderr, "%s: rank %d of %d hangs\n", what, rank, how.world);
                ::kill(child, SIGKILL);
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
        passed = passed && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    if (how.lost >= 0) {
        const pid_t child = children[static_cast<std::size_t>(how.lost)];
        ::kill(child, SIGKILL);
        ::waitpid(child, nullptr, 0);
    }
    std::printf("%-7s %s, %d processes, %s\n", passed ? "ok" : "FAILED", what, how.world,
                how.through_store ? "through the store" : "over Gloo");
    std::fflush(stdout);
    return passed;
}
