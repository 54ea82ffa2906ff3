// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace mnemo {

static_assert(std::endian::native == std::endian::little, "mnemo: the file formats are read as little-endian memory");

/// Throws Error("mnemo: <path>: cannot <action>: <what the system says>"); reads errno.
[[noreturn]] inline void fail_system(std::string_view path, std::string_view action, int code = errno) {
    fail(path, ": cannot ", action, ": ", std::generic_category().message(code));
}

/// `name` for a message: in quotes, control characters replaced, at most 80 bytes of it.
inline std::string in_quotes(std::string_view name) {
    std::string out = "\"";
    for (const char c : name.substr(0, 80)) out += static_cast<unsigned char>(c) < 32 || c == 127 ? '?' : c;
    return out += name.size() > 80 ? "...\"" : "\"";
}

/// The bytes of anything contiguous.
template <class T> std::span<const std::byte> bytes_of(std::span<const T> values) { return std::as_bytes(values); }
inline std::span<const std::byte> bytes_of(std::string_view s) {
    return std::as_bytes(std::span<const char>(s.data(), s.size()));
}

/// An open file that closes itself. Every failure is an Error with the path and the system's reason.
class File {
  public:
    File() = default;
    /// `flags` as open(2); new files get the permissions that the umask leaves.
    File(std::string path, int flags) : path_(std::move(path)) {
        do fd_ = ::open(path_.c_str(), flags | O_CLOEXEC, 0666);
        while (fd_ < 0 && errno == EINTR);
        if (fd_ < 0) fail_system(path_, (flags & O_CREAT) != 0 ? "create" : "open");
    }
    File(File&& other) noexcept : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}
    File& operator=(File&& other) noexcept {
        std::swap(path_, other.path_), std::swap(fd_, other.fd_);
        return *this;
    }
    ~File() { close(); }

    bool is_open() const { return fd_ >= 0; }
    int descriptor() const { return fd_; }
    const std::string& path() const { return path_; }
    void close() {
        if (fd_ >= 0) ::close(std::exchange(fd_, -1));
    }

    /// Size in bytes; a folder, pipe or device is refused.
    std::uint64_t size() const {
        struct stat status {};
        if (::fstat(fd_, &status) != 0) fail_system(path_, "read its size");
        if (!S_ISREG(status.st_mode))
            fail(path_, ": expected a file, got a ", S_ISDIR(status.st_mode) ? "folder" : "device or pipe");
        return static_cast<std::uint64_t>(status.st_size);
    }
    /// Writes all of `bytes` at `offset`.
    void write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
        while (!bytes.empty()) {
            const auto n = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) fail_system(path_, "write", n == 0 ? ENOSPC : errno);
            offset += static_cast<std::uint64_t>(n);
            bytes = bytes.subspan(static_cast<std::size_t>(n));
        }
    }
    /// Fills `bytes` from `offset`; a file that ends before is an Error.
    void read_at(std::uint64_t offset, std::span<std::byte> bytes) const {
        while (!bytes.empty()) {
            const auto n = ::pread(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) fail_system(path_, "read");
            if (n == 0)
                fail(path_, ": expected ", bytes.size(), " more bytes at ", offset, ", got the end of the file");
            offset += static_cast<std::uint64_t>(n);
            bytes = bytes.subspan(static_cast<std::size_t>(n));
        }
    }
    void truncate(std::uint64_t size) {
        if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) fail_system(path_, "truncate");
    }
    /// Returns when the contents are on the disk (fdatasync: also the size, not the times).
    void sync() {
        if (::fdatasync(fd_) != 0) fail_system(path_, "flush to disk");
    }

  private:
    std::string path_;
    int fd_ = -1;
};

/// How a map will be read; a hint to the system's read-ahead.
enum class Access { normal, sequential, random };

