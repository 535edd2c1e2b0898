"""What a length config costs in milliseconds on the engine that will serve: a model of its layers, fitted to measurements.

Multiply-accumulates do not say how fast an engine is, and a search asks for more costs than can be measured.  So a few
configs are measured, a linear model of what their layers compute is fitted to them, and others, which it has not seen,
say how far it is off.
"""

import itertools
import logging
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from benchmark import Contender
from errors import RunError
from length_config import (
    constant_ratio_config,
    in_unit,
    is_fractional,
    kept_tokens,
    sample_layer_config,
    sample_length_config,
)
from native_engine import ROWS, NativeModel, micro_batches
from results_qa import instruction_set, processor
from serving_latency import Batch, LengthConfig, measure_turns, passes, spread, without_drift

logger = logging.getLogger(__name__)
CALM = 0.15  # a larger spread of one config's times says more of other work on the machine than of the config
DROP_BOUND = 0.8  # largest fraction that a drawn config drops at a layer


# ---- drawn configs -------------------------------------------------------------------------------------------------


def draw_configs(rng: random.Random, count: int, num_layers: int, max_length: int) -> list[tuple[int, ...]]:
    """`count` different length configs in tokens over the whole range, full length first; RunError if there are fewer.

    A third have a constant ratio; the others are drawn layer by layer, half of them dropping at some layers only.
    """
    found = {(max_length,) * num_layers: None}
    for attempt in range(100 * count):
        if len(found) == count:
            return list(found)
        bound = rng.uniform(0, DROP_BOUND)
        layers = sample_layer_config(rng, num_layers, prob=0.5) if attempt % 3 == 1 else None
        if attempt % 3 == 0:
            config = constant_ratio_config(bound / 2, num_layers, max_length)
        else:
            config = sample_length_config(rng, num_layers, max_length, bound, layers)
        found[config] = None
    raise RunError(
        f"a model of {num_layers} layers has too few length configs of {max_length} tokens to be calibrated."
    )


# ---- the model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """The sizes of a batch: the real tokens of each of its windows, and how many all are padded to."""

    lengths: tuple[int, ...]
    padded_to: int

    @classmethod
    def of(cls, batch: Batch) -> "Windows":
        return cls(tuple(batch["attention_mask"].sum(1).tolist()), batch["input_ids"].shape[1])


def kept_rows(length_config: LengthConfig, windows: Windows, packed: bool) -> list[np.ndarray]:
    """Rows of each window that enter the first layer and that leave each one: L + 1 arrays.

    `packed`: the native engine, where a window has the rows of its own real tokens.  Otherwise all windows of a batch
    have as many rows, first those they are padded to.
    """
    padded, fractional = windows.padded_to, is_fractional(length_config)
    rows = [np.array(windows.lengths if packed else [padded] * len(windows.lengths))]
    tokens = windows.lengths if packed or fractional else [padded]
    before = 1.0 if fractional else padded
    for length in length_config:
        kept = np.array([kept_tokens(length, count) for count in tokens])
        drops = length < before
        rows.append(np.minimum(rows[-1], kept if packed else kept.max()) if drops else rows[-1])
        before = length if drops else before
    return rows


def layer_terms(length_config: LengthConfig, windows: Windows, packed: bool) -> dict[str, float]:
    """What one batch has to compute at a length config: what each coefficient of the model is a price of."""
    rows = kept_rows(length_config, windows, packed)
    layers = [(before, after, bool((after < before).any())) for before, after in itertools.pairwise(rows)]
    products = [int(kept.sum()) for kept in rows]
    products = [count + -count % ROWS if packed else count for count in products]
    return {
        "batches": 1.0,  # all that does not depend on the config: embeddings, the first projections, the head
        "projected rows": float(sum(products[:-1])),
        "attended pairs": float(sum((before**2).sum() for before, _, drops in layers if not drops)),
        "attended pairs, scored": float(sum((before**2).sum() for before, _, drops in layers if drops)),
        "feed-forward rows": float(sum(products[1:])),
        "dropping layers": float(sum(drops for _, _, drops in layers)),
        "rows selected from": float(sum(before.sum() for before, _, drops in layers if drops)),
    }


def computed_together(batches: Sequence[Windows], packed: bool) -> list[Windows]:
    """The parts of the batches that go through the layers together: the native engine takes few windows at a time."""
    if not packed:
        return list(batches)
    parts = [(batch, slice(*bounds)) for batch in batches for bounds in micro_batches(list(batch.lengths))]
    return [Windows(batch.lengths[chosen], batch.padded_to) for batch, chosen in parts]


def all_terms(length_config: LengthConfig, batches: Sequence[Windows], packed: bool) -> np.ndarray:
    """The terms of all batches together, a window."""
    parts = computed_together(batches, packed)
    rows = [list(layer_terms(length_config, windows, packed).values()) for windows in parts]
    return np.sum(rows, axis=0) / sum(len(windows.lengths) for windows in batches)


