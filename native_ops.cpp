// The fused operators of native_ops.py for processors with AVX-512: what stands between two INT8 products of the native
// engine, each in one pass over memory.  native_ops.py has the same operators in PyTorch, which say what they compute.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <immintrin.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using Vec = at::vec::Vectorized<float>;
constexpr int64_t kLanes = Vec::size();
constexpr int64_t kQueries = 64;  // queries whose attention is worked on at a time: their scores stay in the cache

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Calls step(index, count) for every vector of `size` floats.
template <typename Step>
inline void each_vector(int64_t size, const Step& step) {
  for (int64_t i = 0; i < size; i += kLanes) step(i, std::min(kLanes, size - i));
}

float sum_of(const Vec& values) {
  return at::vec::vec_reduce_all<float>([](const Vec& a, const Vec& b) { return a + b; }, values);
}

float max_of(const Vec& values) {
  return at::vec::vec_reduce_all<float>([](const Vec& a, const Vec& b) { return at::vec::maximum(a, b); }, values);
}

// ---- attention -----------------------------------------------------------------------------------------------------

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

// target += factor * row, or target = factor * row
template <bool add>
void scale_row(const float* row, float factor, float* target, int64_t size) {
  each_vector(size, [&](int64_t i, int64_t n) {
    const Vec value = Vec::loadu(row + i, n), before = add ? Vec::loadu(target + i, n) : Vec(0.f);
    at::vec::fmadd(value, Vec(factor), before).store(target + i, n);
  });
}

struct Buffers {
  std::vector<float> keys, values, queries, scores, context, votes;
  Buffers(int64_t longest, int64_t size)
      : keys(longest * size), values(longest * size), queries(kQueries * size), scores(kQueries * longest),
        context(kQueries * size), votes(longest) {}
};

// One head of one sequence: `fused` points at its first query, `context` at its first output, `votes` may be null.
void attend(const float* fused, float* context, float* votes, int64_t length, int64_t heads, int64_t size, Buffers& b) {
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

std::tuple<Tensor, Tensor> attention(const Tensor& fused, const Tensor& offsets, int64_t heads, bool with_significance) {
  const int64_t tokens = fused.size(0), width = fused.size(1) / 3, size = width / heads, samples = offsets.size(0) - 1;
  const Tensor input = fused.contiguous(), bounds = offsets.contiguous();
  Tensor context = at::empty({tokens, width}, fused.options());
  Tensor votes = at::empty({with_significance ? heads : 0, tokens}, fused.options());
  const float* source = input.data_ptr<float>();
  const int64_t* bound = bounds.data_ptr<int64_t>();
  float *target = context.data_ptr<float>(), *vote = votes.data_ptr<float>();
  int64_t longest = 0;
  for (int64_t b = 0; b < samples; b++) longest = std::max(longest, bound[b + 1] - bound[b]);
  at::parallel_for(0, samples * heads, 1, [&](int64_t begin, int64_t end) {
    Buffers buffers(round_up(longest, kLanes), size);
    for (int64_t task = begin; task < end; task++) {
      const int64_t head = task % heads, first = bound[task / heads], length = bound[task / heads + 1] - first;
      attend(source + first * 3 * width + head * size, target + first * width + head * size,
             with_significance ? vote + head * tokens + first : nullptr, length, heads, size, buffers);
    }
    at::native::cpublas::brgemm_release(false);
  });
  return {context, with_significance ? votes.sum(0) : votes.new_empty({0})};
}

// ---- rows of bytes -------------------------------------------------------------------------------------------------

// How floats become bytes: one range, or with `by_token` the row's own; `shrink` is null or a factor a channel.
struct ByteRange {
  const float* shrink;
  float inverse_scale;
  int zero_point;
  bool by_token;
};

ByteRange byte_range(const std::optional<Tensor>& shrink, double scale, int64_t zero_point) {
  const bool by_token = scale == 0;
  const float inverse = static_cast<float>(1 / (by_token ? 1. / 127 : scale));
  const int zero = by_token ? 128 : static_cast<int>(zero_point);
  return {shrink ? shrink->data_ptr<float>() : nullptr, inverse, zero, by_token};
}

// Turns a row of floats, which it overwrites, into bytes; returns the largest magnitude where the range is the row's own.
float quantize_row(float* row, uint8_t* bytes, int64_t size, const ByteRange& range) {
  if (range.shrink != nullptr)
    each_vector(size, [&](int64_t i, int64_t n) {
      (Vec::loadu(row + i, n) * Vec::loadu(range.shrink + i, n)).store(row + i, n);
    });
  float largest = 1.f;
  if (range.by_token) {
    Vec found(1e-6f);
    each_vector(size, [&](int64_t i, int64_t n) { found = at::vec::maximum(found, Vec::loadu(row + i, n).abs()); });
    largest = max_of(found);
  }
  const Vec factor(range.inverse_scale / largest);
  const __m512i zero = _mm512_set1_epi32(range.zero_point), nothing = _mm512_setzero_si512();
  each_vector(size, [&](int64_t i, int64_t n) {
    const __m512i rounded = _mm512_add_epi32(_mm512_cvtps_epi32(Vec::loadu(row + i, n) * factor), zero);
    const __m128i value = _mm512_cvtusepi32_epi8(_mm512_max_epi32(rounded, nothing));  // saturates at 255
    _mm_mask_storeu_epi8(bytes + i, static_cast<__mmask16>((1u << n) - 1), value);
  });
  return largest;
}

// Applies make(row index, floats) to every row and returns (bytes, largest magnitudes or nothing).
template <typename Make>
std::tuple<Tensor, Tensor> rows_of_bytes(const Tensor& like, const ByteRange& range, const Make& make) {
  const int64_t rows = like.size(0), size = like.size(1);
  Tensor bytes = at::empty({rows, size}, like.options().dtype(at::kByte));
  Tensor largest = at::empty({range.by_token ? rows : 0, 1}, like.options());
  uint8_t* target = bytes.data_ptr<uint8_t>();
  float* magnitudes = largest.data_ptr<float>();
  at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(size);
    for (int64_t i = begin; i < end; i++) {
      make(i, buffer.data());
      const float found = quantize_row(buffer.data(), target + i * size, size, range);
      if (range.by_token) magnitudes[i] = found;
    }
  });
  return {bytes, largest};
}