/// A file mapped for reading. The map lives as long as the object and does not move with it. A file that another
/// program shortens meanwhile ends the process when the lost part is read (SIGBUS): formats that grow are only
/// appended.
class MappedFile {
  public:
    MappedFile() = default;
    static MappedFile open(const std::string& path, Access access = Access::normal) {
        const File file(path, O_RDONLY);
        return map(file, file.size(), access);
    }
    /// The first `size` bytes of an open file that has at least as many.
    static MappedFile map(const File& file, std::uint64_t size, Access access = Access::normal) {
        return map(file, size, access, PROT_READ, MAP_SHARED);
    }
    /// The same, but writable() for this process alone: changed pages are copied, the file stays as it is.
    static MappedFile map_private(const File& file, std::uint64_t size, Access access = Access::normal) {
        return map(file, size, access, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE);
    }
    MappedFile(MappedFile&& other) noexcept
        : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)),
          size_(std::exchange(other.size_, 0)) {}
    MappedFile& operator=(MappedFile&& other) noexcept {
        std::swap(path_, other.path_), std::swap(data_, other.data_), std::swap(size_, other.size_);
        return *this;
    }
    ~MappedFile() {
        if (data_ != nullptr) ::munmap(data_, size_);
    }

    const std::string& path() const { return path_; }
    std::span<const std::byte> bytes() const { return {data_, size_}; }
    /// The bytes of a private map.
    std::span<std::byte> writable() { return {data_, size_}; }
    void advise(Access access) const {
        if (data_ == nullptr) return;
        ::madvise(data_, size_,
                  access == Access::random       ? MADV_RANDOM
                  : access == Access::sequential ? MADV_SEQUENTIAL
                                                 : MADV_NORMAL);
    }
    /// Gives whole pages of a part back to the system; they are read again when they are needed. For maps of read-only
    /// contents that are larger than the memory a program wants to take.
    void release(std::uint64_t offset, std::uint64_t size) const {
        constexpr std::uint64_t page = 4096;
        const std::uint64_t end = std::min<std::uint64_t>(offset + size, size_);
        const std::uint64_t from = (offset + page - 1) / page * page, to = end == size_ ? end : end / page * page;
        if (data_ != nullptr && from < to) ::madvise(data_ + from, static_cast<std::size_t>(to - from), MADV_DONTNEED);
    }

  private:
    static MappedFile map(const File& file, std::uint64_t size, Access access, int protection, int flags) {
        MappedFile map;
        map.path_ = file.path();
        if (size > PTRDIFF_MAX) fail(file.path(), ": too large to map: ", size, " bytes");
        if (size == 0) return map; // nothing to map, and mmap refuses it
        void* data = ::mmap(nullptr, static_cast<std::size_t>(size), protection, flags, file.descriptor(), 0);
        if (data == MAP_FAILED) fail_system(file.path(), "map");
        map.data_ = static_cast<std::byte*>(data), map.size_ = static_cast<std::size_t>(size);
        map.advise(access);
        return map;
    }
    std::string path_;
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

/// The folder that `path` lies in.
inline std::string parent_folder(const std::string& path) {
    const auto slash = path.find_last_of('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

/// Makes created, renamed and removed names of `folder` last.
inline void sync_folder(const std::string& folder) {
    File handle(folder, O_RDONLY | O_DIRECTORY);
    // Some network file systems cannot sync a folder and say EINVAL; the rename is as safe as it gets there.
    if (::fsync(handle.descriptor()) != 0 && errno != EINVAL) fail_system(folder, "flush to disk");
}

/// A file that appears under its name at `commit`, complete and on the disk, or not at all.
class AtomicFile {
  public:
    explicit AtomicFile(std::string path) : AtomicFile(path, unique_name(path)) {}
    /// With a temporary name of the caller's, who knows that nobody else uses it.
    AtomicFile(std::string path, std::string temporary)
        : path_(std::move(path)), file_(std::move(temporary), O_RDWR | O_CREAT | O_TRUNC) {}
    AtomicFile(AtomicFile&&) = default;
    AtomicFile& operator=(AtomicFile&&) = default;
    ~AtomicFile() {
        if (file_.is_open()) ::unlink(file_.path().c_str());
    }

    void write(std::span<const std::byte> bytes) {
        file_.write_at(size_, bytes);
        size_ += bytes.size();
    }
    /// Overwrites, for headers that are known last.
    void write_at(std::uint64_t offset, std::span<const std::byte> bytes) { file_.write_at(offset, bytes); }
    std::uint64_t size() const { return size_; }
    const std::string& path() const { return path_; }
    void commit() {
        file_.sync();
        if (::rename(file_.path().c_str(), path_.c_str()) != 0) fail_system(path_, "rename the finished file");
        file_.close();
        sync_folder(parent_folder(path_));
    }

  private:
    static std::string unique_name(const std::string& path) {
        static std::atomic<unsigned> counter{0};
        return text(path, ".tmp-", ::getpid(), "-", counter++);
    }
    std::string path_;
    File file_;
    std::uint64_t size_ = 0;
};

/// Replaces `path` by `bytes`: readers, and a machine that loses power, see the old file or the new one.
inline void atomic_write(const std::string& path, std::span<const std::byte> bytes) {
    AtomicFile file(path);
    file.write(bytes);
    file.commit();
}
inline void atomic_write(const std::string& path, std::string_view contents) { atomic_write(path, bytes_of(contents)); }

/// The whole file; one larger than `limit` bytes is refused before anything is allocated.
inline std::string read_file(const std::string& path, std::uint64_t limit = std::uint64_t{1} << 30) {
    const File file(path, O_RDONLY);
    const std::uint64_t size = file.size();
    if (size > limit) fail(path, ": expected at most ", limit, " bytes, got ", size);
    std::string contents(static_cast<std::size_t>(size), '\0');
    file.read_at(0, std::as_writable_bytes(std::span<char>(contents)));
    return contents;
}

/// Makes this process the only one that holds the lock file `path`, until the returned file is closed; `what` is the
/// thing locked, for the message. The lock ends with the process, however it ends.
inline File lock_file(const std::string& path, std::string_view what) {
    File file(path, O_RDWR | O_CREAT);
    if (::flock(file.descriptor(), LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) fail(what, ": another writer has it open");
        fail_system(path, "lock");
    }
    return file;
}

/// Removes a file if it exists.
inline void remove_file(const std::string& path) {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) fail_system(path, "remove");
}

/// Whether something of that name exists.
inline bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

} // namespace mnemo
