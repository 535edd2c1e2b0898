"""The native engine's operators, in PyTorch and in C++, against the stock functions that they replace."""

import itertools

import pytest
import torch
from torch.nn import functional as F

import native_ops
from attention import explicit_attention
from errors import RunError
from int8_modules import Int8Linear
from length_drop import select_tokens
from native_engine import NativeLinear, Packed, micro_batches

ops = torch.ops.quala


@pytest.fixture(params=["PyTorch", "C++"])
def implementation(request, tmp_path_factory):
    """The module or namespace that has the operators."""
    if request.param == "PyTorch":
        return native_ops
    if not native_ops.load_fused_operators(tmp_path_factory.getbasetemp() / "operators"):
        pytest.skip("needs AVX-512 and a C++ compiler")
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


@pytest.mark.parametrize("name", ["attention", "attention_int8"])
def test_a_large_score_does_not_overflow(implementation, name):
    fused, offsets = packed([20], 3 * 32)
    context, significance = getattr(implementation, name)(fused * 100, offsets, 1, True)
    assert context.isfinite().all() and significance.sum().item() == pytest.approx(20, rel=1e-3)


@pytest.mark.parametrize("name", ["attention", "attention_int8"])
def test_significance_that_nobody_wants_is_empty(implementation, name):
    fused, offsets = packed([20, 3], 3 * 64)
    attention = getattr(implementation, name)
    context, nothing = attention(fused, offsets, 2, False)
    assert nothing.numel() == 0
    torch.testing.assert_close(context, attention(fused, offsets, 2, True)[0])


# ---- bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows, size", [(1, 384), (129, 1536), (7, 33), (3, 5)])
@pytest.mark.parametrize("with_shrink", [True, False])
def test_bytes_of_one_range_are_those_of_pytorch(implementation, rows, size, with_shrink):
    x, _ = packed([rows], size)
    shrink = torch.linspace(0.5, 2, size) if with_shrink else None
    values, largest = implementation.quantize(x, shrink, 0.02, 117)  # covers [-2.34, 2.76]: the tails saturate
    exact = torch.quantize_per_tensor(x * shrink if with_shrink else x, 0.02, 117, torch.quint8).int_repr()
    difference = (values.int() - exact.int()).abs()  # PyTorch multiplies and adds in one rounding
    assert difference.max() <= 1 and difference.float().mean() < 1e-4 and largest.numel() == 0


@pytest.mark.parametrize("rows, size", [(129, 384), (7, 33)])
def test_bytes_by_token_use_each_rows_whole_range(implementation, rows, size):
    x, _ = packed([rows], size)
    x = x * torch.logspace(-3, 3, rows)[:, None]
    values, largest = implementation.quantize(x, None, 0.0, 0)
    assert torch.equal(largest, x.abs().amax(1, keepdim=True))
    assert (((values.float() - 128) / 127 * largest - x).abs() <= largest * (0.5 / 127) * 1.001).all()
    assert ((values.float() - 128).abs().amax(1) == 127).all()


def test_a_row_of_zeros_is_the_byte_of_zero(implementation):
    values, largest = implementation.quantize(torch.zeros(2, 40), None, 0.0, 0)
    assert (values == 128).all() and largest.isfinite().all()


@pytest.mark.parametrize("scale, zero_point", [(0.03, 20), (0.0, 0)])
def test_gelu_is_that_of_pytorch_but_for_a_step_of_rounding(implementation, scale, zero_point):
    x = torch.linspace(-8, 8, 5 * 1536).view(1536, 5).T.contiguous()
    values, largest = implementation.gelu_quantize(x, None, scale, zero_point)
    expected, expected_largest = native_ops.quantize(F.gelu(x), None, scale, zero_point)
    difference = (values.int() - expected.int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 1e-3
    torch.testing.assert_close(largest, expected_largest, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rows, size", [(129, 384), (7, 33)])
@pytest.mark.parametrize("scale, zero_point", [(0.03, 120), (0.0, 0)])
def test_the_norm_is_that_of_pytorch_but_for_a_step_of_rounding(implementation, rows, size, scale, zero_point):
    x, _ = packed([rows], 2 * size)
    x, residual = x[:, :size], x[:, size:] + 3  # not contiguous; a mean that is not zero
    weight, bias = torch.linspace(0.5, 2, size), torch.linspace(-1, 1, size)
    normed, values, _ = implementation.add_norm_quantize(x, residual, weight, bias, 1e-12, None, scale, zero_point)
    expected = F.layer_norm(x + residual, (size,), weight, bias, 1e-12)
    torch.testing.assert_close(normed, expected, atol=5e-6, rtol=1e-5)
    assert (values.int() - native_ops.quantize(expected, None, scale, zero_point)[0].int()).abs().max() <= 1


def test_the_operators_say_what_they_return_before_they_run(implementation):
    fused, offsets = packed([5, 9], 3 * 64)
    x = torch.randn(4, 24)
    for operator, arguments in [
        (ops.attention, (fused, offsets, 2, True)),
        (ops.attention_int8, (fused, offsets, 2, False)),
        (ops.quantize, (x, None, 0.1, 3)),
        (ops.gelu_quantize, (x, x[0].clone(), 0.0, 0)),
        (ops.add_norm_quantize, (x, x.clone(), x[0].clone(), x[1].clone(), 1e-12, None, 0.1, 3)),
    ]:
        torch.library.opcheck(operator.default, arguments, test_utils=("test_schema", "test_faketensor"))


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


def test_selecting_from_packed_sequences_is_selecting_from_padded_ones():
    lengths = torch.tensor([6, 1, 9, 4])
    offsets, generator = F.pad(lengths.cumsum(0), (1, 0)), torch.Generator().manual_seed(0)
    real = torch.arange(9) < lengths[:, None]
    significance = torch.rand(4, 9, generator=generator)
    rows, after = Packed(offsets, real.flatten().nonzero().squeeze(1)).select(significance[real], torch.full((4,), 4))
    kept, _ = select_tokens(significance, real, 4)
    positions = (kept + 9 * torch.arange(4)[:, None])[real.gather(1, kept)]
    assert torch.equal(after.positions, positions)
    assert torch.equal(after.offsets, torch.tensor([0, 4, 5, 9, 13]))
    assert torch.equal(rows, real.flatten().cumsum(0)[positions] - 1)


@pytest.mark.parametrize(
    "lengths, expected",
    [
        ([2048], [(0, 1)]),
        ([2000, 49], [(0, 1), (1, 2)]),
        ([900, 900, 900], [(0, 2), (2, 3)]),
        ([0, 0, 5], [(0, 3)]),
    ],
)
def test_micro_batches_hold_about_as_many_tokens_as_stay_in_the_cache(lengths, expected):
    assert micro_batches(lengths) == expected
