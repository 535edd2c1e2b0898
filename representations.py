"""What layers compute, caught by hooks while a model runs: no eager attention, no outputs asked for, nothing left behind."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

PROJECTION = "hidden_projection"  # its name in the student, and so in checkpoints


@dataclass
class Representations:
    """Hidden states (B, S, D) by layer, 0 being the embeddings, and each layer's (query, key, value), (B, S, D) too."""

    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    heads: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)


@contextmanager
def captured(model: PreTrainedModel, hidden: Iterable[int], heads: Iterable[int]) -> Iterator[Representations]:
    """Fills the Representations of these layers, counted from 1, when `model` (BERT or RoBERTa) runs in this context."""
    found, encoder = Representations(), model.base_model
    with ExitStack() as hooks:
        for layer in hidden:
            module = encoder.encoder.layer[layer - 1] if layer else encoder.embeddings
            hooks.callback(module.register_forward_hook(_keep_in(found.hidden, layer)).remove)
        for layer in heads:
            attention, parts = encoder.encoder.layer[layer - 1].attention.self, found.heads.setdefault(layer, {})
            for name in ("query", "key", "value"):
                hooks.callback(getattr(attention, name).register_forward_hook(_keep_in(parts, name)).remove)
        yield found


def _keep_in(found: dict, name: object):
    def keep(module, inputs, output):
        found[name] = output

    return keep


# ---- hidden states of another width --------------------------------------------------------------------------------


def attach_projection(student: PreTrainedModel, width: int) -> None:
    """Give the student the learned map of its hidden states to the teacher's width, if the widths differ.

    As a part of the model it is in the optimiser, in the checkpoints and among what processes exchange gradients of.
    """
    if student.config.hidden_size == width:
        return
    projection = nn.Linear(student.config.hidden_size, width, device=student.device)
    nn.init.normal_(projection.weight, std=student.config.initializer_range)
    nn.init.zeros_(projection.bias)
    setattr(student, PROJECTION, projection)


def project(student: PreTrainedModel, hidden_states: torch.Tensor) -> torch.Tensor:
    """The student's hidden states in the teacher's width."""
    projection = getattr(student, PROJECTION, None)
    return hidden_states if projection is None else projection(hidden_states.float())


def drop_projection(student: PreTrainedModel) -> None:
    """Leave the plain reader: the projection was for comparing only."""
    if hasattr(student, PROJECTION):
        delattr(student, PROJECTION)
