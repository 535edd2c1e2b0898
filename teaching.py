"""A lesson: what one batch makes the student learn from its teacher, as losses and their weights."""

from collections.abc import Mapping

import torch
from transformers import PretrainedConfig, PreTrainedModel

from distillation import (
    attention_loss,
    attention_scores,
    hidden_state_loss,
    map_layers,
    relation_loss,
    span_divergence,
)
from distillation_arguments import DistillationArguments, parse_layers
from errors import RunError
from representations import Representations, attach_projection, captured, project

FEATURE_INDEX = "feature_index"  # the column that says which training window a row of a batch is
Logits = tuple[torch.Tensor, torch.Tensor]


class Teaching:
    """What `settings` make of a teacher, which gives (start, end) logits (B, S) of a batch when it is called.

    Where layers are compared the teacher needs `model` too. `losses` gives the parts of a student's loss by name, "task",
    "prediction", "hidden", "attention" and "relation", and `total` their weighted sum. RunError if the shapes of student
    and teacher do not allow what is asked for.
    """

    def __init__(self, settings: DistillationArguments, teacher, student: PreTrainedModel):
        self.settings, self.teacher, self.student = settings, teacher, student
        self.hidden = self.attention = self.relation = {}  # layers of the student: layers of the teacher
        if settings.compares_layers:
            self._choose_layers(student.config, teacher.model.config)
            attach_projection(student, teacher.model.config.hidden_size if self.hidden else student.config.hidden_size)

    def _choose_layers(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        settings, depths = self.settings, (student.num_hidden_layers, teacher.num_hidden_layers)
        given = parse_layers(settings.teacher_layers) if settings.teacher_layers else None
        if settings.state_loss_ratio or settings.att_loss_ratio:
            layers = map_layers(*depths, given, last_only=settings.partial_reps)
            self.hidden = {0: 0} | layers if settings.state_loss_ratio else {}
            self.attention = layers if settings.att_loss_ratio else {}
        if self.attention:
            check_attention_heads(student.num_attention_heads, teacher.num_attention_heads)
        if settings.relation_loss_ratio:
            self.relation = map_layers(*depths, given, last_only=True)
            self.relation_heads = settings.relation_heads or teacher.num_attention_heads
            check_relation_heads(self.relation_heads, student.hidden_size, teacher.hidden_size)

    @property
    def weights(self) -> dict[str, float]:
        """What each part of the loss counts."""
        settings = self.settings
        return {
            "task": 1 - settings.distillation_weight,
            "prediction": settings.distillation_weight,
            "hidden": settings.state_loss_ratio,
            "attention": settings.att_loss_ratio,
            "relation": settings.relation_loss_ratio,
        }

    def total(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum. A part of weight 0 stays in it: DDP waits for a gradient of every weight, be it zero."""
        weights = self.weights
        return sum(weights[name] * loss for name, loss in parts.items())

    def losses(self, model, inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], object]:
        """The parts of the loss and the outputs of `model`, which is the student or what wraps it, on a batch."""
        real = inputs["attention_mask"].bool()
        targets, theirs = self._ask(inputs)
        with captured(self.student, self.hidden, {**self.attention, **self.relation}) as ours:
            outputs = model(**student_inputs(inputs))
        parts = {"task": outputs["loss"].mean()}  # one value per device under DataParallel
        if self.settings.pred_distill:
            parts["prediction"] = self.prediction_loss(outputs, targets, real)
        return parts | self._layer_losses(ours, theirs, real), outputs

    def targets(self, inputs: dict[str, torch.Tensor]) -> Logits:
        """The teacher's start and end logits of a batch."""
        return self.teacher(inputs)

    def prediction_loss(self, outputs, targets: Logits, real: torch.Tensor) -> torch.Tensor:
        """The distillation loss of the student's span logits."""
        student = outputs["start_logits"], outputs["end_logits"]
        return span_divergence(student, targets, "full_sub", self.settings.distillation_temperature, real)

    def _ask(self, inputs: dict[str, torch.Tensor]) -> tuple[Logits, Representations]:
        if not self.settings.compares_layers:
            return self.targets(inputs), Representations()
        heads = {*self.attention.values(), *self.relation.values()}
        with captured(self.teacher.model, self.hidden.values(), heads) as found:
            return self.targets(inputs), found

    def _layer_losses(self, ours: Representations, theirs: Representations, real: torch.Tensor) -> dict:
        """The sum over the compared layers of every loss that is asked for."""
        losses = {
            "hidden": [self._hidden(ours.hidden[i], theirs.hidden[j], real) for i, j in self.hidden.items()],
            "attention": [self._attention(ours.heads[i], theirs.heads[j], real) for i, j in self.attention.items()],
            "relation": [self._relation(ours.heads[i], theirs.heads[j], real) for i, j in self.relation.items()],
        }
        return {name: sum(terms) for name, terms in losses.items() if terms}

    def _hidden(self, ours: torch.Tensor, theirs: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return hidden_state_loss(project(self.student, ours), theirs, real, self.settings.state_distill_cs)

    def _attention(self, ours: dict, theirs: dict, real: torch.Tensor) -> torch.Tensor:
        heads, settings = self.student.config.num_attention_heads, self.settings
        scores = [attention_scores(side["query"], side["key"], heads) for side in (ours, theirs)]
        return attention_loss(*scores, real, settings.att_target, settings.att_mse)

    def _relation(self, ours: dict, theirs: dict, real: torch.Tensor) -> torch.Tensor:
        names = ("query", "key", "value")
        return sum(relation_loss(ours[name], theirs[name], real, self.relation_heads) for name in names)


def student_inputs(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a batch is the student's: all but the numbers of its windows."""
    return {name: value for name, value in inputs.items() if name != FEATURE_INDEX}


def check_attention_heads(student: int, teacher: int) -> None:
    if student != teacher:
        raise RunError(
            f"--att_loss_ratio compares attention head by head, but the student has {student} heads and the teacher "
            f"{teacher}: use --relation_loss_ratio."
        )


def check_relation_heads(heads: int, student: int, teacher: int) -> None:
    if student % heads or teacher % heads:
        raise RunError(
            f"--relation_heads {heads} does not divide the widths of the student ({student}) and the teacher ({teacher}): "
            "give a number that divides both."
        )
