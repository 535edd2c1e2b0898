// What the native engine computes row by row: INT8 linear layers with what stands before and behind them, 32 rows at a time,
// so that nothing between two products leaves the cache.

#pragma once

#include "products.h"

#ifdef __AVX512VNNI__

namespace {

using at::BFloat16;
using at::TensorList;

// ---- bytes --------------------------------------------------------------------------------------------------------

// How floats become bytes: one range, or with `by_token` the row's own; `shrink` is null or a factor a channel.
struct ByteRange {
  const float* shrink;
  float inverse_scale;
  int zero_point;
  bool by_token;
};

// Turns a row of floats, which it overwrites, into bytes; returns the largest magnitude where the range is the row's own,
// else 1.  `size` is a multiple of 16.
float quantize_row(float* row, uint8_t* bytes, int64_t size, const ByteRange& range) {
  if (range.shrink != nullptr)
    for (int64_t i = 0; i < size; i += kLanes)
      _mm512_storeu_ps(row + i, _mm512_mul_ps(_mm512_loadu_ps(row + i), _mm512_loadu_ps(range.shrink + i)));
  float largest = 1.f;
  if (range.by_token) {
    __m512 found = _mm512_set1_ps(1e-6f);
    for (int64_t i = 0; i < size; i += kLanes) found = _mm512_max_ps(found, _mm512_abs_ps(_mm512_loadu_ps(row + i)));
    largest = _mm512_reduce_max_ps(found);
  }
  const __m512 factor = _mm512_set1_ps(range.inverse_scale / largest);
  const __m512i zero = _mm512_set1_epi32(range.zero_point);
  for (int64_t i = 0; i < size; i += kLanes) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + i), factor));
    const __m512i value = _mm512_max_epi32(_mm512_add_epi32(rounded, zero), _mm512_setzero_si512());
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + i), _mm512_cvtusepi32_epi8(value));  // saturates at 255
  }
  return largest;
}

// ---- linear layers ------------------------------------------------------------------------------------------------

// A layer as native_ops.pack_linear gives it; its sizes are padded: `depth` to a multiple of 64, `columns` of 32.
struct Linear {
  const int8_t* weight;
  const int32_t* correction;
  const float *factor, *bias;
  int64_t depth, columns;
  ByteRange range;

  Linear(TensorList layer, at::ArrayRef<double> scale_and_zero_point)
      : weight(layer[0].data_ptr<int8_t>()), correction(layer[1].data_ptr<int32_t>()), factor(layer[2].data_ptr<float>()),
        bias(layer[3].data_ptr<float>()), depth(64 * layer[0].size(1)), columns(16 * layer[0].size(0)) {
    const bool by_token = scale_and_zero_point[0] == 0;
    range.shrink = layer.size() > 4 ? layer[4].data_ptr<float>() : nullptr;
    range.inverse_scale = static_cast<float>(by_token ? 127. : 1 / scale_and_zero_point[0]);
    range.zero_point = by_token ? 128 : static_cast<int>(scale_and_zero_point[1]);
    range.by_token = by_token;
  }
};

// Rows on their way through linear layers, kBlock at a time, in what one thread works in.
struct Block {
  Workspace<float> row, inner, result;
  Workspace<uint8_t> bytes;
  float largest[kBlock];
  Tiles tiles;
  Block(int64_t depth, int64_t inner, int64_t columns)
      : row(depth), inner(kBlock * inner), result(kBlock * columns), bytes(kBlock * std::max(depth, inner)) {}

  // Takes row `r` of `size` floats or bf16 in, as the bytes that `layer` reads.
  template <typename Element>
  void take(int64_t r, const Element* source, int64_t size, const Linear& layer) {
    for (int64_t i = 0; i < size; i++) row[i] = static_cast<float>(source[i]);
    std::fill(row.begin() + size, row.end(), 0.f);
    largest[r] = quantize_row(row.data(), bytes.data() + r * layer.depth, layer.depth, layer.range);
  }

  // Calls store(row, first column, 16 values) for what `layer` makes of the rows.
  template <typename Store>
  void apply(const Linear& layer, const Store& store) {
    multiply_block(bytes.data(), layer.weight, layer.depth, layer.columns, [&](int64_t r, int64_t n, __m512i sums) {
      const __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_loadu_si512(layer.correction + n)));
      const __m512 factor = _mm512_mul_ps(_mm512_loadu_ps(layer.factor + n), _mm512_set1_ps(largest[r]));
      store(r, n, _mm512_fmadd_ps(whole, factor, _mm512_loadu_ps(layer.bias + n)));
    });
  }
};

