"""Length configs: how many tokens each layer passes on, and what that costs.

A length config (l_1 ... l_L) is a non-increasing tuple: whole numbers count tokens, fractions in (0, 1] are of the real
length of each sequence (0.5: half of its tokens, rounded up).
"""

import itertools
import math
import random
import re
from collections.abc import Sequence

import torch

MIN_LENGTH = 2  # a sampled config keeps at least two tokens, as the published recipe does
LENGTH_CONFIG_TEXT = re.compile(r"\s*(?:\(([^()\[\]]*)\)|\[([^()\[\]]*)\]|([^()\[\]]*))\s*")


class LengthConfigError(ValueError):
    """A length config that does not fit the model or the sequence length."""


def _items(text: str, pattern: str, wanted: str) -> list[str]:
    """The items of "(a, b, ...)" or "[a, b, ...]"; LengthConfigError unless each matches `pattern`."""
    match = LENGTH_CONFIG_TEXT.fullmatch(text)
    items = next((group for group in match.groups() if group is not None), "").split(",") if match else []
    if items and not items[-1].strip():
        items.pop()  # the trailing comma of a one-element tuple
    if not items or not all(re.fullmatch(pattern, item.strip(), re.ASCII) for item in items):
        raise LengthConfigError(f"{text!r} is no length config: write {wanted}.")
    return items


def parse_length_config(text: str, num_layers: int | None, max_length: int) -> tuple[int, ...]:
    """Read "(315, 251, 242, 159, 142, 33)" or "[315, 251, ...]": one length a layer, in tokens.

    Raises LengthConfigError when the text is no list of integers or does not fit `num_layers` (None: not known yet)
    and `max_length`.
    """
    items = _items(text, r"\d{1,9}", 'one integer a layer, like "(384, 300, ...)"')
    return validate_length_config([int(item) for item in items], num_layers, max_length)


def parse_length_ratios(text: str, num_layers: int | None) -> tuple[float, ...]:
    """Read "(0.82, 0.65, 0.63, 0.41, 0.37, 0.09)": one fraction of the real length a layer; LengthConfigError as above."""
    items = _items(text, r"\d?\.\d{1,9}|[01]\.?", 'one fraction a layer, like "(0.82, 0.65, ...)"')
    return validate_length_config([float(item) for item in items], num_layers, None)


def is_fractional(lengths: Sequence[float]) -> bool:
    """Whether a length config holds fractions of the real length and not tokens."""
    return isinstance(lengths[0], float)


def in_unit(unit: str, lengths: Sequence[int], max_length: int) -> tuple[float, ...]:
    """`lengths` as they are ("tokens"), or as the fractions ("ratio") that keep as many of `max_length` tokens."""
    return tuple(length / max_length for length in lengths) if unit == "ratio" else tuple(lengths)


def kept_tokens(length: float, tokens: int) -> int:
    """How many of `tokens` real tokens an entry of a length config keeps, but for what was dropped before."""
    return max(1, math.ceil(round(length * tokens, 6))) if isinstance(length, float) else min(length, tokens)


def validate_length_config(
    lengths: Sequence[float], num_layers: int | None, max_length: int | None
) -> tuple[float, ...]:
    """Return `lengths` as a tuple if it has `num_layers` entries that do not increase.

    They are integers of 1 ... `max_length`, or fractions above 0 and at most 1.
    """
    lengths = tuple(lengths)
    if num_layers is not None and len(lengths) != num_layers:
        raise LengthConfigError(f"length config {lengths} has {len(lengths)} entries, the model {num_layers} layers.")
    if any(isinstance(length, torch.SymInt | torch.Tensor) for length in lengths):  # open, while a graph is made
        return lengths
    fractional = all(isinstance(length, float) and 0 < length <= 1 for length in lengths)
    whole = all(isinstance(length, int) and not isinstance(length, bool) and length >= 1 for length in lengths)
    if not lengths or not (fractional or whole):
        raise LengthConfigError(
            f"length config {lengths} must hold integers of at least 1, or fractions above 0 and at most 1.0."
        )
    if any(later > earlier for earlier, later in itertools.pairwise(lengths)):
        raise LengthConfigError(f"length config {lengths} must not increase from layer to layer.")
    if whole and max_length is not None and lengths[0] > max_length:
        raise LengthConfigError(f"length config {lengths} exceeds the sequence length of {max_length} tokens.")
    return lengths


