"""The flags about learning from a teacher: which one, what is learned from it, what the student begins as."""

import re
from dataclasses import dataclass, field
from typing import Literal

LAYER_LOSSES = ("state_loss_ratio", "att_loss_ratio", "relation_loss_ratio")
LAYER_LIST = re.compile(r"\s*(?:\(([\d,\s]+)\)|\[([\d,\s]+)\]|([\d,\s]+))\s*", re.ASCII)


def parse_layers(text: str) -> list[int]:
    """Read "2,4,6", "(2, 4, 6)" or "[2, 4, 6]": numbers of layers, counted from 1; ValueError otherwise."""
    match = LAYER_LIST.fullmatch(text)
    items = next(group for group in match.groups() if group is not None).strip().rstrip(",") if match else ""
    layers = [int(item) if item.strip().isdigit() else 0 for item in items.split(",")]
    if min(layers) < 1:
        raise ValueError(f'{text!r} is no list of layers: write their numbers, counted from 1, like "2,4,6".')
    return layers


@dataclass
class DistillationArguments:
    _argument_group_name = "distillation"

    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or hub id of a reader that --do_train learns from. It must cut text into the same tokens as the "
            "student, and may be of any depth, width and number of heads."
        },
    )
    pred_distill: bool = field(
        default=False, metadata={"help": "Learn the teacher's start and end distributions (the prediction layer)."}
    )
    distillation_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of --pred_distill; the task loss has 1 minus that (1: no task loss at all)."},
    )
    distillation_temperature: float = field(
        default=1.0, metadata={"help": "Softens both distributions of --pred_distill, whose loss is times its square."}
    )
    state_loss_ratio: float = field(
        default=0.0, metadata={"help": "Weight of the loss between hidden states (intermediate layers)."}
    )
    state_distill_cs: bool = field(default=False, metadata={"help": "Hidden states by 1 - cosine instead of MSE."})
    att_loss_ratio: float = field(
        default=0.0, metadata={"help": "Weight of the loss between attentions, head by head (intermediate layers)."}
    )
    att_mse: bool = field(default=False, metadata={"help": "Attentions by MSE instead of 1 - cosine."})
    att_target: Literal["probs", "scores"] = field(
        default="probs",
        metadata={"help": "Compare attentions after the softmax, or before it as TinyBERT does."},
    )
    relation_loss_ratio: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the loss between the last layers' relations among queries, keys and values (MiniLMv2), for "
            "which neither widths nor numbers of heads need agree."
        },
    )
    relation_heads: int | None = field(
        default=None,
        metadata={
            "help": "In how many heads these relations are taken; must divide both widths (the teacher's if unset)."
        },
    )
    partial_reps: bool = field(
        default=False, metadata={"help": "Compare the embeddings and the last layer only, not every layer."}
    )
    teacher_layers: str | None = field(
        default=None,
        metadata={
            "help": "The teacher's layer for each of the student's, counted from 1: \"2,4,6\" (evenly spread if unset)."
        },
    )
    student_layers: str | None = field(
        default=None,
        metadata={
            "help": "The student is so many layers of --model_name_or_path (often the teacher), evenly spread, or those of "
            'a list like "2,4,6", with its embeddings and its head.'
        },
    )
    from_scratch: bool = field(
        default=False,
        metadata={
            "help": "Begin with random weights, drawn by --seed: only the configuration and tokenizer are read."
        },
    )
    length_drop_teacher: Literal["self", "teacher", "both"] = field(
        default="self",
        metadata={
            "help": "What the sub-models of --length_adaptive learn from: the full model of the same step, the teacher, or "
            "both (the mean of the two losses)."
        },
    )
    cache_teacher_logits: bool = field(
        default=False,
        metadata={
            "help": "Compute the teacher's logits of all training windows once, keep them in a file and then do without the "
            "teacher (not for losses between layers)."
        },
    )
    teacher_logits_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for these logits, which several runs may share (--output_dir's teacher_logits if unset)."
        },
    )

    @property
    def compares_layers(self) -> bool:
        """Whether anything but the predictions is learned from the teacher."""
        return any(getattr(self, name) for name in LAYER_LOSSES)
