"""The fused operators of the native engine: what stands between two INT8 products, without graphs or compilation.
The float model takes its attention with the tokens' scores from here too.

They work on packed sequences: the real tokens of all sequences in one matrix (T, ...), without padding; `offsets` (B + 1)
says where each begins.  Here they are in PyTorch, which says what they compute.  Where a C++ compiler and AVX-512 are at
hand, those of csrc replace them; it is compiled once and kept.
"""

import hashlib
import itertools
import logging
import math
import os
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional as F

from int8_modules import Int8Linear
from results_qa import cxx_compiler, folder_in_cache, processor

logger = logging.getLogger(__name__)
SOURCES = Path(__file__).with_name("csrc")
FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-march=native",
    "-DCPU_CAPABILITY=AVX512",
    "-DCPU_CAPABILITY_AVX512",
]

LIBRARY = torch.library.Library("quala", "DEF")
for _attention in ("attention", "attention_bf16", "attention_int8"):
    LIBRARY.define(
        f"{_attention}(Tensor fused, Tensor offsets, int heads, bool with_significance) -> (Tensor, Tensor)"
    )
LIBRARY.define("embed(Tensor[] tables, Tensor[] scales, Tensor[] numbers, Tensor[] norm, float eps) -> Tensor")
LIBRARY.define("select_rows(Tensor significance, Tensor offsets, Tensor kept) -> (Tensor, Tensor, Tensor)")
# A layer is what `pack_linear` gives; range is scale and zero point of its input, scale 0 if each row has its own.
LIBRARY.define("linear(Tensor x, Tensor? rows, Tensor[] layer, float[] range, int columns, bool half) -> Tensor")
LIBRARY.define(
    "linear_add_norm(Tensor x, Tensor residual, Tensor? rows, Tensor[] layer, float[] range, Tensor[] norm, float eps) "
    "-> Tensor"
)
LIBRARY.define(
    "feed_forward(Tensor x, Tensor[] up, float[] up_range, Tensor[] down, float[] down_range, Tensor[] norm, float eps) "
    "-> Tensor"
)


# ---- the operators in PyTorch --------------------------------------------------------------------------------------


def attention(fused, offsets, heads, with_significance):
    """Self-attention within each sequence of `fused` (T, 3 * H * D), which holds queries, keys and values side by side.

    Returns the context (T, H * D) and the significance (T): the probabilities that a token receives, summed over heads
    and queries; nothing of it if it is not wanted.
    """
    return _attend(fused, offsets, heads, with_significance, _attend_in_float)


def attention_bf16(fused, offsets, heads, with_significance):
    """`attention` of bf16 with bf16 products, whose sums, scores and exponentials are float32."""
    context, significance = attention(fused.float(), offsets, heads, with_significance)
    return context.to(fused.dtype), significance


def attention_int8(fused, offsets, heads, with_significance):
    """`attention` with integer products.

    Keys are unsigned bytes between the lowest and the highest value of their channel in the sequence (the lowest adds the
    same to all scores of a query, which softmax does not notice) and queries signed bytes with a scale a token. Products of
    probabilities and values are of 16 bits: 4095ths of the largest one of their row, and 1023rds of that of their channel.
    """
    return _attend(fused, offsets, heads, with_significance, _attend_in_int8)


