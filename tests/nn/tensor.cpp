// SPDX-License-Identifier: MIT
#include <mnemo/nn/tensor.hpp>

#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <catch.hpp>
#include <error_of.hpp>
#include <torch/types.h>

#include <limits>

namespace {

using mnemo::index_t;

struct Store {
    using value_type = std::int32_t;
    mnemo::Matrix rows{5, 3};
    index_t key_dim() const { return 3; }
    index_t size() const { return 5; }
    std::int32_t value(index_t i) const { return static_cast<std::int32_t>(i); }
    mnemo::Rows keys() const { return rows; }
};

// Answers with the first query's columns as scores, so that a test sees what arrived.
struct Echo {
    mnemo::Hits retrieve(const mnemo::AssociativeStore auto& store, mnemo::Rows q) const {
        return retrieve(store, q, {});
    }
    mnemo::Hits retrieve(const mnemo::AssociativeStore auto&, mnemo::Rows q, mnemo::Hits&& spare) const {
        spare.clear();
        for (index_t i = 0; i < q.rows; ++i) {
            for (index_t j = 0; j < q.cols; ++j) spare.push(j, q[i][static_cast<std::size_t>(j)]);
            spare.end_row();
        }
        return std::move(spare);
    }
};

} // namespace

TEST_CASE("tensors are seen as rows without a copy") {
    auto t = torch::arange(12, torch::kFloat).reshape({3, 4});
    const auto rows = mnemo::nn::as_rows(t);
    CHECK(rows.data == t.data_ptr<float>());
    CHECK((rows.rows == 3 && rows.cols == 4 && rows.stride == 4));
    const auto slice = mnemo::nn::as_rows(t.narrow(1, 1, 2));
    CHECK((slice.rows == 3 && slice.cols == 2 && slice.stride == 4));
    CHECK(slice[2][0] == 9.0f);
    mnemo::nn::as_mut_rows(t)[1][2] = -1.0f;
    CHECK(t[1][2].item<float>() == -1.0f);
    CHECK(mnemo::nn::as_rows(torch::zeros({0, 7})).rows == 0);
    CHECK(mnemo::nn::as_rows(t.select(1, 2).unsqueeze(1))[2][0] == 10.0f); // one column, whatever its stride
}

TEST_CASE("tensors that are no rows are refused in words") {
    using mnemo::nn::as_mut_rows, mnemo::nn::as_rows;
    CHECK(error_of([] {
              as_rows(torch::zeros({2, 3}, torch::kDouble));
          }) == "mnemo: expected a Float [rows, cols] tensor on cpu, got Double [2, 3] on cpu");
    CHECK(error_of([] {
              as_rows(torch::zeros({2, 3, 4}));
          }) == "mnemo: expected a Float [rows, cols] tensor on cpu, got Float [2, 3, 4] on cpu");
    CHECK(error_of([] { as_rows(at::Tensor()); }) ==
          "mnemo: expected a Float [rows, cols] tensor on cpu, got an undefined tensor");
    CHECK(error_of([] {
              as_rows(torch::zeros({2, 3}).t());
          }) == "mnemo: expected a tensor whose rows are contiguous, got strides [1, 3]; call contiguous() first");
    CHECK(error_of([] {
              as_mut_rows(torch::zeros({1, 3}).expand({4, 3}));
          }) == "mnemo: expected a tensor that can be written, got rows that overlap (stride 0 for 3 columns)");
    CHECK(error_of([] {
              as_mut_rows(torch::zeros({2, 3}).requires_grad_());
          }) == "mnemo: expected a tensor that can be written in place, got one that requires gradients");
}

TEST_CASE("a retriever for rows serves tensors") {
    const Store store;
    const mnemo::nn::Detached detached{Echo{}};
    static_assert(mnemo::RetrieverFor<mnemo::nn::Detached<Echo>, Store, at::Tensor>);
    static_assert(mnemo::RecyclingRetrieverFor<mnemo::nn::Detached<Echo>, Store, at::Tensor>);
    // Double, transposed and with gradients: all of it is undone for the search.
    const auto q = torch::arange(6, torch::kDouble).reshape({3, 2}).t().requires_grad_();
    auto hits = detached.retrieve(store, q);
    REQUIRE(hits.rows() == 2);
    CHECK(hits.scores(1)[2] == 5.0f);
    const float* buffer = hits.scores(0).data();
    hits = mnemo::retrieve_into(detached, store, q, std::move(hits));
    CHECK(hits.scores(0).data() == buffer);
    CHECK(error_of([&] { detached.retrieve(store, torch::zeros({3})); }) ==
          "mnemo: queries: expected a tensor [rows, d], got Float [3] on cpu");
}
