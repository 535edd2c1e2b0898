"""Which attention a model takes, and that its logits, its kept tokens and its gradients do not depend on that."""

import pytest
import torch
from test_modeling import DROP, batch, family, logits  # noqa: F401  (family is a fixture)

import length_drop
import native_ops
from native_ops import load_fused_operators

CONFIGS = [DROP, (32, 12, 12), (20, 20, 5)]


@pytest.fixture(params=["sdpa", "fused in PyTorch", "fused in C++"])
def way(request, tmp_path_factory, monkeypatch):
    """Makes the models attend in one of the ways that are not the explicit one."""
    if request.param == "fused in C++" and not load_fused_operators(tmp_path_factory.getbasetemp() / "operators"):
        pytest.skip("needs AVX-512 and a C++ compiler")
    if request.param == "fused in PyTorch":
        monkeypatch.setattr(torch.ops.quala, "attention", native_ops.attention)
    monkeypatch.setattr(length_drop, "fused_operators_loaded", lambda *_: request.param != "sdpa")
    return request.param


def padded(inputs, side):
    return inputs if side == "right" else {name: tensor.flip(1) for name, tensor in inputs.items()}


def kept_tokens(model, inputs, length_config):
    """The tokens that each dropping layer keeps, and the logits."""
    kept = []
    hooks = [
        layer.register_forward_hook(
            lambda module, args, output: kept.append(output[1]) if type(output) is tuple else None
        )
        for layer in model.base_model.encoder.layer
    ]
    found = logits(model, inputs, length_config=length_config)
    for hook in hooks:
        hook.remove()
    return kept, found


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length_config", CONFIGS)
def test_kept_tokens_and_logits_are_those_of_the_explicit_form(family, way, length_config, side):  # noqa: F811
    model, _, padding = family
    inputs = padded(batch((32, 20, 6), 32, padding), side)
    model.set_attn_implementation("eager")
    expected_kept, expected = kept_tokens(model, inputs, length_config)
    model.set_attn_implementation("sdpa")
    kept, found = kept_tokens(model, inputs, length_config)
    assert len(kept) == len(expected_kept) > 0 and all(map(torch.equal, kept, expected_kept))
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[:, real], expected[:, real], atol=2e-5, rtol=1e-4)


def test_a_row_of_padding_alone_changes_no_other_row(family, way):  # noqa: F811
    model, _, padding = family
    inputs = batch((32, 0, 20), 32, padding)
    found = logits(model, inputs, length_config=DROP)
    without = {name: tensor[[0, 2]] for name, tensor in inputs.items()}
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, [0, 2]], logits(model, without, length_config=DROP), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("length_config", [None, *CONFIGS])
def test_training_in_float32_has_the_gradients_of_the_explicit_form(family, length_config):  # noqa: F811
    model, stock, padding = family
    inputs = batch((32, 20), 32, padding)
    positions = {"start_positions": torch.tensor([3, 4]), "end_positions": torch.tensor([5, 6])}
    for module in [*model.train().modules(), *stock.train().modules()]:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    gradients = []
    for implementation in ("sdpa", "eager"):
        reader = stock if length_config is None and implementation == "sdpa" else model
        reader.set_attn_implementation(implementation)
        reader.zero_grad()
        drop = {} if length_config is None else {"length_config": length_config}
        reader(**inputs, **positions, **drop).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in reader.parameters()])
    for found, expected in zip(*gradients):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@pytest.fixture
def forms_used(monkeypatch):
    """The names of the forms of attention that have been called."""
    used = []
    for name in ("explicit_attention", "attention_with_significance", "fused_attention"):
        form = getattr(length_drop, name)
        monkeypatch.setattr(length_drop, name, lambda *args, form=form, name=name: used.append(name) or form(*args))
    return used


def test_layers_that_drop_nothing_pay_for_no_scores(family, forms_used):  # noqa: F811
    model, _, padding = family
    logits(model, batch((32, 20), 32, padding), length_config=(32, 12, 12))
    assert len(forms_used) == 1


@pytest.mark.parametrize(
    "case, form",
    [
        ("inference", "fused_attention"),
        ("training", "attention_with_significance"),
        ("bf16", "fused_attention"),
        ("eager", "explicit_attention"),
        ("replaced", "attention_with_significance"),
    ],
)
def test_the_fused_operator_serves_inference_with_plain_layers(family, forms_used, case, form, monkeypatch):  # noqa: F811
    model, _, padding = family
    monkeypatch.setattr(length_drop, "fused_operators_loaded", lambda *_: True)
    inputs = batch((32,), 32, padding)
    if case == "eager":
        model.set_attn_implementation("eager")
    if case == "replaced":
        for layer in model.base_model.encoder.layer:
            layer.attention.self.key = torch.nn.Sequential(layer.attention.self.key)
    model.train(case == "training")
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "bf16"), torch.set_grad_enabled(case == "training"):
        model(**inputs, length_config=DROP)
    assert forms_used == [form] * 3
