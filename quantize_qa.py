"""The quantization stage: recipes tried in turn until one keeps the score, and the INT8 folder it leaves."""

import logging
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arguments import Arguments, QuantizationArguments
from features_qa import make_collator
from loading import QuestionSet, make_trainer, open_int8, weights_checksum
from output_folder import forget_scores
from quantization import RECIPE_FILE, Recipe, quantize, recipes, save_int8
from results_qa import RunError, how_made, write_json
from sensitivity import layer_sensitivity, sensitivity_table
from trainer_qa import QuestionAnsweringTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """What tuning found: a trainer around the INT8 model, its answers and metrics at full length, and the trials."""

    trainer: QuestionAnsweringTrainer
    answers: object
    metrics: dict
    results: dict


def calibration_batches(args: Arguments, features: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[dict]:
    """--num_calibration_samples training windows drawn by --seed, longest first, in batches without labels."""
    rng, size = random.Random(args.run.seed), min(args.quantization.num_calibration_samples, len(features))
    rows = features.select(sorted(rng.sample(range(len(features)), size)))
    rows = sorted(rows.select_columns(tokenizer.model_input_names).to_list(), key=lambda row: -len(row["input_ids"]))
    collate, step = make_collator(tokenizer, False, args.data.max_seq_length), args.run.per_device_eval_batch_size
    return [dict(collate(rows[start : start + step])) for start in range(0, size, step)]


def within_tolerance(quantization: QuantizationArguments, float_score: float, score: float) -> bool:
    """Whether INT8 loses at most --perf_tol, in points or relative to the float model's score."""
    allowed = quantization.perf_tol * (float_score if quantization.is_relative else 1)
    return float_score - score <= allowed + 1e-9


def tune(
    args: Arguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_features: Dataset | None,
    questions: QuestionSet,
) -> Tuned:
    """Quantize by the first recipe within --perf_tol and leave it in --output_dir; RunError if there is none."""
    full = (args.data.max_seq_length,) * model.config.num_hidden_layers
    batches = calibration_batches(args, train_features, tokenizer) if args.calibrates else []
    _, float_metrics = make_trainer(args, model, tokenizer, None, questions).answer(questions, full, "eval")
    metric, trials = args.quantization.metric_name, []
    if metric not in float_metrics:
        raise RunError("--tune needs validation questions with gold answers: there are none.")
    logger.info("float model: %s %.2f", metric, float_metrics[metric])
    trial_folder = Path(args.run.output_dir, ".int8_trial")
    try:
        for recipe in wanted_recipes(args.quantization):
            quantized, seconds = timed(lambda: quantize(model, recipe, batches))  # noqa: B023  (called at once)
            save_int8(quantized, trial_folder, recipe, facts(args, tokenizer))
            int8 = open_int8(args, trial_folder)
            int8.prepare(full)
            trainer = make_trainer(args, int8, tokenizer, None, questions)
            answers, metrics = trainer.answer(questions, full, "eval")
            kept = within_tolerance(args.quantization, float_metrics[metric], metrics[metric])
            trials.append(
                {"recipe": str(recipe), "seconds": seconds, metric: metrics[metric], "within_tolerance": kept}
            )
            logger.info("trial %d, %s: %s", len(trials), recipe, describe(metric, metrics, float_metrics, kept))
            if kept:
                results = {"metric": metric, "float": float_metrics[metric], "trials": trials}
                if args.quantization.sensitivity and batches:
                    results["sensitivity"] = report_sensitivity(model, quantized, batches)
                size = keep(args, quantized, recipe, tokenizer, results)
                return Tuned(trainer, answers, metrics | {"eval_size_bytes": size}, results)
    finally:
        shutil.rmtree(trial_folder, ignore_errors=True)
    best = max(trials, key=lambda trial: trial[metric])
    raise RunError(
        f"none of the {len(trials)} recipes keeps {metric} within --perf_tol {args.quantization.perf_tol:g} of "
        f"{float_metrics[metric]:.2f}; the best, {best['recipe']}, reaches {best[metric]:.2f}. Raise --perf_tol."
    )


def wanted_recipes(quantization: QuantizationArguments) -> list[Recipe]:
    names = ("quantization_approach", "calibration_method", "quantize_embeddings")
    return recipes(*(getattr(quantization, name) for name in names))


def describe(metric: str, metrics: dict, float_metrics: dict, kept: bool) -> str:
    lost = float_metrics[metric] - metrics[metric]
    return f"{metric} {metrics[metric]:.2f}, {lost:+.2f} lost, {'within' if kept else 'beyond'} the tolerance"


def report_sensitivity(model: PreTrainedModel, quantized: torch.nn.Module, batches: list[dict]) -> list[dict]:
    rows = layer_sensitivity(model, quantized, batches)
    logger.info("KL divergence from the float model with one layer in INT8:\n%s", sensitivity_table(rows))
    return rows


def timed(call) -> tuple[torch.nn.Module, float]:
    started = time.perf_counter()
    return call(), round(time.perf_counter() - started, 1)


def facts(args: Arguments, tokenizer: PreTrainedTokenizerBase) -> dict:
    """What an INT8 folder says of its making, and what its engines have to know."""
    return {
        "backend": "pt2e",
        "max_seq_length": args.data.max_seq_length,
        "input_names": list(tokenizer.model_input_names),
        "num_calibration_samples": args.quantization.num_calibration_samples if args.calibrates else 0,
        "source": {
            "model_name_or_path": args.model.model_name_or_path,
            "sha256": weights_checksum(args.model.model_name_or_path),
        },
        **how_made(args),
    }


def keep(args: Arguments, quantized, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, results: dict) -> int:
    """Leave the INT8 model, its configuration, tokenizer and the trials in --output_dir; returns its bytes on disk."""
    folder = Path(args.run.output_dir)
    forget_scores(folder)
    tokenizer_files = tokenizer.save_pretrained(folder)
    quantized.config.save_pretrained(folder)
    save_int8(quantized, folder, recipe, facts(args, tokenizer))
    files = {*map(Path, tokenizer_files), *folder.glob("int8_weights-*"), folder / RECIPE_FILE, folder / "config.json"}
    size = sum(file.stat().st_size for file in files if file.is_file())
    logger.info("INT8 model in %s: %.1f MiB on disk", folder, size / 2**20)
    write_json(folder / "quantize_results.json", results | {"size_bytes": size} | how_made(args))
    return size
