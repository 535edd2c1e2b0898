"""Fake-quantized modules against the INT8 modules and the native engine, in integers, and gradients against tables."""

import copy
from dataclasses import replace

import pytest
import torch
from test_quantization import DYNAMIC, FACTS, logits, make_model
from torch import nn

import int8_modules
import native_engine
import quantization
from fake_quantization import FakeQuantizedEmbedding, FakeQuantizedLinear, fake_quantize
from int8_modules import Int8Embedding, Int8Linear
from native_engine import NativeLinear, NativeModel
from quantization import Recipe, load_int8, quantize, save_int8

STATIC = Recipe(by_token=r"intermediate")  # one layer of each kind in every block
RECIPES = {"static": STATIC, "dynamic": DYNAMIC, "7 bits": replace(STATIC, weight_bits=7, smoothing=None)}


def linear_inputs(model, batch):
    """The input of every linear layer of the model, by name."""
    inputs, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Int8Linear):
            hook = lambda _, args, name=name: inputs.update({name: args[0].detach()})
            hooks.append(module.register_forward_pre_hook(hook))
    logits(model, batch)
    for hook in hooks:
        hook.remove()
    return inputs


def extremes(model, batches, method, smoothing):
    """What `observe_ranges` finds by minmax, without an export, which takes seconds."""
    inputs = {name: x / smoothing.get(name, 1) for name, x in linear_inputs(model, batches[0]).items()}
    return {name: (x.min().item(), x.max().item()) for name, x in inputs.items()}


@pytest.fixture(autouse=True)
def calibration_by_hooks(monkeypatch):
    monkeypatch.setattr(quantization, "observe_ranges", extremes)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    mask = torch.ones(4, 40, dtype=torch.long)
    mask[2, 30:] = 0
    return {"input_ids": torch.randint(5, 100, (4, 40)) * mask, "attention_mask": mask}


@pytest.fixture(params=[(kind, name) for kind in ("bert", "roberta") for name in RECIPES], ids="-".join)
def pair(request, batch, tmp_path):
    """A fake-quantized model after a step of training, the recipe, and the INT8 model whose ranges it has."""
    kind, recipe = request.param[0], RECIPES[request.param[1]]
    model = make_model(kind)
    save_int8(quantize(model, recipe, [batch]), tmp_path / "before", recipe, FACTS)
    quantized = load_int8(tmp_path / "before")
    fake_quantize(model, dict(quantized.named_modules()), recipe.weight_bits)
    model(**batch, start_positions=torch.arange(4), end_positions=torch.arange(4)).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return model.eval(), recipe, quantized


@pytest.fixture
def saved(pair, tmp_path):
    """The folder that the fake-quantized model leaves."""
    model, recipe, _ = pair
    save_int8(model, tmp_path / "after", recipe, FACTS | {"backend": "native"})
    return tmp_path / "after"


def operands(module, x, monkeypatch):
    """(input, weight) of the product that a linear module computes for `x`, both in float."""
    seen = []
    original = nn.functional.linear
    with monkeypatch.context() as patch:
        patch.setattr(int8_modules.nn.functional, "linear", lambda *args: (seen.append(args[:2]), original(*args))[1])
        module(x)
    ((values, weight),) = seen
    return values.detach(), weight.detach()


def integers(floats, scale):
    """`floats` as multiples of `scale`, exactly."""
    whole = (floats.double() / scale).round()
    assert (whole - floats.double() / scale).abs().max() < 1e-4
    return whole.long()


# ---- the integers --------------------------------------------------------------------------------------------------