def nonnegative_fit(terms: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Coefficients (T), none below 0, of `terms` (C, T) with the least squared relative error of `times` (C).

    The least squares with bounds are those without bounds of some of the terms, so of all sets of terms whose own
    solution has no negative coefficient the best one is the answer; there are few.
    """
    shares = terms / times[:, None]
    scale = np.maximum(np.linalg.norm(shares, axis=0), 1e-12)  # a term may be 0 everywhere
    best, least = np.zeros(terms.shape[1]), np.inf
    for chosen in itertools.product((False, True), repeat=terms.shape[1]):
        part = (shares / scale)[:, chosen]
        solution = np.linalg.lstsq(part, np.ones(len(times)))[0]
        error = float(np.square(part @ solution - 1).sum())
        if (solution >= 0).all() and error < least:
            best, least = np.zeros(terms.shape[1]), error
            best[list(chosen)] = solution
    return best / scale


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds a window at a length config, in batches of the sizes it was calibrated on.

    `coefficients` are milliseconds a unit of each of the `layer_terms`.  `median_error` and `largest_error` are relative,
    of `checked` configs that were measured and not fitted to.  `facts` say what was measured.
    """

    coefficients: dict[str, float]
    windows: tuple[Windows, ...]
    packed: bool
    median_error: float
    largest_error: float
    checked: int
    facts: dict

    def __call__(self, length_config: LengthConfig) -> float:
        """Milliseconds a window; fractions where the model was calibrated on fractions."""
        return float(all_terms(length_config, self.windows, self.packed) @ list(self.coefficients.values()))

    def record(self) -> dict:
        """All of it as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict) -> "LatencyModel":
        """The model that `record` was made of; KeyError or TypeError if it was made of something else."""
        windows = tuple(Windows(tuple(batch["lengths"]), batch["padded_to"]) for batch in record["windows"])
        return cls(**(record | {"windows": windows}))


def calibrate(
    model,
    batches: Sequence[Batch],
    *,
    num_layers: int,
    max_length: int,
    rng: random.Random,
    unit: str = "tokens",
    autocast: torch.dtype | None = None,
    fitted: int = 24,
    checked: int = 8,
    seconds: float = 120.0,
) -> LatencyModel:
    """The latency model of `model` on `batches`: `fitted` configs make it, `checked` others say how good it is.

    They take turns for about `seconds`, LEAST_TURNS turns at least.  Configs have the unit ("tokens" or "ratio") that the
    search will ask for.
    """
    drawn = draw_configs(rng, fitted + checked, num_layers, max_length)
    drawn[1:] = rng.sample(drawn[1:], len(drawn) - 1)  # full length is always fitted to
    configs = [in_unit(unit, config, max_length) for config in drawn]
    turns = measure_turns(passes(model, configs, batches, autocast), rng, seconds)
    windows = tuple(map(Windows.of, batches))
    times = without_drift(turns) / sum(len(batch.lengths) for batch in windows)
    facts = measured_facts(Contender(model, configs[0], autocast), windows, turns)
    if facts["spread"] > CALM:
        text = (
            "the same config's times are %.0f %% apart: the latency model is better where no other work runs beside it"
        )
        logger.warning(text, 100 * facts["spread"])
    return fit(configs, times, windows, fitted, facts)


def fit(
    configs: Sequence[LengthConfig], times: np.ndarray, windows: tuple[Windows, ...], fitted: int, facts: dict
) -> LatencyModel:
    """The model of the first `fitted` configs and their times in milliseconds a window, checked on the others."""
    packed = facts["backend"] == NativeModel.backend
    terms = np.array([all_terms(config, windows, packed) for config in configs])
    prices = nonnegative_fit(terms[:fitted], times[:fitted])
    errors = np.abs(terms[fitted:] @ prices / times[fitted:] - 1)
    result = LatencyModel(
        coefficients=dict(zip(layer_terms(configs[0], windows[0], packed), prices.tolist())),
        windows=windows,
        packed=packed,
        median_error=float(np.median(errors)),
        largest_error=float(errors.max()),
        checked=len(errors),
        facts=facts,
    )
    logger.info(
        "latency model: %.2f ms a window at full length; on %d configs it was not fitted to it is off by %.1f %% (median), "
        "%.1f %% at most",
        *(result(configs[0]), len(errors), 100 * result.median_error, 100 * result.largest_error),
    )
    return result


def measured_facts(contender: Contender, windows: Sequence[Windows], turns: np.ndarray) -> dict:
    """What was measured, on what, for how long."""
    row = contender.row()
    return {name: row[name] for name in ("backend", "dtype", "device")} | {
        "batch_size": max(len(batch.lengths) for batch in windows),
        "batches": len(windows),
        "padded_to": [batch.padded_to for batch in windows],
        "threads": torch.get_num_threads(),
        "cpu": processor()[0],
        "instruction_set": instruction_set(),
        "configs": turns.shape[1],
        "turns": turns.shape[0],
        "seconds": round(float(turns.sum()) / 1e3, 1),
        "spread": round(spread(turns), 3),
    }
