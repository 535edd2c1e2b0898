"""Length configs as fractions of the real length, against the same configs in tokens, sequence by sequence."""

import math
import random
import shutil

import pytest
import torch
from stages import SEARCH, failure, read, succeed
from test_modeling import SIZES, family, logits  # noqa: F401  (family is a fixture)
from test_modeling import batch as padded_batch
from transformers import BertConfig

from length_config import (
    LengthConfigError,
    count_macs,
    in_unit,
    kept_tokens,
    parse_length_ratios,
    validate_length_config,
)
from length_drop import restore_tokens, select_tokens
from modeling_la_bert import LABertForQuestionAnswering
from native_engine import NativeModel, Packed
from quantization import quantize, recipes, save_int8
from trainer_qa import LengthDropSettings

RATIOS = (0.75, 0.5, 0.2)
LENGTHS = (50, 20, 7, 1)


@pytest.fixture
def model(family):  # noqa: F811
    return family[0]


def batch(model, lengths, padded_to):
    return padded_batch(lengths, padded_to, model.config.pad_token_id)


# ---- what an entry keeps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry, tokens, kept",
    [(0.5, 7, 4), (1.0, 7, 7), (0.01, 5, 1), (0.7, 10, 7), (0.3, 10, 3), (0.5, 0, 1), (5, 7, 5), (9, 7, 7)],
)
def test_an_entry_keeps_as_many_tokens_as_a_hand_computed_table_says(entry, tokens, kept):
    assert kept_tokens(entry, tokens) == kept


@pytest.mark.parametrize("length", [64, 384, 512])
def test_a_fraction_made_from_tokens_keeps_those_tokens_of_the_whole_window(length):
    for kept in range(1, length + 1):
        (fraction,) = in_unit("ratio", (kept,), length)
        assert kept_tokens(fraction, length) == kept


def test_macs_of_fractions_are_those_of_the_tokens_they_keep():
    config = BertConfig(**SIZES)
    assert count_macs(config, RATIOS, 176) == count_macs(config, (132, 88, 36), 176)


@pytest.mark.parametrize("text", ["(0.8, 0.5, .25)", "[0.8,0.5,0.25]", "0.8, 0.5, 0.25,"])
def test_fractions_are_read_as_length_configs_are(text):
    assert parse_length_ratios(text, 3) == (0.8, 0.5, 0.25)


@pytest.mark.parametrize(
    "text, said",
    [
        ("(300, 200, 100)", "one fraction a layer"),
        ("(0.8, half)", "one fraction a layer"),
        ("(0.5, 0.8, 0.2)", "must not increase"),
        ("(0.8, 0.5, 0.0)", "fractions above 0"),
        ("(1.5, 0.5, 0.2)", "fractions above 0"),
        ("(0.8, 0.5)", "2 entries, the model 3 layers"),
        ("1e-3", "one fraction a layer"),
    ],
)
def test_what_is_no_list_of_fractions_is_refused(text, said):
    with pytest.raises(LengthConfigError, match=said):
        parse_length_ratios(text, 3)


@pytest.mark.parametrize("lengths", [(0.5, 3), (3, 0.5), (math.nan, 0.5), (), (True, True)])
def test_fractions_and_tokens_do_not_mix(lengths):
    with pytest.raises(LengthConfigError):
        validate_length_config(lengths, None, None)


# ---- the models ----------------------------------------------------------------------------------------------------


def own_config(length):
    """The config in tokens that RATIOS stand for on a sequence of this length."""
    return tuple(math.ceil(ratio * length) for ratio in RATIOS)


@pytest.mark.parametrize("padded_to", [50, 64])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_each_row_of_a_batch_drops_its_own_share(model, implementation, padded_to):
    model.set_attn_implementation(implementation)
    together = logits(model, batch(model, LENGTHS, padded_to), length_config=RATIOS)
    for row, length in enumerate(LENGTHS):
        inputs = {name: tensor[row : row + 1, :length] for name, tensor in batch(model, LENGTHS, 50).items()}
        alone = logits(model, inputs, length_config=own_config(length))
        torch.testing.assert_close(together[:, row, :length], alone[:, 0], atol=2e-5, rtol=1e-4)