// Calls work(first row, number of rows, block) for every block of the rows, which are `depth` wide, then `inner`, then `columns`.
template <typename Work>
void each_block(int64_t rows, int64_t depth, int64_t inner, int64_t columns, const Work& work) {
  const auto make = [&] { return Block(depth, inner, columns); };
  share_out((rows + kBlock - 1) / kBlock, make, [&](int64_t task, Block& block) {
    work(task * kBlock, std::min(kBlock, rows - task * kBlock), block);
  });
}

// The rows of a matrix that an operator reads: those of an index, or all.
class Rows {
  const Tensor index_;
  const int64_t* chosen_;

 public:
  const int64_t count;
  Rows(const std::optional<Tensor>& index, int64_t all)
      : index_(index ? index->contiguous() : Tensor()), chosen_(index ? index_.data_ptr<int64_t>() : nullptr),
        count(index ? index_.size(0) : all) {}
  int64_t operator[](int64_t row) const { return chosen_ == nullptr ? row : chosen_[row]; }
};

template <typename Element>
Tensor linear_to(const Tensor& x, const std::optional<Tensor>& index, const Linear& layer, int64_t columns,
                 at::ScalarType type) {
  const Tensor input = x.contiguous();
  const Rows rows(index, input.size(0));
  Tensor result = at::empty({rows.count, columns}, input.options().dtype(type));
  const float* source = input.data_ptr<float>();
  Element* target = result.data_ptr<Element>();
  const int64_t size = input.size(1);
  each_block(rows.count, layer.depth, 0, 0, [&](int64_t first, int64_t count, Block& block) {
    for (int64_t r = 0; r < count; r++) block.take(r, source + rows[first + r] * size, size, layer);
    block.apply(layer, [&](int64_t r, int64_t n, __m512 values) {
      if (r < count && n < columns) store_lanes(target + (first + r) * columns + n, values, first_lanes(columns - n));
    });
  });
  return result;
}

Tensor linear(const Tensor& x, const std::optional<Tensor>& rows, TensorList layer, at::ArrayRef<double> range,
              int64_t columns, bool half) {
#ifdef __AVX512BF16__
  if (half) return linear_to<BFloat16>(x, rows, Linear(layer, range), columns, at::kBFloat16);
#endif
  const Tensor result = linear_to<float>(x, rows, Linear(layer, range), columns, at::kFloat);
  return half ? result.to(at::kBFloat16) : result;
}

// ---- layers with their residual and norm --------------------------------------------------------------------------

struct Norm {
  const float *gain, *offset;
  float eps;
  Norm(TensorList norm, double eps)
      : gain(norm[0].data_ptr<float>()), offset(norm[1].data_ptr<float>()), eps(static_cast<float>(eps)) {}

  // LayerNorm(row + residual), which may be null; the row is overwritten.
  void operator()(float* row, const float* residual, float* target, int64_t size) const {
    Vec total(0.f), squares(0.f);
    each_vector(size, [&](int64_t i, int64_t n) {
      const Vec sum = residual == nullptr ? Vec::loadu(row + i, n) : Vec::loadu(row + i, n) + Vec::loadu(residual + i, n);
      total = total + Vec::set(Vec(0.f), sum, n);
      sum.store(row + i, n);
    });
    const Vec mean(sum_of(total) / size);
    each_vector(size, [&](int64_t i, int64_t n) {
      const Vec centred = Vec::set(Vec(0.f), Vec::loadu(row + i, n) - mean, n);
      squares = at::vec::fmadd(centred, centred, squares);
    });
    const Vec factor(1.f / std::sqrt(sum_of(squares) / size + eps));
    each_vector(size, [&](int64_t i, int64_t n) {
      const Vec centred = (Vec::loadu(row + i, n) - mean) * factor;
      at::vec::fmadd(centred, Vec::loadu(gain + i, n), Vec::loadu(offset + i, n)).store(target + i, n);
    });
  }
};

template <typename Element>
Tensor linear_add_norm_of(const Tensor& x, const Tensor& residual, const std::optional<Tensor>& index, const Linear& layer,
                          const Norm& norm) {
  const Tensor input = x.contiguous(), second = residual.contiguous();
  const Rows rows(index, input.size(0));
  const int64_t depth = input.size(1), size = second.size(1);
  Tensor result = at::empty({rows.count, size}, second.options());
  const Element* source = input.data_ptr<Element>();
  const float* other = second.data_ptr<float>();
  float* target = result.data_ptr<float>();
  each_block(rows.count, layer.depth, 0, layer.columns, [&](int64_t first, int64_t count, Block& block) {
    for (int64_t r = 0; r < count; r++) block.take(r, source + rows[first + r] * depth, depth, layer);
    block.apply(layer, [&](int64_t r, int64_t n, __m512 values) { _mm512_storeu_ps(&block.result[r * layer.columns + n], values); });
    for (int64_t r = 0; r < count; r++)
      norm(&block.result[r * layer.columns], other + rows[first + r] * size, target + (first + r) * size, size);
  });
  return result;
}

