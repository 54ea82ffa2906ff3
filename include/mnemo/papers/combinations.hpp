// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/papers/adaptive_lambda.hpp>
#include <mnemo/papers/pema.hpp>
#include <mnemo/papers/retomaton.hpp>
#include <mnemo/retrieve/both.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/segments.hpp>
#include <mnemo/store/both.hpp>
#include <mnemo/store/knowledge_tokens.hpp>
#include <mnemo/store/low_rank.hpp>
#include <mnemo/store/ring.hpp>
#include <mnemo/store/tokens.hpp>

#include <memory>
#include <utility>

// Memories that no paper has tried: policies of one put beside those of another. docs/combinations.md says which pairs
// fit, and tests/papers/combinations.cpp asks the compiler.

namespace mnemo {

/// kNN-LM over a model that was trained with in-batch memories: its states are compared as they were in training, by
/// inner products; a temperature of sqrt(d) gives the training's scale.
template <class StoreT, Executor X = Serial> using KnnLmOfTrime = KnnLm<StoreT, Exact<InnerProduct, X>>;

/// A store that is edited as PlugLM's is, by snapshots, and read by kNN-LM's combiner.
template <MetricTag MetricT = L2, Executor X = Serial>
using KnnLmOfKnowledge = KnnLm<KnowledgeTokens, RetrieveSegments<Exact<MetricT, X>>>;

/// Two memories read one after the other: the second takes what the first has made for the host's word. Each has states
/// of its own.
template <class FirstT, class SecondT> struct InTurn {
    FirstT first;
    SecondT second;

    template <class FirstStates, class SecondStates, class Base>
    void read(const FirstStates& of_first, const SecondStates& of_second, Base&& base) const {
        first.read(of_first, base);
        second.read(of_second, base);
    }
};
template <class F, class S> InTurn(F, S) -> InTurn<F, S>;

/// PEMA, whose weight falls along the sequence, over kNN-LM. The base is PositionedLogProbs.
template <class StoreT, class RetrieverT> using PemaOverKnnLm = InTurn<KnnLm<StoreT, RetrieverT>, Pema<>>;

/// The last tokens, many more of them, the document at hand and a datastore, read as one.
template <class DatastoreT>
using FourMemories =
    Both<std::shared_ptr<RingStore>, Both<std::shared_ptr<RingStore>, Both<std::shared_ptr<TokenStore<>>, DatastoreT>>>;
template <class NearT, class FarT>
using RetrieveFour = RetrieveBoth<NearT, RetrieveBoth<NearT, RetrieveBoth<NearT, FarT>>>;
template <class DatastoreT, class NearT, class FarT>
using FourMemoriesLm = KnnLm<FourMemories<DatastoreT>, RetrieveFour<NearT, FarT>>;

/// Any retriever of rows, asked only where somebody (a network, the model's own confidence) says so: SelectedQueries.
template <class StoreT, class RetrieverT> using SelectiveKnnLm = KnnLm<StoreT, Selected<RetrieverT>>;
template <class DatastoreT, class NearT, class FarT>
using SelectiveFourMemoriesLm = SelectiveKnnLm<FourMemories<DatastoreT>, RetrieveFour<NearT, FarT>>;

/// RetoMaton with a learned weight: its bases carry features.
template <class StoreT, class RetrieverT, MetricTag MetricT = L2>
using AdaptiveRetoMaton =
    Memory<LastHidden, StoreT, Follow<RetrieverT, MetricT>, Interpolate<TokenVotes, LearnedLambda>, Nll>;

} // namespace mnemo
