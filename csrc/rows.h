// Rows of floats that become bytes: what stands between two INT8 products.

#pragma once

#include "vectors.h"

namespace {

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
