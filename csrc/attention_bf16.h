// Attention in bf16 with tiles (AMX); scores and their exponentials are in float32.  Softmax does not notice what is taken from
// all scores of a query, as long as its exponentials neither overflow nor vanish: it need not be the largest score.  The
// product of the norms of the query and of the longest key is above it, known before any score is, and rarely too far above.

#pragma once

#include "products.h"

#ifdef QUALA_TILES

namespace {

using at::BFloat16;
constexpr int64_t kTile = 16, kPair = 2 * kTile;  // rows of a tile; its columns in bf16, and the queries at a time

struct TileBuffers {
  Workspace<BFloat16> queries, keys, values, exponentials;
  Workspace<float> context, votes;
  alignas(64) float scores[kPair * kPair], total[kPair * kTile];
  Tiles tiles;
  TileBuffers(int64_t longest, int64_t size) {
    const int64_t padded = round_up(longest, kPair), depth = round_up(size, kPair);
    queries.resize(kPair * depth);
    keys.resize(padded * depth);
    values.resize(padded * depth);
    exponentials.resize(kPair * padded);
    context.resize(kPair * depth);
    votes.resize(padded);
  }
};

__m512bh as_bf16(__m512i bits) {
  __m512bh values;
  std::memcpy(&values, &bits, sizeof bits);
  return values;
}

// Rows of `size` elements that lie `stride` apart become (32, depth) without gaps, zero beyond the given ones.
void copy_rows(const BFloat16* source, int64_t stride, int64_t count, int64_t size, int64_t depth, BFloat16* target) {
  for (int64_t c = 0; c < depth; c += kPair) {
    const __mmask32 lanes = size - c >= kPair ? ~0u : (1u << (size - c)) - 1;
    for (int64_t j = 0; j < count; j++)
      _mm512_storeu_si512(target + j * depth + c, _mm512_maskz_loadu_epi16(lanes, source + j * stride + c));
  }
  std::fill_n(target + count * depth, (kPair - count) * depth, BFloat16(0));
}

// Keys, rows of `size` elements that lie `stride` apart, as the right side of rows times columns: tiles of 16 keys, their pairs
// of elements transposed, zero beyond the given ones.  Returns the largest norm.
float pack_keys(const BFloat16* source, int64_t stride, int64_t length, int64_t size, int64_t padded, int64_t depth,
                BFloat16* target) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(stride)));
  __m512 largest = _mm512_setzero_ps();
  for (int64_t j = 0; j < padded; j += kTile) {
    const __mmask16 real = first_lanes(length - j);
    __m512 squares = _mm512_setzero_ps();
    for (int64_t c = 0; c < depth; c += 2, target += kPair) {
      const __mmask16 rows = c < size ? real : 0;
      __m512i pairs = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), rows, places, source + j * stride + c, 2);
      if (c + 1 == size) pairs = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff));
      squares = _mm512_dpbf16_ps(squares, as_bf16(pairs), as_bf16(pairs));
      _mm512_storeu_si512(target, pairs);
    }
    largest = _mm512_max_ps(largest, squares);
  }
  return std::sqrt(_mm512_reduce_max_ps(largest));
}

// Values, rows of `size` elements that lie `stride` apart, as the right side of a product over the rows: tiles of 16 columns,
// pairs of rows interleaved, zero beyond the given ones.
void pack_values(const BFloat16* source, int64_t stride, int64_t length, int64_t size, int64_t padded, int64_t depth,
                 BFloat16* target) {
  for (int64_t c = 0; c < depth; c += kTile)
    for (int64_t j = 0; j < padded; j += 2, target += kPair) {
      const auto row = [&](int64_t i) {
        const __mmask16 lanes = i < length ? first_lanes(size - c) : 0;
        return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, source + i * stride + c));
      };
      _mm512_storeu_si512(target, _mm512_or_si512(row(j), _mm512_slli_epi32(row(j + 1), 16)));
    }
}

// Adds the product of two tiles of rows, which lie `stride` bytes apart, with two tiles of columns to the tiles 0 to 3.
void multiply_four(const BFloat16* rows, int64_t stride, const BFloat16* first, const BFloat16* second) {
  _tile_loadd(6, first, 64);
  _tile_loadd(7, second, 64);
  _tile_loadd(4, rows, stride);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, rows + kTile * stride / 2, stride);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

