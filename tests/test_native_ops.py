"""The native engine's operators, in PyTorch and in C++, against the stock functions that they replace."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import native_ops
from attention import explicit_attention
from errors import RunError
from int8_modules import Int8Embedding, Int8Linear
from length_drop import select_tokens
from native_engine import NativeLinear, Packed, micro_batches
from results_qa import cxx_compiler

ops = torch.ops.quala


@pytest.fixture(params=["PyTorch", "C++"])
def implementation(request, tmp_path_factory):
    """The module or namespace that has the operators."""
    if request.param == "PyTorch":
        return native_ops
    if cxx_compiler() is None or torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("needs AVX-512 and a C++ compiler")
    assert native_ops.load_fused_operators(tmp_path_factory.getbasetemp() / "operators")
    return ops


def packed(lengths, width):
    generator = torch.Generator().manual_seed(sum(lengths))
    offsets = F.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    return torch.randn(sum(lengths), width, generator=generator), offsets


# ---- attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads, size", [(12, 32), (4, 64), (2, 16), (3, 20)])
@pytest.mark.parametrize("lengths", [[384], [1], [7, 1, 129, 64], [33] * 64, [0, 5, 0]])
def test_attention_is_that_of_pytorch_sequence_by_sequence(implementation, heads, size, lengths):
    fused, offsets = packed(lengths, 3 * heads * size)
    context, significance = implementation.attention(fused, offsets, heads, True)
    for begin, end in itertools.pairwise(offsets):
        if begin == end:
            continue
        query, key, value = fused[begin:end].view(1, end - begin, 3, heads, size).permute(2, 0, 3, 1, 4)
        expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(end - begin, -1)
        torch.testing.assert_close(context[begin:end], expected, atol=2e-6, rtol=1e-5)
        _, votes = explicit_attention(query, key, value, None, size**-0.5, 0.0)
        torch.testing.assert_close(significance[begin:end], votes[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads, size", [(12, 32), (4, 64), (2, 16), (3, 20)])
@pytest.mark.parametrize("lengths", [[384], [1], [7, 1, 129, 64], [33] * 64, [0, 5, 0], [700]])
def test_attention_on_integers_is_that_of_pytorch_but_for_a_hundredth(implementation, heads, size, lengths):
    fused, offsets = packed(lengths, 3 * heads * size)
    context, significance = implementation.attention_int8(fused, offsets, heads, True)
    expected, votes = native_ops.attention(fused, offsets, heads, True)
    assert (context - expected).norm() < 0.012 * expected.norm()
    assert (significance - votes).norm() < 0.012 * votes.norm()
    assert significance.sum().item() == pytest.approx(heads * sum(lengths), rel=1e-3)


def test_attention_on_integers_ignores_what_all_keys_share(implementation):
    fused, offsets = packed([50, 31], 3 * 64)
    shifted = fused.clone()
    shifted[:, 64:128] += 100 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    context, significance = implementation.attention_int8(shifted, offsets, 2, True)
    expected, votes = native_ops.attention(fused, offsets, 2, True)
    assert (context - expected).norm() < 0.012 * expected.norm() and (
        significance - votes
    ).norm() < 0.012 * votes.norm()


def test_attention_on_integers_takes_keys_values_and_queries_of_zero(implementation):
    context, significance = implementation.attention_int8(torch.zeros(9, 3 * 32), torch.tensor([0, 9]), 1, True)
    assert (context == 0).all() and torch.allclose(significance, torch.ones(9), rtol=1e-3)


@pytest.mark.parametrize("heads, size", [(12, 32), (4, 64), (2, 16), (3, 20), (1, 40), (2, 5)])
@pytest.mark.parametrize("lengths", [[384], [1], [7, 1, 129, 64], [33] * 64, [0, 5, 0], [700]])
def test_attention_in_bf16_is_that_of_pytorch_but_for_its_rounding(implementation, heads, size, lengths):
    fused, offsets = packed(lengths, 3 * heads * size)
    fused = fused.to(torch.bfloat16)
    context, significance = implementation.attention_bf16(fused, offsets, heads, True)
    expected, votes = native_ops.attention(fused.float(), offsets, heads, True)
    assert context.dtype == torch.bfloat16 and significance.dtype == torch.float32
    assert (context.float() - expected).norm() < 0.005 * expected.norm()  # bf16 has steps of 0.004
    assert (significance - votes).norm() < 0.005 * votes.norm()
    assert significance.sum().item() == pytest.approx(heads * sum(lengths), rel=4e-3)


def test_attention_in_bf16_is_right_where_the_longest_key_is_far_from_all_queries(implementation):
    fused, offsets = packed([70], 3 * 32)
    fused[5, 32:64] *= 1000  # the product of the norms is thousands above the largest score
    fused[:, :32] -= (fused[:, :32] @ fused[5, 32:64, None]) * fused[5, 32:64] / fused[5, 32:64].norm() ** 2 * 1.02
    fused = fused.to(torch.bfloat16)
    context, significance = implementation.attention_bf16(fused, offsets, 1, True)
    expected, votes = native_ops.attention(fused.float(), offsets, 1, True)
    assert (context.float() - expected).norm() < 0.005 * expected.norm()
    assert (significance - votes).norm() < 0.005 * votes.norm()


@pytest.mark.parametrize("name", ["attention", "attention_bf16", "attention_int8"])
def test_a_large_score_does_not_overflow(implementation, name):
    fused, offsets = packed([20], 3 * 32)
    fused = fused.to(torch.bfloat16 if name == "attention_bf16" else torch.float32)
    context, significance = getattr(implementation, name)(fused * 100, offsets, 1, True)
    assert context.isfinite().all() and significance.sum().item() == pytest.approx(20, rel=1e-3)


@pytest.mark.parametrize("name", ["attention", "attention_bf16", "attention_int8"])
def test_significance_that_nobody_wants_is_empty(implementation, name):
    fused, offsets = packed([20, 3], 3 * 64)
    fused = fused.to(torch.bfloat16 if name == "attention_bf16" else torch.float32)
    attention = getattr(implementation, name)
    context, nothing = attention(fused, offsets, 2, False)
    assert nothing.numel() == 0
    torch.testing.assert_close(context, attention(fused, offsets, 2, True)[0])


# ---- bytes ---------------------------------------------------------------------------------------------------------


def identity(size, scale=None, zero_point=0, shrink=None):
    """The arguments of a linear operator that gives its input back, once through bytes."""
    eye = torch.eye(size, dtype=torch.int8), torch.ones(size), torch.zeros(size)
    layer = Int8Linear(*eye, scale, zero_point, None if shrink is None else 1 / shrink)
    return None, native_ops.pack_linear(layer), [scale or 0.0, float(zero_point)], size, False


@pytest.mark.parametrize("rows, size", [(1, 384), (129, 1536), (7, 33), (3, 5)])
@pytest.mark.parametrize("with_shrink", [True, False])
def test_bytes_of_one_range_are_those_of_pytorch(implementation, rows, size, with_shrink):
    x, _ = packed([rows], size)
    shrink = torch.linspace(0.5, 2, size) if with_shrink else None
    found = implementation.linear(x, *identity(size, 0.02, 117, shrink))  # covers [-2.34, 2.76]: the tails saturate
    exact = torch.quantize_per_tensor(x * shrink if with_shrink else x, 0.02, 117, torch.quint8).dequantize()
    difference = ((found - exact) / 0.02).abs()  # PyTorch multiplies and adds in one rounding
    assert difference.max() < 1.01 and difference.mean() < 1e-3


@pytest.mark.parametrize("rows, size", [(129, 384), (7, 33)])
def test_bytes_by_token_use_each_rows_whole_range(implementation, rows, size):
    x, _ = packed([rows], size)
    x = x * torch.logspace(-3, 3, rows)[:, None]
    found, largest = implementation.linear(x, *identity(size)), x.abs().amax(1, keepdim=True)
    assert ((found - x).abs() <= largest * (0.5 / 127) * 1.001).all()
    torch.testing.assert_close(found.abs().amax(1, keepdim=True), largest)


def test_a_row_of_zeros_stays_zero(implementation):
    assert torch.equal(implementation.linear(torch.zeros(2, 40), *identity(40)), torch.zeros(2, 40))


# ---- layers --------------------------------------------------------------------------------------------------------


def int8_linear(inputs, outputs, by_token):
    """A layer, its arguments, and smoothing where the range is one of all tokens."""
    torch.manual_seed(inputs + outputs)
    linear, smoothing = torch.nn.Linear(inputs, outputs), None if by_token else torch.linspace(0.7, 1.3, inputs)
    layer = Int8Linear.from_float(linear, None if by_token else (-3.0, 3.5), smoothing)
    return layer, (native_ops.pack_linear(layer), [layer.input_scale or 0.0, float(layer.input_zero_point)])


def assert_close_but_for_flipped_bytes(found, expected):
    """Equal to rounding, but for what an input next to the border between two bytes changes."""
    difference = (found - expected).abs()
    assert difference.median() < 1e-5 * expected.std() and difference.max() < 0.05 * expected.std()


SHAPES = [(384, 1152), (384, 384), (33, 20), (64, 2)]


@pytest.mark.parametrize("rows", [1, 31, 200])
@pytest.mark.parametrize("inputs, outputs", SHAPES)
@pytest.mark.parametrize("by_token", [True, False])
def test_a_linear_layer_is_the_int8_module(implementation, rows, inputs, outputs, by_token):
    layer, arguments = int8_linear(inputs, outputs, by_token)
    x, _ = packed([rows], inputs)
    found = implementation.linear(x, None, *arguments, outputs, False)
    assert_close_but_for_flipped_bytes(found, layer(x))
    assert torch.equal(implementation.linear(x, None, *arguments, outputs, True), found.to(torch.bfloat16))
    chosen = torch.arange(0, rows, 2)
    assert torch.equal(implementation.linear(x, chosen, *arguments, outputs, False), found[chosen])


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("inputs, outputs", SHAPES)
def test_a_projection_with_residual_and_norm_is_that_of_the_modules(implementation, inputs, outputs, half):
    layer, arguments = int8_linear(inputs, outputs, False)
    x, _ = packed([70], inputs)
    x = x.to(torch.bfloat16) if half else x
    residual, rows = packed([70], outputs)[0] + 3, torch.arange(0, 70, 2)
    norm = torch.linspace(0.5, 2, outputs), torch.linspace(-1, 1, outputs)
    for chosen in (None, rows):
        found = implementation.linear_add_norm(x, residual, chosen, *arguments, [*norm], 1e-5)
        expected = F.layer_norm(layer(x.float()) + residual, (outputs,), *norm, 1e-5)
        assert_close_but_for_flipped_bytes(found, expected if chosen is None else expected[chosen])


@pytest.mark.parametrize("size, inner", [(384, 1536), (33, 70), (32, 64)])
@pytest.mark.parametrize("rows", [1, 100])
def test_a_feed_forward_block_is_that_of_the_modules(implementation, rows, size, inner):
    up, down = int8_linear(size, inner, False), int8_linear(inner, size, True)
    x, _ = packed([rows], size)
    norm = torch.linspace(0.5, 2, size), torch.linspace(-1, 1, size)
    found = implementation.feed_forward(x, *up[1], *down[1], [*norm], 1e-12)
    expected = F.layer_norm(down[0](F.gelu(up[0](x))) + x, (size,), *norm, 1e-12)
    assert_close_but_for_flipped_bytes(found, expected)


def test_gelu_is_that_of_pytorch(implementation):
    x = torch.zeros(2001, 64)
    x[:, 0] = torch.linspace(-8, 8, 2001)  # alone in its row, so that bytes by token are exact
    layer, norm = identity(64)[1:3], [torch.ones(64), torch.zeros(64)]
    normed = implementation.feed_forward(x, *layer, *layer, norm, 1e6)  # eps: almost no normalisation
    largest = x[:, 0] + F.gelu(x[:, 0])
    variance = largest.double() ** 2 * (1 / 64 - 1 / 64**2)
    found = (normed[:, 0] - normed[:, 1]) * (1e6 + variance).sqrt()
    torch.testing.assert_close(found.float(), largest, atol=1e-5, rtol=1e-5)


def test_the_operators_say_what_they_return_before_they_run(implementation):
    fused, offsets = packed([5, 9], 3 * 64)
    x, (_, up), (_, down) = torch.randn(4, 24), int8_linear(24, 40, False), int8_linear(40, 24, True)
    square, norm = int8_linear(24, 24, False)[1], [torch.ones(24), torch.zeros(24)]
    for operator, arguments in [
        (ops.attention, (fused, offsets, 2, True)),
        (ops.attention_bf16, (fused.to(torch.bfloat16), offsets, 2, True)),
        (ops.attention_int8, (fused, offsets, 2, False)),
        (ops.embed, ([x.detach()], [], [torch.tensor([3, 1])], norm, 1e-5)),
        (ops.select_rows, (torch.rand(5), torch.tensor([0, 2, 5]), torch.tensor([1, 2]))),
        (ops.linear, (x, torch.tensor([2]), *up, 40, True)),
        (ops.linear_add_norm, (x, x.clone(), torch.tensor([1, 3]), *square, norm, 1e-12)),
        (ops.feed_forward, (x, *up, *down, norm, 1e-12)),
    ]:
        torch.library.opcheck(operator.default, arguments, test_utils=("test_schema", "test_faketensor"))


WITHOUT_TILES = """
import sys
from pathlib import Path
import torch, native_ops
from torch import nn
from int8_modules import Int8Embedding, Int8Linear
native_ops.FLAGS += ["-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16"]
assert native_ops.load_fused_operators(Path(sys.argv[1])) and not native_ops.fused_operators_loaded("attention_bf16")
layer = Int8Linear.from_float(nn.Linear(100, 70), (-3.0, 3.0))
arguments = None, native_ops.pack_linear(layer), [layer.input_scale, float(layer.input_zero_point)], 70, False
x = torch.randn(45, 100)
torch.testing.assert_close(torch.ops.quala.linear(x, *arguments), native_ops.linear(x, *arguments), atol=1e-5, rtol=1e-5)
"""


def test_products_of_vectors_are_those_of_pytorch(tmp_path):
    if not native_ops.fused_operators_loaded("linear"):
        pytest.skip("needs AVX-512 VNNI and a C++ compiler")
    command = [sys.executable, "-c", WITHOUT_TILES, str(tmp_path)]
    subprocess.run(command, cwd=Path(native_ops.__file__).parent, check=True, capture_output=True, timeout=300)


def test_a_number_that_no_table_has_is_an_error(implementation):
    with pytest.raises(IndexError, match="out of (range|bounds)"):
        implementation.embed([torch.ones(3, 16)], [], [torch.tensor([1, 3])], [torch.ones(16), torch.zeros(16)], 1e-5)


# ---- without C++ ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing, reason", [("compiler", "no C++ compiler"), ("headers", "false failed: ?"), ("AVX-512", "no AVX-512")]
)
def test_without_a_compiler_or_avx512_it_says_that_it_is_slower(missing, reason, tmp_path, monkeypatch, caplog):
    capability = "AVX2" if missing == "AVX-512" else "AVX512"
    monkeypatch.setattr(native_ops.torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
    monkeypatch.setattr(native_ops.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(native_ops, "cxx_compiler", lambda: None if missing == "compiler" else "false")
    assert native_ops.load_fused_operators(tmp_path) is False
    assert native_ops.load_fused_operators(tmp_path) is False
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and reason in said[0] and "slower" in said[0]


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(native_ops.torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
    monkeypatch.setattr(native_ops.torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(native_ops, "cxx_compiler", lambda: "g++")
    with pytest.raises(RunError, match="--engine_cache_dir .* cannot be written to"):
        native_ops.load_fused_operators(tmp_path / "file")


def test_query_key_and_value_with_different_ranges_are_refused():
    layers = [Int8Linear.from_float(torch.nn.Linear(8, 8), (-limit, limit)) for limit in (1.0, 1.0, 2.0)]
    with pytest.raises(RunError, match="ranges of their own"):
        NativeLinear(*layers)


# ---- packing -------------------------------------------------------------------------------------------------------


def test_selecting_from_packed_sequences_is_selecting_from_padded_ones(implementation):
    lengths, generator = torch.tensor([6, 1, 9, 4]), torch.Generator().manual_seed(0)
    offsets, real = F.pad(lengths.cumsum(0), (1, 0)), torch.arange(9) < lengths[:, None]
    significance = torch.rand(4, 9, generator=generator)
    rows, dropped, packed = implementation.select_rows(significance[real], offsets, torch.full((4,), 4))
    kept, _ = select_tokens(significance, real, 4)
    positions = (kept + 9 * torch.arange(4)[:, None])[real.gather(1, kept)]
    assert torch.equal(rows, real.flatten().cumsum(0)[positions] - 1)
    assert dropped.tolist() == sorted({*range(20)} - {*rows.tolist()})
    assert packed.tolist() == [0, 4, 5, 9, 13]


def test_of_equally_significant_tokens_the_earlier_ones_stay(implementation):
    rows, dropped, _ = implementation.select_rows(torch.ones(7), torch.tensor([0, 0, 7]), torch.tensor([1, 3]))
    assert rows.tolist() == [0, 1, 2] and dropped.tolist() == [3, 4, 5, 6]


def test_what_is_selected_is_packed_again():
    packed_before = Packed(torch.tensor([0, 3, 5]), torch.tensor([0, 1, 2, 9, 10]))
    rows, dropped, after = packed_before.select(torch.tensor([0.1, 0.2, 0.9, 0.5, 0.5]), torch.tensor([2, 2]))
    assert rows.tolist() == [0, 2, 3, 4] and dropped.tolist() == [1]
    assert after.offsets.tolist() == [0, 2, 4] and after.positions.tolist() == [0, 2, 9, 10]


@pytest.mark.parametrize("int8", [True, False])
def test_embeddings_are_those_of_the_modules(implementation, int8):
    torch.manual_seed(0)
    tables = [torch.nn.Embedding(number, 40) for number in (30, 2, 50)]
    tables = [Int8Embedding.from_float(table) for table in tables] if int8 else tables
    numbers = [torch.randint(number, (70,)) for number in (30, 2, 50)]
    norm = torch.linspace(0.5, 2, 40), torch.linspace(-1, 1, 40)
    scales = [table.weight_scale for table in tables if int8]
    found = implementation.embed([table.weight for table in tables], scales, numbers, [*norm], 1e-5)
    expected = F.layer_norm(sum(table(number) for table, number in zip(tables, numbers)), (40,), *norm, 1e-5)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "lengths, expected",
    [
        ([4096], [(0, 1)]),
        ([4000, 97], [(0, 1), (1, 2)]),
        ([1800, 1800, 1800], [(0, 2), (2, 3)]),
        ([384] * 32, [(0, 11), (11, 22), (22, 32)]),
        ([0, 0, 5], [(0, 3)]),
        ([0, 0], [(0, 2)]),
    ],
)
def test_micro_batches_have_about_as_many_tokens_each(lengths, expected):
    assert micro_batches(lengths) == expected
