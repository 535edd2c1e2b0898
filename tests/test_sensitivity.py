"""The sensitivity report against a model in which one layer is known to suffer."""

import pytest
import torch
from transformers import BertConfig

from int8_modules import Int8Linear, replace_modules
from modeling_la_auto import MODEL_CLASSES
from quantization import quantize, recipes
from sensitivity import layer_sensitivity, sensitivity_table

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def models():
    """A float model and its quantized copy, one layer of which clips nearly all of its input."""
    torch.manual_seed(0)
    model = MODEL_CLASSES["bert"](BertConfig(vocab_size=100, initializer_range=0.2, **SIZES)).eval()
    quantized, name = quantize(model, recipes("dynamic", "minmax", True)[0], []), "bert.encoder.layer.1.output.dense"
    replace_modules(quantized, {name: Int8Linear.from_float(model.get_submodule(name), (-0.01, 0.01))})
    return model, quantized, name


@pytest.fixture
def batches():
    ids = torch.randint(5, 100, (3, 24))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]


def test_the_layer_that_suffers_comes_first(models, batches):
    model, quantized, name = models
    rows = layer_sensitivity(model, quantized, batches)
    assert rows[0]["layer"] == name and rows[0]["kl"] > 10 * rows[1]["kl"]
    assert len(rows) == 6 * 2 + 1 + 2  # every linear layer, all of them, all tables
    assert name in sensitivity_table(rows)


def test_padding_and_the_cut_into_batches_change_nothing(models, batches):
    model, quantized, _ = models
    whole = layer_sensitivity(model, quantized, batches)
    padded = {key: torch.nn.functional.pad(value, (0, 8)) for key, value in batches[0].items()}
    parts = [{key: value[rows] for key, value in padded.items()} for rows in (slice(0, 1), slice(1, 3))]
    for row, other in zip(whole, layer_sensitivity(model, quantized, parts)):
        assert other["kl"] == pytest.approx(row["kl"], rel=0.02, abs=1e-6)
