"""LengthDrop: the encoder parts that drop tokens and restore them at the end.

With a length config (l_1 ... l_L), after the attention block of layer i only the l_i most significant tokens go on to its
feed-forward block and to the next layer (Kim & Cho, "Length-Adaptive Transformer", ACL 2021,
https://aclanthology.org/2021.acl-long.508).  Nothing here remembers a call: a config is an argument.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from attention import (
    FUSED_ATTENTION,
    attention_with_significance,
    explicit_attention,
    fused_attention,
    real_tokens,
)
from length_config import check_stored_length_config, is_fractional, kept_tokens, validate_length_config
from native_ops import fused_operators_loaded

# ---- token selection -----------------------------------------------------------------------------------------------


def select_tokens(
    significance: torch.Tensor, real: torch.Tensor | None, length: int | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Indices (B, l), ascending, of the `length` most significant tokens, and which of them go on (B, l).

    [CLS] (the first real token) is always among them, and padding only where a row has fewer real tokens. With one
    length for all rows all go on (None); with a tensor of lengths (B) l is the largest one.
    """
    if real is None:
        significance = significance.index_fill(1, significance.new_zeros(1, dtype=torch.long), torch.inf)
    else:
        first = real.to(torch.uint8).argmax(1, keepdim=True)
        significance = significance.masked_fill(~real, -torch.inf).scatter(1, first, torch.inf)
    if not isinstance(length, torch.Tensor) or length.dim() == 0:  # a number of tokens, as traced graphs have it
        return significance.topk(length, dim=1).indices.sort(1).values, None
    ranked = significance.topk(int(length.max()), dim=1).indices
    kept, order = ranked.sort(1)
    return kept, order < length[:, None]


