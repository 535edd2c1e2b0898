"""The latency model, on a clock that fake engines move: their cost is known, so is what the model must find."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

import benchmark
from errors import RunError
from latency_model import (
    LatencyModel,
    Windows,
    all_terms,
    calibrate,
    computed_together,
    draw_configs,
    kept_rows,
    layer_terms,
    nonnegative_fit,
)
from length_config import validate_length_config
from serving_latency import measure_configs, measure_turns, serving_batches, spread, without_drift

LAYERS, LENGTH = 4, 64
PRICES = {"batches": 3.0, "projected rows": 0.02, "attended pairs": 1e-4, "attended pairs, scored": 2e-4}
PRICES |= {"feed-forward rows": 0.05, "dropping layers": 0.4, "rows selected from": 0.01}


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    return now


class Engine(torch.nn.Module):
    """Takes as many milliseconds as `cost` says of a length config and a batch's Windows, times the machine's `pace`."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, clock, cost, pace=lambda now: 1.0, backend="native"):
        super().__init__()
        self.backend = backend
        self.clock, self.cost, self.pace, self.seen = clock, cost, pace, []

    def forward(self, input_ids, attention_mask, length_config):
        windows = Windows.of({"input_ids": input_ids, "attention_mask": attention_mask})
        self.seen.append(length_config)
        self.clock[0] += self.cost(length_config, windows) * self.pace(self.clock[0]) / 1e3
        return SimpleNamespace(start_logits=torch.zeros(1))


