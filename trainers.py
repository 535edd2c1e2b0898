"""The trainer that a run needs, with the teacher it may learn from."""

from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arguments import Arguments
from features_qa import make_collator
from loading import QuestionSet
from teacher import Teacher
from teacher_logits import cached_teacher, with_feature_index
from teaching import Teaching
from trainer_qa import DistillationTrainer, LengthDropSettings, LengthDropTrainer, QuestionAnsweringTrainer


def make_trainer(
    args: Arguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_features: Dataset | None,
    validation: QuestionSet | None,
    teacher: Teacher | None = None,
) -> QuestionAnsweringTrainer:
    """The trainer of the stages asked for; with `teacher` one whose `model` learns from it."""
    collate = make_collator(tokenizer, args.data.pad_to_max_length, args.data.max_seq_length)
    if teacher and args.distillation.cache_teacher_logits:
        folder = Path(args.distillation.teacher_logits_dir or Path(args.run.output_dir, "teacher_logits"))
        teacher = cached_teacher(folder, teacher, train_features, collate, args.run)
        train_features = with_feature_index(train_features)
    teaching = Teaching(args.distillation, teacher, model) if teacher else None
    common = {
        "model": model,
        "args": args.run,
        "train_dataset": train_features,
        "eval_dataset": validation.features if validation else None,  # the Trainer asks for one if it evaluates
        "processing_class": tokenizer,
        "data_collator": collate,
        "questions": validation,
    }
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
