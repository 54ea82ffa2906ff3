// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo {

/// Values drawn in one colour. A bar chart takes y alone, one for each group; NaN is a gap.
struct Series {
    std::string name;
    std::vector<double> x, y;
    bool dashed = false;
    int colour = -1; // a place in the palette; -1: that of the series
};

namespace detail {

inline std::string xml(std::string_view s) {
    std::string out;
    for (const char c : s) {
        if (c == '<')
            out += "&lt;";
        else if (c == '>')
            out += "&gt;";
        else if (c == '&')
            out += "&amp;";
        else if (c == '"')
            out += "&quot;";
        else
            out += c;
    }
    return out;
}

/// A number range and the pixels it is drawn on.
struct Axis {
    double low, high; // logarithms on a logarithmic axis
    double from, to;  // pixels
    bool log;

    /// Covers the finite `values`, and zero on a linear axis if `zero`.
    Axis(const std::vector<double>& values, bool logarithmic, bool zero, double a, double b)
        : low(std::numeric_limits<double>::infinity()), high(-low), from(a), to(b), log(logarithmic) {
        for (const double v : values) {
            if (!std::isfinite(v) || (log && v <= 0)) continue;
            const double u = log ? std::log10(v) : v;
            low = std::min(low, u), high = std::max(high, u);
        }
        if (!(low <= high)) low = 0, high = 1; // nothing to draw
        if (zero && !log) low = std::min(low, 0.0), high = std::max(high, 0.0);
        if (high - low < 1e-12) low -= 0.5, high += 0.5;
    }
    double operator()(double v) const {
        const double u = log ? std::log10(v) : v;
        return from + (to - from) * (u - low) / (high - low);
    }
    /// 5 to 10 round numbers; on a logarithmic axis 1, 2, 5 of each power of ten, or the powers alone if many.
    std::vector<double> ticks() const {
        std::vector<double> out;
        if (log && high - low > 0.7) {
            for (double power = std::floor(low); power <= high; ++power)
                for (const double digit : {1.0, 2.0, 5.0}) {
                    const double v = digit * std::pow(10.0, power), u = std::log10(v);
                    if (u >= low - 1e-9 && u <= high + 1e-9 && (digit == 1 || high - low < 3)) out.push_back(v);
                }
            return out;
        }
        const double first = log ? std::pow(10.0, low) : low, last = log ? std::pow(10.0, high) : high;
        const double rough = (last - first) / 5, power = std::pow(10.0, std::floor(std::log10(rough)));
        const double step = power * (rough / power < 1.5 ? 1 : rough / power < 3.5 ? 2 : rough / power < 7.5 ? 5 : 10);
        for (double i = std::ceil(first / step - 1e-9); i * step <= last + step * 1e-9; ++i) out.push_back(i * step);
        return out;
    }
    /// Stretches a linear axis to its outer ticks.
    Axis& rounded() {
        const std::vector<double> t = ticks();
        if (log || t.size() < 2) return *this;
        const double step = t[1] - t[0];
        low = std::floor(low / step + 1e-9) * step, high = std::ceil(high / step - 1e-9) * step;
        return *this;
    }
};

inline std::string tick_text(double v) {
    const double size = std::abs(v);
    if (size >= 1e6) return fmt::format("{:g}M", v / 1e6);
    if (size >= 1e4) return fmt::format("{:g}k", v / 1e3);
    return fmt::format("{:.6g}", std::abs(v) < 1e-12 ? 0.0 : v);
}

/// What both kinds of chart share: frame, title, axis titles, legend.
struct Canvas {
    static constexpr double width = 720, height = 440, left = 72, right = 700, top = 92, bottom = 380;
    // Distinguishable with the common kinds of colour blindness, and printed in grey.
    static constexpr std::array<const char*, 8> colours{"#3366aa", "#ee7733", "#228833", "#cc3377",
                                                        "#66ccee", "#997700", "#7755bb", "#777777"};
    std::string out;

    Canvas(std::string_view title, std::string_view x_label, std::string_view y_label) {
        out = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
                          "height=\"{1}\" font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', "
                          "sans-serif\" font-size=\"13\" fill=\"#222\">\n"
                          "<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n",
                          width, height);
        label(left, 32, "start", title, "font-size=\"17\" font-weight=\"600\"");
        label((left + right) / 2, bottom + 44, "middle", x_label);
        label(0, 0, "middle", y_label, fmt::format("transform=\"translate(20 {}) rotate(-90)\"", (top + bottom) / 2));
    }
    static const char* colour(const std::vector<Series>& all, std::size_t i) {
        return colours[(all[i].colour < 0 ? i : static_cast<std::size_t>(all[i].colour)) % colours.size()];
    }
    void label(double x, double y, std::string_view anchor, std::string_view text, std::string_view more = "") {
        out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y, anchor, more,
                           xml(text));
    }
    void line(double x1, double y1, double x2, double y2, std::string_view stroke) {
        out += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>\n", x1, y1,
                           x2, y2, stroke);
    }
    void y_ticks(const Axis& y) {
        for (const double v : y.ticks()) {
            line(left, y(v), right, y(v), "#e4e4e4");
            label(left - 8, y(v) + 4.5, "end", tick_text(v), "fill=\"#555\"");
        }
    }
    void x_ticks(const Axis& x) {
        for (const double v : x.ticks()) {
            line(x(v), bottom, x(v), bottom + 5, "#888");
            label(x(v), bottom + 20, "middle", tick_text(v), "fill=\"#555\"");
        }
    }
    void legend(const std::vector<Series>& series) {
        double x = left, y = 60;
        for (std::size_t i = 0; i < series.size(); ++i) {
            const double needed = 46 + 7.4 * static_cast<double>(series[i].name.size());
            if (x > left && x + needed > right) x = left, y += 18;
            out += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
                               "stroke-width=\"4\"{}/>\n",
                               x, y - 4, x + 18, y - 4, colour(series, i),
                               series[i].dashed ? " stroke-dasharray=\"5 3\"" : "");
            label(x + 24, y, "start", series[i].name);
            x += needed;
        }
    }
    std::string finish() {
        line(left, bottom, right, bottom, "#888");
        return out + "</svg>\n";
    }
};

} // namespace detail