def _attend(fused, offsets, heads, with_significance, attend):
    contexts, votes = [fused.new_empty(0, fused.shape[1] // 3)], [fused.new_empty(0)]
    for begin, end in itertools.pairwise(offsets.tolist()):
        if begin < end:
            context, probabilities = attend(*fused[begin:end].unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3))
            contexts.append(context.transpose(0, 1).flatten(1))
            votes.append(probabilities.sum((0, 1)))
    return torch.cat(contexts), torch.cat(votes) if with_significance else votes[0]


def _attend_in_float(query, key, value):
    probabilities = (query @ key.transpose(1, 2) * query.shape[2] ** -0.5).softmax(-1)
    return probabilities @ value, probabilities


def _attend_in_int8(query, key, value):
    low, high = key.aminmax(dim=1, keepdim=True)
    step = ((high - low) / 255).clamp(min=1e-20)
    query, query_scale = _whole(query * step, 2, 127)
    value, value_scale = _whole(value, 1, min(1023, (2**31 - 1) // 4095 // value.shape[1]))  # sums fit 32 bits
    scores = (query @ ((key - low) / step).round().transpose(1, 2)) * query_scale * query.shape[2] ** -0.5
    powers = (scores - scores.amax(2, keepdim=True)).exp() * 4095
    rounded = powers.round()
    total = rounded.sum(2, keepdim=True)
    return (rounded @ value) / total * value_scale, powers / total


def _whole(x, dim, levels):
    """`x` as whole numbers from -levels to levels, and the steps along `dim` that they are multiples of."""
    step = x.abs().amax(dim, keepdim=True).clamp(min=1e-20) / levels
    return (x / step).round(), step


def embed(tables, scales, numbers, norm, eps):
    """LayerNorm of the sum (T, D) of a row of each table, by `numbers` (T); `scales` of tables of bytes, nothing of floats."""
    rows = [table[number] for table, number in zip(tables, numbers)]
    rows = [row * scale[number, None] for row, scale, number in zip(rows, scales, numbers)] or rows
    return F.layer_norm(sum(rows), norm[0].shape, *norm, eps)


def select_rows(significance, offsets, kept):
    """The rows of the `kept` (B) most significant tokens of each sequence, in order, all other rows, and the offsets of the former.

    The first token, [CLS], is always among the kept; a shorter sequence keeps all its tokens.
    """
    lengths = offsets.diff()
    kept, column = torch.minimum(kept, lengths), torch.arange(int(lengths.max()))
    scores = significance.new_full((len(lengths), len(column)), -math.inf)
    scores[column < lengths[:, None]] = significance
    scores[:, 0] = math.inf
    ranks = scores.sort(dim=1, descending=True, stable=True).indices.argsort(1)
    chosen = (ranks < kept[:, None])[column < lengths[:, None]]
    return chosen.nonzero().squeeze(1), (~chosen).nonzero().squeeze(1), F.pad(kept.cumsum(0), (1, 0))


def pack_linear(layer: Int8Linear) -> list[torch.Tensor]:
    """The tensors of an operator's layer: weight, what its sums have too much, factor and bias by column, and smoothing.

    The weight is (N / 16, K / 64, 16, 64): of every 16 columns, 16 times four bytes of each; N is padded to a multiple of
    32 and K of 64.
    """
    columns, depth = layer.weight.shape
    weight = F.pad(layer.weight, (0, -depth % 64, 0, -columns % 32))
    zero_point = 128 if layer.input_scale is None else layer.input_zero_point
    factor = layer.weight_scale * (1 / 127 if layer.input_scale is None else layer.input_scale)
    packed = weight.view(-1, 16, weight.shape[1] // 64, 16, 4).permute(0, 2, 3, 1, 4).flatten(3).contiguous()
    by_column = [F.pad(values, (0, -columns % 32)) for values in (factor, layer.bias)]
    shrink = [] if layer.shrink is None else [F.pad(layer.shrink, (0, -depth % 64))]
    return [packed, weight.sum(1, dtype=torch.int32) * zero_point, *by_column, *shrink]


def linear(x, rows, layer, range, columns, half):
    """x W^T + b (T', columns) of the `rows` (T') of `x`, all if None, by a product of bytes; in bf16 if `half`."""
    x = x if rows is None else x.index_select(0, rows)
    weight, correction, factor, bias, *shrink = layer
    values, largest = quantize(F.pad(x.float(), (0, 64 * weight.shape[1] - x.shape[1])), *shrink, range=range)
    plain = weight.unflatten(3, (16, 4)).permute(0, 3, 1, 2, 4).reshape(len(bias), -1)
    zero_point = 128 if range[0] == 0 else int(range[1])
    packed = torch.ops.onednn.qlinear_prepack(plain, None)
    scales = 1.0, zero_point, packed, factor, torch.zeros_like(correction), None  # the input's scale is in the factor
    product = torch.ops.onednn.qlinear_pointwise(values, *scales, 1.0, 0, torch.float32, "none", [], "")
    result = torch.addcmul(bias, product, largest)
    return result[:, :columns].to(torch.bfloat16 if half else torch.float32)


def quantize(x, shrink=None, *, range):
    """Bytes (N, K) of the rows of `x` times `shrink`, and the largest magnitude (N, 1) of each, 1 where it is not used."""
    (scale, zero_point), x = range, x if shrink is None else x * shrink
    if scale:
        return (x * (1 / scale)).round().add(zero_point).clamp(0, 255).to(torch.uint8), x.new_ones(len(x), 1)
    largest = x.abs().amax(1, keepdim=True).clamp(min=1e-6)
    return (x / largest * 127).round().add(128).clamp(0, 255).to(torch.uint8), largest


def linear_add_norm(x, residual, rows, layer, range, norm, eps):
    """LayerNorm(linear(x) + residual) of the `rows` (T') of both, all if None."""
    if rows is not None:
        x, residual = x.index_select(0, rows), residual.index_select(0, rows)
    return F.layer_norm(linear(x, None, layer, range, residual.shape[1], False) + residual, norm[0].shape, *norm, eps)


def feed_forward(x, up, up_range, down, down_range, norm, eps):
    """LayerNorm(down(GELU(up(x))) + x)."""
    inner = F.gelu(linear(x, None, up, up_range, len(up[3]), False))
    return linear_add_norm(inner, x, None, down, down_range, norm, eps)


_attentions = attention, attention_bf16, attention_int8
for _operator in (*_attentions, embed, select_rows, linear, linear_add_norm, feed_forward):
    LIBRARY.impl(_operator.__name__, _operator, "CompositeExplicitAutograd")  # a kernel of the compiled library wins


@torch.library.register_fake("quala::attention")
@torch.library.register_fake("quala::attention_bf16")
@torch.library.register_fake("quala::attention_int8")
def _(fused, offsets, heads, with_significance):
    significance = fused.new_empty(fused.shape[0] if with_significance else 0, dtype=torch.float32)
    return fused.new_empty(fused.shape[0], fused.shape[1] // 3), significance


@torch.library.register_fake("quala::embed")
def _(tables, scales, numbers, norm, eps):
    return norm[0].new_empty(numbers[0].shape[0], tables[0].shape[1])


@torch.library.register_fake("quala::select_rows")
def _(significance, offsets, kept):
    sizes = [torch.library.get_ctx().new_dynamic_size() for _ in range(2)]
    return (*(offsets.new_empty(size) for size in sizes), torch.empty_like(offsets))


@torch.library.register_fake("quala::linear")
def _(x, rows, layer, range, columns, half):
    return x.new_empty(
        (x if rows is None else rows).shape[0], columns, dtype=torch.bfloat16 if half else torch.float32
    )


@torch.library.register_fake("quala::linear_add_norm")
def _(x, residual, rows, layer, range, norm, eps):
    return residual.new_empty((residual if rows is None else rows).shape[0], residual.shape[1])


@torch.library.register_fake("quala::feed_forward")
def _(x, up, up_range, down, down_range, norm, eps):
    return torch.empty_like(x)


# ---- the operators in C++ ------------------------------------------------------------------------------------------


def fused_operators_loaded(operator: str = "attention") -> bool:
    """Whether an operator of this process is the one in C++."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"quala::{operator}", "CPU")


@cache
def load_fused_operators(cache_dir: Path) -> bool:
    """Put the C++ operators in the place of those in PyTorch, for the whole process; False (and said so) if it cannot be."""
    if fused_operators_loaded():
        return True  # loaded before, from another folder
    try:
        torch.ops.load_library(str(_built(cache_dir)))
    except (OSError, RuntimeError) as error:
        logger.warning("the fused operators are not compiled, which is slower: %s", error)
        return False
    return True


def _built(cache_dir: Path) -> Path:
    """The library compiled from this source with this PyTorch for this processor; RuntimeError if it cannot be."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise RuntimeError("the processor has no AVX-512")
    sources = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir())]
    facts = [*sources, *FLAGS, torch.__version__, processor()[0], *sorted(processor()[1])]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    library = cache_dir / f"native_ops-{key[:16]}.so"
    if not library.is_file():
        _compile(library)
    return library


def _compile(library: Path) -> None:
    from torch.utils import cpp_extension  # takes a while, and is only needed here

    compiler = cxx_compiler()
    if compiler is None:
        raise RuntimeError("there is no C++ compiler (apt-get install g++)")
    logger.info("compiling the native operators to %s (half a minute, once)", library)
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch_cpu", "-lc10"]
    with folder_in_cache(library.parent) as folder:
        made = Path(folder, library.name)
        command = [compiler, *FLAGS, *includes, str(SOURCES / "native_ops.cpp"), *libraries, "-o", str(made)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{compiler} failed: {(done.stderr.strip().splitlines() or ['?'])[0]}")
        os.replace(made, library)
