// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/half.hpp>
#include <mnemo/core/matrix_view.hpp>
#include <mnemo/io/safetensors.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

// A golden fixture is a safetensors file whose metadata names a `case`; inputs are called `in.*` or `w.*`, expected
// outputs `out.*`. A handler, written with GOLDEN below, computes every output from the inputs and compares.
namespace golden {

using mnemo::index_t;

/// One fixture: its metadata and tensors, widened to what tests calculate in.
class Fixture {
  public:
    explicit Fixture(std::filesystem::path file)
        : file_(std::move(file)), tensors_(mnemo::SafeTensors::open(file_)), metadata_(tensors_.metadata()) {}

    const std::filesystem::path& file() const { return file_; }
    const mnemo::SafeTensors& tensors() const { return tensors_; }

    bool has_text(const std::string& field) const { return metadata_.count(field) != 0; }
    const std::string& text(const std::string& field) const {
        const auto found = metadata_.find(field);
        if (found == metadata_.end()) mnemo::fail("expected metadata `", field, "`, got none");
        return found->second;
    }
    index_t integer(const std::string& field) const { return std::stoll(text(field)); }
    double number(const std::string& field) const { return std::stod(text(field)); }
    bool flag(const std::string& field) const { return text(field) == "True" || text(field) == "true"; }
    /// Comma-separated items; the empty string is one empty item, as the fixtures' lists have it.
    std::vector<std::string> list(const std::string& field) const {
        std::vector<std::string> items(1);
        for (const char c : text(field))
            if (c == ',')
                items.emplace_back();
            else
                items.back() += c;
        return items;
    }
    /// The file that metadata `field` names, beside the fixture. Throws if it is missing: a fixture without its
    /// companion fails, it is not skipped.
    std::filesystem::path companion(const std::string& field) const {
        const auto path = file_.parent_path() / text(field);
        if (!std::filesystem::is_regular_file(path)) mnemo::fail("missing companion file ", path.filename().string());
        return path;
    }

    bool has(const std::string& tensor) const { return tensors_.find(tensor) != nullptr; }
    std::vector<index_t> shape(const std::string& tensor) const { return at(tensor).shape; }
    index_t size(const std::string& tensor, std::size_t axis) const { return at(tensor).shape.at(axis); }
    std::vector<std::string> names(std::string_view prefix) const {
        std::vector<std::string> found;
        for (const auto& entry : tensors_.entries())
            if (std::string_view(entry.name).substr(0, prefix.size()) == prefix) found.push_back(entry.name);
        return found;
    }
    /// All elements of a tensor of any type as T. Narrowing integers that do not fit is an error.
    template <class T> std::vector<T> values(const std::string& tensor) const {
        const auto& entry = at(tensor);
        if (entry.dtype == "F32") return as<T, float>(entry);
        if (entry.dtype == "F64") return as<T, double>(entry);
        if (entry.dtype == "F16") return as<T, mnemo::half>(entry);
        if (entry.dtype == "BF16") return as<T, mnemo::bfloat16>(entry);
        if (entry.dtype == "I64") return as<T, std::int64_t>(entry);
        if (entry.dtype == "I32") return as<T, std::int32_t>(entry);
        if (entry.dtype == "I16") return as<T, std::int16_t>(entry);
        if (entry.dtype == "I8") return as<T, std::int8_t>(entry);
        if (entry.dtype == "U8" || entry.dtype == "BOOL") return as<T, std::uint8_t>(entry);
        mnemo::fail(tensor, ": expected a floating-point or integer type, got ", entry.dtype);
    }
    std::vector<float> floats(const std::string& tensor) const { return values<float>(tensor); }
    std::vector<index_t> ids(const std::string& tensor) const { return values<index_t>(tensor); }
    std::vector<std::int32_t> tokens(const std::string& tensor) const { return values<std::int32_t>(tensor); }
    /// The tensor as [product of all axes but the last, last axis].
    mnemo::Matrix matrix(const std::string& tensor) const {
        const auto dims = shape(tensor);
        mnemo::Matrix out(0, dims.empty() ? 1 : dims.back());
        out.data = floats(tensor);
        out.rows = out.cols == 0 ? 0 : static_cast<index_t>(out.data.size()) / out.cols;
        return out;
    }

