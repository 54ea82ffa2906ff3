// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mnemo {

/// An allocator for buffers of many megabytes that are read from end to end or row by row in any order: asks the system
/// for huge pages, where it has them, so that a row does not cost a page walk. Small ones come from the heap as ever.
template <class T> struct HugePages {
    using value_type = T;
    static constexpr std::size_t kPage = std::size_t{1} << 21;

    HugePages() = default;
    template <class U> HugePages(const HugePages<U>&) {}

    T* allocate(std::size_t n) {
#if defined(__linux__)
        if (n >= kPage / sizeof(T)) {
            if (n > (static_cast<std::size_t>(-1) - kPage) / sizeof(T)) throw std::bad_array_new_length();
            const std::size_t bytes = (n * sizeof(T) + kPage - 1) / kPage * kPage;
            void* memory = std::aligned_alloc(kPage, bytes);
            if (!memory) throw std::bad_alloc();
            (void)madvise(memory, bytes, MADV_HUGEPAGE); // a wish
            return static_cast<T*>(memory);
        }
#endif
        return std::allocator<T>().allocate(n);
    }
    void deallocate(T* memory, std::size_t n) {
#if defined(__linux__)
        if (n >= kPage / sizeof(T)) return std::free(memory);
#endif
        std::allocator<T>().deallocate(memory, n);
    }
    template <class U> bool operator==(const HugePages<U>&) const { return true; }
};

/// A vector for such buffers.
template <class T> using HugeVector = std::vector<T, HugePages<T>>;

} // namespace mnemo
