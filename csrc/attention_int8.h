// Attention with integer products, for AVX-512 VNNI.  Keys are bytes with a range a channel, queries bytes with a scale a
// token; a channel's lowest key adds the same to all scores of a row, which softmax does not notice, so that keys need no
// zero point.  Probabilities and values, which 8 bits would harm, have 12 and 11.

#pragma once

#include "products.h"

#ifdef __AVX512VNNI__

namespace {

constexpr int64_t kProbabilities = 4095;  // steps of the largest probability of a row

// Bytes of four channels (keys) or 16 bits of two tokens (values) lie together: one instruction adds up their products.
struct ByteBuffers {
  std::vector<int32_t> keys, values;
  std::vector<int8_t> queries;
  std::vector<int16_t> probabilities;
  std::vector<float> key_steps, value_steps, scores, padding, votes;
  ByteBuffers(int64_t longest, int64_t size) {
    const int64_t padded = round_up(longest, kColumns), columns = round_up(size, kColumns);
    keys.resize(columns / 4 * padded);
    values.resize(padded / 2 * columns);
    queries.resize(kRows * columns);
    probabilities.resize(kRows * padded);
    key_steps.resize(columns);
    value_steps.resize(columns);
    scores.resize(kRows * padded);
    padding.resize(padded);
    votes.resize(padded);
  }
};

// `rows` points at 16 channels of the first token; those of the next token lie `stride` floats further on.
struct Channels {
  const float* rows;
  int64_t stride, length;
  __mmask16 lanes;
  __m512 operator[](int64_t token) const { return _mm512_maskz_loadu_ps(lanes, rows + token * stride); }
};

// Keys become unsigned bytes between the lowest and the highest of their channel; `steps` gets the width of one step.
void pack_keys(const Channels& keys, int64_t padded, int32_t* target, float* steps) {
  __m512 low = keys[0], high = low;
  for (int64_t j = 1; j < keys.length; j++) {
    low = _mm512_min_ps(low, keys[j]);
    high = _mm512_max_ps(high, keys[j]);
  }
  const __m512 step = _mm512_max_ps(_mm512_div_ps(_mm512_sub_ps(high, low), _mm512_set1_ps(255)), _mm512_set1_ps(1e-20f));
  const __m512 factor = _mm512_div_ps(_mm512_set1_ps(1), step);
  _mm512_storeu_ps(steps, step);
  for (int64_t j = 0; j < keys.length; j++) {
    alignas(16) int32_t fours[4];
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(keys[j], low), factor));
    _mm_store_si128(reinterpret_cast<__m128i*>(fours), _mm512_cvtepi32_epi8(rounded));
    for (int64_t c = 0; c < 4; c++) target[c * padded + j] = fours[c];
  }
}

// Values become whole numbers up to `levels` for their channel's largest; tokens from `length` to `padded` are zero.
void pack_values(
    const Channels& values, int64_t padded, int64_t columns, int64_t levels, int32_t* target, float* steps) {
  __m512 largest = _mm512_set1_ps(1e-20f);
  for (int64_t j = 0; j < values.length; j++) largest = _mm512_max_ps(largest, _mm512_abs_ps(values[j]));
  const __m512 step = _mm512_div_ps(largest, _mm512_set1_ps(levels)), factor = _mm512_div_ps(_mm512_set1_ps(1), step);
  const auto rounded = [&](int64_t j) {
    return j < values.length ? _mm512_cvtps_epi32(_mm512_mul_ps(values[j], factor)) : _mm512_setzero_si512();
  };
  _mm512_storeu_ps(steps, step);
  for (int64_t j = 0; j < padded; j += 2) {
    const __m512i first = _mm512_and_si512(rounded(j), _mm512_set1_epi32(0xffff));
    _mm512_storeu_si512(target + j / 2 * columns, _mm512_or_si512(first, _mm512_slli_epi32(rounded(j + 1), 16)));
  }
}

// A query times the steps of the keys becomes signed bytes; returns the width of one of their steps.
float pack_query(const float* query, const float* key_steps, int64_t size, int8_t* bytes) {
  const auto value = [&](int64_t c, int64_t n) {
    return _mm512_mul_ps(_mm512_maskz_loadu_ps(first_lanes(n), query + c), _mm512_loadu_ps(key_steps + c));
  };
  __m512 largest = _mm512_set1_ps(1e-20f);
  each_vector(size, [&](int64_t c, int64_t n) { largest = _mm512_max_ps(largest, _mm512_abs_ps(value(c, n))); });
  const float step = _mm512_reduce_max_ps(largest) / 127;
  const __m512 factor = _mm512_set1_ps(1 / step);
  each_vector(size, [&](int64_t c, int64_t n) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(value(c, n), factor));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + c), _mm512_cvtsepi32_epi8(rounded));
  });
  return step;
}

