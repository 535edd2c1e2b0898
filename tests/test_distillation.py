"""Each loss against a value computed by hand or by a plain loop, and the map of layers."""

import math

import numpy as np
import pytest
import torch

from distillation import (
    attention_loss,
    attention_scores,
    hidden_state_loss,
    kl_divergence,
    map_layers,
    relation_loss,
    span_divergence,
)
from errors import RunError

REAL = torch.tensor([[True, True, True, False], [True, True, False, False]])


def states(seed, width=6):
    return torch.randn(2, 4, width, generator=torch.Generator().manual_seed(seed))


def softmax(rows):
    exponentials = np.exp(rows - rows.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def cosine(a, b):
    return a @ b / math.sqrt((a @ a) * (b @ b))


# ---- predictions ---------------------------------------------------------------------------------------------------


def test_the_prediction_loss_equals_a_hand_computed_value():
    """Teacher (1/4, 3/4) at start and (1/2, 1/2) at end, student (1/2, 1/2) at both."""
    even, skewed = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3.0)]])
    everything = torch.ones(1, 2, dtype=torch.bool)
    start = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    loss = span_divergence((even, even), (skewed, even), "full_sub", 1.0, everything)
    assert loss.item() == pytest.approx(start / 2, abs=1e-6)
    root = math.sqrt(3.0)  # at temperature 2 the teacher becomes (1, sqrt 3) / (1 + sqrt 3)
    p = np.array([1, root]) / (1 + root)
    warm = 4 * (p * np.log(p / 0.5)).sum()
    assert span_divergence((even, even), (skewed, even), "full_sub", 2.0, everything).item() == pytest.approx(
        warm / 2, abs=1e-6
    )


def test_the_prediction_losss_gradient_is_that_of_soft_cross_entropy():
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    everything = torch.ones(3, 5, dtype=torch.bool)
    (ours,) = torch.autograd.grad(span_divergence([student], [teacher], "full_sub", 2.0, everything), student)
    soft = -(teacher.div(2).softmax(-1) * student.div(2).log_softmax(-1)).sum(-1).mean() * 4
    torch.testing.assert_close(ours, torch.autograd.grad(soft, student)[0])


@pytest.mark.parametrize("direction", ["sub_full", "full_sub"])
def test_logits_at_padding_change_neither_the_divergence_nor_its_gradient(direction):
    student, teacher = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4)
    cut = [kl_divergence(student[i : i + 1, :n], teacher[i : i + 1, :n], direction) for i, n in enumerate((3, 2))]
    (expected,) = torch.autograd.grad(sum(cut) / 2, student)
    loss = kl_divergence(student, teacher + 50.0 * ~REAL, direction, 1.0, REAL)
    assert loss.item() == pytest.approx((sum(cut) / 2).item(), abs=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], expected)


# ---- hidden states -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_cosine", [False, True])
def test_the_hidden_state_loss_is_a_mean_over_sequences_of_one_over_real_tokens(by_cosine):
    ours, theirs = states(1), states(2)
    expected = []
    for row, length in enumerate((3, 2)):
        pairs = [(ours[row, t].double().numpy(), theirs[row, t].double().numpy()) for t in range(length)]
        each = [1 - cosine(a, b) if by_cosine else ((a - b) ** 2).mean() for a, b in pairs]
        expected.append(np.mean(each))
    assert hidden_state_loss(ours, theirs, REAL, by_cosine).item() == pytest.approx(np.mean(expected), abs=1e-6)


# ---- attention -----------------------------------------------------------------------------------------------------


def scores_by_hand(query, key, heads, row, length):
    """(heads, length, length) of one sequence, cut to its real tokens."""
    q, k = (part[row, :length].double().numpy().reshape(length, heads, -1) for part in (query, key))
    return np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])


@pytest.mark.parametrize("target", ["probs", "scores"])
@pytest.mark.parametrize("mse", [False, True])
def test_the_attention_loss_equals_that_of_every_sequence_cut_to_its_real_tokens(target, mse):
    parts = [states(seed) for seed in range(4)]
    expected = []
    for row, length in enumerate((3, 2)):
        ours, theirs = (scores_by_hand(parts[i], parts[i + 1], 2, row, length) for i in (0, 2))
        if target == "probs":
            ours, theirs = softmax(ours), softmax(theirs)
        rows = [(a, b) for x, y in zip(ours, theirs) for a, b in zip(x, y)]
        expected.append(np.mean([((a - b) ** 2).mean() if mse else 1 - cosine(a, b) for a, b in rows]))
    found = [attention_scores(parts[i], parts[i + 1], 2) for i in (0, 2)]
    assert attention_loss(*found, REAL, target, mse).item() == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_the_relation_loss_is_the_kl_of_scaled_dot_products_whatever_the_widths(heads):
    ours, theirs = states(1, 6), states(2, 12)
    expected = []
    for row, length in enumerate((3, 2)):
        student, teacher = (softmax(scores_by_hand(side, side, heads, row, length)) for side in (ours, theirs))
        expected.append((teacher * np.log(teacher / student)).sum(-1).mean())
    assert relation_loss(ours, theirs, REAL, heads).item() == pytest.approx(np.mean(expected), abs=1e-6)


LOSSES = {
    "hidden": hidden_state_loss,
    "hidden cosine": lambda a, b, real: hidden_state_loss(a, b, real, cosine=True),
    "attention": lambda a, b, real: attention_loss(attention_scores(a, a, 2), attention_scores(b, b, 2), real),
    "scores": lambda a, b, real: attention_loss(
        attention_scores(a, a, 2), attention_scores(b, b, 2), real, "scores", mse=True
    ),
    "relation": lambda a, b, real: relation_loss(a, b, real, 2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_reaches_the_student_only_and_not_through_its_padding(name):
    ours, theirs = states(1).requires_grad_(), states(2).requires_grad_()
    LOSSES[name](ours, theirs, REAL).backward()
    assert theirs.grad is None and ours.grad.isfinite().all()
    assert ours.grad[REAL].abs().sum() > 0 and ours.grad[~REAL].abs().sum() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_from_oneself_is_zero(name):
    assert LOSSES[name](states(1), states(1), REAL).item() == pytest.approx(0, abs=1e-6)


# ---- which layers --------------------------------------------------------------------------------------------------


def test_layers_are_shared_out_evenly():
    assert map_layers(3, 6) == {1: 2, 2: 4, 3: 6}
    assert map_layers(6, 24) == {1: 4, 2: 8, 3: 12, 4: 16, 5: 20, 6: 24}
    assert map_layers(2, 2) == {1: 1, 2: 2}


def test_layers_may_be_given():
    assert map_layers(2, 5, [1, 4]) == {1: 1, 2: 4}
    assert map_layers(2, 5, [1, 4], last_only=True) == {2: 4}


def test_the_last_layers_belong_together_whatever_the_depths():
    assert map_layers(3, 7, last_only=True) == {3: 7}


@pytest.mark.parametrize("depths", [(3, 7), (6, 3)])
def test_depths_that_do_not_divide_need_the_layers_named(depths):
    with pytest.raises(RunError, match="--teacher_layers [\\d,]+"):
        map_layers(*depths)


@pytest.mark.parametrize("given", [[1], [1, 8], [1, 2, 3]])
def test_layers_that_do_not_fit_are_refused(given):
    with pytest.raises(RunError, match="--teacher_layers .* must name 2 layers of the teacher .* of 1 to 7"):
        map_layers(2, 7, given)