def test_the_sums_of_every_layer_are_those_of_the_native_engine_on_the_saved_weights(pair, saved, batch, monkeypatch):
    model, int8 = pair[0], load_int8(saved)
    inputs = linear_inputs(model, batch)
    assert len(inputs) == 6 * 3 + 1
    for name, x in inputs.items():
        x = x.flatten(0, -2)
        fake, module = model.get_submodule(name), int8.get_submodule(name)
        scale = module.input_scale or 1 / 127
        values, weight = operands(fake, x, monkeypatch)
        sums = integers(values, scale) @ integers(weight, module.weight_scale.double()[:, None]).T
        # Of an engine layer whose weights have scales of one the input's scale alone is to be taken out again.
        plain = torch.ones(len(weight)), torch.zeros(len(weight))
        whole = Int8Linear(module.weight, *plain, module.input_scale, module.input_zero_point, module.smoothing)
        largest = 1 if module.input_scale else module.largest(x).double()
        assert torch.equal((NativeLinear(whole)(x).double() / (scale * largest)).round().long(), sums), name


def test_the_logits_are_those_of_the_saved_model_bit_for_bit(pair, saved, batch):
    for length_config in (None, (30, 20, 10)):
        assert torch.equal(logits(pair[0], batch, length_config), logits(load_int8(saved), batch, length_config))


def test_the_native_engine_gives_the_logits_of_the_model_that_was_trained(pair, saved, batch, monkeypatch):
    monkeypatch.setattr(native_engine, "load_fused_operators", lambda _: False)  # PyTorch's need no compiler
    engine = NativeModel(saved)
    for layer in engine.layers:  # the modules have attention in float
        monkeypatch.setattr(layer, "attend", torch.ops.quala.attention)
    real, expected = batch["attention_mask"].bool(), logits(pair[0], batch)
    assert (logits(engine, batch) - expected)[:, real].abs().median() < 1e-3 * expected.std()


def test_before_any_step_the_model_is_the_quantized_one(batch):
    model = make_model()
    quantized = quantize(model, STATIC, [batch])
    fake_quantize(model, dict(quantized.named_modules()), 8)
    assert torch.equal(logits(model, batch), logits(quantized, batch))


def test_ranges_and_smoothing_stay_and_weight_scales_follow_the_weights(pair, saved):
    _, recipe, before = pair
    changed = 0
    for name, module in load_int8(saved).named_modules():
        if isinstance(module, Int8Linear):
            old = before.get_submodule(name)
            assert (module.input_scale, module.input_zero_point) == (old.input_scale, old.input_zero_point)
            assert (module.smoothing is None) == (old.smoothing is None)
            assert module.smoothing is None or torch.equal(module.smoothing, old.smoothing)
            assert module.weight.abs().amax(1).unique().tolist() == [127 if recipe.weight_bits == 8 else 63]
            changed += int(not torch.equal(module.weight_scale, old.weight_scale))
    assert changed > 0


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_under_autocast_the_integers_are_the_same(pair, half, monkeypatch):
    for name in ("query", "intermediate.dense"):
        fake = next(module for path, module in pair[0].named_modules() if path.endswith(name))
        x = torch.randn(5, fake.weight.shape[1]).to(half)
        expected = operands(fake, x.float(), monkeypatch)
        with torch.autocast("cpu", half):
            found = operands(fake, x, monkeypatch)
        assert all(torch.equal(one, other) for one, other in zip(found, expected))


@pytest.mark.parametrize("low, high", [(-1.0, 1.3), (-0.37, 2.9), (-4.1, 0.0), (-3.3, 7.7), (-0.013, 0.029)])
def test_between_two_bytes_the_choice_is_the_int8_modules(low, high):
    linear = nn.Linear(1, 1)
    int8 = Int8Linear.from_float(linear, (low, high))
    halves = (torch.arange(-60, 60) + 0.5).double() * int8.input_scale
    x = torch.cat([halves.float().nextafter(torch.tensor(side)) for side in (-9.0, 9.0)] + [halves.float()])[:, None]
    assert torch.equal(FakeQuantizedLinear(linear, int8, 8)(x), int8(x))


# ---- gradients -----------------------------------------------------------------------------------------------------


def make_linear(weight, input_range, smoothing=None):
    linear = nn.Linear(len(weight), 1)
    linear.weight.data, linear.bias.data = torch.tensor([weight]), torch.tensor([0.5])
    return FakeQuantizedLinear(linear, Int8Linear.from_float(linear, input_range, smoothing), 8)


