"""Calibration against extremes seen by hooks, the formula of the smoothing, and the INT8 folder."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save
from transformers import BertConfig, RobertaConfig

import int8_folder
import quantization
from calibration import channel_maxima, linear_layers, observe_ranges, smoothing_factors
from errors import RunError
from int8_folder import RECIPE_FILE, read_recipe, sha256
from int8_modules import Int8Embedding, Int8Linear
from modeling_la_auto import MODEL_CLASSES
from quantization import Recipe, copy_int8, load_int8, quantize, recipes, save_int8

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "initializer_range": 0.2,
}
FACTS = {"backend": "pt2e", "max_seq_length": 64, "input_names": ["input_ids", "attention_mask"]}


def make_model(kind="bert"):
    torch.manual_seed(0)
    config = {"bert": BertConfig, "roberta": RobertaConfig}[kind](**SIZES)
    return MODEL_CLASSES[kind](config).eval()


@pytest.fixture
def batch():
    mask = torch.ones(4, 40, dtype=torch.long)
    mask[2, 30:] = 0
    return {"input_ids": torch.randint(5, 100, (4, 40)) * mask, "attention_mask": mask}


DYNAMIC = recipes("dynamic", "minmax", True)[0]  # the folder's tests need no calibration, which takes seconds
OTHER = replace(DYNAMIC, embeddings=False)


@pytest.fixture
def folder(tmp_path, batch):
    """An INT8 folder of a small BERT."""
    save_int8(quantize(make_model(), DYNAMIC, []), tmp_path / "int8", DYNAMIC, FACTS)
    return tmp_path / "int8"


def logits(model, batch, length_config=None):
    with torch.no_grad():
        outputs = model(**batch, length_config=length_config)
    return torch.stack([outputs.start_logits, outputs.end_logits])


# ---- calibration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", [1, 2])  # an export takes a size of one for fixed
def test_the_ranges_are_the_extremes_of_a_batch(batch, windows):
    batch = {name: rows[:windows] for name, rows in batch.items()}
    model, seen = make_model(), {}
    for name, linear in linear_layers(model).items():
        linear.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].detach()}))
    ranges = observe_ranges(make_model(), [batch], "minmax", {})
    logits(model, batch)
    assert ranges.keys() == seen.keys()
    for name, (low, high) in ranges.items():
        step = (high - low) / 255  # the zero point is rounded
        assert low == pytest.approx(seen[name].min().item(), abs=step)
        assert high == pytest.approx(seen[name].max().item(), abs=step)


def test_the_channel_maxima_leave_padding_out(batch):
    model = make_model()
    batch["input_ids"][0, :] = 7
    padded = {name: torch.nn.functional.pad(tensor, (0, 20)) for name, tensor in batch.items()}
    found, with_padding = channel_maxima(model, [batch]), channel_maxima(model, [padded])
    for name in found:
        torch.testing.assert_close(found[name], with_padding[name])


def test_smoothing_factors_follow_equation_4_of_smoothquant():
    model = torch.nn.Module()
    model.dense = torch.nn.Linear(2, 2)
    model.dense.weight.data = torch.tensor([[1.0, -2.0], [0.5, 8.0]])
    factors = smoothing_factors(model, {"dense": torch.tensor([4.0, 32.0])}, 0.5)["dense"]
    expected = torch.tensor([(4 / 1) ** 0.5, (32 / 8) ** 0.5])
    torch.testing.assert_close(factors, expected / expected.prod() ** 0.5)


def test_layers_that_read_the_same_tensor_share_their_factors(batch):
    model = make_model()
    factors = smoothing_factors(model, channel_maxima(model, [batch]), 0.5)
    prefix = "bert.encoder.layer.1.attention."
    assert torch.equal(factors[prefix + "self.query"], factors[prefix + "self.value"])
    assert not torch.equal(factors[prefix + "self.query"], factors[prefix + "output.dense"])


# ---- the quantized model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, recipe", [("bert", Recipe()), ("roberta", Recipe(smoothing=None)), ("bert", DYNAMIC), ("roberta", DYNAMIC)]
)
def test_every_linear_and_every_table_is_quantized_and_the_logits_stay_close(kind, recipe, batch):
    model = make_model(kind)
    quantized = quantize(model, recipe, [batch])
    kinds = [type(module) for module in quantized.modules()]
    assert torch.nn.Linear not in kinds and torch.nn.Embedding not in kinds
    assert kinds.count(Int8Linear) == 6 * 3 + 1 and kinds.count(Int8Embedding) == 3
    for length_config in (None, (30, 20, 10)):
        exact = logits(model, batch, length_config)
        # The median: where two tokens are nearly as significant, rounding decides which of them goes.
        assert (logits(quantized, batch, length_config) - exact).abs().median() < 0.05 * exact.std()


def test_tables_stay_in_float_if_asked(batch):
    quantized = quantize(make_model(), replace(DYNAMIC, embeddings=False), [])
    assert not any(isinstance(module, Int8Embedding) for module in quantized.modules())


def test_quantizing_leaves_the_model_as_it_was(batch):
    model = make_model()
    before = logits(model, batch)
    quantize(model, DYNAMIC, [])
    assert torch.equal(logits(model, batch), before)


def test_without_vnni_the_weights_use_seven_bits(monkeypatch):
    monkeypatch.setattr(quantization, "has_vnni", lambda: False)
    assert all(recipe.weight_bits == 7 for recipe in recipes("static", "minmax", True))
    quantized = quantize(make_model(), recipes("dynamic", "minmax", True)[0], [])
    linears = [module for module in quantized.modules() if isinstance(module, Int8Linear)]
    assert max(linear.weight.abs().max().item() for linear in linears) == 63


# ---- the folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_reloaded_model_is_bit_equal(kind, tmp_path, batch):
    quantized = quantize(make_model(kind), Recipe(), [batch])
    save_int8(quantized, tmp_path, Recipe(), FACTS)
    for length_config in (None, (30, 20, 10)):
        assert torch.equal(logits(load_int8(tmp_path), batch, length_config), logits(quantized, batch, length_config))


def test_the_folder_holds_bytes_in_safetensors_and_text_in_json(folder):
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]
    weights = next(folder.glob("*.safetensors"))
    parameters = sum(parameter.numel() for parameter in make_model().parameters())
    assert weights.stat().st_size < 2 * parameters  # the scales weigh more in so small a model


def test_a_kill_before_the_recipe_is_written_leaves_the_old_model(folder, batch, monkeypatch):
    before = logits(load_int8(folder), batch)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantization, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save_int8(quantize(make_model(), OTHER, []), folder, OTHER, FACTS)
    assert torch.equal(logits(load_int8(folder), batch), before)


def test_a_second_model_replaces_the_first(folder):
    save_int8(quantize(make_model(), OTHER, []), folder, OTHER, FACTS)
    assert len(list(folder.glob("*.safetensors"))) == 1
    assert read_recipe(folder)["recipe"]["embeddings"] is False


def test_weights_that_were_changed_are_refused(folder):
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunError, match="is not the file that int8_recipe.json was written for"):
        load_int8(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda recipe: recipe | {"format": 0}, "format 0"),
        (lambda recipe: {}, "damaged"),
        (lambda recipe: [], "damaged"),
        (lambda recipe: recipe | {"config": {}}, "damaged"),
        (lambda recipe: recipe | {"config": []}, "damaged"),
        (lambda recipe: recipe | {"weights": "gone.safetensors"}, "gone.safetensors is missing"),
        (lambda recipe: recipe | {"config": recipe["config"] | {"hidden_size": 64}}, "does not hold the INT8 model"),
        (
            lambda recipe: recipe | {"config": recipe["config"] | {"model_type": "gpt2"}},
            "does not hold the INT8 model",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_in_one_line(folder, change, message):
    path = folder / RECIPE_FILE
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(RunError, match=message):
        load_int8(folder)


LAYER = "bert.encoder.layer.1."


@pytest.mark.parametrize(
    "name, tensor",
    [
        (LAYER + "attention.self.key.bias", torch.zeros(31)),
        (LAYER + "attention.self.key.weight_scale", torch.zeros(1)),
        (LAYER + "output.dense.smoothing", torch.ones(63)),
        (LAYER + "output.LayerNorm.weight", torch.ones(33)),
        (LAYER + "output.LayerNorm.weight", None),
        ("bert.pooler.weight", torch.zeros(32, 32)),
    ],
)
def test_a_tensor_that_does_not_fit_or_is_missing_is_named(folder, name, tensor):
    recipe = read_recipe(folder)
    tensors = load_file(folder / recipe["weights"]) | {name: tensor}
    (folder / recipe["weights"]).write_bytes(save({key: value for key, value in tensors.items() if value is not None}))
    (folder / RECIPE_FILE).write_text(json.dumps(recipe | {"sha256": sha256(folder / recipe["weights"])}))
    with pytest.raises(RunError, match=f"does not hold the INT8 model .*{name.rpartition('.')[0]}"):
        load_int8(folder)


def test_a_copy_is_the_same_model_with_another_config(folder, tmp_path, batch):
    config = make_model().config
    config.length_config, config.length_config_max_length = [30, 20, 10], 64
    copy_int8(folder, tmp_path / "copy", config)
    assert torch.equal(logits(load_int8(tmp_path / "copy"), batch), logits(load_int8(folder), batch, (30, 20, 10)))


def test_a_folder_of_eight_bits_is_refused_without_vnni(folder, monkeypatch):
    monkeypatch.setattr(int8_folder, "has_vnni", lambda: False)
    with pytest.raises(RunError, match="AVX-512 VNNI"):
        load_int8(folder)
