"""Attention with significance in every form, against sums written out by hand, the explicit form and autograd."""

import pytest
import torch

import native_ops
from attention import attention_with_significance, explicit_attention, flash_kernel, fused_attention

HEADS, SIZE = 4, 16
ROWS = {  # which of 21 tokens are real
    "no padding": [range(21)] * 3,
    "right": [range(21), range(9), range(1)],
    "left": [range(21), range(12, 21), range(20, 21)],
    "a row of padding": [range(21), range(0), range(5)],
    "holes": [range(21), [0, 1, 5, 6, 20], range(3, 9)],
}
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


@pytest.fixture(params=ROWS)
def real(request):
    """(3, 21) bool, or None where nothing is padded."""
    if request.param == "no padding":
        return None
    return torch.tensor([[token in row for token in range(21)] for row in ROWS[request.param]])


def heads(length=21, rows=3, seed=0, **kind):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(3, rows, length, HEADS * SIZE, generator=generator).to(**kind)
    return [part.view(rows, length, HEADS, SIZE).transpose(1, 2) for part in 1.5 * draw]


def on(device, real):
    return None if real is None else real.to(device)


def written_out(query, key, value, real, scaling):
    """Context and significance one query at a time, over the real tokens alone; padding's are zero."""
    rows, count, length, size = query.shape
    context, significance = torch.zeros(rows, length, count, size), torch.zeros(rows, length)
    for row in range(rows):
        tokens = torch.arange(length) if real is None else real[row].nonzero().flatten()
        for head in range(count):
            for i in tokens:
                weights = torch.exp(scaling * key[row, head, tokens] @ query[row, head, i])
                weights = weights / weights.sum()
                significance[row, tokens] += weights
                context[row, i, head] = weights @ value[row, head, tokens]
    return context, significance