std::tuple<Tensor, Tensor> quantize(
    const Tensor& x, const std::optional<Tensor>& shrink, double scale, int64_t zero_point) {
  const Tensor input = x.contiguous();
  const float* source = input.data_ptr<float>();
  const int64_t size = input.size(1);
  return rows_of_bytes(input, byte_range(shrink, scale, zero_point), [&](int64_t i, float* row) {
    std::copy_n(source + i * size, size, row);
  });
}

// x Phi(x) with the error function of Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26 (error 1.5e-7).
Vec gelu(const Vec& x) {
  const Vec z = x.abs() * Vec(0.70710678f), t = Vec(1.f) / at::vec::fmadd(z, Vec(0.3275911f), Vec(1.f));
  Vec series = at::vec::fmadd(t, Vec(1.061405429f), Vec(-1.453152027f));
  series = at::vec::fmadd(series, t, Vec(1.421413741f));
  series = at::vec::fmadd(series, t, Vec(-0.284496736f));
  series = at::vec::fmadd(series, t, Vec(0.254829592f)) * t;
  const Vec erf = Vec(1.f) - series * (z * z).neg().exp_u20();
  return Vec(0.5f) * (x + x.abs() * erf);
}

std::tuple<Tensor, Tensor> gelu_quantize(
    const Tensor& x, const std::optional<Tensor>& shrink, double scale, int64_t zero_point) {
  const Tensor input = x.contiguous();
  const float* source = input.data_ptr<float>();
  const int64_t size = input.size(1);
  return rows_of_bytes(input, byte_range(shrink, scale, zero_point), [&](int64_t i, float* row) {
    each_vector(size, [&](int64_t j, int64_t n) { gelu(Vec::loadu(source + i * size + j, n)).store(row + j, n); });
  });
}

std::tuple<Tensor, Tensor, Tensor> add_norm_quantize(
    const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias, double eps,
    const std::optional<Tensor>& shrink, double scale, int64_t zero_point) {
  const Tensor first = x.contiguous(), second = residual.contiguous();
  Tensor normed = at::empty_like(first);
  const float *a = first.data_ptr<float>(), *b = second.data_ptr<float>();
  const float *gain = weight.data_ptr<float>(), *offset = bias.data_ptr<float>();
  float* target = normed.data_ptr<float>();
  const int64_t size = first.size(1);
  auto [bytes, largest] = rows_of_bytes(first, byte_range(shrink, scale, zero_point), [&](int64_t i, float* row) {
    Vec total(0.f), squares(0.f);
    each_vector(size, [&](int64_t j, int64_t n) {
      const Vec sum = Vec::loadu(a + i * size + j, n) + Vec::loadu(b + i * size + j, n);
      total = total + sum;
      sum.store(row + j, n);
    });
    const float mean = sum_of(total) / size;
    each_vector(size, [&](int64_t j, int64_t n) {
      const Vec centred = Vec::set(Vec(0.f), Vec::loadu(row + j, n) - Vec(mean), n);
      squares = at::vec::fmadd(centred, centred, squares);
    });
    const Vec shift(-mean), factor(1.f / std::sqrt(sum_of(squares) / size + static_cast<float>(eps)));
    each_vector(size, [&](int64_t j, int64_t n) {
      const Vec centred = (Vec::loadu(row + j, n) + shift) * factor;
      const Vec value = at::vec::fmadd(centred, Vec::loadu(gain + j, n), Vec::loadu(offset + j, n));
      value.store(row + j, n);
      value.store(target + i * size + j, n);
    });
  });
  return {normed, bytes, largest};
}

}  // namespace

TORCH_LIBRARY_IMPL(quala, CPU, library) {
  library.impl("attention", attention);
  library.impl("quantize", quantize);
  library.impl("gelu_quantize", gelu_quantize);
  library.impl("add_norm_quantize", add_norm_quantize);
}
