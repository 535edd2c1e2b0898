"""Serving an INT8 folder on the native engine: what it computes, what it imports, what it keeps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, RobertaConfig

import native_engine
from errors import RunError
from int8_backends import open_int8
from modeling_la_auto import MODEL_CLASSES
from quantization import load_int8, quantize, recipes, save_int8
from reader import Reader

ROOT = Path(__file__).parent.parent
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGS = {"bert": BertConfig, "roberta": RobertaConfig}
HEAVY = {"transformers", "datasets", "pyarrow", "evaluate", "torchao", "neural_compressor", "setuptools", "sympy"}
SERVE = """
import json, sys
from reader import Reader
reader = Reader.from_pretrained(sys.argv[1], cache_dir=sys.argv[2])
reader("Who?", "Somebody founded the town.", length_config=(9, 6, 3))
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the tests keep the compiled operators."""
    return tmp_path_factory.mktemp("operators")


def make_folder(folder, kind, tokenizer, embeddings=True):
    """The INT8 folder of a random reader, for the native engine."""
    torch.manual_seed(0)
    ids = {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer), "max_position_embeddings": 130}
    model = MODEL_CLASSES[kind](CONFIGS[kind](**SIZES, **ids, initializer_range=0.2))
    names, recipe = tokenizer.model_input_names, recipes("dynamic", "minmax", embeddings)[0]
    facts = {"backend": "native", "max_seq_length": 64, "input_names": names}
    save_int8(quantize(model, recipe, []), folder, recipe, facts)
    tokenizer.save_pretrained(folder)
    return folder


def padded_batch(names, rows, tokens, padding):
    """Random tokens, the rows of different lengths."""
    mask = (torch.arange(tokens) < torch.linspace(3, tokens, rows).long()[:, None]).long()
    ids = torch.randint(5, 60, (rows, tokens), generator=torch.Generator().manual_seed(0))
    types = torch.zeros_like(ids)
    types[:, tokens // 3 :] = 1
    values = {"input_ids": ids.where(mask.bool(), padding), "attention_mask": mask, "token_type_ids": types * mask}
    return {name: values[name] for name in names}


@pytest.mark.parametrize("embeddings", [True, False], ids=["INT8 tables", "float tables"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_engine_built_from_tensors_computes_what_the_stock_modules_compute(
    kind, embeddings, request, cache, tmp_path
):
    folder = make_folder(tmp_path, kind, request.getfixturevalue(f"{kind}_tokenizer"), embeddings)
    model, stock = open_int8(folder, cache), load_int8(folder)
    for layer in model.layers:
        layer.attend = torch.ops.quala.attention  # in float, as that of the stock modules is
    batch = padded_batch(model.input_names, 5, 40, model.config.pad_token_id)
    real = batch["attention_mask"].bool()
    for length_config in (None, (20, 12, 6)):
        with torch.no_grad():
            found, expected = (engine(**batch, length_config=length_config) for engine in (model, stock))
        for name in ("start_logits", "end_logits"):
            difference = (found[name] - expected[name])[real].abs()
            assert difference.median() < 1e-3 * expected[name].std()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_serving_imports_nothing_that_only_training_needs(kind, request, cache, tmp_path):
    folder = make_folder(tmp_path, kind, request.getfixturevalue(f"{kind}_tokenizer"))
    command = [sys.executable, "-c", SERVE, str(folder), str(cache)]
    for _ in range(2):  # the first one may compile the operators, which needs more
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert HEAVY & {name.partition(".")[0] for name in json.loads(output)} == set()


def test_the_logits_of_a_window_do_not_depend_on_how_many_rows_are_padded(bert_tokenizer, cache, tmp_path):
    model = open_int8(make_folder(tmp_path, "bert", bert_tokenizer), cache)
    batch = padded_batch(model.input_names, 6, 50, 0)
    together, length = model(**batch)["start_logits"], int(batch["attention_mask"][3].sum())
    alone = model(**{name: tensor[3:4, :length] for name, tensor in batch.items()})["start_logits"]
    torch.testing.assert_close(alone[0], together[3, :length], atol=1e-5, rtol=1e-5)


def test_without_vnni_it_says_that_layers_are_slower(bert_tokenizer, cache, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(native_engine, "load_fused_operators", lambda _: True)
    monkeypatch.setattr(native_engine, "fused_operators_loaded", lambda _: False)
    open_int8(make_folder(tmp_path, "bert", bert_tokenizer), cache)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and "VNNI" in said[0] and "slower" in said[0]


def test_a_folder_without_a_tokenizer_is_named(bert_tokenizer, cache, tmp_path):
    folder = make_folder(tmp_path, "bert", bert_tokenizer)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(RunError, match="tokenizer.json cannot be read"):
        Reader.from_pretrained(folder, cache_dir=cache)