@pytest.mark.parametrize("form", ["explicit", "flash"])
def test_significance_is_the_column_sum_over_heads_and_real_queries(form, real):
    parts = heads()
    expected, received = written_out(*parts, real, 0.3)
    forms = {"explicit": explicit_attention, "flash": attention_with_significance}
    context, significance = forms[form](*parts, real, 0.3, 0.0)
    voters = torch.ones(3, 21, dtype=torch.bool) if real is None else real
    torch.testing.assert_close(context[voters], expected[voters], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(significance[voters], received[voters], atol=0, rtol=1e-5)
    assert significance[~voters].abs().max() < 1e-30 if real is not None and form == "flash" else True


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1, 7, 384])
def test_flash_attention_twice_agrees_with_the_explicit_form(device, length):
    parts = heads(length, device=device)
    assert flash_kernel(parts[0], 0.0) is not None
    context, significance = attention_with_significance(*parts, None, 0.25)
    expected, received = explicit_attention(*parts, None, 0.25, 0.0)
    torch.testing.assert_close(context, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(significance, received, atol=0, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_padding_is_treated_as_by_the_explicit_form(device, real):
    parts, real = heads(device=device), on(device, real)
    found, expected = attention_with_significance(*parts, real, 0.25), explicit_attention(*parts, real, 0.25, 0.0)
    voters = slice(None) if real is None else real
    torch.testing.assert_close(found[0][voters], expected[0][voters], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1][voters], expected[1][voters], atol=0, rtol=1e-5)
    assert found[0].isfinite().all() and found[1].isfinite().all()  # of padding too: nothing may spread


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_is_as_near_to_float32_as_the_explicit_form(device, real):
    exact, real = heads(device=device), on(device, real)
    parts = [part.to(torch.bfloat16) for part in exact]
    assert flash_kernel(parts[0], 0.0) is not None
    voters = torch.ones(3, 21, dtype=torch.bool, device=device) if real is None else real
    expected = explicit_attention(*exact, real, 0.25, 0.0)
    forms = attention_with_significance(*parts, real, 0.25), explicit_attention(*parts, real, 0.25, 0.0)
    for which in (0, 1):
        error, explicit_error = ((form[which].float() - expected[which])[voters].norm() for form in forms)
        assert error < 1.5 * explicit_error < 0.1 * expected[which][voters].norm()


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_those_of_the_explicit_form(device, real):
    real = on(device, real)
    weights = torch.randn(3, 21, HEADS, SIZE, generator=torch.Generator().manual_seed(1)).to(device)
    weights = weights if real is None else weights * real[:, :, None, None]  # nobody asks padding
    gradients = []
    for form in (attention_with_significance, explicit_attention):
        parts = [part.requires_grad_() for part in heads(device=device)]
        context, significance = form(*parts, real, 0.25, 0.0)
        assert not significance.requires_grad
        gradients.append(torch.autograd.grad((context * weights).sum(), parts))
    for found, expected in zip(*gradients):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_dropout_changes_the_context_and_not_the_significance(device):
    parts = [part.requires_grad_() for part in heads(device=device)]
    context, significance = attention_with_significance(*parts, None, 0.25, dropout=0.1)
    without, expected = explicit_attention(*parts, None, 0.25, 0.0)
    torch.testing.assert_close(significance, expected, atol=0, rtol=1e-5)
    assert not torch.allclose(context, without, atol=1e-3)
    mean = torch.stack([attention_with_significance(*parts, None, 0.25, dropout=0.1)[0] for _ in range(400)]).mean(0)
    assert (mean - without).abs().mean() < 0.1 * (context - without).abs().mean()  # unbiased: 1 / sqrt(400)
    assert all(part.isfinite().all() for part in torch.autograd.grad(context.sum(), parts))


def test_the_explicit_form_stays_where_flash_attention_is_slower_or_missing():
    parts = heads(dtype=torch.bfloat16)
    assert flash_kernel(parts[0], 0.0) is not None and flash_kernel(parts[0].requires_grad_(), 0.0) is None
    assert flash_kernel(heads()[0], 0.1) is None
    assert flash_kernel(heads(dtype=torch.float64)[0], 0.0) is None
    assert flash_kernel(heads(device="meta")[0], 0.0) is None


def test_graphs_of_the_int8_engines_hold_the_explicit_form():
    parts = heads()
    graph = torch.jit.trace(lambda *parts: attention_with_significance(*parts, None, 0.25), parts).graph
    assert "softmax" in str(graph) and "flash" not in str(graph)

    class Exported(torch.nn.Module):
        def forward(self, *parts):
            return attention_with_significance(*parts, None, 0.25)

    assert "flash" not in str(torch.export.export(Exported(), tuple(parts), strict=False).graph)


# ---- the fused operator --------------------------------------------------------------------------------------------


@pytest.fixture(params=["PyTorch", "C++"])
def operator(request, tmp_path_factory, monkeypatch):
    if request.param == "PyTorch":
        monkeypatch.setattr(torch.ops.quala, "attention", native_ops.attention)
    elif not native_ops.load_fused_operators(tmp_path_factory.getbasetemp() / "operators"):
        pytest.skip("needs AVX-512 and a C++ compiler")


@torch.no_grad()
def test_the_fused_operator_gives_what_the_explicit_form_gives(operator, real):
    torch.manual_seed(0)
    width = HEADS * SIZE
    hidden, linears = torch.randn(3, 21, 24), [torch.nn.Linear(24, width) for _ in range(3)]
    context, significance = fused_attention(hidden, linears, HEADS, real)
    parts = [linear(hidden).view(3, 21, HEADS, SIZE).transpose(1, 2) for linear in linears]
    expected, received = explicit_attention(*parts, real, SIZE**-0.5, 0.0)
    voters = torch.ones(3, 21, dtype=torch.bool) if real is None else real
    torch.testing.assert_close(context[voters], expected.flatten(2)[voters], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(significance[voters], received[voters], atol=0, rtol=1e-5)
    assert context[~voters].abs().sum() == 0 and significance[~voters].abs().sum() == 0


def test_a_batch_of_padding_alone_is_no_error(operator):
    linears = [torch.nn.Linear(24, HEADS * SIZE) for _ in range(3)]
    with torch.no_grad():
        context, _ = fused_attention(torch.randn(2, 5, 24), linears, HEADS, torch.zeros(2, 5).bool())
    assert context.shape == (2, 5, HEADS * SIZE) and not context.any()