void zero_four() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// The tiles 0 to 3 as (32, 32) of rows that lie `stride` floats apart.
void store_four(float* target, int64_t stride) {
  _tile_stored(0, target, 4 * stride);
  _tile_stored(1, target + kTile, 4 * stride);
  _tile_stored(2, target + kTile * stride, 4 * stride);
  _tile_stored(3, target + kTile * stride + kTile, 4 * stride);
}

// Calls use(first key) for every 32 keys, when b.scores has the scores (32, 32) that 32 queries give them.
template <typename Use>
void each_score(const BFloat16* queries, int64_t padded, int64_t depth, TileBuffers& b, const Use& use) {
  const BFloat16* keys = b.keys.data();
  for (int64_t j = 0; j < padded; j += kPair, keys += kPair * depth) {
    zero_four();
    for (int64_t c = 0; c < depth; c += kPair)
      multiply_four(queries + c, 2 * depth, keys + c * kTile, keys + (depth + c) * kTile);
    store_four(b.scores, kPair);
    use(j);
  }
}

float norm_of(const BFloat16* row, int64_t depth) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t c = 0; c < depth; c += kPair) {
    const __m512bh pairs = as_bf16(_mm512_loadu_si512(row + c));
    squares = _mm512_dpbf16_ps(squares, pairs, pairs);
  }
  return std::sqrt(_mm512_reduce_add_ps(squares));
}

// The exponentials (count, padded) of 32 queries' scores minus `shift`, of those for the first `length` keys; one over their
// sums.  False if a sum has all but vanished.
bool exponentials(const BFloat16* queries, int64_t count, int64_t length, int64_t padded, int64_t depth, float scale,
                  const float* shift, float* inverse_sum, TileBuffers& b) {
  const __m512 factor = _mm512_set1_ps(scale);
  std::fill_n(b.total, kPair * kTile, 0.f);
  each_score(queries, padded, depth, b, [&](int64_t j) {
    const __mmask16 real_low = first_lanes(length - j), real_high = first_lanes(length - j - kTile);
    for (int64_t r = 0; r < count; r++) {
      const float* scores = b.scores + r * kPair;
      const __m512 less = _mm512_set1_ps(-shift[r]);
      const auto power = [&](int64_t i, __mmask16 real) {
        return _mm512_maskz_mov_ps(real, power_of_two(_mm512_fmadd_ps(_mm512_load_ps(scores + i), factor, less)));
      };
      const __m512 low = power(0, real_low), high = power(kTile, real_high);
      const __m512 total = _mm512_load_ps(b.total + r * kTile);
      _mm512_store_ps(b.total + r * kTile, _mm512_add_ps(total, _mm512_add_ps(low, high)));
      const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
      std::memcpy(b.exponentials.data() + r * padded + j, &both, sizeof both);
    }
  });
  float smallest = 1.f;
  for (int64_t r = 0; r < count; r++) {
    const float sum = _mm512_reduce_add_ps(_mm512_load_ps(b.total + r * kTile));
    smallest = std::min(smallest, sum);
    inverse_sum[r] = 1.f / sum;
  }
  return smallest > 0x1p-100f;
}

// The largest score of each of 32 queries.
void largest_scores(const BFloat16* queries, int64_t count, int64_t length, int64_t padded, int64_t depth, float scale,
                    float* largest, TileBuffers& b) {
  std::fill_n(largest, count, kNever);
  each_score(queries, padded, depth, b, [&](int64_t j) {
    for (int64_t r = 0; r < count; r++)
      for (int64_t i = 0; i < std::min(kPair, length - j); i++)
        largest[r] = std::max(largest[r], scale * b.scores[r * kPair + i]);
  });
}

// For every two of 32 queries one over their sums of exponentials, as a pair of bf16; zero beyond the first `count`.
void pair_factors(int64_t count, const float* inverse_sum, __m512bh* factors) {
  for (int64_t r = 0; r < kPair; r += 2) {
    const auto of = [&](int64_t i) { return static_cast<uint32_t>(BFloat16(i < count ? inverse_sum[i] : 0.f).x); };
    factors[r / 2] = as_bf16(_mm512_set1_epi32(static_cast<int>(of(r) | of(r + 1) << 16)));
  }
}

