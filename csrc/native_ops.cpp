// The fused operators of native_ops.py for processors with AVX-512: what stands between two INT8 products of the native
// engine, each in one pass over memory.  native_ops.py has the same operators in PyTorch, which say what they compute.

#include <torch/library.h>

#include "attention_float.h"
#include "attention_int8.h"
#include "rows.h"

TORCH_LIBRARY_IMPL(quala, CPU, library) {
  library.impl("attention", each_head<FloatBuffers, attend_float>);
#ifdef __AVX512VNNI__
  library.impl("attention_int8", each_head<ByteBuffers, attend_int8>);
#endif
  library.impl("quantize", quantize);
  library.impl("gelu_quantize", gelu_quantize);
  library.impl("add_norm_quantize", add_norm_quantize);
}