# The range (-1, 1.55) is that of bytes with scale 0.01 and zero point 100; what rounds to byte 255 is inside.
STATIC_TABLE = [
    (0.304, 0.30, True),
    (1.554, 1.55, True),
    (1.556, 1.55, False),
    (9.0, 1.55, False),
    (-1.2, -1.0, False),
]


@pytest.mark.parametrize("x, rounded, inside", STATIC_TABLE)
def test_a_saturated_input_gets_no_gradient_and_any_other_that_of_the_rounded_weight(x, rounded, inside):
    module, x = make_linear([1.27, 0.503], (-1.0, 1.55)), torch.tensor([[x, 0.1]], requires_grad=True)
    y = module(x)
    assert y.item() == pytest.approx(1.27 * rounded + 0.50 * 0.1 + 0.5, abs=1e-6)
    y.backward(torch.tensor([[2.0]]))
    torch.testing.assert_close(x.grad, torch.tensor([[2 * 1.27 if inside else 0.0, 2 * 0.50]]))
    torch.testing.assert_close(module.weight.grad, 2 * torch.tensor([[rounded, 0.1]]))
    assert module.bias.grad.item() == 2.0


def test_a_token_with_a_range_of_its_own_gets_the_gradient_of_the_rounded_weight():
    """Also its largest value, although that is what decides on the range."""
    module, x = make_linear([1.27, 0.503, -0.2], None), torch.tensor([[2.54, -0.009, 1.0]], requires_grad=True)
    module(x).backward()
    torch.testing.assert_close(x.grad, torch.tensor([[1.27, 0.50, -0.20]]))
    torch.testing.assert_close(module.weight.grad, torch.tensor([[2.54, 0.0, 1.0]]))  # multiples of 2.54 / 127


def test_smoothing_divides_the_inputs_gradient_and_multiplies_the_weights():
    module = make_linear([0.635, 0.243], (-1.0, 1.55), torch.tensor([2.0, 0.5]))  # smoothed (1.27, 0.1215)
    x = torch.tensor([[0.608, 0.05]], requires_grad=True)  # smoothed (0.304, 0.1)
    module(x).backward()
    torch.testing.assert_close(x.grad, torch.tensor([[1.27 / 2, 0.12 / 0.5]]))
    torch.testing.assert_close(module.weight.grad, torch.tensor([[0.30 * 2, 0.1 * 0.5]]))


def test_a_table_gets_the_gradient_of_its_rows_but_not_for_padding():
    table = nn.Embedding(4, 2, padding_idx=0)
    module = FakeQuantizedEmbedding(table)
    module(torch.tensor([[3, 0, 3], [1, 0, 0]])).backward(torch.full((2, 3, 2), 0.5))
    assert table.weight.grad.tolist() == [[0, 0], [0.5, 0.5], [0, 0], [1, 1]]


# ---- what is faked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embeddings", [True, False])
def test_only_the_linears_and_tables_of_the_recipe_are_faked(embeddings):
    model = make_model()
    fakes = copy.deepcopy(model)
    quantized = quantize(model, replace(DYNAMIC, embeddings=embeddings), [])
    fake_quantize(fakes, dict(quantized.named_modules()), 8)
    for name, module in fakes.named_modules():
        expected = {Int8Linear: FakeQuantizedLinear, Int8Embedding: FakeQuantizedEmbedding}
        original = type(quantized.get_submodule(name))
        assert type(module) is expected.get(original, original), name
    assert any(isinstance(module, FakeQuantizedEmbedding) for module in fakes.modules()) is embeddings


def test_parameters_are_those_of_the_float_model_under_their_names():
    model = make_model()
    before = dict(model.named_parameters())
    fake_quantize(model, dict(quantize(model, DYNAMIC, []).named_modules()), 8)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert model.state_dict().keys() == make_model().state_dict().keys()
