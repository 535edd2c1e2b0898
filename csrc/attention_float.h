// Attention in float32.

#pragma once

#include <ATen/native/CPUBlas.h>

#include "vectors.h"

namespace {

constexpr int64_t kQueries = 64;  // queries whose attention is worked on at a time: their scores stay in the cache

// A row of `padded` scores, the first `length` of them real, becomes their exponentials; returns one over their sum.
float exponentials(float* scores, int64_t length, int64_t padded, float scale) {
  std::fill(scores + length, scores + padded, -std::numeric_limits<float>::infinity());
  Vec largest(-std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < padded; j += kLanes) largest = at::vec::maximum(largest, Vec::loadu(scores + j));
  const Vec shift(max_of(largest) * -scale), factor(scale);
  Vec total(0.f);
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec value = at::vec::fmadd(Vec::loadu(scores + j), factor, shift).exp_u20();
    total = total + value;
    value.store(scores + j);
  }
  return 1.f / sum_of(total);
}

struct FloatBuffers {
  std::vector<float> keys, values, queries, scores, context, votes;
  FloatBuffers(int64_t longest, int64_t size)
      : keys(round_up(longest, kLanes) * size), values(keys.size()), queries(kQueries * size),
        scores(kQueries * round_up(longest, kLanes)), context(kQueries * size), votes(round_up(longest, kLanes)) {}
  ~FloatBuffers() { at::native::cpublas::brgemm_release(false); }
};

void attend_float(const float* fused, float* context, float* votes, int64_t length, int64_t heads, int64_t size, FloatBuffers& b) {
  using at::native::cpublas::brgemm;
  const int64_t width = heads * size, row = 3 * width, padded = round_up(length, kLanes);
  const float scale = 1.f / std::sqrt(static_cast<float>(size));
  std::fill(b.keys.begin(), b.keys.begin() + padded * size, 0.f);
  std::fill(b.values.begin() + length * size, b.values.begin() + padded * size, 0.f);
  std::fill(b.votes.begin(), b.votes.begin() + padded, 0.f);
  for (int64_t j = 0; j < length; j++) {
    const float* key = fused + j * row + width;
    for (int64_t c = 0; c < size; c++) b.keys[c * padded + j] = key[c];
    std::copy_n(key + width, size, b.values.begin() + j * size);
  }
  for (int64_t first = 0; first < length; first += kQueries) {
    // Always as many queries, so that few kernels are generated; those beyond the end are computed and thrown away.
    const int64_t count = std::min(kQueries, length - first);
    for (int64_t i = 0; i < count; i++) std::copy_n(fused + (first + i) * row, size, b.queries.begin() + i * size);
    brgemm(kQueries, padded, size, size, padded, padded, false, b.queries.data(), b.keys.data(), b.scores.data());
    float inverse_sum[kQueries];
    for (int64_t i = 0; i < count; i++) {
      float* scores = b.scores.data() + i * padded;
      inverse_sum[i] = exponentials(scores, length, padded, scale);
      if (votes != nullptr) scale_row<true>(scores, inverse_sum[i], b.votes.data(), padded);
    }
    brgemm(kQueries, size, padded, padded, size, size, false, b.scores.data(), b.values.data(), b.context.data());
    for (int64_t i = 0; i < count; i++)
      scale_row<false>(b.context.data() + i * size, inverse_sum[i], context + (first + i) * width, size);
  }
  if (votes != nullptr) std::copy_n(b.votes.begin(), length, votes);
}

}  // namespace
