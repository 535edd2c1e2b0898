"""LengthDrop: length configs, their cost, and the encoder parts that drop tokens and restore them at the end.

A length config (l_1 ... l_L) is a non-increasing tuple: after the attention block of layer i only the l_i most
significant tokens go on to its feed-forward block and to the next layer (Kim & Cho, "Length-Adaptive Transformer",
ACL 2021, https://aclanthology.org/2021.acl-long.508).  Nothing here remembers a call: a config is an argument.
"""

import itertools
import math
import random
import re
from collections.abc import Sequence

import torch
from torch import nn

MIN_LENGTH = 2  # a sampled config keeps at least two tokens, as the published recipe does
LENGTH_CONFIG_TEXT = re.compile(r"\s*(?:\(([^()\[\]]*)\)|\[([^()\[\]]*)\]|([^()\[\]]*))\s*")


class LengthConfigError(ValueError):
    """A length config that does not fit the model or the sequence length."""


# ---- length configs ------------------------------------------------------------------------------------------------


def parse_length_config(text: str, num_layers: int | None, max_length: int) -> tuple[int, ...]:
    """Read "(315, 251, 242, 159, 142, 33)" or "[315, 251, ...]": one length a layer, in tokens.

    Raises LengthConfigError when the text is no list of integers or does not fit `num_layers` (None: not known yet)
    and `max_length`.
    """
    match = LENGTH_CONFIG_TEXT.fullmatch(text)
    items = next((group for group in match.groups() if group is not None), "").split(",") if match else []
    if items and not items[-1].strip():
        items.pop()  # the trailing comma of a one-element tuple
    if not items or not all(re.fullmatch(r"\s*\d{1,9}\s*", item, re.ASCII) for item in items):
        raise LengthConfigError(f'{text!r} is no length config: write one integer a layer, like "(384, 300, ...)".')
    return validate_length_config([int(item) for item in items], num_layers, max_length)


def validate_length_config(lengths: Sequence[int], num_layers: int | None, max_length: int | None) -> tuple[int, ...]:
    """Return `lengths` as a tuple if it holds `num_layers` non-increasing integers within 1 ... `max_length`."""
    lengths = tuple(lengths)
    if num_layers is not None and len(lengths) != num_layers:
        raise LengthConfigError(f"length config {lengths} has {len(lengths)} entries, the model {num_layers} layers.")
    if any(isinstance(length, torch.SymInt | torch.Tensor) for length in lengths):  # open, while a graph is made
        return lengths
    if not all(isinstance(length, int) and not isinstance(length, bool) and length >= 1 for length in lengths):
        raise LengthConfigError(f"length config {lengths} must hold integers of at least 1.")
    if any(later > earlier for earlier, later in itertools.pairwise(lengths)):
        raise LengthConfigError(f"length config {lengths} must not increase from layer to layer.")
    if max_length is not None and lengths[0] > max_length:
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
        raise LengthConfigError(f"length_config in config.json must be a list of integers, not {lengths!r}.")
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
    products, LayerNorm elements and the mask, while softmax, GELU and the selection of tokens count nothing.
    """
    hidden, feed_forward, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    lengths = [min(length, sequence_length) for length in length_config or (sequence_length,) * layers]
    macs = 3 * sequence_length * hidden + sequence_length
    for before, after in zip([sequence_length, *lengths], lengths):
        macs += 4 * before * hidden**2 + 2 * before**2 * hidden + 2 * after * hidden * feed_forward
        macs += (before + after) * hidden
    return macs


# ---- token selection -----------------------------------------------------------------------------------------------


def real_tokens(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """(B, K) bool, True where a token is no padding, from a (B, 1, Q or 1, K) boolean or additive mask; None if None."""
    if attention_mask is None:
        return None
    row = attention_mask[:, 0, 0]  # a bidirectional padding mask is the same for every query
    return row if row.dtype == torch.bool else row == 0


def attention_with_significance(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-attention of (B, H, S, D) heads that also says how much attention each token receives.

    Returns the context (B, S, H, D) and the significance (B, S), float32 without gradient: the probabilities summed
    over heads and over the real queries, before dropout (section 3.1 of the paper; padding queries do not vote).
    """
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    real = real_tokens(attention_mask)
    voters = scores.new_ones(scores.shape[0], scores.shape[3])
    if real is not None:
        scores += torch.zeros_like(voters).masked_fill(~real, torch.finfo(scores.dtype).min)[:, None, None]
        voters = voters * real
    probabilities = scores.softmax(-1)
    # A product with the voters reads the probabilities once; summing them in float32 would first copy them.
    votes = torch.matmul(voters[:, None, None].expand(-1, scores.shape[1], -1, -1), probabilities.detach())
    context = torch.matmul(nn.functional.dropout(probabilities, dropout, training=dropout > 0), value)
    return context.transpose(1, 2), votes.float().sum((1, 2))