def test_fractions_without_padding_are_tokens(model):
    inputs = batch(model, (40, 40), 40)
    assert torch.equal(logits(model, inputs, length_config=RATIOS), logits(model, inputs, length_config=(30, 20, 8)))


def test_fractions_of_one_drop_nothing(model):
    inputs = batch(model, LENGTHS, 50)
    assert torch.equal(logits(model, inputs, length_config=(1.0, 1.0, 1.0)), logits(model, inputs, length_config=None))


def test_gradients_reach_the_embeddings_of_dropped_tokens_too(model):
    inputs = batch(model, LENGTHS, 50)
    inputs |= {"start_positions": torch.zeros(4, dtype=torch.long), "end_positions": torch.zeros(4, dtype=torch.long)}
    model(**inputs, length_config=RATIOS).loss.backward()
    weights = model.get_input_embeddings().weight
    assert weights.grad.isfinite().all() and (weights.grad[inputs["input_ids"][1, :20]].abs().sum(1) > 0).all()


def test_the_native_engine_drops_the_same_share_of_each_row(model, tmp_path):
    recipe = recipes("dynamic", "minmax", embeddings=True)[0]
    facts = {"backend": "native", "input_names": ["input_ids", "attention_mask"], "max_seq_length": 64}
    save_int8(quantize(model, recipe, []), tmp_path, recipe, facts)
    engine = NativeModel(tmp_path, tmp_path / "cache")
    inputs = batch(model, LENGTHS, 50)
    together = logits(engine, inputs, length_config=RATIOS)
    for row, length in enumerate(LENGTHS):
        own = {name: tensor[row : row + 1, :length] for name, tensor in inputs.items()}
        alone = logits(engine, own, length_config=own_config(length))
        torch.testing.assert_close(together[:, row, :length], alone[:, 0], atol=1e-5, rtol=1e-5)


def test_selecting_a_number_a_row_is_selecting_row_by_row():
    generator = torch.Generator().manual_seed(0)
    significance, real = torch.rand(3, 9, generator=generator), torch.arange(9) < torch.tensor([9, 6, 2])[:, None]
    kept, alive = select_tokens(significance, real, torch.tensor([5, 3, 1]))
    packed = Packed(torch.tensor([0, 9, 15, 17]), real.flatten().nonzero().squeeze(1))
    *_, after = packed.select(significance[real], torch.tensor([5, 3, 1]))
    expected = []
    for row, count in enumerate((5, 3, 1)):
        alone, _ = select_tokens(significance[row : row + 1], real[row : row + 1], count)
        expected.append(alone[0].tolist())
        assert kept[row][alive[row]].tolist() == expected[-1]
    assert after.positions.tolist() == [9 * row + token for row, tokens in enumerate(expected) for token in tokens]


def test_what_does_not_go_on_is_not_restored():
    buffer, states = torch.zeros(1, 4, 1), torch.ones(1, 2, 1)
    restored = restore_tokens(buffer, states, torch.tensor([[1, 3]]), torch.tensor([[True, False]]))
    assert restored.flatten().tolist() == [0, 1, 0, 0]


# ---- the stages ----------------------------------------------------------------------------------------------------


def test_submodels_in_fractions_are_those_in_tokens_of_the_whole_window():
    tokens, fractions = (
        LengthDropSettings(max_length=64, length_unit=unit).draw_submodels(random.Random(3), 4)
        for unit in ("tokens", "ratio")
    )
    for whole, part in zip(tokens, fractions):
        assert all(isinstance(ratio, float) for ratio in part["length_config"])
        assert tuple(kept_tokens(ratio, 64) for ratio in part["length_config"]) == whole["length_config"]