def batch_of(lengths, padded_to):
    mask = (torch.arange(padded_to) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": mask, "attention_mask": mask}


BATCHES = [batch_of([64, 64, 60, 47], 64), batch_of([30, 25, 21, 20], 32)]
SIZES = tuple(map(Windows.of, BATCHES))


def priced(packed):
    """The cost of an engine that the linear model describes exactly."""
    return lambda config, windows: sum(
        PRICES[name] * amount for name, amount in layer_terms(config, windows, packed).items()
    )


def calibrated(engine, unit="tokens", seconds=0.0, **sizes):
    return calibrate(
        engine,
        BATCHES,
        num_layers=LAYERS,
        max_length=LENGTH,
        rng=random.Random(1),
        unit=unit,
        seconds=seconds,
        **sizes,
    )


def true_cost(config, packed=True):
    return sum(priced(packed)(config, windows) for windows in SIZES) / 8


# ---- rows and terms ------------------------------------------------------------------------------------------------


def test_without_padding_a_window_keeps_its_own_tokens_until_fewer_are_allowed():
    rows = kept_rows((8, 5, 5), Windows((8, 6, 3), 16), packed=True)
    assert [row.tolist() for row in rows] == [[8, 6, 3], [8, 6, 3], [5, 5, 3], [5, 5, 3]]


def test_with_padding_all_windows_have_the_rows_of_the_batch():
    rows = kept_rows((16, 10, 10, 4), Windows((8, 6), 12), packed=False)
    assert [row.tolist() for row in rows] == [[12, 12], [12, 12], [10, 10], [10, 10], [4, 4]]


def test_fractions_are_of_the_real_tokens_and_padded_to_the_longest_of_them():
    windows = Windows((8, 5), 12)
    assert [row.tolist() for row in kept_rows((1.0, 0.5), windows, packed=True)] == [[8, 5], [8, 5], [4, 3]]
    assert [row.tolist() for row in kept_rows((1.0, 0.5), windows, packed=False)] == [[12, 12], [12, 12], [4, 4]]


def test_terms_count_what_the_layers_compute():
    # rows: 8, 3 -> 8, 3 -> 4, 3 -> 4, 3; the second layer drops
    terms = {
        "batches": 1,
        "projected rows": 32 + 32 + 32,
        "attended pairs": (64 + 9) + (16 + 9),
        "attended pairs, scored": 64 + 9,
        "feed-forward rows": 32 + 32 + 32,
        "dropping layers": 1,
        "rows selected from": 11,
    }
    assert layer_terms((8, 4, 4), Windows((8, 3), 8), packed=True) == terms
    terms |= {"projected rows": 16 + 16 + 8, "attended pairs": 2 * (64 + 16), "attended pairs, scored": 2 * 64}
    terms |= {"feed-forward rows": 16 + 8 + 8, "rows selected from": 16}
    assert layer_terms((8, 4, 4), Windows((8, 3), 8), packed=False) == terms


def test_the_native_engine_takes_its_own_parts_of_a_batch():
    windows = Windows((2000, 2000, 1800, 200), 2048)
    assert computed_together([windows], packed=False) == [windows]
    parts = computed_together([windows], packed=True)
    assert parts == [Windows((2000, 2000), 2048), Windows((1800, 200), 2048)]
    # 4000 and 2000 rows in multiples of 32, twice; then 1200 + 1200 and 1200 + 200
    assert all_terms((2048, 1200), [windows], True)[1] == (2 * 4000 + 2 * 2016) / 4
    assert all_terms((2048, 1200), [windows], True)[4] == (4000 + 2016 + 2400 + 1408) / 4


# ---- the fit -------------------------------------------------------------------------------------------------------


def test_the_fit_is_the_best_one_without_negative_coefficients():
    generator = np.random.default_rng(0)
    for _ in range(20):
        terms, times = generator.uniform(0, 1, (9, 4)), generator.uniform(0.5, 2, 9)
        prices = nonnegative_fit(terms, times)
        residual = 1 - terms / times[:, None] @ prices
        slope = (terms / times[:, None]).T @ residual  # of the squared error, but for -2
        assert (prices >= 0).all()
        # the conditions of Kuhn and Tucker, which only the optimum of this convex problem meets
        assert (slope <= 1e-9).all() and np.abs(slope * prices).max() < 1e-9


def test_the_fit_counts_relative_errors():
    prices = nonnegative_fit(np.ones((2, 1)), np.array([1.0, 3.0]))
    assert prices == pytest.approx([1.2])  # (1 + 1/3) / (1 + 1/9), where the absolute least squares are 2


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("unit", ["tokens", "ratio"])
def test_an_engine_that_the_model_describes_is_recovered(clock, packed, unit):
    engine = Engine(clock, priced(packed), backend="native" if packed else "eager")
    model = calibrated(engine, unit)
    assert model.packed == packed and model.largest_error < 1e-3
    for config in [(64, 50, 21, 9), (64, 64, 64, 64), (40, 40, 40, 2)]:
        config = tuple(length / LENGTH for length in config) if unit == "ratio" else config
        assert model(config) == pytest.approx(true_cost(config, packed), rel=2e-3)
    assert {type(length) for config in engine.seen for length in config} == {float if unit == "ratio" else int}


def test_an_engine_that_the_model_does_not_describe_shows_in_the_error(clock):
    toss = random.Random(0)
    costs = {}
    model = calibrated(Engine(clock, lambda config, windows: costs.setdefault(config, toss.uniform(5, 50))))
    assert model.median_error > 0.1 and model.largest_error > 0.3


def test_the_error_is_that_of_configs_that_were_not_fitted_to(clock):
    sizes = {"fitted": 12, "checked": 8}
    before = Engine(clock, priced(True))
    calibrated(before, **sizes)
    rng = random.Random(1)  # the draws of `calibrated`
    full, *others = draw_configs(rng, 20, LAYERS, LENGTH)
    fitted = {full, *rng.sample(others, 19)[:11]}
    assert len(fitted) == 12 and set(before.seen) == {full, *others}
    spoiled = Engine(clock, lambda config, size: priced(True)(config, size) * (1 if config in fitted else 1.3))
    model = calibrated(spoiled, **sizes)
    assert model.checked == 8 and model.median_error == pytest.approx(1 - 1 / 1.3, abs=0.01)


# ---- measuring -----------------------------------------------------------------------------------------------------


def test_drift_of_the_machine_does_not_bias_the_model(clock):
    model = calibrated(Engine(clock, priced(True), pace=lambda now: 1 + now / 40), seconds=60.0)  # in the end twice
    assert model.facts["turns"] > 5 and model.largest_error < 0.03
    full, half = (64,) * 4, (64, 30, 20, 10)
    assert model(half) / model(full) == pytest.approx(true_cost(half) / true_cost(full), rel=0.03)


@pytest.mark.parametrize(("jitter", "warns"), [(0.02, False), (5.0, True)])
def test_a_busy_machine_is_said(clock, caplog, jitter, warns):
    toss = random.Random(0)
    calibrated(Engine(clock, priced(True), pace=lambda now: 1 + jitter * toss.random()))
    assert ("no other work" in caplog.text) == warns


def test_the_spread_is_that_of_the_middle_half():
    assert spread(np.array([[8.0], [9.0], [10.0], [11.0], [90.0]])) == pytest.approx(0.2)


def test_what_slows_a_whole_turn_is_taken_out():
    costs = np.array([10.0, 20.0, 40.0])
    turns = np.outer([1.0, 3.0, 1.1, 0.9, 1.0], costs)
    turns[2, 0] *= 5  # and one disturbance
    assert without_drift(turns) == pytest.approx(costs)


def test_turns_fill_the_time_and_are_three_at_least(clock):
    calls = {index: lambda: clock.__setitem__(0, clock[0] + 0.5) for index in range(2)}
    assert measure_turns(calls, random.Random(0), seconds=0).shape == (3, 2)
    assert measure_turns(calls, random.Random(0), seconds=10).shape == (9, 2)  # and one to warm up


def test_turns_differ_in_their_order():
    order = []
    calls = {index: lambda index=index: order.append(index) for index in range(8)}
    measure_turns(calls, random.Random(0), seconds=0)
    turns = [tuple(order[start : start + 8]) for start in range(0, len(order), 8)]
    assert len(set(turns)) == 4 and all(sorted(turn) == list(range(8)) for turn in turns)


def test_given_configs_are_measured_in_milliseconds_a_window(clock):
    engine = Engine(clock, lambda config, windows: 8.0 * config[0])
    rows = measure_configs(engine, [(64, 64), (32, 16)], BATCHES, warm_up=1, repeats=2)
    assert engine.seen == [(64, 64), (64, 64), (32, 16), (32, 16)] * 3  # two batches each, in turn
    assert [row["length_config"] for row in rows] == [[64, 64], [32, 16]]
    assert [row["latency_ms_median"] for row in rows] == pytest.approx([128, 64])  # of 2 batches, by 8 windows
    assert [row["latency_ms_p90"] for row in rows] == pytest.approx([128, 64])


# ---- configs, batches, records -------------------------------------------------------------------------------------


def test_drawn_configs_begin_with_full_length_differ_and_are_valid():
    configs = draw_configs(random.Random(0), 32, 6, 384)
    assert configs[0] == (384,) * 6 and len(set(configs)) == 32
    assert all(validate_length_config(config, 6, 384) == config for config in configs)
    assert min(config[-1] for config in configs) < 40 and {384} < {config[0] for config in configs}


def test_too_few_configs_to_draw_is_said():
    with pytest.raises(RunError, match="too few length configs of 4 tokens"):
        draw_configs(random.Random(0), 32, 1, 4)


def features_of(lengths):
    return Dataset.from_list([{"input_ids": [2] * n, "attention_mask": [1] * n, "length": n} for n in lengths])


class Tokenizer:
    model_input_names = ("input_ids", "attention_mask")
    padding_side = "right"

    def pad(self, rows, padding, max_length, pad_to_multiple_of, **_):
        longest = max_length if padding == "max_length" else max(len(row["input_ids"]) for row in rows)
        size = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
        return batch_of([len(row["input_ids"]) for row in rows], size)


def test_padded_batches_are_the_longest_windows_at_full_length():
    batches = serving_batches(
        Tokenizer(), features_of(range(60, 0, -1)), batch_size=8, pad_to_max_length=True, max_seq_length=64
    )
    assert list(map(Windows.of, batches)) == [Windows(tuple(range(60, 52, -1)), 64)]


def test_batches_at_real_lengths_stand_for_the_whole_set():
    lengths = [*range(60, 20, -1)]
    options = {"batch_size": 4, "pad_to_max_length": False, "max_seq_length": 64, "count": 5}
    sizes = list(map(Windows.of, serving_batches(Tokenizer(), features_of(lengths), **options)))
    assert [size.padded_to for size in sizes] == [64, 56, 48, 40, 32]  # of 58, 50, 42, 34, 26 tokens
    assert np.mean([size.lengths for size in sizes]) == pytest.approx(np.mean(lengths))


@pytest.mark.parametrize("padded", [True, False])
def test_fewer_windows_than_a_batch_are_one_batch(padded):
    batches = serving_batches(
        Tokenizer(), features_of([9, 5]), batch_size=8, pad_to_max_length=padded, max_seq_length=64
    )
    assert [size.lengths for size in map(Windows.of, batches)] == [(9, 5)]


def test_a_model_comes_back_from_json_as_it_was(clock):
    model = calibrated(Engine(clock, priced(True)))
    again = LatencyModel.from_record(json.loads(json.dumps(model.record())))
    assert again == model and again((64, 40, 9, 9)) == model((64, 40, 9, 9))
    assert model.facts["backend"] == "native" and model.facts["batch_size"] == 4 and model.facts["turns"] == 3


def test_the_terms_of_several_batches_are_a_window():
    one, two = (np.array([*layer_terms((9, 4), size, True).values()]) for size in SIZES)
    assert all_terms((9, 4), SIZES, True) == pytest.approx((one + two) / 8)