def _row_numbers(rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Where the `tokens` (B, l) of each sequence stand among the `rows` (B * S, D) of all sequences: (B * l)."""
    numbers = torch.arange(rows.shape[0], device=rows.device).view(tokens.shape[0], -1)
    return numbers.gather(1, tokens).flatten()


def gather_tokens(hidden_states: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The rows `kept` (B, l) of `hidden_states` (B, S, D): (B, l, D)."""
    rows = hidden_states.flatten(0, 1)  # whole rows are copied; torch.gather would look up every number
    return rows.index_select(0, _row_numbers(rows, kept)).view(*kept.shape, -1)


def restore_tokens(
    buffer: torch.Tensor,
    hidden_states: torch.Tensor,
    positions: torch.Tensor | None,
    alive: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write `hidden_states` (B, l, D) over `buffer` (B, S, D) at `positions` (B, l), where `alive` (B, l).

    None means every position, and all of them.
    """
    if positions is None:
        return hidden_states
    if alive is not None:
        hidden_states = torch.where(alive[:, :, None], hidden_states, gather_tokens(buffer, positions))
    rows, states = buffer.flatten(0, 1), hidden_states.flatten(0, 1).to(buffer.dtype)
    return rows.index_copy(0, _row_numbers(rows, positions), states).view_as(buffer)


def rows_to_keep(length: float, real: torch.Tensor | None, hidden_states: torch.Tensor) -> int | torch.Tensor:
    """What an entry of a length config keeps of sequences: tokens, or of fractions a number a row (B)."""
    if not isinstance(length, float):
        return length
    batch, size, _ = hidden_states.shape
    counts = [size] * batch if real is None else real.sum(1).tolist()
    return torch.tensor([kept_tokens(length, count) for count in counts], device=hidden_states.device)


def mask_of_kept(
    attention_mask: torch.Tensor | None, kept: torch.Tensor, alive: torch.Tensor | None
) -> torch.Tensor | None:
    """The mask (B, 1, 1, l) of the tokens `kept`: what does not go on is padding from now on."""
    if attention_mask is None:
        return None
    mask = attention_mask[:, :, :1].gather(3, kept[:, None, None])
    if alive is None:
        return mask
    return mask.masked_fill(~alive[:, None, None], False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)


# ---- encoder parts that BERT and RoBERTa share ---------------------------------------------------------------------


class LengthAdaptiveSelfAttention:
    """Modifications: with `with_significance` the second output is the tokens' significance (B, S).

    "sdpa" gets it without storing attention probabilities, "eager" from them.
    """

    def forward(self, hidden_states, attention_mask=None, with_significance=False, **kwargs):
        if not with_significance and not self._trains_faster_without_sdpa(hidden_states):
            return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)
        linears, real = (self.query, self.key, self.value), real_tokens(attention_mask)
        if self._can_be_fused(hidden_states, linears):
            return fused_attention(hidden_states, linears, self.num_attention_heads, real)
        heads = (*hidden_states.shape[:2], -1, self.attention_head_size)
        query, key, value = (linear(hidden_states).view(heads).transpose(1, 2) for linear in linears)
        dropout = self.dropout.p if self.training else 0.0
        attention = explicit_attention if self.config._attn_implementation == "eager" else attention_with_significance
        context, significance = attention(query, key, value, real, self.scaling, dropout)
        return context.flatten(2), significance if with_significance else None

    def _can_be_fused(self, hidden_states: torch.Tensor, linears: Sequence[nn.Module]) -> bool:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False  # packing depends on the data
        autocast = torch.is_autocast_enabled("cpu")
        operator = FUSED_ATTENTION.get(torch.get_autocast_dtype("cpu") if autocast else hidden_states.dtype)
        infers_on_cpu = not torch.is_grad_enabled() and not self.training and hidden_states.device.type == "cpu"
        plain = all(type(linear) is nn.Linear for linear in linears)  # others compute something else
        wanted = self.config._attn_implementation == "sdpa" and operator and fused_operators_loaded(operator)
        return wanted and infers_on_cpu and plain

    def _trains_faster_without_sdpa(self, hidden_states: torch.Tensor) -> bool:
        # In bf16 on a CPU the backward pass of PyTorch's flash attention takes longer than all other parts of a layer.
        in_bf16 = torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.is_autocast_enabled("cpu")
        on_cpu = hidden_states.device.type == "cpu"
        return self.training and on_cpu and in_bf16 and self.config._attn_implementation == "sdpa"


class LengthAdaptiveLayer:
    """Modifications: with `keep_length` only that many tokens leave the attention.

    Returns the hidden states with what `select_tokens` says of them.
    """

    def forward(self, hidden_states, attention_mask=None, *args, keep_length=None, **kwargs):
        if keep_length is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        context, significance = self.attention.self(hidden_states, attention_mask, with_significance=True)
        kept, alive = select_tokens(significance, real_tokens(attention_mask), keep_length)
        # The output projection works row by row, so tokens that go no further need none.
        attention_output = self.attention.output(gather_tokens(context, kept), gather_tokens(hidden_states, kept))
        return self.feed_forward_chunk(attention_output), kept, alive


class LengthAdaptiveEncoder:
    """Modifications: `length_config` drops tokens, `layer_config` skips layers, the output has every token again.

    The default `length_config` is the one stored in the model's configuration. A dropped token's final hidden state
    is the output of the last layer it survived (Drop-and-Restore, section 3.3 of the paper). A batch shorter than l_i
    keeps all its tokens; fractions are of the real tokens of each row.
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
        real, previous = real_tokens(attention_mask), 1.0 if is_fractional(lengths) else hidden_states.shape[1]
        # positions (B, l): where the kept tokens stand in the input; alive (B, l): which of them have gone on
        restored, positions, alive = hidden_states, None, None
        for index, (layer, length) in enumerate(zip(self.layer, lengths)):
            if layer_config is not None and index not in layer_config:
                continue
            # An exported or traced graph selects always: it is made before the lengths are known.
            if isinstance(length, int | float) and length >= previous:
                hidden_states = layer(hidden_states, attention_mask)
                continue
            restored, previous = restore_tokens(restored, hidden_states, positions, alive), length
            keep = rows_to_keep(length, real, restored)
            hidden_states, kept, alive = layer(hidden_states, attention_mask, keep_length=keep)
            positions = kept if positions is None else positions.gather(1, kept)
            attention_mask = mask_of_kept(attention_mask, kept, alive)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=restore_tokens(restored, hidden_states, positions, alive)
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