def test_evaluation_at_fractions_reports_the_macs_of_the_real_lengths(dynamic, squad_v1_file, tmp_path):
    common = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, "--do_eval")
    found = {}
    for flag, value in (("--length_config", "(48, 32, 16)"), ("--length_ratios", "(0.75, 0.5, 0.25)")):
        succeed(*common, flag, value, "--output_dir", tmp_path / flag)
        found[flag] = read(tmp_path / flag / "eval_results.json")
    tokens, ratios = found.values()
    assert ratios["eval_length_config"] == [0.75, 0.5, 0.25]
    assert ratios["eval_macs"] == tokens["eval_macs"]  # on the whole window
    assert ratios["eval_mean_macs"] < tokens["eval_mean_macs"]  # most passages have about 40 tokens


@pytest.fixture(scope="module")
def searched(dynamic, squad_v1_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ratio") / "search"
    flags = (*SEARCH, "--length_unit", "ratio", "--target_macs_ratio", "0.9", "--output_dir", folder)
    succeed("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *flags)
    return folder


def test_a_search_in_fractions_leaves_them_in_the_model_and_in_later_choices(
    searched, dynamic, squad_v1_file, tmp_path
):
    results, config = read(searched / "search_results.json"), read(searched / "config.json")
    chosen = list(in_unit("ratio", results["chosen"]["length_config"], 64))
    assert results["length_unit"] == "ratio" and config["length_config"] == chosen
    flags = (
        "--do_eval",
        "--length_config_from",
        searched,
        "--target_macs_ratio",
        "0.9",
        "--output_dir",
        tmp_path / "e",
    )
    succeed("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *flags)
    scores = read(tmp_path / "e" / "eval_results.json")
    assert scores["eval_length_config"] == chosen
    assert scores["eval_f1"] == pytest.approx(results["chosen"]["score"])


def test_scores_in_fractions_are_not_taken_for_scores_in_tokens(searched, dynamic, squad_v1_file, tmp_path, capsys):
    common = (
        "--model_name_or_path",
        dynamic,
        "--validation_file",
        squad_v1_file,
        *SEARCH,
        "--output_dir",
        tmp_path / "s",
    )
    for name in ("search_results.json", "search_store.jsonl"):
        assert "length_unit 'ratio'" in failure(capsys, *common, "--load_store_file", searched / name)


@pytest.mark.parametrize("flags", [SEARCH, ("--do_eval", "--measure_rate", "[0.1]")])
def test_a_stage_in_fractions_needs_native_before_anything_is_scored(flags, dynamic, squad_v1_file, tmp_path, capsys):
    recipe = recipes("dynamic", "minmax", embeddings=True)[0]
    model = LABertForQuestionAnswering.from_pretrained(dynamic)
    facts = {"backend": "pt2e", "input_names": ["input_ids", "token_type_ids", "attention_mask"], "max_seq_length": 64}
    save_int8(quantize(model, recipe, []), tmp_path, recipe, facts)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(dynamic / name, tmp_path)
    command = (
        "--model_name_or_path",
        tmp_path,
        "--int8",
        "--validation_file",
        squad_v1_file,
        "--length_unit",
        "ratio",
    )
    assert "--quantization_backend native" in failure(capsys, *command, *flags, "--output_dir", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_compiled_engines_say_that_they_count_tokens(backend, dynamic, tmp_path):
    if backend is NativeModel:
        pytest.skip("knows fractions")
    recipe = recipes("dynamic", "minmax", embeddings=True)[0]
    small = LABertForQuestionAnswering(BertConfig(**SIZES)).eval()
    facts = {"backend": backend.backend, "input_names": ["input_ids", "attention_mask"], "max_seq_length": 64}
    save_int8(quantize(small, recipe, []), tmp_path, recipe, facts)
    with pytest.raises(ValueError, match="--quantization_backend native"):
        backend(tmp_path).prepare(RATIOS)