def select_tokens(significance: torch.Tensor, real: torch.Tensor | None, length: int) -> torch.Tensor:
    """Indices (B, length), ascending, of the most significant tokens.

    [CLS] (the first real token) is always among them, and padding only where a row has fewer real tokens.
    """
    if real is None:
        significance = significance.index_fill(1, significance.new_zeros(1, dtype=torch.long), torch.inf)
    else:
        first = real.to(torch.uint8).argmax(1, keepdim=True)
        significance = significance.masked_fill(~real, -torch.inf).scatter(1, first, torch.inf)
    return significance.topk(length, dim=1).indices.sort(1).values


def gather_tokens(hidden_states: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The rows `kept` (B, l) of `hidden_states` (B, S, D): (B, l, D)."""
    return hidden_states.gather(1, kept[:, :, None].expand(-1, -1, hidden_states.shape[2]))


def restore_tokens(buffer: torch.Tensor, hidden_states: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Write `hidden_states` (B, l, D) over `buffer` (B, S, D) at `positions` (B, l); None means every position."""
    if positions is None:
        return hidden_states
    return buffer.scatter(1, positions[:, :, None].expand_as(hidden_states), hidden_states.to(buffer.dtype))


# ---- encoder parts that BERT and RoBERTa share ---------------------------------------------------------------------


class LengthAdaptiveSelfAttention:
    """Modifications: with `with_significance` the second output is the tokens' significance (B, S)."""

    def forward(self, hidden_states, attention_mask=None, with_significance=False, **kwargs):
        if not with_significance and not self._trains_faster_without_sdpa(hidden_states):
            return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)
        batch, length, _ = hidden_states.shape
        query, key, value = (
            linear(hidden_states).view(batch, length, -1, self.attention_head_size).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        dropout = self.dropout.p if self.training else 0.0
        context, significance = attention_with_significance(query, key, value, attention_mask, self.scaling, dropout)
        return context.reshape(batch, length, -1), significance if with_significance else None

    def _trains_faster_without_sdpa(self, hidden_states: torch.Tensor) -> bool:
        # In bf16 on a CPU the backward pass of PyTorch's flash attention takes longer than all other parts of a layer.
        in_bf16 = torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.is_autocast_enabled("cpu")
        on_cpu = hidden_states.device.type == "cpu"
        return self.training and on_cpu and in_bf16 and self.config._attn_implementation == "sdpa"


class LengthAdaptiveLayer:
    """Modifications: with `keep_length` only that many tokens reach the feed-forward block; returns (hidden, kept)."""

    def forward(self, hidden_states, attention_mask=None, *args, keep_length=None, **kwargs):
        if keep_length is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        attention_output, significance = self.attention(hidden_states, attention_mask, with_significance=True)
        kept = select_tokens(significance, real_tokens(attention_mask), keep_length)
        return self.feed_forward_chunk(gather_tokens(attention_output, kept)), kept


class LengthAdaptiveEncoder:
    """Modifications: `length_config` drops tokens, `layer_config` skips layers, the output has every token again.

    The default `length_config` is the one stored in the model's configuration. A dropped token's final hidden state
    is the output of the last layer it survived (Drop-and-Restore, section 3.3 of the paper). A batch shorter than l_i
    keeps all its tokens.
    """

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        *args,
        length_config=None,
        layer_config=None,
        position_ids=None,
        **kwargs,
    ):
        if length_config is None:
            length_config = getattr(self.config, "length_config", None)
        if length_config is None and layer_config is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        lengths = length_config or (hidden_states.shape[1],) * len(self.layer)
        lengths = validate_length_config(lengths, len(self.layer), max_length=None)
        restored, positions = hidden_states, None  # positions (B, l): where the kept tokens stand in the input
        for index, (layer, length) in enumerate(zip(self.layer, lengths)):
            if layer_config is not None and index not in layer_config:
                continue
            # An exported or traced graph selects always: it is made before the lengths are known.
            if isinstance(length, int) and length >= hidden_states.shape[1]:
                hidden_states = layer(hidden_states, attention_mask)
                continue
            restored = restore_tokens(restored, hidden_states, positions)
            hidden_states, kept = layer(hidden_states, attention_mask, keep_length=length)
            positions = kept if positions is None else positions.gather(1, kept)
            if attention_mask is not None:
                attention_mask = attention_mask[:, :, :1].gather(3, kept[:, None, None])
        # Here, because INT8 models check length configs without the rest of transformers.
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=restore_tokens(restored, hidden_states, positions)
        )


class LengthAdaptiveModel:
    """Modifications: checks the stored length config when a model is built, loaded or saved."""

    _supports_flash_attn = _supports_flex_attn = False  # their masks do not say which tokens are padding

    def __init__(self, config, *args, **kwargs):
        check_stored_length_config(config)
        super().__init__(config, *args, **kwargs)

    def save_pretrained(self, *args, **kwargs):
        check_stored_length_config(self.config)
        return super().save_pretrained(*args, **kwargs)