  private:
    const mnemo::Entry& at(const std::string& tensor) const { return tensors_.at(tensor); }
    template <class T, class Stored> static std::vector<T> as(const mnemo::Entry& entry) {
        std::vector<T> out(entry.bytes.size() / sizeof(Stored));
        for (std::size_t i = 0; i < out.size(); ++i) {
            Stored x;
            std::memcpy(&x, entry.bytes.data() + i * sizeof(Stored), sizeof(Stored));
            if constexpr (std::is_same_v<Stored, mnemo::half> || std::is_same_v<Stored, mnemo::bfloat16>)
                out[i] = static_cast<T>(mnemo::to_float(x));
            else
                out[i] = static_cast<T>(x);
            if constexpr (std::is_integral_v<T> && std::is_integral_v<Stored>)
                if (static_cast<std::int64_t>(out[i]) != static_cast<std::int64_t>(x))
                    mnemo::fail(entry.name, ": value ", x, " does not fit the type it is read as");
        }
        return out;
    }
    std::filesystem::path file_;
    mnemo::SafeTensors tensors_;
    std::map<std::string, std::string> metadata_;
};

/// |got - expected| <= absolute + relative * |expected|. NaN equals NaN, an infinity only itself.
struct Tolerance {
    double absolute = 0, relative = 0;
};

/// Collects what differs. Every `out.*` tensor must be compared or passed over by name: a handler that forgets one
/// fails.
class Check {
  public:
    explicit Check(const Fixture& fixture) : fixture_(fixture) {}

    /// All elements of tensor `name`.
    template <class Got> void close(const std::string& name, const Got& got, Tolerance tolerance) {
        close(name, got, fixture_.values<double>(name), tolerance);
    }
    /// A part of tensor `name`, or numbers derived from it.
    template <class Got, class Expected>
    void close(const std::string& name, const Got& got, const Expected& expected, Tolerance tolerance) {
        seen_.insert(name);
        if (got.size() != expected.size())
            return failed(mnemo::text(name, ": expected ", expected.size(), " values, got ", got.size()));
        double worst = -1;
        std::size_t at = 0, count = 0;
        for (std::size_t i = 0; i < expected.size(); ++i) {
            const double g = static_cast<double>(got[i]), e = static_cast<double>(expected[i]);
            if (g == e || (std::isnan(g) && std::isnan(e))) continue;
            const double error = std::abs(g - e);
            if (error <= tolerance.absolute + tolerance.relative * std::abs(e) && std::isfinite(e)) continue;
            ++count;
            const double rank = std::isnan(error) ? HUGE_VAL : error;
            if (rank > worst) worst = rank, at = i;
        }
        if (count > 0)
            failed(mnemo::text(name, ": ", count, " of ", expected.size(), " differ, worst error ", worst, " at [", at,
                               "]: got ", static_cast<double>(got[at]), ", expected ",
                               static_cast<double>(expected[at]), ", tolerance ", tolerance.absolute, " + ",
                               tolerance.relative, " relative"));
    }
    /// Exact integers.
    template <class Got> void equal(const std::string& name, const Got& got) { equal(name, got, fixture_.ids(name)); }
    template <class Got, class Expected> void equal(const std::string& name, const Got& got, const Expected& expected) {
        seen_.insert(name);
        if (got.size() != expected.size())
            return failed(mnemo::text(name, ": expected ", expected.size(), " values, got ", got.size()));
        for (std::size_t i = 0; i < expected.size(); ++i)
            if (static_cast<index_t>(got[i]) != static_cast<index_t>(expected[i]))
                return failed(mnemo::text(name, ": at [", i, "] got ", got[i], ", expected ", expected[i],
                                          ", tolerance 0 (exact)"));
    }
    /// A condition on tensor `name` that is no comparison of numbers.
    void that(const std::string& name, bool ok, std::string_view expectation) {
        seen_.insert(name);
        if (!ok) failed(mnemo::text(name, ": expected ", expectation));
    }
    /// Tensor `name` is not compared by itself, for the reason given.
    void passed_over(const std::string& name, [[maybe_unused]] std::string_view reason) { seen_.insert(name); }

    void failed(std::string line) { failures_.push_back(std::move(line)); }
    /// All lines, after checking that no output was forgotten.
    const std::vector<std::string>& finish() {
        const auto outputs = fixture_.names("out.");
        for (const auto& name : outputs)
            if (seen_.count(name) == 0) failed(name + ": the handler did not compare this tensor");
        if (seen_.empty()) failed("the handler compared nothing");
        return failures_;
    }

