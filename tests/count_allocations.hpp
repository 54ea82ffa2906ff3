// SPDX-License-Identifier: MIT
#pragma once

// Included by one file of a test program, which then counts its allocations.
#include <allocations.hpp>

#include <atomic>
#include <cstdlib>
#include <new>

// Sanitizers bring their own operator new.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MNEMO_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MNEMO_SANITIZED 1
#endif
#endif
namespace {
std::atomic<long> allocations{0};
}
long allocations_so_far() { return allocations; }
#ifndef MNEMO_SANITIZED
// Out of line: inlined, a pair of malloc and operator delete looks like a mistake.
[[gnu::noinline]] void* operator new(std::size_t n) {
    ++allocations;
    if (void* p = std::malloc(n ? n : 1)) return p;
    throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
#endif
