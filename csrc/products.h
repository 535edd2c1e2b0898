// Integer products, with tiles (AMX) where the processor has them, else with vectors (AVX-512 VNNI).

#pragma once

#include <ATen/cpu/Utils.h>
#include <c10/util/Unroll.h>

#include "vectors.h"

#ifdef __AVX512VNNI__

namespace {

// ---- vectors ------------------------------------------------------------------------------------------------------

constexpr int kRows = 8, kVectors = 2;  // rows and vectors of columns at a time: their sums fit the registers
constexpr int64_t kColumns = kVectors * kLanes;

struct SignedRows {  // bytes: the columns are unsigned
  static __m512i add(__m512i sums, __m512i row, __m512i column) { return _mm512_dpbusd_epi32(sums, column, row); }
};
struct UnsignedRows {  // bytes: the columns are signed
  static __m512i add(__m512i sums, __m512i row, __m512i column) { return _mm512_dpbusd_epi32(sums, row, column); }
};
struct Words {
  static __m512i add(__m512i sums, __m512i row, __m512i column) { return _mm512_dpwssd_epi32(sums, column, row); }
};

// Calls store(row, vector, sums) for the kRows x kVectors sums of products of rows with vectors of columns, 32 bits of each
// at every one of `steps`.  Unrolled by hand, or the sums would not stay in registers.
template <typename Products, typename Store>
inline void multiply(const void* rows, int64_t row_bytes, const int32_t* columns, int64_t column_stride,
                     int64_t vector_stride, int64_t steps, const Store& store) {
  __m512i sums[kRows * kVectors], column[kVectors];
  const c10::ForcedUnroll<kRows * kVectors> each_sum;
  std::fill_n(sums, kRows * kVectors, _mm512_setzero_si512());
  for (int64_t k = 0; k < steps; k++) {
    c10::ForcedUnroll<kVectors>{}(
        [&](auto v) { column[v] = _mm512_loadu_si512(columns + k * column_stride + v * vector_stride); });
    each_sum([&](auto i) {
      int32_t bits;
      std::memcpy(&bits, static_cast<const char*>(rows) + i / kVectors * row_bytes + 4 * k, 4);
      sums[i] = Products::add(sums[i], _mm512_set1_epi32(bits), column[i % kVectors]);
    });
  }
  each_sum([&](auto i) { store(i / kVectors, i % kVectors, sums[i]); });
}

// ---- tiles --------------------------------------------------------------------------------------------------------

#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define QUALA_TILES

bool has_tiles() {
  static const bool found = at::cpu::init_amx();  // the system has to be asked for them
  return found;
}

// Eight tiles of 16 rows of 64 bytes.  In static memory: GCC 12 does not see that loading them reads more than a pointer.
struct alignas(64) Shape {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
const Shape kShape;

// The calling thread's tiles have that shape as long as this lives.
class Tiles {
 public:
  Tiles() {
    if (!has_tiles()) return;
    _tile_loadconfig(&kShape);
  }
  ~Tiles() {
    if (has_tiles()) _tile_release();
  }
};

// Sums (32, 32) of 32 rows of `depth` unsigned bytes with two blocks of 16 columns of a packed weight.
void multiply_tiles(const uint8_t* rows, const int8_t* first, const int8_t* second, int64_t depth, int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += 64) {
    _tile_loadd(6, first + k * 16, 64);
    _tile_loadd(7, second + k * 16, 64);
    _tile_loadd(4, rows + k, depth);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_loadd(5, rows + 16 * depth + k, depth);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  _tile_stored(2, sums + 16 * 32, 128);
  _tile_stored(3, sums + 16 * 32 + 16, 128);
}

#else

struct Tiles {};
bool has_tiles() { return false; }
void multiply_tiles(const uint8_t*, const int8_t*, const int8_t*, int64_t, int32_t*) {}

#endif

// ---- either -------------------------------------------------------------------------------------------------------

constexpr int64_t kBlock = 32;  // rows, and columns, of an integer product

// Calls store(row, first column, sums of 16 columns) for the products of kBlock rows of `depth` unsigned bytes with all
// `columns` of a packed weight: blocks of 16 columns, in which four bytes of each column follow each other.  With tiles the
// calling thread has to hold Tiles.
template <typename Store>
inline void multiply_block(const uint8_t* rows, const int8_t* weight, int64_t depth, int64_t columns, const Store& store) {
  alignas(64) int32_t sums[kBlock * kBlock];
  for (int64_t n = 0; n < columns; n += kBlock) {
    const int8_t *first = weight + n * depth, *second = first + 16 * depth;
    if (has_tiles()) {
      multiply_tiles(rows, first, second, depth, sums);
      for (int64_t r = 0; r < kBlock; r++)
        for (int64_t v = 0; v < kBlock; v += kLanes) store(r, n + v, _mm512_load_si512(sums + r * kBlock + v));
    } else {
      for (int64_t r = 0; r < kBlock; r += kRows)
        multiply<UnsignedRows>(
            rows + r * depth, depth, reinterpret_cast<const int32_t*>(first), kLanes, 4 * depth, depth / 4,
            [&](int64_t i, int64_t v, __m512i found) { store(r + i, n + v * kLanes, found); });
    }
  }
}

}  // namespace

#endif  // __AVX512VNNI__
