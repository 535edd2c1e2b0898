"""Length configs, their cost and the selection of tokens, against published figures and hand-computed tables."""

import random

import pytest
import torch
from transformers import BertConfig, RobertaConfig

from length_config import (
    LengthConfigError,
    check_stored_length_config,
    constant_ratio_config,
    count_macs,
    parse_length_config,
    sample_layer_config,
    sample_length_config,
    validate_length_config,
)
from length_drop import restore_tokens, select_tokens

MINILM = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
PAPER = (315, 251, 242, 159, 142, 33)


@pytest.mark.parametrize(
    ("config", "lengths", "published"),
    [
        (BertConfig(), None, 35_340_779_904),
        (BertConfig(num_hidden_layers=6), None, 17_670_832_512),
        (MINILM, None, 4_758_552_960),
        (MINILM, PAPER, 2_546_934_528),
        (MINILM, (269, 253, 252, 202, 104, 34), 2_485_456_512),
        (MINILM, (308, 247, 198, 159, 128, 103), 2_484_739_584),
    ],
)
def test_count_macs_gives_the_published_figures(config, lengths, published):
    assert count_macs(config, lengths) == published


def test_macs_of_a_config_longer_than_the_sequence_are_those_of_the_sequence():
    assert count_macs(MINILM, (384,) * 6, sequence_length=100) == count_macs(MINILM, None, sequence_length=100)


@pytest.mark.parametrize(
    "text",
    [
        "(315, 251, 242, 159, 142, 33)",
        "[315,251,242,159,142,33]",
        " 315, 251,242,159,142 ,33,",
        "(315,251,242,159,142,33,)",
    ],
)
def test_tuple_text_and_json_list_are_the_same_config(text):
    assert parse_length_config(text, 6, 384) == PAPER


@pytest.mark.parametrize(
    "text",
    [
        "",
        "()",
        "(384, 300",
        "384 300",
        "[384, 300)",
        "(384.0, 2)",
        "(-1, -2)",
        "__import__('os').getpid()",
        "(3,,2)",
        "((3,2))",
        "١",
    ],
)
def test_anything_but_a_list_of_integers_is_refused(text):
    with pytest.raises(LengthConfigError, match="no length config"):
        parse_length_config(text, 2, 384)


@pytest.mark.parametrize(
    ("lengths", "complaint"),
    [
        ((384, 300), "6 layers"),
        ((1, 2, 3, 4, 5, 6), "increase"),
        ((400,) * 6, "384 tokens"),
        ((5, 5, 5, 5, 5, 0), "at least 1"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_the_reason(lengths, complaint):
    with pytest.raises(LengthConfigError, match=complaint):
        validate_length_config(lengths, 6, 384)


def test_constant_ratio_gives_the_papers_floor_and_is_exact_in_floating_point():
    assert constant_ratio_config(0.2, 6, 384) == (308, 247, 198, 159, 128, 103)
    assert constant_ratio_config(0.7, 1, 10) == (3,)  # 10 * (1 - 0.7) is 3.0000000000000004
    assert constant_ratio_config(0.29, 1, 100) == (71,)  # 100 * 0.29 is 28.999999999999996
    assert constant_ratio_config(0.9, 4, 20) == (2, 2, 2, 2)


def test_constant_ratio_repeats_the_length_at_a_skipped_layer():
    assert constant_ratio_config(0.5, 4, 64, layer_config=(0, 3)) == (32, 32, 32, 16)


def test_sampled_configs_cover_exactly_the_interval_of_the_recipe():
    rng = random.Random(0)
    drawn = {sample_length_config(rng, 1, 10, 0.25)[0] for _ in range(400)}
    assert drawn == {8, 9, 10}  # ceil(10 * 0.75) ... 10


def test_sampled_configs_are_valid_reproducible_and_repeat_at_skipped_layers():
    first, again = random.Random(7), random.Random(7)
    for _ in range(200):
        layers = sample_layer_config(first, 6, prob=0.5)
        lengths = sample_length_config(first, 6, 384, 0.3, layers)
        assert layers == sample_layer_config(again, 6, prob=0.5)
        assert lengths == sample_length_config(again, 6, 384, 0.3, layers)
        validate_length_config(lengths, 6, 384)
        before = (384, *lengths)
        assert all(lengths[i] == before[i] for i in range(6) if i not in layers)


def test_layer_drop_never_drops_every_layer():
    rng = random.Random(0)
    assert all(sample_layer_config(rng, 2, prob=0.99) for _ in range(300))
    assert {sample_layer_config(rng, 2, bound=5) for _ in range(100)} == {(0,), (0, 1)}


def test_layer_drop_keeps_each_layer_with_its_probability():
    rng, kept = random.Random(1), [0] * 6
    for _ in range(3000):
        for layer in sample_layer_config(rng, 6, prob=0.2):
            kept[layer] += 1
    assert all(0.77 < count / 3000 < 0.83 for count in kept)


def test_selection_keeps_cls_and_the_most_significant_in_their_order():
    significance = torch.tensor([[0.0, 5.0, 1.0, 4.0, 2.0]])
    assert select_tokens(significance, None, 3)[0].tolist() == [[0, 1, 3]]


def test_padding_never_survives_ahead_of_a_real_token():
    significance = torch.tensor([[9.0, 0.1, 0.2, 8.0, 7.0], [9.0, 8.0, 0.2, 0.3, 0.1]])
    real = torch.tensor([[True, True, True, False, False], [True] * 5])
    assert select_tokens(significance, real, 3)[0].tolist() == [[0, 1, 2], [0, 1, 3]]


def test_first_real_token_survives_left_padding():
    real = torch.tensor([[False, False, True, True, True]])
    assert select_tokens(torch.tensor([[9.0, 9.0, 0.0, 3.0, 2.0]]), real, 2)[0].tolist() == [[2, 3]]


def test_restore_writes_only_the_kept_positions():
    buffer = torch.arange(8.0).view(1, 4, 2)
    restored = restore_tokens(buffer, torch.tensor([[[10.0, 11.0], [12.0, 13.0]]]), torch.tensor([[0, 2]]))
    assert restored.tolist() == [[[10.0, 11.0], [2.0, 3.0], [12.0, 13.0], [6.0, 7.0]]]


@pytest.mark.parametrize(
    "stored",
    [
        {"length_config": [8, 4]},
        {"length_config": [8, 4], "length_config_max_length": "384"},
        {"length_config": [8, 4], "length_config_max_length": 9999},
        {"length_config": [8, 4, 2], "length_config_max_length": 16},
        {"length_config": [4, 8], "length_config_max_length": 16},
        {"length_config": 8, "length_config_max_length": 16},
    ],
)
def test_a_stored_config_that_does_not_fit_the_model_is_refused(stored):
    with pytest.raises(LengthConfigError):
        check_stored_length_config(RobertaConfig(num_hidden_layers=2, **stored))
