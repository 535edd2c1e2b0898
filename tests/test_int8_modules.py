"""The INT8 modules against integer arithmetic done by hand in NumPy."""

import numpy as np
import pytest
import torch

from int8_modules import Int8Embedding, Int8Linear, quantization_range, quantize_rows


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return torch.nn.Linear(24, 10)


def integer_linear(x, scale, zero, module):
    """What an integer engine does: bytes times bytes, summed in 32 bits, scaled once. x (N, in), scale a number or (N, 1)."""
    codes = np.clip(np.round(x.numpy() / scale) + zero, 0, 255).astype(np.int32) - zero
    sums = codes @ module.weight.numpy().astype(np.int32).T
    return sums * scale * module.weight_scale.numpy() + module.bias.numpy()


def test_a_static_linear_computes_what_integer_arithmetic_gives(linear):
    x = torch.randn(7, 24)
    low, high = x.min().item() / 2, x.max().item()  # values below the range saturate
    module = Int8Linear.from_float(linear, (low, high))
    scale = (high - low) / 255
    expected = integer_linear(x, scale, round(-low / scale), module)
    np.testing.assert_allclose(module(x).detach(), expected, atol=1e-5)


def test_a_linear_without_a_range_gives_every_token_its_own(linear):
    x = torch.randn(7, 24) * torch.tensor([1e-3, 1, 1, 1, 1, 1, 1e3])[:, None]  # one range would flatten the first
    module = Int8Linear.from_float(linear)
    scale = x.abs().amax(1, keepdim=True).numpy() / 127
    np.testing.assert_allclose(module(x).detach(), integer_linear(x, scale, 128, module), rtol=1e-4, atol=1e-5)


def test_a_token_of_zeros_gives_the_bias(linear):
    torch.testing.assert_close(Int8Linear.from_float(linear)(torch.zeros(1, 24))[0], linear.bias.detach())


def test_smoothing_changes_rounding_only(linear):
    x = torch.randn(64, 24)
    x[:, 3] *= 50  # the outlying channel that smoothing is for
    factors = x.abs().amax(0).sqrt()
    ranges = [(x.min().item(), x.max().item()), ((x / factors).min().item(), (x / factors).max().item())]
    plain, smooth = Int8Linear.from_float(linear, ranges[0]), Int8Linear.from_float(linear, ranges[1], factors)
    errors = [(module(x) - linear(x)).abs().mean().item() for module in (plain, smooth)]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("bits, exact", [(8, False), (7, True)])
def test_pairs_of_products_fit_sixteen_bits_with_the_reduced_range_alone(bits, exact):
    weight, _ = quantize_rows(torch.tensor([[1.0, 1.0, -1.0, -1.0]]), bits)
    pairs = 255 * weight[0].numpy().astype(np.int32).reshape(2, 2).sum(1)  # what vpmaddubsw adds, then saturates
    assert (np.array_equal(np.clip(pairs, -32768, 32767), pairs)) is exact


def test_rows_are_rounded_to_their_own_scale():
    weight = torch.tensor([[0.5, -1.27, 0.0], [12.7, 0.04, -3.0], [0.0, 0.0, 0.0]])
    rows, scale = quantize_rows(weight)
    assert rows.tolist() == [[50, -127, 0], [127, 0, -30], [0, 0, 0]]
    torch.testing.assert_close(scale[:2], torch.tensor([0.01, 0.1]))


@pytest.mark.parametrize(
    "low, high, scale, zero", [(-1.0, 1.55, 0.01, 100), (0.5, 2.55, 0.01, 0), (-2.55, -1.0, 0.01, 255)]
)
def test_a_range_always_holds_zero(low, high, scale, zero):
    assert quantization_range(low, high) == (pytest.approx(scale), zero)


def test_an_embedding_is_off_by_at_most_half_a_step_of_its_row():
    torch.manual_seed(0)
    table = torch.nn.Embedding(20, 8)
    module, ids = Int8Embedding.from_float(table), torch.tensor([[3, 19], [0, 3]])
    steps = table.weight.abs().amax(1)[ids, None] / 127
    assert ((module(ids) - table(ids)).abs() <= steps / 2 + 1e-7).all()


@pytest.mark.parametrize("kwargs", [{}, {"input_range": (-1.0, 2.0)}, {"smoothing": torch.rand(24) + 0.5}])
def test_a_module_rebuilt_from_its_tensors_is_bit_equal(linear, kwargs):
    module, x = Int8Linear.from_float(linear, **kwargs), torch.randn(3, 24)
    assert torch.equal(Int8Linear.from_tensors(module.tensors())(x), module(x))