/// Lines over a common x; `svg()` is a whole document. On a logarithmic axis values <= 0 are left out.
struct LineChart {
    std::string title = "", x_label = "", y_label = "";
    bool log_x = false, log_y = false;
    std::vector<Series> series = {};

    std::string svg() const {
        using namespace detail;
        std::vector<double> xs, ys;
        for (const Series& s : series) {
            if (s.x.size() != s.y.size()) fail("chart: ", s.name, ": ", s.x.size(), " x and ", s.y.size(), " y");
            xs.insert(xs.end(), s.x.begin(), s.x.end()), ys.insert(ys.end(), s.y.begin(), s.y.end());
        }
        Canvas canvas(title, x_label, y_label);
        const Axis x(xs, log_x, false, Canvas::left + 8, Canvas::right - 8);
        const Axis y = Axis(ys, log_y, false, Canvas::bottom - 6, Canvas::top).rounded();
        canvas.y_ticks(y), canvas.x_ticks(x);
        for (std::size_t i = 0; i < series.size(); ++i) {
            const Series& s = series[i];
            std::string path, dots;
            bool pen_down = false;
            for (std::size_t j = 0; j < s.x.size(); ++j) {
                const bool drawn =
                    std::isfinite(s.x[j]) && std::isfinite(s.y[j]) && (!log_x || s.x[j] > 0) && (!log_y || s.y[j] > 0);
                if (drawn) {
                    path += fmt::format("{}{:.1f} {:.1f}", pen_down ? "L" : "M", x(s.x[j]), y(s.y[j]));
                    dots += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\"/>", x(s.x[j]), y(s.y[j]));
                }
                pen_down = drawn;
            }
            canvas.out += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2.2\" "
                                      "stroke-linejoin=\"round\"{}/>\n",
                                      path, Canvas::colour(series, i), s.dashed ? " stroke-dasharray=\"6 4\"" : "");
            if (!s.dashed) canvas.out += fmt::format("<g fill=\"{}\">{}</g>\n", Canvas::colour(series, i), dots);
        }
        canvas.legend(series);
        return canvas.finish();
    }
};

/// Groups of bars, one bar for each series, with their values above them; `svg()` is a whole document. Bars of a
/// logarithmic chart begin at the power of ten below the smallest value.
struct BarChart {
    std::string title = "", y_label = "";
    bool log_y = false;
    std::vector<std::string> groups = {};
    std::vector<Series> series = {};

    std::string svg() const {
        using namespace detail;
        std::vector<double> ys;
        for (const Series& s : series) {
            if (s.y.size() != groups.size())
                fail("chart: ", s.name, ": ", s.y.size(), " bars, ", groups.size(), " groups");
            ys.insert(ys.end(), s.y.begin(), s.y.end());
        }
        Canvas canvas(title, "", y_label);
        Axis y = Axis(ys, log_y, true, Canvas::bottom, Canvas::top + 14).rounded();
        if (log_y) y.low = std::floor(y.low - 1e-9);
        canvas.y_ticks(y);
        const double group =
            (Canvas::right - Canvas::left) / static_cast<double>(std::max<std::size_t>(groups.size(), 1));
        const double bar = 0.8 * group / static_cast<double>(std::max<std::size_t>(series.size(), 1));
        const double floor = log_y ? Canvas::bottom : y(0);
        for (std::size_t g = 0; g < groups.size(); ++g) {
            const double start = Canvas::left + group * (static_cast<double>(g) + 0.1);
            for (std::size_t i = 0; i < series.size(); ++i) {
                const double v = series[i].y[g], x = start + bar * static_cast<double>(i);
                if (!std::isfinite(v) || (log_y && v <= 0)) continue;
                canvas.out +=
                    fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"1.5\" "
                                "fill=\"{}\"/>\n",
                                x + 1, std::min(y(v), floor), std::max(bar - 2, 1.0), std::abs(floor - y(v)),
                                Canvas::colour(series, i));
                canvas.label(x + bar / 2, std::min(y(v), floor) - 5, "middle", fmt::format("{:.3g}", v),
                             "font-size=\"11\" fill=\"#444\"");
            }
            canvas.label(start + 0.4 * group, Canvas::bottom + 20, "middle", groups[g]);
        }
        canvas.legend(series);
        return canvas.finish();
    }
};

} // namespace mnemo
