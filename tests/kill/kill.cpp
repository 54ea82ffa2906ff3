// SPDX-License-Identifier: MIT
// Kills a writer of a datastore again and again, at random moments, and looks at what is left: everything that was
// announced as committed must be there and right, nothing torn may be seen, and writing goes on where it ended.
//
//     mnemo_kill_test [kills = 40] [seed = 1]
#include "../folder.hpp"

#include <mnemo/io/datastore.hpp>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <poll.h>
#include <sys/wait.h>

using namespace mnemo;

namespace {

constexpr index_t kDim = 256, kVocab = 50'000;
constexpr index_t kMaxRows = 12'000; // then a new store overwrites the old one

/// What the child says before and after each thing it does.
struct Message {
    enum Kind : std::int64_t { creating, created, committing, committed, editing, edited } kind;
    index_t rows = 0; // committing: at most these; committed: at least these
    index_t id = 0, version = 0;
    bool erase = false;
};

// Entry `id` in its `version`-th edition; all numbers are exact in float16.
float key_at(index_t id, index_t version, index_t column) {
    return static_cast<float>((id * 31 + version * 13 + column * 7) % 2001 - 1000) / 8;
}
std::int32_t value_of(index_t id, index_t version) {
    return static_cast<std::int32_t>((id * 17 + version * 5) % kVocab);
}

void fill_row(std::span<float> row, index_t id, index_t version) {
    for (std::size_t j = 0; j < row.size(); ++j) row[j] = key_at(id, version, static_cast<index_t>(j));
}

struct State {
    index_t version = 0;
    bool erased = false;
};

// ---- the child ----

class Child {
  public:
    Child(std::string folder, int pipe, unsigned seed) : folder_(std::move(folder)), pipe_(pipe), random_(seed) {}

