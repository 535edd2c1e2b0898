"""What a student can learn from a teacher: losses between span logits, hidden states and attention; pure functions.

Every loss is a mean over sequences of a mean over real tokens: padding counts for nothing, and gradient accumulation over
batches of equal size equals one large batch.  Gradients reach the student's tensors only.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from errors import RunError

NEVER = torch.finfo(torch.float32).min / 2  # as a score: no probability at all, and no infinity to be multiplied by 0


# ---- span logits ---------------------------------------------------------------------------------------------------


def kl_divergence(
    sub_logits: torch.Tensor,
    full_logits: torch.Tensor,
    direction: str = "sub_full",
    temperature: float = 1.0,
    real: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean over the batch of the KL divergence between span distributions (B, S), times temperature squared.

    "sub_full" is KL(sub || full), what the published checkpoints of LAT and QuaLA-MiniLM were trained with (their code
    hands the sub-model's probabilities to KLDivLoss as the target); "full_sub" is KL(full || sub), the usual
    distillation loss. The full model's logits are a target: no gradient reaches them. With `real` (B, S) the
    distributions are over the real tokens only.
    """
    sub, full = sub_logits.float() / temperature, full_logits.detach().float() / temperature
    if real is not None:
        sub, full = sub.masked_fill(~real, NEVER), full.masked_fill(~real, NEVER)
    sub, full = sub.log_softmax(-1), full.log_softmax(-1)
    p, q = (sub, full) if direction == "sub_full" else (full, sub)
    return (p.exp() * (p - q)).sum(-1).mean() * temperature**2


def span_divergence(student, teacher, direction: str, temperature: float, real: torch.Tensor) -> torch.Tensor:
    """Mean of `kl_divergence` of start and end; `student` and `teacher` are (start, end) logits (B, S) each.

    With "full_sub" this is the distillation loss of Hinton et al. 2015 (https://arxiv.org/abs/1503.02531): KL(teacher ||
    student) of the distributions at a temperature T, times T squared. Soft cross-entropy, as TinyBERT has it, is that
    plus the teacher's entropy: another number, the same gradient.
    """
    losses = [kl_divergence(ours, theirs, direction, temperature, real) for ours, theirs in zip(student, teacher)]
    return sum(losses) / len(losses)


# ---- layers --------------------------------------------------------------------------------------------------------


def map_layers(student: int, teacher: int, given: Sequence[int] | None = None, last_only: bool = False) -> dict:
    """Which layer of the teacher each of the student's layers learns from, counted from 1; just the last if `last_only`.

    Uniform: layer i of the student learns from layer i * m, where m is the ratio of the depths (section 3.1 of
    TinyBERT, https://arxiv.org/abs/1909.10351). RunError if the depths do not divide and no layers are given, or if
    those given do not fit.
    """
    if given is not None:
        if len(given) != student or not all(1 <= layer <= teacher for layer in given):
            wanted = f"{student} layers of the teacher (one a layer of the student), of 1 to {teacher}"
            raise RunError(f"--teacher_layers {','.join(map(str, given))} must name {wanted}.")
    elif teacher % student == 0:
        given = [(index + 1) * teacher // student for index in range(student)]
    elif last_only:
        given = [teacher] * student
    else:
        example = [max(1, round((index + 1) * teacher / student)) for index in range(student)]
        raise RunError(
            f"the teacher's {teacher} layers cannot be shared out evenly among the student's {student}: say which ones it "
            f"learns from, like --teacher_layers {','.join(map(str, example))}."
        )
    return {student: given[-1]} if last_only else dict(enumerate(given, start=1))


def mean_of_real(values: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of each sequence's mean of `values` (B, S) at its `real` tokens (B, S)."""
    return ((values * real).sum(1) / real.sum(1)).mean()


def hidden_state_loss(
    student: torch.Tensor, teacher: torch.Tensor, real: torch.Tensor, cosine: bool = False
) -> torch.Tensor:
    """Mean squared difference of hidden states (B, S, D), or 1 - cosine of each token's states.

    Equation 8 of TinyBERT (https://arxiv.org/abs/1909.10351); of another width, the student's states are projected first.
    """
    student, teacher = student.float(), teacher.detach().float()
    if cosine:
        return mean_of_real(1 - F.cosine_similarity(student, teacher, dim=-1), real)
    return mean_of_real((student - teacher).square().mean(-1), real)


def split_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, S, D) as (B, heads, S, D / heads), float32."""
    return states.float().unflatten(-1, (heads, -1)).transpose(1, 2)


def attention_scores(query: torch.Tensor, key: torch.Tensor, heads: int) -> torch.Tensor:
    """Scores before the softmax, (B, heads, S, S), of queries and keys (B, S, D)."""
    query, key = split_heads(query, heads), split_heads(key, heads)
    return query @ key.transpose(2, 3) * query.shape[-1] ** -0.5


def log_probabilities(scores: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Logarithm of the attention probabilities of scores (B, H, S, S), padding keys having none."""
    return scores.masked_fill(~real[:, None, None], NEVER).log_softmax(-1)


def attention_loss(
    student: torch.Tensor, teacher: torch.Tensor, real: torch.Tensor, target: str = "probs", mse: bool = False
) -> torch.Tensor:
    """1 - cosine of what each query pays the keys, or mean squared difference; from scores (B, H, S, S) of both.

    `target` "scores" compares them before the softmax, as TinyBERT does (equation 7, https://arxiv.org/abs/1909.10351);
    "probs" after it, as Dynamic-TinyBERT does (https://arxiv.org/abs/2111.09645). Head by head, real tokens only.
    """
    teacher, keys = teacher.detach(), real[:, None, None].to(student.dtype)
    if target == "probs":
        student, teacher = log_probabilities(student, real).exp(), log_probabilities(teacher, real).exp()
    student, teacher = student * keys, teacher * keys
    if mse:
        rows = (student - teacher).square().sum(-1) / keys.sum(-1)
    else:
        rows = 1 - F.cosine_similarity(student, teacher, dim=-1)
    return mean_of_real(rows.mean(1), real)  # over heads


def relation_loss(student: torch.Tensor, teacher: torch.Tensor, real: torch.Tensor, heads: int) -> torch.Tensor:
    """KL(teacher || student) of the relations among queries, among keys or among values; (B, S, D) of either width.

    The states are cut into `heads` relation heads whatever the numbers of attention heads, and compared with themselves
    by scaled dot products and a softmax: MiniLMv2 (section 3.1, https://arxiv.org/abs/2012.15828), where MiniLM
    (https://arxiv.org/abs/2002.10957) has the relations of the values.
    """
    student = log_probabilities(attention_scores(student, student, heads), real)
    teacher = log_probabilities(attention_scores(teacher, teacher, heads), real).detach()
    return mean_of_real((teacher.exp() * (teacher - student)).sum(-1).mean(1), real)
