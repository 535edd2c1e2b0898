// What the operators share: loops over vectors of floats, and sums over their lanes.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <immintrin.h>

#include <atomic>
#include <new>

namespace {

using at::Tensor;
using Vec = at::vec::Vectorized<float>;
constexpr int64_t kLanes = Vec::size();

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// A vector that begins with a line of the cache: tiles and whole registers that cross lines take twice as long.
template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* values, size_t) { ::operator delete(values, kLine); }
  bool operator==(const LineAllocator&) const = default;
};
template <typename T>
using Workspace = std::vector<T, LineAllocator<T>>;

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

__mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= kLanes ? 0xffff : (1 << std::max<int64_t>(count, 0)) - 1);
}

void store_lanes(float* target, __m512 values, __mmask16 lanes) { _mm512_mask_storeu_ps(target, lanes, values); }

#ifdef __AVX512BF16__
void store_lanes(at::BFloat16* target, __m512 values, __mmask16 lanes) {
  const __m256bh rounded = _mm512_cvtneps_pbh(values);
  __m256i bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  _mm256_mask_storeu_epi16(target, lanes, bits);
}
#endif

constexpr float kNever = -1e30f;  // the score of padding: finite, so that nothing becomes NaN

// 2^x, by a minimax polynomial on [0, 1) (relative error 7.5e-5).
__m512 power_of_two(__m512 x) {
  const __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 series = _mm512_fmadd_ps(rest, _mm512_set1_ps(0.07802452f), _mm512_set1_ps(0.22606716f));
  series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(0.69583354f));
  series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(0.99992522f));
  return _mm512_scalef_ps(series, x);  // rounds x down by itself
}

// Calls work(task, workspace) for every one of `tasks`, each thread in a workspace of its own that `make()` gives.  A thread takes
// the next task when it has done one: the cores of a shared machine are not equally fast, nor tasks equally long.
template <typename Make, typename Work>
void share_out(int64_t tasks, const Make& make, const Work& work) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    auto workspace = make();
    for (int64_t task = next++; task < tasks; task = next++) work(task, workspace);
  });
}

// Attention to one head of one sequence: `fused` points at its first query, `context` at its first output, `votes` may be
// null; `size` is that of a head.
template <typename Element, typename Buffers>
using Attend = void (*)(
    const Element* fused, Element* context, float* votes, int64_t length, int64_t heads, int64_t size, Buffers& buffers);

// An operator of native_ops.py, context and significance, by `attend`; `Buffers(longest, size)` is what one thread works in.
template <typename Element, typename Buffers, Attend<Element, Buffers> attend>
std::tuple<Tensor, Tensor> each_head(
    const Tensor& fused, const Tensor& offsets, int64_t heads, bool with_significance) {
  const int64_t tokens = fused.size(0), width = fused.size(1) / 3, size = width / heads, samples = offsets.size(0) - 1;
  const Tensor input = fused.contiguous(), bounds = offsets.contiguous();
  Tensor context = at::empty({tokens, width}, fused.options());
  Tensor votes = at::empty({with_significance ? heads : 0, tokens}, fused.options().dtype(at::kFloat));
  const Element* source = input.data_ptr<Element>();
  const int64_t* bound = bounds.data_ptr<int64_t>();
  Element* target = context.data_ptr<Element>();
  float* vote = votes.data_ptr<float>();
  int64_t longest = 0;
  for (int64_t b = 0; b < samples; b++) longest = std::max(longest, bound[b + 1] - bound[b]);
  const auto make = [&] { return Buffers(longest, size); };
  share_out(samples * heads, make, [&](int64_t task, Buffers& buffers) {
    const int64_t head = task % heads, first = bound[task / heads], length = bound[task / heads + 1] - first;
    if (length == 0) return;
    attend(source + first * 3 * width + head * size, target + first * width + head * size,
           with_significance ? vote + head * tokens + first : nullptr, length, heads, size, buffers);
  });
  Tensor significance = at::zeros({with_significance ? tokens : 0}, votes.options());
  float* total = significance.data_ptr<float>();
  for (int64_t row = 0; row < votes.size(0); row++)
    for (int64_t i = 0; i < tokens; i++) total[i] += vote[row * tokens + i];
  return {context, significance};
}

}  // namespace