    [[noreturn]] void append(bool create) {
        DatastoreWriter writer = create ? make() : DatastoreWriter::resume(folder_);
        if (random_() % 2 == 0) writer.set_commit_every(static_cast<index_t>(random_() % 400'000 + 1));
        while (writer.size() < kMaxRows + 1000) {
            const index_t rows = static_cast<index_t>(random_() % 700) + 1, first = writer.size();
            Matrix keys(rows, kDim);
            std::vector<std::int32_t> values;
            for (index_t i = 0; i < rows; ++i) {
                fill_row(keys[i], first + i, 0);
                values.push_back(value_of(first + i, 0));
            }
            say({Message::committing, first + rows});
            writer.append(keys, values);
            if (random_() % 4 == 0) writer.commit();
            say({Message::committed, writer.committed()});
        }
        wait_for_the_end();
    }

    [[noreturn]] void edit(std::vector<State> states) {
        Datastore store = Datastore::open(folder_, {.writable = true});
        std::vector<float> key(kDim);
        for (int i = 0; i < 400; ++i) {
            const auto id = static_cast<index_t>(random_() % states.size());
            State& state = states[static_cast<std::size_t>(id)];
            if (state.erased) continue;
            const bool erase = random_() % 8 == 0;
            say({Message::editing, 0, id, state.version + 1, erase});
            if (erase) {
                store.erase(id);
                state.erased = true;
            } else {
                ++state.version;
                fill_row(key, id, state.version);
                store.replace(id, key, value_of(id, state.version));
            }
            say({Message::edited, 0, id, state.version, erase});
            if (random_() % 16 == 0) store.commit();
        }
        wait_for_the_end();
    }

  private:
    DatastoreWriter make() {
        say({Message::creating});
        DatastoreOptions options;
        options.host.key_dim = kDim;
        options.host.vocab_size = kVocab;
        options.block_rows = 512;
        options.overwrite = true;
        DatastoreWriter writer = DatastoreWriter::create(folder_, options);
        say({Message::created});
        return writer;
    }
    void say(const Message& message) const {
        if (::write(pipe_, &message, sizeof message) != static_cast<ssize_t>(sizeof message)) std::_Exit(3);
    }
    [[noreturn]] static void wait_for_the_end() {
        for (;;) ::pause();
    }
    std::string folder_;
    int pipe_;
    std::mt19937 random_;
};

// ---- the parent ----

class Parent {
  public:
    Parent(std::string folder, unsigned seed) : folder_(std::move(folder)), random_(seed) {}

    void kill_once() {
        const bool create = !exists_ || rows_ > kMaxRows || (exists_ && random_() % 40 == 0);
        const bool edit = !create && rows_ > 0 && random_() % 3 == 0;
        int ends[2];
        if (::pipe(ends) != 0) fail_system("pipe", "create");
        const unsigned seed = random_();
        const pid_t pid = ::fork();
        if (pid < 0) fail_system("child", "start");
        if (pid == 0) {
            ::close(ends[0]);
            Child child(folder_, ends[1], seed);
            try {
                edit ? child.edit(states_) : child.append(create);
            } catch (const std::exception& e) {
                std::fprintf(stderr, "child: %s\n", e.what());
            }
            std::_Exit(2);
        }
        ::close(ends[1]);
        at_most_ = rows_;
        const auto end = std::chrono::steady_clock::now() +
                         std::chrono::microseconds(random_() % (random_() % 2 == 0 ? 40'000 : 200'000));
        const bool look = random_() % 4 == 0;
        while (listen(ends[0], end)) {
        }
        if (look) check(true); // as a reader beside the living writer
        ::kill(pid, SIGKILL);
        int status = 0;
        ::waitpid(pid, &status, 0);
        while (listen(ends[0], {})) { // what it said last
        }
        ::close(ends[0]);
        if (!WIFSIGNALED(status)) fail("the child ended by itself");
        check(false);
    }
    void report(int kills) const {
        std::printf("kills: %d, commits announced: %lld, edits announced: %lld, stores created: %lld\n", kills,
                    commits_, edits_, creations_);
    }

  private:
    /// Hears one message; false when the time is over or the pipe is empty and closed.
    bool listen(int pipe, std::chrono::steady_clock::time_point end) {
        Message m{};
        if (end.time_since_epoch().count() != 0) {
            const auto left =
                std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
            pollfd poll{pipe, POLLIN, 0};
            if (left <= 0 || ::poll(&poll, 1, static_cast<int>(left)) <= 0) return false;
        }
        if (::read(pipe, &m, sizeof m) != static_cast<ssize_t>(sizeof m)) return false;
        State* state =
            static_cast<std::size_t>(m.id) < states_.size() ? &states_[static_cast<std::size_t>(m.id)] : nullptr;
        switch (m.kind) {
        case Message::creating:
            creating_ = true;
            break;
        case Message::created:
            ++creations_;
            new_store();
            break;
        case Message::committing:
            at_most_ = m.rows;
            break;
        case Message::committed:
            commits_ += m.rows > rows_;
            grow(m.rows);
            break;
        case Message::editing:
            pending_ = m;
            break;
        case Message::edited:
            ++edits_;
            if (state == nullptr) fail("an edit of an entry that is not there");
            *state = {m.version, m.erase};
            pending_.reset();
            break;
        }
        return true;
    }
    void new_store() {
        creating_ = false;
        exists_ = true;
        rows_ = at_most_ = 0;
        states_.clear();
    }
    void grow(index_t rows) {
        rows_ = rows;
        states_.resize(static_cast<std::size_t>(rows));
    }

    void check(bool writer_lives) {
        if (!std::filesystem::exists(folder_ + "/mnemo.json")) {
            if (exists_ && !creating_) fail("the datastore is gone");
            if (!writer_lives) exists_ = creating_ = false;
            return;
        }
        // While a store is created under the old name, a reader may find parts of both.
        if (writer_lives && creating_) return;
        const Datastore store = Datastore::open(folder_, {.verify = true});
        if (creating_) {
            // Killed before it could say so: the old store, or the new one.
            if (store.size() == 0) new_store();
            creating_ = false;
        }
        exists_ = true;
        if (store.size() < rows_) fail("expected at least the ", rows_, " committed rows, got ", store.size());
        if (store.size() > at_most_ && !writer_lives) fail("expected at most ", at_most_, " rows, got ", store.size());
        std::vector<float> row(kDim), expected(kDim);
        for (index_t id = 0; id < store.size(); ++id) {
            State state =
                static_cast<std::size_t>(id) < states_.size() ? states_[static_cast<std::size_t>(id)] : State{};
            store.keys().read(id, row);
            const auto is = [&](index_t version) {
                fill_row(expected, id, version);
                return row == expected && store.value(id) == value_of(id, version);
            };
            // The edit that was going on has happened or not; beside a living editor, later ones have, too.
            const bool maybe = pending_ && pending_->id == id;
            if (maybe && !pending_->erase && is(pending_->version)) state.version = pending_->version;
            if (maybe && pending_->erase && store.erased().contains(id)) state.erased = true;
            if (writer_lives) {
                while (!is(state.version) && state.version < 10'000) ++state.version;
                state.erased = state.erased || store.erased().contains(id);
            }
            if (!is(state.version)) fail("row ", id, ": expected edition ", state.version, ", got something else");
            if (store.erased().contains(id) != state.erased) fail("row ", id, ": erased is wrong");
            if (!writer_lives && static_cast<std::size_t>(id) < states_.size())
                states_[static_cast<std::size_t>(id)] = state;
        }
        if (!writer_lives) {
            pending_.reset();
            grow(store.size());
        }
    }

    std::string folder_;
    std::mt19937 random_;
    bool exists_ = false, creating_ = false;
    index_t rows_ = 0, at_most_ = 0;
    std::vector<State> states_;
    std::optional<Message> pending_;
    long long commits_ = 0, edits_ = 0, creations_ = 0;
};

} // namespace

int main(int count, char** arguments) {
    const int kills = count > 1 ? std::atoi(arguments[1]) : 40;
    const unsigned seed = count > 2 ? static_cast<unsigned>(std::atoi(arguments[2])) : 1;
    Folder folder;
    int done = 0;
    try {
        Parent parent(folder / "store", seed);
        for (; done < kills; ++done) parent.kill_once();
        parent.report(kills);
    } catch (const std::exception& e) {
        folder.keep();
        std::fprintf(stderr, "after %d kills with seed %u: %s\nleft in %s\n", done, seed, e.what(),
                     folder.path().c_str());
        return 1;
    }
    return 0;
}