// Adds what `count` queries give 32 keys to the keys' votes, from the exponentials of two queries at a time.  Interleaving two rows
// reorders the keys: `place_of_vote` says where each is kept.
void vote(const BFloat16* exponentials, int64_t count, int64_t padded, const __m512bh* factors, float* votes) {
  __m512 low = _mm512_load_ps(votes), high = _mm512_load_ps(votes + kTile);
  for (int64_t r = 0; r < count; r += 2, exponentials += 2 * padded) {
    const __m512i first = _mm512_load_si512(exponentials), second = _mm512_load_si512(exponentials + padded);
    low = _mm512_dpbf16_ps(low, as_bf16(_mm512_unpacklo_epi16(first, second)), factors[r / 2]);
    high = _mm512_dpbf16_ps(high, as_bf16(_mm512_unpackhi_epi16(first, second)), factors[r / 2]);
  }
  _mm512_store_ps(votes, low);
  _mm512_store_ps(votes + kTile, high);
}

int64_t place_of_vote(int64_t key) { return key / kPair * kPair + key % 8 / 4 * kTile + key % kPair / 8 * 4 + key % 4; }

// The context of `count` queries from their exponentials, into rows that lie `width` elements apart, and their votes where wanted.
void weigh_tiles(int64_t count, int64_t padded, int64_t size, const float* inverse_sum, BFloat16* context, int64_t width,
                 bool with_votes, TileBuffers& b) {
  const int64_t depth = round_up(size, kPair);
  __m512bh factors[kTile];
  pair_factors(count, inverse_sum, factors);
  const BFloat16* values = b.values.data();
  for (int64_t c = 0; c < depth; c += kPair, values += kPair * padded) {
    zero_four();
    for (int64_t j = 0; j < padded; j += kPair) {
      const BFloat16* exponentials = b.exponentials.data() + j;
      multiply_four(exponentials, 2 * padded, values + j * kTile, values + (padded + j) * kTile);
      if (with_votes && c == 0) vote(exponentials, count, padded, factors, b.votes.data() + j);
    }
    store_four(b.context.data() + c, depth);
  }
  for (int64_t r = 0; r < count; r++)
    each_vector(size, [&](int64_t c, int64_t n) {
      const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(b.context.data() + r * depth + c), _mm512_set1_ps(inverse_sum[r]));
      store_lanes(context + r * width + c, value, first_lanes(n));
    });
}

void attend_bf16(const BFloat16* fused, BFloat16* context, float* votes, int64_t length, int64_t heads, int64_t size,
                 TileBuffers& b) {
  const int64_t width = heads * size, stride = 3 * width, padded = round_up(length, kPair), depth = round_up(size, kPair);
  const float scale = 1.44269504f / std::sqrt(static_cast<float>(size));  // exponentials of two
  pack_values(fused + 2 * width, stride, length, size, padded, depth, b.values.data());
  const float longest_key = pack_keys(fused + width, stride, length, size, padded, depth, b.keys.data());
  const BFloat16* queries = b.queries.data();
  std::fill_n(b.votes.begin(), padded, 0.f);
  for (int64_t first = 0; first < length; first += kPair) {
    const int64_t count = std::min(kPair, length - first);
    copy_rows(fused + first * stride, stride, count, size, depth, b.queries.data());
    float shift[kPair], inverse_sum[kPair];
    for (int64_t r = 0; r < count; r++) shift[r] = scale * longest_key * norm_of(queries + r * depth, depth);
    if (!exponentials(queries, count, length, padded, depth, scale, shift, inverse_sum, b)) {
      largest_scores(queries, count, length, padded, depth, scale, shift, b);
      exponentials(queries, count, length, padded, depth, scale, shift, inverse_sum, b);
    }
    weigh_tiles(count, padded, size, inverse_sum, context + first * width, width, votes != nullptr, b);
  }
  if (votes != nullptr)
    for (int64_t j = 0; j < length; j++) votes[j] = b.votes[place_of_vote(j)];
}

}  // namespace

#endif  // QUALA_TILES
