// The fused operators of native_ops.py for processors with AVX-512, each in one pass over memory.  native_ops.py has the same
// operators in PyTorch, which say what they compute.

#include <torch/library.h>

#include "attention_bf16.h"
#include "attention_float.h"
#include "attention_int8.h"
#include "rows.h"
#include "tokens.h"

TORCH_LIBRARY_IMPL(quala, CPU, library) {
  library.impl("attention", each_head<float, FloatBuffers, attend_float>);
#ifdef QUALA_TILES
  if (has_tiles()) library.impl("attention_bf16", each_head<at::BFloat16, TileBuffers, attend_bf16>);
#endif
#ifdef __AVX512VNNI__
  library.impl("attention_int8", each_head<float, ByteBuffers, attend_int8>);
  library.impl("embed", embed);
  library.impl("select_rows", select_rows);
  library.impl("linear", linear);
  library.impl("linear_add_norm", linear_add_norm);
  library.impl("feed_forward", feed_forward);
#endif
}
