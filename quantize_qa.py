"""The quantization stage: recipes tried in turn until one keeps the score, and the INT8 folder it leaves."""

import copy
import logging
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arguments import Arguments, QuantizationArguments
from errors import RunError
from evaluate_qa import cost_facts, full_config, report, without_timing
from features_qa import make_collator
from int8_folder import RECIPE_FILE
from loading import QuestionSet, open_int8, weights_checksum
from model_card import write_model_card
from output_folder import forget_scores
from quantization import Recipe, quantize, recipes, save_int8
from results_qa import how_made, write_json
from sensitivity import layer_sensitivity, sensitivity_table
from trainer_qa import QuestionAnsweringTrainer
from trainers import make_trainer
from utils_qa import Answers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """A recipe with the model it gives, a trainer around its engine, and its answers and metrics at full length."""

    recipe: Recipe
    model: torch.nn.Module
    trainer: QuestionAnsweringTrainer
    answers: Answers
    metrics: dict


def calibration_rows(features: Dataset, names: list[str], size: int, seed: int) -> list[dict]:
    """`size` windows drawn by `seed`, longest first, each with the columns `names`."""
    rows = features.select(sorted(random.Random(seed).sample(range(len(features)), min(size, len(features)))))
    return sorted(rows.select_columns(names).to_list(), key=lambda row: -len(row["input_ids"]))