  private:
    const Fixture& fixture_;
    std::set<std::string> seen_;
    std::vector<std::string> failures_;
};

using Handler = void (*)(const Fixture&, Check&);
inline std::map<std::string, Handler>& handlers() {
    static std::map<std::string, Handler> all;
    return all;
}
struct Register {
    Register(const char* case_name, Handler handler) { handlers()[case_name] = handler; }
};

/// A folder with a manifest.json of case `hosts.bad` is one fixture: files that are broken on purpose, each with the
/// `kind` of reader it is for. A reader, written with BAD_FILES below, opens one file and returns what it read, or
/// throws the library's Error. The runner compares: `expect` error, ok or ok_or_clear_error, and every value that the
/// entry states.
using Reader = nlohmann::json (*)(const std::filesystem::path& file, const nlohmann::json& entry);
inline std::map<std::string, Reader>& readers() {
    static std::map<std::string, Reader> all;
    return all;
}
struct RegisterReader {
    RegisterReader(const char* kind, Reader reader) { readers()[kind] = reader; }
};

/// What differs in one entry; empty if nothing does.
inline std::string bad_file_failure(const std::filesystem::path& folder, const nlohmann::json& entry, Reader reader) {
    const std::string name = entry.at("file"), expect = entry.at("expect");
    // Fields of the manifest that are no values of the file.
    static const std::set<std::string> about = {"file", "kind", "expect",        "reason", "stage",
                                                "note", "row",  "python_reader", "column"};
    if (!std::filesystem::exists(folder / name)) return "the file is missing";
    nlohmann::json got;
    try {
        got = reader(folder / name, entry);
    } catch (const mnemo::Error& error) {
        const std::string message = error.what();
        if (expect == "ok") return "expected to be read, got: " + message;
        if (message.find(name) == std::string::npos) return "expected the name of the file, got: " + message;
        return {};
    } catch (const std::exception& error) {
        return mnemo::text("expected the library's Error, got another exception: ", error.what());
    }
    if (expect == "error") return "expected an Error, got " + got.dump();
    const auto same = [](auto&& self, const nlohmann::json& a, const nlohmann::json& b) -> bool {
        if (a.is_number() && b.is_number())
            return std::abs(a.get<double>() - b.get<double>()) <= 1e-6 * (1 + std::abs(b.get<double>()));
        if (a.type() != b.type() || !a.is_structured() || a.size() != b.size()) return a == b;
        for (auto x = a.begin(), y = b.begin(); x != a.end(); ++x, ++y)
            if ((a.is_object() && x.key() != y.key()) || !self(self, *x, *y)) return false;
        return true;
    };
    for (const auto& [field, expected] : entry.items()) {
        if (about.count(field) != 0) continue;
        if (!got.contains(field)) return "the reader did not say its `" + field + "`";
        if (!same(same, got.at(field), expected))
            return field + ": expected " + expected.dump() + ", got " + got.at(field).dump();
    }
    return {};
}

} // namespace golden

/// BAD_FILES("kind") { ... } reads one file of that kind; `file` and `entry` are its arguments, it returns an object.
#define BAD_FILES(kind) MNEMO_GOLDEN_NUMBERED(MNEMO_BAD_FILES, kind, __COUNTER__)
/// GOLDEN("topic.kind") { ... } is the handler of all fixtures of that case; `fixture` and `check` are its arguments.
#define GOLDEN(case_name) MNEMO_GOLDEN_NUMBERED(MNEMO_GOLDEN_HANDLER, case_name, __COUNTER__)
#define MNEMO_GOLDEN_NUMBERED(macro, name, number) macro(name, number)
#define MNEMO_BAD_FILES(kind, n)                                                                                       \
    static nlohmann::json bad_files_##n(const std::filesystem::path&, const nlohmann::json&);                          \
    static const golden::RegisterReader bad_files_register_##n{kind, bad_files_##n};                                   \
    static nlohmann::json bad_files_##n([[maybe_unused]] const std::filesystem::path& file,                            \
                                        [[maybe_unused]] const nlohmann::json& entry)
#define MNEMO_GOLDEN_HANDLER(case_name, n)                                                                             \
    static void golden_handler_##n(const golden::Fixture& fixture, golden::Check& check);                              \
    static const golden::Register golden_register_##n{case_name, golden_handler_##n};                                  \
    static void golden_handler_##n([[maybe_unused]] const golden::Fixture& fixture, golden::Check& check)
