"""Times of length configs on the engine that will serve: batches like those of an evaluation, configs in turn."""

import random
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from benchmark import REPEATS, WARM_UP, Contender, measure_latency
from features_qa import make_collator

LengthConfig = tuple[float, ...]
Batch = dict[str, torch.Tensor]
LEAST_TURNS = 3  # with fewer a median says nothing


def serving_batches(
    tokenizer, features, *, batch_size: int, pad_to_max_length: bool, max_seq_length: int, count: int = 4
) -> list[Batch]:
    """The batches to time, of `features` sorted by length, longest first: (B, S) each.

    Padded: one batch of the longest windows, padded to `max_seq_length`.  At real lengths: `count` batches that stand
    for all of them, each from the middle of as many equal parts, padded to its longest window.
    """
    windows, collate = len(features), make_collator(tokenizer, pad_to_max_length, max_seq_length)
    size = min(batch_size, windows)
    count = 1 if pad_to_max_length else min(count, windows // size)
    room = windows / count - size  # in a part, beside its batch
    starts = [0] if pad_to_max_length else [int(part * windows / count + room / 2) for part in range(count)]
    rows = features.select_columns(list(tokenizer.model_input_names))
    return [dict(collate(rows.select(range(start, start + size)).to_list())) for start in starts]


def run_all(contender: Contender, batches: Sequence[Batch]) -> None:
    for batch in batches:
        contender(batch)


def passes(
    model, configs: Sequence[LengthConfig], batches: Sequence[Batch], autocast
) -> dict[int, Callable[[], None]]:
    """For each config, by its number, a call that takes all batches through the model."""
    model.eval()
    batches = [{name: tensor.to(model.device) for name, tensor in batch.items()} for batch in batches]
    return {
        index: partial(run_all, Contender(model, config, autocast), batches) for index, config in enumerate(configs)
    }


def measure_turns(calls: dict[int, Callable[[], None]], rng: random.Random, seconds: float) -> np.ndarray:
    """Milliseconds (turns, calls) of turns that fit into about `seconds`, LEAST_TURNS of them at least.

    Each turn has an order of its own, so that what the machine does meanwhile does not always meet the same call.  The
    first one, which compiles and warms up, is not among them.
    """
    turns, spent = [], 0.0
    while len(turns) <= LEAST_TURNS or spent + sum(turns[-1]) <= seconds * 1e3:
        order = rng.sample(sorted(calls), len(calls))
        timings = measure_latency({index: calls[index] for index in order}, warm_up=0, repeats=1)
        turns.append([timings[index]["latency_ms_median"] for index in sorted(calls)])
        spent += sum(turns[-1])
    return np.array(turns[1:])


def without_drift(turns: np.ndarray) -> np.ndarray:
    """Milliseconds (calls): medians of the turns (turns, calls), each relative to how slow the machine was in it.

    How slow it was is the median over all calls of what each took, relative to its own median over the turns.
    """
    level = np.median(turns / np.median(turns, axis=0), axis=1, keepdims=True)
    return np.median(turns / level, axis=0) * np.median(level)


def spread(turns: np.ndarray) -> float:
    """How far the middle half of the times of one and the same call is apart, relative to their median; the usual call's."""
    low, middle, high = np.percentile(turns, [25, 50, 75], axis=0)
    return float(np.median((high - low) / middle))


def measure_configs(
    model,
    configs: Sequence[LengthConfig],
    batches: Sequence[Batch],
    *,
    autocast: torch.dtype | None = None,
    warm_up: int = WARM_UP,
    repeats: int = REPEATS,
) -> list[dict]:
    """Time length configs in turn on the same batches: a row each, median and 90th percentile in milliseconds a window."""
    windows = sum(len(batch["input_ids"]) for batch in batches)
    timings = measure_latency(passes(model, configs, batches, autocast), warm_up, repeats)
    names = ("latency_ms_median", "latency_ms_p90")
    return [
        {"length_config": list(config)} | {name: round(timings[index][name] / windows, 4) for name in names}
        for index, config in enumerate(configs)
    ]
