// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/ranks.hpp>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <deque>
#include <span>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// Messages between two processes that meet under a name: over a Gloo group of the two, or through the store. One that
/// is gone, or does not answer in time, is an Error; the link is of no use then, and other links are as they were.
class Link {
  public:
    using Milliseconds = std::chrono::milliseconds;

    /// Both sides, 0 and 1, call it with the same name, which is used once. Waits for the other one, options.timeout at
    /// most. Each link has a connection of its own to the store, so that a wait that failed disturbs no other.
    Link(const RanksOptions& options, std::string name, int side)
        : name_(std::move(name)), side_(side), timeout_(options.timeout) {
        guarded("meeting", [&] {
            RanksOptions client = options;
            client.store_runs_elsewhere = true;
            client.timeout = std::max(options.timeout, Milliseconds(5000)); // counted in whole seconds by some versions
            store_ = detail::within(options.timeout + Milliseconds(500), [client] { return meet(client, false); });
            ask(options.timeout, [own = prefix() + std::to_string(side), other = prefix() + std::to_string(1 - side),
                                  limit = options.timeout](c10d::Store& store) {
                store.set(own, std::vector<std::uint8_t>{1});
                wait_for(store, other, limit);
            });
#if MNEMO_GLOO
            if (!options.through_store)
                group_ = detail::within(
                    options.timeout + Milliseconds(500),
                    [side, options, inner = c10::make_intrusive<c10d::PrefixStore>(prefix() + "gloo", store_)] {
                        return gloo_group(inner, side, 2, options);
                    });
#endif
        });
    }
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    bool broken() const { return broken_; }

    /// Begins to send; returns at once.
    void post(std::span<const std::uint8_t> bytes) {
        guarded("sending", [&] {
#if MNEMO_GLOO
            if (group_) {
                drop_sent(16);
                at::Tensor size = at::empty({1}, at::kLong), body = at::empty(length(bytes), at::kByte);
                *size.data_ptr<std::int64_t>() = length(bytes);
                if (!bytes.empty()) std::memcpy(body.data_ptr(), bytes.data(), bytes.size());
                post(std::move(size));
                if (!bytes.empty()) post(std::move(body));
                return;
            }
#endif
            ask(timeout_,
                [name = message(side_, sent_++), kept = std::vector<std::uint8_t>(bytes.begin(), bytes.end())](
                    c10d::Store& store) { detail::put_message(store, name, kept.data(), kept.size()); });
        });
    }
    /// Returns when everything posted is on its way, and where it goes through the store, has been read.
    void flush() {
        guarded("sending", [&] {
#if MNEMO_GLOO
            if (group_) return drop_sent(0);
#endif
            if (sent_ == 0) return;
            ask(timeout_, [name = message(side_, sent_ - 1) + "/0", limit = timeout_](c10d::Store& store) {
                wait_for(store, name, limit, false);
            });
        });
    }
    /// The next message of the other side, when it is there within `timeout`.
    std::vector<std::uint8_t> receive(Milliseconds timeout) {
        std::vector<std::uint8_t> bytes;
        guarded("receiving", [&] {
#if MNEMO_GLOO
            if (group_) {
                const auto end = std::chrono::steady_clock::now() + timeout;
                at::Tensor size = at::empty({1}, at::kLong);
                take(size, timeout);
                const std::int64_t n = *size.data_ptr<std::int64_t>();
                if (n < 0 || n > std::int64_t{1} << 40) fail("expected a message, got one of ", n, " bytes");
                at::Tensor body = at::empty({n}, at::kByte);
                if (n > 0) take(body, left(end));
                const auto* data = body.data_ptr<std::uint8_t>();
                bytes.assign(data, data + n);
                return;
            }
#endif
            bytes = ask(timeout, [name = message(1 - side_, received_++), timeout](c10d::Store& store) {
                wait_for(store, name + "/0", timeout);
                return detail::take_message(store, name, true);
            });
        });
        return bytes;
    }

  private:
    static std::int64_t length(std::span<const std::uint8_t> bytes) { return static_cast<std::int64_t>(bytes.size()); }
    static Milliseconds left(std::chrono::steady_clock::time_point end) {
        return std::max(std::chrono::duration_cast<Milliseconds>(end - std::chrono::steady_clock::now()),
                        Milliseconds(1));
    }
    std::string message(int side, std::int64_t i) const {
        return prefix() + std::to_string(side) + "/" + std::to_string(i);
    }
    std::string prefix() const { return "mnemo/link/" + name_ + "/"; }
    // Not every call of the store gives up by itself when the process that runs it hangs; those that do are first.
    template <class F> std::invoke_result_t<F, c10d::Store&> ask(Milliseconds limit, F work) {
        return detail::within(limit + limit / 8, [store = store_, work = std::move(work)] { return work(*store); });
    }
    // By asking again and again: a wait that is given up leaves a connection to the store that cannot be used.
    static void wait_for(c10d::Store& store, const std::string& key, Milliseconds timeout, bool there = true) {
        const auto start = std::chrono::steady_clock::now();
        std::chrono::microseconds pause(50);
        while (store.check({key}) != there) {
            if (std::chrono::steady_clock::now() - start > timeout) fail("no answer within ", timeout.count(), " ms");
            std::this_thread::sleep_for(pause);
            pause = std::min(2 * pause, std::chrono::microseconds(2000));
        }
    }
#if MNEMO_GLOO
    void post(at::Tensor tensor) {
        std::vector<at::Tensor> tensors{tensor};
        posted_.emplace_back(std::move(tensor), group_->send(tensors, 1 - side_, 0));
    }
    void take(at::Tensor& tensor, Milliseconds timeout) {
        std::vector<at::Tensor> tensors{tensor};
        group_->recv(tensors, 1 - side_, 0)->wait(timeout);
    }
    // Messages are kept until they are sent.
    void drop_sent(std::size_t keep) {
        while (posted_.size() > keep) {
            posted_.front().second->wait(timeout_);
            posted_.pop_front();
        }
    }
    using Work = decltype(std::declval<c10d::ProcessGroupGloo&>().send(std::declval<std::vector<at::Tensor>&>(), 0, 0));
    std::deque<std::pair<at::Tensor, Work>> posted_;
    c10::intrusive_ptr<c10d::ProcessGroupGloo> group_; // gone before what it sends
#endif
    void guarded(const char* what, auto&& work) {
        if (broken_) fail("link ", name_, ": ", what, ": an earlier call has failed");
        try {
            work();
        } catch (const std::exception& e) {
            broken_ = true;
            fail("link ", name_, ": ", what, ": ", detail::first_line(e));
        }
    }

    c10::intrusive_ptr<c10d::Store> store_;
    std::string name_;
    int side_;
    Milliseconds timeout_;
    std::int64_t sent_ = 0, received_ = 0;
    bool broken_ = false;
};

} // namespace mnemo::nn