Tensor linear_add_norm(const Tensor& x, const Tensor& residual, const std::optional<Tensor>& rows, TensorList layer,
                       at::ArrayRef<double> range, TensorList norm, double eps) {
  const auto of = x.scalar_type() == at::kBFloat16 ? linear_add_norm_of<BFloat16> : linear_add_norm_of<float>;
  return of(x, residual, rows, Linear(layer, range), Norm(norm, eps));
}

// ---- the feed-forward block ---------------------------------------------------------------------------------------

// GELU(x) = max(x, 0) - |x| Q(|x|), where Q(a) is the share of a normal distribution above a: a polynomial on each of 32 pieces
// of [0, 5.5), with Q's value, slope and curvature at both ends (error below 1e-8 and rounding), and nothing beyond.
class Gelu {
  static constexpr int kTerms = 6;
  static constexpr float kEnd = 5.5f, kWidth = kEnd / 32;
  alignas(64) float coefficients_[kTerms][32];

 public:
  Gelu() {
    const double width = kWidth;
    const auto value = [](double x) { return 0.5 * std::erfc(x / std::sqrt(2.)); };
    const auto slope = [=](double x) { return -width * std::exp(-x * x / 2) / std::sqrt(2 * M_PI); };
    const auto bend = [=](double x) { return -width * x * slope(x); };
    for (int i = 0; i < 32; i++) {
      const double x = i * width, next = x + width, half_bend = bend(x) / 2;
      // What the first three terms leave of value, slope and curvature at the end of the piece.
      const double rest = value(next) - value(x) - slope(x) - half_bend, tilt = slope(next) - slope(x) - bend(x);
      const double turn = bend(next) - bend(x);
      const double terms[kTerms] = {value(x), slope(x), half_bend, 10 * rest - 4 * tilt + turn / 2,
                                    -15 * rest + 7 * tilt - turn, 6 * rest - 3 * tilt + turn / 2};
      for (int k = 0; k < kTerms; k++) coefficients_[k][i] = static_cast<float>(terms[k]);
    }
  }

  __m512 operator()(__m512 x) const {
    const __m512 size = _mm512_abs_ps(x);
    const __m512 place = _mm512_min_ps(_mm512_mul_ps(size, _mm512_set1_ps(1 / kWidth)), _mm512_set1_ps(31.999998f));
    const __m512i piece = _mm512_cvttps_epi32(place);
    const __m512 rest = _mm512_sub_ps(place, _mm512_cvtepi32_ps(piece));
    __m512 tail = _mm512_setzero_ps();
    for (int k = kTerms - 1; k >= 0; k--) {
      const float* term = coefficients_[k];
      tail = _mm512_fmadd_ps(
          tail, rest, _mm512_permutex2var_ps(_mm512_load_ps(term), piece, _mm512_load_ps(term + 16)));
    }
    return _mm512_fnmadd_ps(size, tail, _mm512_max_ps(x, _mm512_setzero_ps()));
  }
};

Tensor feed_forward(const Tensor& x, TensorList up, at::ArrayRef<double> up_range, TensorList down,
                    at::ArrayRef<double> down_range, TensorList norm, double eps) {
  const Tensor input = x.contiguous();
  Tensor result = at::empty_like(input);
  const Linear first_layer(up, up_range), second_layer(down, down_range);
  const Norm normed(norm, eps);
  static const Gelu gelu;
  const float* source = input.data_ptr<float>();
  float* target = result.data_ptr<float>();
  const int64_t size = input.size(1), depth = second_layer.depth, columns = second_layer.columns;
  const int64_t stride = depth + kLanes;  // else all rows would share two sets of the cache
  each_block(input.size(0), first_layer.depth, stride, columns, [&](int64_t first, int64_t count, Block& block) {
    for (int64_t r = 0; r < count; r++) block.take(r, source + (first + r) * size, size, first_layer);
    block.apply(first_layer, [&](int64_t r, int64_t n, __m512 values) {
      _mm512_storeu_ps(&block.inner[r * stride + n], gelu(values));
    });
    for (int64_t r = 0; r < count; r++)
      block.largest[r] = quantize_row(&block.inner[r * stride], &block.bytes[r * depth], depth, second_layer.range);
    block.apply(second_layer, [&](int64_t r, int64_t n, __m512 values) { _mm512_storeu_ps(&block.result[r * columns + n], values); });
    for (int64_t r = 0; r < count; r++)
      normed(&block.result[r * columns], source + (first + r) * size, target + (first + r) * size, size);
  });
  return result;
}

}  // namespace

#endif  // __AVX512VNNI__
