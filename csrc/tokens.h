// What begins and ends a token's way through the native engine: embeddings, and the choice of the tokens that stay.

#pragma once

#include <numeric>

#include "rows.h"

#ifdef __AVX512VNNI__

namespace {

Tensor embed(TensorList tables, TensorList scales, TensorList numbers, TensorList norm, double eps) {
  const int64_t rows = numbers[0].size(0), size = tables[0].size(1), count = static_cast<int64_t>(tables.size());
  Tensor result = at::empty({rows, size}, norm[0].options());
  float* target = result.data_ptr<float>();
  const Norm normed(norm, eps);
  std::vector<const int64_t*> number;
  for (int64_t table = 0; table < count; table++) {
    number.push_back(numbers[table].data_ptr<int64_t>());
    for (int64_t r = 0; r < rows; r++)
      TORCH_CHECK_INDEX(number[table][r] >= 0 && number[table][r] < tables[table].size(0), "index out of range in embed");
  }
  // A vector of a row of a table.
  const auto read = [&](int64_t table, int64_t place, int64_t i, __mmask16 lanes) {
    if (scales.empty()) return _mm512_maskz_loadu_ps(lanes, tables[table].const_data_ptr<float>() + place * size + i);
    const __m128i bytes = _mm_maskz_loadu_epi8(lanes, tables[table].const_data_ptr<int8_t>() + place * size + i);
    const __m512 scale = _mm512_set1_ps(scales[table].const_data_ptr<float>()[place]);
    return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
  };
  at::parallel_for(0, rows, kBlock, [&](int64_t begin, int64_t end) {
    std::vector<float> row(size);
    for (int64_t r = begin; r < end; r++) {
      each_vector(size, [&](int64_t i, int64_t n) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t table = 0; table < count; table++)
          sum = _mm512_add_ps(sum, read(table, number[table][r], i, first_lanes(n)));
        _mm512_mask_storeu_ps(&row[i], first_lanes(n), sum);
      });
      normed(row.data(), nullptr, target + r * size, size);
    }
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> select_rows(const Tensor& significance, const Tensor& offsets, const Tensor& kept) {
  const float* score = significance.data_ptr<float>();
  const int64_t *bound = offsets.data_ptr<int64_t>(), *wanted = kept.data_ptr<int64_t>(), samples = offsets.size(0) - 1;
  Tensor packed = at::zeros({samples + 1}, offsets.options());
  int64_t* begin = packed.data_ptr<int64_t>();  // of each sequence among the chosen rows
  for (int64_t b = 0; b < samples; b++) begin[b + 1] = begin[b] + std::min(wanted[b], bound[b + 1] - bound[b]);
  Tensor chosen = at::empty({begin[samples]}, kept.options());
  Tensor dropped = at::empty({significance.size(0) - begin[samples]}, kept.options());
  int64_t *taken = chosen.data_ptr<int64_t>(), *left = dropped.data_ptr<int64_t>();
  const auto make = [] { return std::pair<std::vector<int64_t>, std::vector<bool>>(); };
  share_out(samples, make, [&](int64_t b, auto& workspace) {
    auto& [order, keeps] = workspace;
    const int64_t first = bound[b], length = bound[b + 1] - first, count = begin[b + 1] - begin[b];
    const auto before = [&](int64_t i, int64_t j) {  // the first token, then the more significant, then the earlier ones
      if (i == 0 || j == 0) return i == 0 && j != 0;
      return score[first + i] != score[first + j] ? score[first + i] > score[first + j] : i < j;
    };
    order.resize(length);
    std::iota(order.begin(), order.end(), 0);
    if (count < length) std::nth_element(order.begin(), order.begin() + count, order.end(), before);
    keeps.assign(length, false);
    for (int64_t i = 0; i < count; i++) keeps[order[i]] = true;
    int64_t *kept_row = taken + begin[b], *dropped_row = left + first - bound[0] - begin[b];
    for (int64_t i = 0; i < length; i++) *(keeps[i] ? kept_row : dropped_row)++ = first + i;
  });
  return {chosen, dropped, packed};
}

}  // namespace

#endif  // __AVX512VNNI__