// Scores (kRows, padded) of the packed queries, in their own steps; `largest` gets those of each row.
void score_rows(int64_t padded, int64_t size, float (&largest)[kRows], ByteBuffers& b) {
  const int64_t columns = round_up(size, kColumns);
  __m512 highest[kRows];
  std::fill_n(highest, kRows, _mm512_set1_ps(kNever));
  for (int64_t j = 0; j < padded; j += kColumns)
    multiply<SignedRows>(
        b.queries.data(), columns, b.keys.data() + j, padded, kLanes, round_up(size, 4) / 4, [&](int64_t r, int64_t v, __m512i sums) {
          const int64_t column = j + v * kLanes;
          const __m512 score = _mm512_add_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(b.padding.data() + column));
          highest[r] = _mm512_max_ps(highest[r], score);
          _mm512_storeu_ps(b.scores.data() + r * padded + column, score);
        });
  for (int64_t r = 0; r < kRows; r++) largest[r] = _mm512_reduce_max_ps(highest[r]);
}

// Scores become exponentials, the `largest` one kProbabilities, rounded and, if `keep`, also in place; returns one over the sum.
float exponentials(float* scores, int16_t* rounded, int64_t padded, float scale, float largest, bool keep) {
  const __m512 factor = _mm512_set1_ps(scale), shift = _mm512_set1_ps(11.9996477f - scale * largest);
  __m512i total = _mm512_setzero_si512();
  for (int64_t j = 0; j < padded; j += kLanes) {
    const __m512 power = power_of_two(_mm512_fmadd_ps(_mm512_loadu_ps(scores + j), factor, shift));
    const __m512i whole = _mm512_cvtps_epi32(power);
    total = _mm512_add_epi32(total, whole);
    if (keep) _mm512_storeu_ps(scores + j, power);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rounded + j), _mm512_cvtepi32_epi16(whole));
  }
  return 1.f / _mm512_reduce_add_epi32(total);
}

// The context of `count` rows from their probabilities, into rows that lie `width` floats apart.
void weigh_values(int64_t count, int64_t padded, int64_t size, const float (&inverse_sum)[kRows], float* context,
                  int64_t width, ByteBuffers& b) {
  const int64_t columns = round_up(size, kColumns);
  for (int64_t c = 0; c < size; c += kColumns)
    multiply<Words>(
        b.probabilities.data(), 2 * padded, b.values.data() + c, columns, kLanes, padded / 2, [&](int64_t r, int64_t v, __m512i sums) {
          const int64_t column = c + v * kLanes;
          if (r >= count || column >= size) return;
          const __m512 factor = _mm512_set1_ps(inverse_sum[r]), scale = _mm512_loadu_ps(b.value_steps.data() + column);
          const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(scale, factor));
          _mm512_mask_storeu_ps(context + r * width + column, first_lanes(size - column), value);
        });
}

void attend_int8(const float* fused, float* context, float* votes, int64_t length, int64_t heads, int64_t size,
                 ByteBuffers& b) {
  const int64_t width = heads * size, stride = 3 * width;
  const int64_t padded = round_up(length, kColumns), columns = round_up(size, kColumns);
  const int64_t levels = std::min<int64_t>(1023, INT32_MAX / kProbabilities / length);  // the sums fit 32 bits
  const float log2_e = 1.44269504f, temperature = log2_e / std::sqrt(static_cast<float>(size));
  each_vector(size, [&](int64_t c, int64_t n) {
    const Channels keys{fused + width + c, stride, length, first_lanes(n)}, values{keys.rows + width, stride, length, keys.lanes};
    pack_keys(keys, padded, b.keys.data() + c / 4 * padded, b.key_steps.data() + c);
    pack_values(values, padded, columns, levels, b.values.data() + c, b.value_steps.data() + c);
  });
  std::fill_n(b.padding.begin(), length, 0.f);
  std::fill_n(b.padding.begin() + length, padded - length, kNever);
  std::fill(b.votes.begin(), b.votes.end(), 0.f);
  for (int64_t first = 0; first < length; first += kRows) {
    const int64_t count = std::min<int64_t>(kRows, length - first);
    float step[kRows], largest[kRows], inverse_sum[kRows];
    for (int64_t r = 0; r < count; r++)
      step[r] = pack_query(fused + (first + r) * stride, b.key_steps.data(), size, b.queries.data() + r * columns);
    score_rows(padded, size, largest, b);
    for (int64_t r = 0; r < count; r++) {
      float* scores = b.scores.data() + r * padded;
      int16_t* rounded = b.probabilities.data() + r * padded;
      inverse_sum[r] = exponentials(scores, rounded, padded, step[r] * temperature, largest[r], votes);
      if (votes != nullptr) scale_row<true>(scores, inverse_sum[r], b.votes.data(), length);
    }
    weigh_values(count, padded, size, inverse_sum, context + first * width, width, b);
  }
  if (votes != nullptr) std::copy_n(b.votes.begin(), length, votes);
}

}  // namespace

#endif  // __AVX512VNNI__
