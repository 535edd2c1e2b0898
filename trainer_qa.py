"""Trainers for question answering: evaluation at any length config, distillation, and the LengthDrop training step."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import speed_metrics

from distillation import kl_divergence, span_divergence
from length_config import constant_ratio_config, in_unit, sample_layer_config, sample_length_config
from representations import drop_projection
from teaching import FEATURE_INDEX, Teaching, student_inputs

LengthConfig = tuple[float, ...]
Logits = tuple[np.ndarray, np.ndarray]
GOLD = ("start_positions", "end_positions")


class _BatchesWithLengthConfig:
    """The batches of `dataloader`, each with the length config as one more argument of the model's forward."""

    def __init__(self, dataloader: DataLoader, length_config: LengthConfig):
        self.dataloader, self.length_config, self.dataset = dataloader, length_config, dataloader.dataset

    def __len__(self) -> int:
        return len(self.dataloader)

    def __iter__(self) -> Iterator[dict]:
        for batch in self.dataloader:
            yield {**batch, "length_config": self.length_config}


class QuestionAnsweringTrainer(Trainer):
    """Modifications: evaluation turns span logits into answers and scores them, at a length config of choice.

    `questions` is what evaluation during training uses: an object with `features`, `extractor(logits) -> answers` and
    `score(answers) -> dict`. Parts of the loss that a training step notes are logged beside it as `loss_...`, undivided.
    """

    loss_is_scaled_for_ga = False  # the heads' losses are means over the batch, whatever kwargs forward() takes

    def __init__(self, *args, questions=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.questions = questions
        self._loss_parts: dict[str, list[torch.Tensor]] = {}

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if FEATURE_INDEX not in self._signature_columns:  # the teacher's, if its logits come from a file
            self._signature_columns.append(FEATURE_INDEX)

    def note_loss(self, part: str, loss: torch.Tensor) -> None:
        """Keep a part of the loss until the next log."""
        self._loss_parts.setdefault(part, []).append(loss.detach())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for part, losses in self._loss_parts.items():
                mean = self.accelerator.gather(torch.stack(losses).mean())
                logs[f"loss_{part}"] = round(mean.mean().item(), 4)
            self._loss_parts.clear()
        super().log(logs, start_time)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler | None:
        # --train_sampling_strategy group_by_length would shuffle the evaluation windows too, and their answers with them.
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def predict_logits(
        self, features: Dataset, length_config: LengthConfig | None = None, description: str = "Prediction"
    ) -> Logits:
        """Start and end logits (N, S) of `features` in their order, padded with -100.

        None means the length config stored in the model, or else full length.
        """
        dataloader = self.get_test_dataloader(features)
        if length_config is not None:
            dataloader = _BatchesWithLengthConfig(dataloader, length_config)
        ignore_keys = ["loss", "hidden_states", "attentions"]
        loop = self.evaluation_loop(dataloader, description, prediction_loss_only=False, ignore_keys=ignore_keys)
        # Closes the progress bar.
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, loop.metrics)
        return loop.predictions

    def answer(self, questions, length_config: LengthConfig | None = None, metric_key_prefix: str = "test"):
        """Answers of `questions`, and metrics with the prefix: scores if there are gold answers, model time."""
        started = time.time()
        logits = self.predict_logits(questions.features, length_config, description=metric_key_prefix)
        speed = speed_metrics(metric_key_prefix, started, num_samples=len(questions.examples))
        answers = questions.extractor(logits)
        scores = {f"{metric_key_prefix}_{name}": value for name, value in questions.score(answers).items()}
        return answers, scores | speed

    def evaluate(self, questions=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Metrics of `questions` (the trainer's own if None); what --eval_strategy calls while training."""
        _, metrics = self.answer(questions or self.questions, metric_key_prefix=metric_key_prefix)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@dataclass(frozen=True)
class LengthDropSettings:
    """How sub-models are drawn and taught; `max_length` is the sequence length in tokens that ratios refer to.

    `teacher` is what sub-models learn from: the full model ("self"), another one, or both.
    """

    max_length: int
    num_sandwich: int = 2
    length_drop_ratio_bound: float = 0.2
    layer_dropout_prob: float | None = None
    layer_dropout_bound: int | None = None
    kl_direction: Literal["sub_full", "full_sub"] = "sub_full"
    kl_temperature: float = 1.0
    length_unit: Literal["tokens", "ratio"] = "tokens"
    teacher: Literal["self", "teacher", "both"] = "self"

    def draw_submodels(self, rng: random.Random, num_layers: int) -> list[dict[str, LengthConfig]]:
        """The smallest sub-model (constant ratio at the bound) and `num_sandwich` random ones, as forward arguments."""
        smallest_layers = None
        if self.layer_dropout_prob is None and self.layer_dropout_bound:
            smallest_layers = tuple(range(max(1, num_layers - self.layer_dropout_bound)))
        bound, length = self.length_drop_ratio_bound, self.max_length
        submodels = [
            {
                "length_config": constant_ratio_config(bound, num_layers, length, smallest_layers),
                "layer_config": smallest_layers,
            }
        ]
        for _ in range(self.num_sandwich):
            layers = sample_layer_config(rng, num_layers, self.layer_dropout_prob, self.layer_dropout_bound)
            lengths = sample_length_config(rng, num_layers, length, bound, layers)
            submodels.append({"length_config": lengths, "layer_config": layers})
        for submodel in submodels:
            submodel["length_config"] = in_unit(self.length_unit, submodel["length_config"], length)
        return submodels


class DistillationTrainer(QuestionAnsweringTrainer):
    """Modifications: the loss is what `teaching` makes of the task loss and the differences from a teacher.

    Logs `loss_task`, `loss_prediction`, `loss_hidden`, `loss_attention` and `loss_relation`, those that there are, without
    their weights. The model saved in the end is the plain student.
    """

    def __init__(self, *, args, teaching: Teaching, **kwargs):
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # all are used, but the projection not by the model's own forward
        super().__init__(args=args, **kwargs)
        self.teaching = teaching

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the parts, means over the batch."""
        parts, outputs = self.teaching.losses(model, inputs)
        for name, loss in parts.items():
            self.note_loss(name, loss)
        loss = self.teaching.total(parts)
        return (loss, outputs) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not _internal_call:  # which checkpoints are
            drop_projection(self.model)
        super().save_model(output_dir, _internal_call)


class LengthDropTrainer(QuestionAnsweringTrainer):
    """Modifications: a training step is the sandwich rule with in-place distillation (section 3.2 of the paper).

    One pass of the full model on the task loss, one of the smallest sub-model and `num_sandwich` of random ones on
    the KL divergence from the full model's detached distributions; each loss is divided by the number of passes and
    back-propagated on its own, so that the memory is that of one pass. Logs `loss_full`, `loss_smallest` and
    `loss_random`, undivided. With `teaching` the full model may learn the teacher's predictions too, and sub-models
    learn from the teacher instead of the full model, or from both: the mean of the two divergences.
    """

    def __init__(self, *args, length_drop: LengthDropSettings, teaching: Teaching | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.length_drop, self.teaching = length_drop, teaching
        if self.args.ddp_find_unused_parameters is None and self._drops_layers():
            self.args.ddp_find_unused_parameters = True  # a layer that is dropped gets no gradient in that pass

    def _drops_layers(self) -> bool:
        return bool(self.length_drop.layer_dropout_prob or self.length_drop.layer_dropout_bound)

    def _submodels(self) -> list[dict[str, LengthConfig]]:
        # Seeded by the step alone: every rank and every micro-batch of a step trains the same sub-models, and a
        # resumed run draws what the uninterrupted one would have drawn.
        rng = random.Random(f"{self.args.seed}-{self.state.global_step}")
        return self.length_drop.draw_submodels(rng, self.model.config.num_hidden_layers)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Accumulate the gradients of one sandwich; returns the detached sum of the scaled losses."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        targets = self.teaching.targets(inputs) if self.teaching else None
        inputs, real = student_inputs(inputs), inputs["attention_mask"].bool()
        full_lengths = (self.length_drop.max_length,) * self.model.config.num_hidden_layers
        passes = [("full", {**inputs, "length_config": full_lengths})]
        features = {name: value for name, value in inputs.items() if name not in GOLD}
        names = ("smallest", *["random"] * self.length_drop.num_sandwich)
        passes += [(name, features | submodel) for name, submodel in zip(names, self._submodels())]
        full = {}

        def loss_of(part: str, outputs) -> torch.Tensor:
            if part != "full":
                return self._distillation_loss(outputs, full, targets, real)
            full.update(outputs)
            return self._full_loss(outputs, targets, real)

        return self._accumulate(model, passes, loss_of)

    def _accumulate(self, model, passes: list[tuple[str, dict]], loss_of: Callable) -> torch.Tensor:
        """Back-propagate `loss_of(part, outputs)` of every pass, (part, inputs), on its own; returns their detached sum."""
        total = 0.0
        for index, (part, inputs) in enumerate(passes):
            # Ranks exchange gradients once a step: in the last pass.
            sync = nullcontext() if index == len(passes) - 1 else self.accelerator.no_sync(model)
            with sync, self.compute_loss_context_manager():
                total = total + self._backward(part, loss_of(part, model(**inputs)), len(passes))
        return total

    def _full_loss(self, full, targets, real: torch.Tensor) -> torch.Tensor:
        """The task loss, or what the teacher makes of it."""
        if not (self.teaching and self.teaching.settings.pred_distill):
            return full["loss"]
        parts = {"task": full["loss"].mean(), "prediction": self.teaching.prediction_loss(full, targets, real)}
        for name, loss in parts.items():
            self.note_loss(name, loss)
        return self.teaching.total(parts)

    def _distillation_loss(self, sub, full, targets, real: torch.Tensor) -> torch.Tensor:
        settings = (self.length_drop.kl_direction, self.length_drop.kl_temperature)
        keys, losses = ("start_logits", "end_logits"), []
        if self.length_drop.teacher in ("self", "both"):  # over the padding too, as published
            losses += [sum(kl_divergence(sub[key], full[key], *settings) for key in keys) / 2]
        if self.length_drop.teacher in ("teacher", "both"):
            losses += [span_divergence([sub[key] for key in keys], targets, *settings, real)]
        return sum(losses) / len(losses)

    def _backward(self, part: str, loss: torch.Tensor, passes: int) -> torch.Tensor:
        loss = loss.mean()  # one value per device under DataParallel
        self.note_loss(part, loss)
        scaled = loss / (passes * self.current_gradient_accumulation_steps)
        self.accelerator.backward(scaled)
        return scaled.detach()
