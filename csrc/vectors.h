// What the operators share: loops over vectors of floats, and sums over their lanes.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <immintrin.h>

namespace {

using at::Tensor;
using Vec = at::vec::Vectorized<float>;
constexpr int64_t kLanes = Vec::size();

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

// target += factor * row, or target = factor * row
template <bool add>
void scale_row(const float* row, float factor, float* target, int64_t size) {
  each_vector(size, [&](int64_t i, int64_t n) {
    const Vec value = Vec::loadu(row + i, n), before = add ? Vec::loadu(target + i, n) : Vec(0.f);
    at::vec::fmadd(value, Vec(factor), before).store(target + i, n);
  });
}

// Attention to one head of one sequence: `fused` points at its first query, `context` at its first output, `votes` may be
// null; `size` is that of a head.
template <typename Buffers>
using Attend = void (*)(
    const float* fused, float* context, float* votes, int64_t length, int64_t heads, int64_t size, Buffers& buffers);

// An operator of native_ops.py, context and significance, by `attend`; `Buffers(longest, size)` is what one thread works in.
template <typename Buffers, Attend<Buffers> attend>
std::tuple<Tensor, Tensor> each_head(
    const Tensor& fused, const Tensor& offsets, int64_t heads, bool with_significance) {
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
    Buffers buffers(longest, size);
    for (int64_t task = begin; task < end; task++) {
      const int64_t head = task % heads, first = bound[task / heads], length = bound[task / heads + 1] - first;
      if (length == 0) continue;
      attend(source + first * 3 * width + head * size, target + first * width + head * size,
             with_significance ? vote + head * tokens + first : nullptr, length, heads, size, buffers);
    }
  });
  return {context, with_significance ? votes.sum(0) : votes.new_empty({0})};
}

}  // namespace
