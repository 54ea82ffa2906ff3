// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/retrieve/settings.hpp>

#include <concepts>
#include <memory>
#include <typeinfo>
#include <utility>

namespace mnemo {

/// A retriever that is chosen at run time, for a Store that is known: one virtual call a batch. It takes any retriever
/// from rows to a recall of entries; what is no Hits is copied into them. Copies share the retriever, which is const.
template <class Store> class AnyRetriever {
  public:
    template <class R>
        requires(!std::same_as<std::remove_cvref_t<R>, AnyRetriever> && RetrieverFor<R, Store, Rows>)
    AnyRetriever(R retriever) : chosen_(std::make_shared<const Model<R>>(std::move(retriever))) {
        static_assert(AssociativeRecall<recall_t<R, Store, Rows>>, "mnemo: AnyRetriever takes retrievers of entries");
    }

    /// That of the retriever; an Error where it has none.
    index_t k() const { return chosen_->k(); }
    /// Those of the retriever, with the name of its type.
    RetrieverSettings settings() const { return chosen_->settings(); }
    Hits retrieve(const Store& store, Rows queries) const { return chosen_->retrieve(store, queries, Hits{}); }
    Hits retrieve(const Store& store, Rows queries, Hits spare) const {
        return chosen_->retrieve(store, queries, std::move(spare));
    }

  private:
    struct Interface {
        virtual ~Interface() = default;
        virtual Hits retrieve(const Store&, Rows, Hits&&) const = 0;
        virtual index_t k() const = 0;
        virtual RetrieverSettings settings() const = 0;
    };
    template <class R> struct Model final : Interface {
        explicit Model(R r) : retriever(std::move(r)) {}
        Hits retrieve(const Store& store, Rows queries, Hits&& spare) const override {
            if constexpr (std::same_as<recall_t<R, Store, Rows>, Hits>) {
                return retrieve_into(retriever, store, queries, std::move(spare));
            } else {
                const auto found = retriever.retrieve(store, queries);
                spare.clear();
                for (index_t row = 0; row < found.rows(); ++row) {
                    for_each_hit(found, row, [&](index_t id, float score) { spare.push(id, score); });
                    spare.end_row();
                }
                return std::move(spare);
            }
        }
        index_t k() const override {
            if constexpr (detail::has_k<R>())
                return k_of(retriever);
            else
                fail("AnyRetriever: expected a retriever with a member k");
        }
        RetrieverSettings settings() const override {
            RetrieverSettings s = settings_of(retriever);
            if (s.type.empty()) s.type = typeid(R).name();
            return s;
        }
        R retriever;
    };
    std::shared_ptr<const Interface> chosen_;
};

} // namespace mnemo
