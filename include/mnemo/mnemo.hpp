// SPDX-License-Identifier: MIT
#pragma once

// Everything that needs neither files, nor FAISS, nor LibTorch.
#include <mnemo/core.hpp>

#include <mnemo/combine/bases.hpp>
#include <mnemo/combine/choose_token.hpp>
#include <mnemo/combine/interpolate.hpp>
#include <mnemo/combine/token_votes.hpp>
#include <mnemo/combine/unigram.hpp>
#include <mnemo/extract/last_hidden.hpp>
#include <mnemo/kernels/convert.hpp>
#include <mnemo/kernels/cpu.hpp>
#include <mnemo/kernels/filter.hpp>
#include <mnemo/kernels/filter_bound.hpp>
#include <mnemo/kernels/huge_pages.hpp>
#include <mnemo/kernels/log_sum_exp.hpp>
#include <mnemo/kernels/metric.hpp>
#include <mnemo/kernels/multiply_add.hpp>
#include <mnemo/kernels/pack.hpp>
#include <mnemo/kernels/packed_keys.hpp>
#include <mnemo/kernels/panel.hpp>
#include <mnemo/kernels/score.hpp>
#include <mnemo/kernels/select.hpp>
#include <mnemo/loss/nll.hpp>
#include <mnemo/papers/knn_lm.hpp>
#include <mnemo/papers/knn_lm_explain.hpp>
#include <mnemo/papers/knn_lm_sample.hpp>
#include <mnemo/papers/knn_lm_sweep.hpp>
#include <mnemo/retrieve/any.hpp>
#include <mnemo/retrieve/both.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/first_hits.hpp>
#include <mnemo/retrieve/nothing.hpp>
#include <mnemo/retrieve/recall_report.hpp>
#include <mnemo/retrieve/recite.hpp>
#include <mnemo/retrieve/rescore.hpp>
#include <mnemo/store/both.hpp>
#include <mnemo/store/packed.hpp>
#include <mnemo/store/tokens.hpp>
#include <mnemo/store/views.hpp>
#include <mnemo/text/blocks.hpp>
#include <mnemo/text/bpe.hpp>
#include <mnemo/text/corpus.hpp>
#include <mnemo/text/excerpts.hpp>
#include <mnemo/text/hash.hpp>
#include <mnemo/text/remaining.hpp>
