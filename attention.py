"""Self-attention that also says how much attention each token receives, without storing attention probabilities.

If flash attention returns the log-sum-exp of each query's scores, a second call with queries and keys exchanged, and minus
that log-sum-exp as a bias of its keys, has as its own log-sum-exp exactly log sum_i p_ij: the logarithm of what token j
receives.  Where that is not the fastest way, or none at all, the probabilities are computed explicitly.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.backends.cuda import SDPAParams, can_use_efficient_attention
from torch.nn import functional as F

aten = torch.ops.aten


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
    real: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-attention of (B, H, S, D) heads that also says how much attention each token receives.

    `real` (B, S) is what `real_tokens` gives. Returns the context (B, S, H, D) and the significance (B, S), float32
    without gradient: the probabilities summed over heads and over the real queries, before dropout (section 3.1 of the
    paper; padding queries do not vote).
    """
    flash = flash_kernel(query, dropout)
    if flash is None:
        return explicit_attention(query, key, value, real, scaling, dropout)
    return flash_attention_twice(flash, query, key, value, real, scaling, dropout)


# ---- the explicit form ---------------------------------------------------------------------------------------------


def explicit_attention(query, key, value, real, scaling, dropout):
    """What `attention_with_significance` returns, with all probabilities in memory."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    voters = scores.new_ones(scores.shape[0], scores.shape[3])
    if real is not None:
        scores += torch.zeros_like(voters).masked_fill(~real, torch.finfo(scores.dtype).min)[:, None, None]
        voters = voters * real
    probabilities = scores.softmax(-1)
    # A product with the voters reads the probabilities once; summing them in float32 would first copy them.
    votes = torch.matmul(voters[:, None, None].expand(-1, scores.shape[1], -1, -1), probabilities.detach())
    context = torch.matmul(F.dropout(probabilities, dropout, training=dropout > 0), value)
    return context.transpose(1, 2), votes.float().sum((1, 2))


# ---- two calls of flash attention ----------------------------------------------------------------------------------


def flash_kernel(query: torch.Tensor, dropout: float) -> Callable | None:
    """The kernel that gives context and log-sum-exp on the device of `query`; None where the explicit form is better."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return None  # the compilers of the INT8 engines fuse the explicit form
    if query.device.type == "cpu" and dropout == 0:
        # In bf16 the backward pass of flash attention on a CPU takes longer than the explicit one.
        good = (torch.float32,) if query.requires_grad else (torch.float32, torch.bfloat16)
        return _flash_on_cpu if query.dtype in good else None
    if query.device.type == "cuda":
        params = SDPAParams(query, query, query, None, dropout, False, False)
        return _flash_on_cuda if can_use_efficient_attention(params) else None
    return None


def flash_attention_twice(flash, query, key, value, real, scaling, dropout):
    """What `attention_with_significance` returns; `flash` is what `flash_kernel` has found."""
    never = torch.finfo(query.dtype).min / 2  # as a bias: no probability at all; half, so that kernels can scale it
    bias = None
    if real is not None:
        bias = _bias_of_keys(real.new_zeros(real.shape, dtype=query.dtype).masked_fill(~real, never)[:, None], query)
    context, log_sum_exp = flash(query, key, value, bias, scaling, dropout)
    with torch.no_grad():
        votes = -log_sum_exp if real is None else (-log_sum_exp).masked_fill(~real[:, None], never)
        # Of this call's context nothing is used.
        _, received = flash(key, query, query, _bias_of_keys(votes, query), scaling, 0.0)
        significance = received.exp().sum(1)
    return context.transpose(1, 2), significance if real is None else significance * real


def _bias_of_keys(values: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """`values` (B, H or 1, K) as the bias (B, H, Q, K) of every query's scores, in the layout that is fast or asked for."""
    keys = values.shape[2]
    if query.device.type == "cpu":
        values = values.float().contiguous()
    else:  # of the queries' type, and every row begins at a multiple of 16 bytes
        values = F.pad(values.to(query.dtype).contiguous(), (0, -keys % 8))
    return values[:, :, None, :keys].expand(*query.shape[:3], keys)


def _flash_on_cpu(query, key, value, bias, scaling, dropout):
    return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=bias, scale=scaling)


def _flash_on_cuda(query, key, value, bias, scaling, dropout):
    found = aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, dropout, scale=scaling)
    return found[0], found[1][..., : query.shape[2]]  # the log-sum-exp is padded to a multiple of 32 queries


# ---- the fused operator --------------------------------------------------------------------------------------------


FUSED_ATTENTION = {torch.float32: "attention", torch.bfloat16: "attention_bf16"}  # the operator, by what it reads


def fused_attention(
    hidden_states: torch.Tensor, linears: list[nn.Linear], heads: int, real: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Context (B, S, H * D) and significance (B, S) of `hidden_states` (B, S, C) by one product and one operator.

    `linears` make queries, keys and values, but are not called themselves, nor are hooks on them.  Padding is left out of
    both, and its context is zero.
    """
    weight, bias = torch.cat([linear.weight for linear in linears]), torch.cat([linear.bias for linear in linears])
    if real is None:
        real = hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.bool)
    offsets = F.pad(real.sum(1).cumsum(0), (1, 0))
    rows = hidden_states[real] if offsets[-1] < real.numel() else hidden_states.flatten(0, 1)
    fused = F.linear(rows, weight, bias)  # bf16 under autocast
    context, significance = getattr(torch.ops.quala, FUSED_ATTENTION[fused.dtype])(fused, offsets, heads, True)
    if offsets[-1] < real.numel():
        context = context.new_zeros(*real.shape, context.shape[1]).masked_scatter_(real[:, :, None], context)
        significance = significance.new_zeros(real.shape).masked_scatter_(real, significance)
    return context.view(*real.shape, -1), significance.view(real.shape)