def calibration_batches(args: Arguments, features: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[dict]:
    """--num_calibration_samples training windows drawn by --seed, longest first, in batches without labels."""
    size, names = args.quantization.num_calibration_samples, tokenizer.model_input_names
    rows, step = calibration_rows(features, names, size, args.run.seed), args.run.per_device_eval_batch_size
    collate = make_collator(tokenizer, False, args.data.max_seq_length)
    return [dict(collate(rows[start : start + step])) for start in range(0, len(rows), step)]


def within_tolerance(quantization: QuantizationArguments, float_score: float, score: float) -> bool:
    """Whether INT8 loses at most --perf_tol, in points or relative to the float model's score."""
    allowed = quantization.perf_tol * (float_score if quantization.is_relative else 1)
    return float_score - score <= allowed + 1e-9


def try_recipe(args: Arguments, recipe: Recipe, quantized, tokenizer, questions: QuestionSet) -> Trial:
    """Evaluate a quantized model the way it will be used: saved, loaded again and compiled."""
    folder, full = Path(args.run.output_dir, ".int8_trial"), full_config(args, quantized.config)
    try:
        save_int8(quantized, folder, recipe, facts(args, tokenizer))
        engine = open_int8(args, folder)
        engine.prepare(full)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    trainer = make_trainer(args, engine, tokenizer, None, questions)
    return Trial(recipe, quantized, trainer, *trainer.answer(questions, full, "eval"))


def find_recipe(
    args: Arguments, model: PreTrainedModel, tokenizer, batches: list[dict], questions: QuestionSet, float_score: float
) -> tuple[Trial, list[dict]]:
    """The first recipe within --perf_tol, and a record of every trial; RunError if there is none.

    Neural Compressor's autotune has no place for the smoothing or for an engine made from the saved folder, knows only
    relative tolerances, and returns its best trial where none is within them.
    """
    metric, records = args.quantization.metric_name, []
    for recipe in wanted_recipes(args.quantization):
        trial = try_recipe(args, recipe, quantize(model, recipe, batches), tokenizer, questions)
        score = trial.metrics[metric]
        kept = within_tolerance(args.quantization, float_score, score)
        records.append({"recipe": str(recipe), metric: score, "within_tolerance": kept})
        verdict = "within" if kept else "beyond"
        lost = f"{metric} {score:.2f}, {float_score - score:+.2f} lost, {verdict} the tolerance"
        logger.info("trial %d, %s: %s", len(records), recipe, lost)
        if kept:
            return trial, records
    best = max(records, key=lambda record: record[metric])
    raise RunError(
        f"none of the {len(records)} recipes keeps {metric} within --perf_tol {args.quantization.perf_tol:g} of "
        f"{float_score:.2f}; the best, {best['recipe']}, reaches {best[metric]:.2f}. Raise --perf_tol."
    )


def wanted_recipes(quantization: QuantizationArguments) -> list[Recipe]:
    names = ("quantization_approach", "calibration_method", "quantize_embeddings")
    return recipes(*(getattr(quantization, name) for name in names))


def report_sensitivity(model: PreTrainedModel, quantized: torch.nn.Module, batches: list[dict]) -> list[dict]:
    rows = layer_sensitivity(model, quantized, batches)
    logger.info("KL divergence from the float model with one layer in INT8:\n%s", sensitivity_table(rows))
    return rows


def facts(args: Arguments, tokenizer: PreTrainedTokenizerBase) -> dict:
    """What an INT8 folder says of its making, and what its engines have to know."""
    return {
        "backend": args.tuned_backend,
        "max_seq_length": args.data.max_seq_length,
        "input_names": list(tokenizer.model_input_names),
        "num_calibration_samples": args.quantization.num_calibration_samples if args.calibrates else 0,
        "source": {
            "model_name_or_path": args.model.model_name_or_path,
            "sha256": weights_checksum(args.model.model_name_or_path),
        },
        **how_made(args),
    }


def leave_int8_folder(
    folder: Path, model: torch.nn.Module, recipe: Recipe, made: dict, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Write the INT8 model with its configuration and tokenizer, and the facts `made`; returns their bytes on disk."""
    tokenizer_files = tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    save_int8(model, folder, recipe, made)
    files = {*map(Path, tokenizer_files), *folder.glob("int8_weights-*"), folder / RECIPE_FILE, folder / "config.json"}
    size = sum(file.stat().st_size for file in files if file.is_file())
    logger.info("INT8 model in %s: %.1f MiB on disk", folder, size / 2**20)
    return size


def make_engines(args: Arguments, full: tuple[int, ...]) -> None:
    """Load the kept model again and make both engines, that for full length and that for the others."""
    model = open_int8(args, Path(args.run.output_dir))
    for lengths in (full, (1,) * len(full)):
        model.prepare(lengths)


def tune(args: Arguments, model: PreTrainedModel, tokenizer, train_features, questions: QuestionSet) -> None:
    """Leave an INT8 model within the tolerance, and its scores at full length beside the float model's."""
    full, metric = full_config(args, model.config), args.quantization.metric_name
    batches = calibration_batches(args, train_features, tokenizer) if args.calibrates else []
    # A copy, because a Trainer with --bf16 leaves its autocast in the model's forward, which is exported next.
    float_trainer = make_trainer(args, copy.deepcopy(model), tokenizer, None, questions)
    _, float_metrics = float_trainer.answer(questions, full, "eval")
    if metric not in float_metrics:
        raise RunError("--tune needs validation questions with gold answers: there are none.")
    logger.info("float model: %s %.2f", metric, float_metrics[metric])
    trial, records = find_recipe(args, model, tokenizer, batches, questions, float_metrics[metric])
    results = {"metric": metric, "float": float_metrics[metric], "trials": records}
    if args.quantization.sensitivity and batches:
        results["sensitivity"] = report_sensitivity(model, trial.model, batches)
    folder = Path(args.run.output_dir)
    forget_scores(folder)
    results["size_bytes"] = leave_int8_folder(folder, trial.model, trial.recipe, facts(args, tokenizer), tokenizer)
    make_engines(args, full)
    write_json(folder / "quantize_results.json", results | how_made(args))
    metrics = trial.metrics | {"eval_samples": len(questions.examples), "eval_features": len(questions.features)}
    metrics |= cost_facts(args, model.config, full, "eval_")
    metrics |= {"eval_float": results["float"], "eval_size_bytes": results["size_bytes"]}
    report(trial.trainer, args, "eval", without_timing(metrics) if args.run.accuracy_only else metrics, trial.answers)
    write_model_card(
        folder,
        base_model=args.model.model_name_or_path,
        training="the base model's own; quantized to INT8 after training",
        max_seq_length=args.data.max_seq_length,
        doc_stride=args.data.doc_stride,
    )
    logger.info("done: the INT8 model is in %s", folder)
