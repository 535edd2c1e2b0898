"""The trainer that a run needs, with the teacher it may learn from."""

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arguments import Arguments
from features_qa import make_collator
from loading import QuestionSet
from teacher import load_teacher
from teacher_logits import cached_teacher, with_feature_index
from teaching import Teaching
from trainer_qa import DistillationTrainer, LengthDropSettings, LengthDropTrainer, QuestionAnsweringTrainer


def make_teaching(args: Arguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Teaching | None:
    """What `model` learns from the teacher, if there is one; RunError if the two do not fit together."""
    return Teaching(args.distillation, load_teacher(args, tokenizer), model) if args.is_taught else None


def make_trainer(
    args: Arguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_features: Dataset | None,
    validation: QuestionSet | None,
    teaching: Teaching | None = None,
    make: Callable[..., QuestionAnsweringTrainer] | None = None,
) -> QuestionAnsweringTrainer:
    """The trainer of the stages asked for, or what `make` makes; with `teaching` its `model` learns from the teacher."""
    collate = make_collator(tokenizer, args.data.pad_to_max_length, args.data.max_seq_length)
    if teaching and args.distillation.cache_teacher_logits:
        folder = Path(args.distillation.teacher_logits_dir or Path(args.run.output_dir, "teacher_logits"))
        teaching.teacher = cached_teacher(folder, teaching.teacher, train_features, collate, args.run)
        train_features = with_feature_index(train_features)
    common = {
        "model": model,
        "args": args.run,
        "train_dataset": train_features,
        "eval_dataset": validation.features if validation else None,  # the Trainer asks for one if it evaluates
        "processing_class": tokenizer,
        "data_collator": collate,
        "questions": validation,
    }
    if make:
        return make(**common)
    if args.length_adaptive.length_adaptive:
        return LengthDropTrainer(**common, length_drop=length_drop_settings(args), teaching=teaching)
    return DistillationTrainer(**common, teaching=teaching) if teaching else QuestionAnsweringTrainer(**common)


def length_drop_settings(args: Arguments) -> LengthDropSettings:
    adaptive = args.length_adaptive
    return LengthDropSettings(
        max_length=args.data.max_seq_length,
        num_sandwich=adaptive.num_sandwich,
        length_drop_ratio_bound=adaptive.length_drop_ratio_bound,
        layer_dropout_prob=adaptive.layer_dropout_prob,
        layer_dropout_bound=adaptive.layer_dropout_bound,
        kl_direction=adaptive.kl_direction,
        kl_temperature=adaptive.kl_temperature,
        length_unit=adaptive.length_unit,
        teacher=args.distillation.length_drop_teacher,
    )
