// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/huge_pages.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

namespace mnemo {

/// Scratch for one call at a time: `take` hands out uninitialised buffers that live until `reset`. After the first
/// calls it allocates no more, because `reset` keeps one block as large as everything that was taken.
class Arena {
  public:
    template <class T> std::span<T> take(std::size_t n) {
        static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= kAlign);
        return {reinterpret_cast<T*>(bytes(n * sizeof(T))), n};
    }
    void reset() {
        if (blocks_.size() > 1) {
            std::size_t total = 0;
            for (const Block& b : blocks_) total += b.size;
            blocks_.clear();
            add(total);
        }
        used_ = 0;
    }

  private:
    static constexpr std::size_t kAlign = 64; // a cache line and the widest vector
    struct Free {
        std::size_t size;
        void operator()(std::byte* data) const { HugePages<std::byte>().deallocate(data, size); }
    };
    struct Block {
        std::unique_ptr<std::byte[], Free> data;
        std::size_t size;
    };
    std::byte* bytes(std::size_t n) {
        n = (n + kAlign - 1) / kAlign * kAlign;
        if (blocks_.empty() || used_ + n > blocks_.back().size) {
            add(std::max(n, blocks_.empty() ? std::size_t{4096} : 2 * blocks_.back().size));
            used_ = 0;
        }
        std::byte* start = blocks_.back().data.get();
        start += (kAlign - reinterpret_cast<std::uintptr_t>(start) % kAlign) % kAlign;
        return start + (used_ += n) - n;
    }
    void add(std::size_t size) {
        const std::size_t padded = size + kAlign;
        blocks_.push_back({{HugePages<std::byte>().allocate(padded), Free{padded}}, size});
    }
    std::vector<Block> blocks_;
    std::size_t used_ = 0; // of the last block
};

} // namespace mnemo