def check_stored_length_config(config) -> None:
    """Raise LengthConfigError unless the `length_config` that a model configuration carries fits that model."""
    lengths, max_length = getattr(config, "length_config", None), getattr(config, "length_config_max_length", None)
    if lengths is None:
        return
    if not isinstance(max_length, int) or not 1 <= max_length <= config.max_position_embeddings:
        raise LengthConfigError(
            "config.json has a length_config but no usable length_config_max_length (the sequence length in tokens it "
            f"was made for, at most {config.max_position_embeddings}): {max_length!r}."
        )
    if not isinstance(lengths, (list, tuple)):
        raise LengthConfigError(f"length_config in config.json must be a list of numbers, not {lengths!r}.")
    validate_length_config(lengths, config.num_hidden_layers, max_length)


def _shrink(length: int, ratio: float) -> int:
    """ceil(length * (1 - ratio)), at least MIN_LENGTH; written so that 10 tokens at 0.7 give 3 in floating point."""
    return max(MIN_LENGTH, length - math.floor(round(length * ratio, 6)))


def constant_ratio_config(
    ratio: float, num_layers: int, max_length: int, layer_config: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Drop the fraction `ratio` of the current tokens at every layer (every kept one, if `layer_config` is given)."""
    lengths, length = [], max_length
    for layer in range(num_layers):
        if layer_config is None or layer in layer_config:
            length = _shrink(length, ratio)
        lengths.append(length)
    return tuple(lengths)


def sample_length_config(
    rng: random.Random, num_layers: int, max_length: int, bound: float, layer_config: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Draw l_i uniformly from [ceil(l_{i-1} (1 - bound)), l_{i-1}]; a layer outside `layer_config` repeats l_{i-1}."""
    lengths, length = [], max_length
    for layer in range(num_layers):
        if layer_config is None or layer in layer_config:
            length = rng.randint(_shrink(length, bound), max(length, MIN_LENGTH))
        lengths.append(length)
    return tuple(lengths)


def sample_layer_config(
    rng: random.Random, num_layers: int, prob: float | None = None, bound: int | None = None
) -> tuple[int, ...]:
    """Draw the indices of the layers that LayerDrop keeps; never none of them.

    With `prob` each layer is dropped independently with that probability; else with `bound` the last UniformInt{0 ...
    bound} layers are dropped; with neither all are kept.
    """
    if prob is not None:
        kept = tuple(layer for layer in range(num_layers) if rng.random() >= prob)
        return kept or (rng.randrange(num_layers),)
    return tuple(range(max(1, num_layers - rng.randint(0, bound or 0))))


def count_macs(config, length_config: Sequence[int] | None = None, sequence_length: int = 384) -> int:
    """Multiply-accumulates of one forward pass of the question-answering model on `sequence_length` real tokens.

    With l_0 = S, hidden size d and feed-forward size f:
        sum_i [4 l_{i-1} d^2 + 2 l_{i-1}^2 d + 2 l_i d f] + 2 S d + S d + sum_i (l_{i-1} + l_i) d + S,
    the convention of the published figures ("FLOPs" there): what torchprofile counts of linear layers, attention
    products, LayerNorm elements and the mask, while softmax, GELU and the selection of tokens count nothing.  This
    model needs (l_{i-1} - l_i) (d^2 + d) fewer a layer, because it drops before the output projection and its LayerNorm;
    they are counted all the same, so that the figures can be compared.
    """
    hidden, feed_forward, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    lengths = [kept_tokens(length, sequence_length) for length in length_config or (sequence_length,) * layers]
    macs = 3 * sequence_length * hidden + sequence_length
    for before, after in zip([sequence_length, *lengths], lengths):
        macs += 4 * before * hidden**2 + 2 * before**2 * hidden + 2 * after * hidden * feed_forward
        macs += (before + after) * hidden
    return macs
