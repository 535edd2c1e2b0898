"""The INT8-aware finish: a short training that distils the float model into its quantized form.

The weights start as those that --tune rounded.  A pass rounds them, and the activations, as the INT8 modules do
(fake_quantization.py), and is taught by the float model; what is left is an INT8 folder with the same recipe and ranges.
"""

import copy
import logging
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arguments import Arguments
from errors import RunError
from evaluate_qa import full_config, prepare_engines
from fake_quantization import fake_quantize
from int8_folder import read_modules, read_recipe
from length_config import is_fractional
from loading import QuestionSet, holds_the_weights, open_int8
from output_folder import run_settings
from quantization import Recipe
from quantize_qa import leave_int8_folder
from results_qa import how_made
from trainer_qa import GOLD, LengthConfig, LengthDropTrainer, QuestionAnsweringTrainer
from trainers import length_drop_settings, make_trainer

logger = logging.getLogger(__name__)
KEPT = ("backend", "max_seq_length", "input_names", "num_calibration_samples", "source")  # of the folder's recipe


class QuantizationAwareTrainer(LengthDropTrainer):
    """Modifications: every pass learns from the float model at full length, `target`; training leaves what `leave` writes.

    A step is one pass at `length_config` or, if that is None, a sandwich: full length, the smallest sub-model and
    `num_sandwich` random ones. The loss is the KL divergence of LengthDrop, and no pass looks at the gold answers. Logs
    `loss_config`, or `loss_full`, `loss_smallest` and `loss_random`. Checkpoints hold the float weights.
    """

    def __init__(self, *args, target: PreTrainedModel, length_config: LengthConfig | None, leave, **kwargs):
        super().__init__(*args, **kwargs)
        self.target = target.to(self.args.device).eval().requires_grad_(False)
        self.length_config, self.leave = length_config, leave

    def _passes(self) -> list[tuple[str, dict[str, LengthConfig]]]:
        if self.length_config:
            return [("config", {"length_config": self.length_config})]
        names = ("full", "smallest", *["random"] * self.length_drop.num_sandwich)
        return list(zip(names, [{"length_config": self._full_lengths()}, *self._submodels()]))

    def _full_lengths(self) -> LengthConfig:
        return (self.length_drop.max_length,) * self.model.config.num_hidden_layers

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Accumulate the gradients of all passes; returns the detached sum of the scaled losses."""
        model.train()
        features = self._prepare_inputs({name: value for name, value in inputs.items() if name not in GOLD})
        with torch.no_grad():
            target = self.target(**features, length_config=self._full_lengths())
        passes = [(part, features | lengths) for part, lengths in self._passes()]
        return self._accumulate(model, passes, lambda _, outputs: self._distillation_loss(outputs, target, None, None))

    def answer(self, questions, length_config: LengthConfig | None = None, metric_key_prefix: str = "test"):
        """Modifications: --eval_strategy evaluates at the length config that is trained for."""
        return super().answer(questions, length_config or self.length_config, metric_key_prefix)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint holds the float weights that training goes on with; the output folder the INT8 model."""
        if output_dir or _internal_call:
            return super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            self.leave(self.model, self.state.global_step)
        self.accelerator.wait_for_everyone()


def check_int8_source(args: Arguments, length_config: LengthConfig | None) -> None:
    """RunError if the folder of --quantization_aware was made of another model, or not for what is asked."""
    folder, source, length = (
        args.quantization.quantization_aware,
        args.model.model_name_or_path,
        args.data.max_seq_length,
    )
    recipe = read_recipe(folder)
    backend, made_from = recipe["backend"], recipe.get("source", {})
    if not holds_the_weights(source, made_from):
        raise RunError(
            f"--quantization_aware {folder} was made from {made_from.get('model_name_or_path')}, not from the weights that "
            f"--model_name_or_path {source} holds now: name that model, or --tune a folder of this one."
        )
    if args.quantization.quantization_backend not in (None, backend):
        raise RunError(
            f"--quantization_aware {folder} was tuned for --quantization_backend {backend}, not "
            f"{args.quantization.quantization_backend}: name {backend}, or --tune a folder for the other."
        )
    if recipe["max_seq_length"] != length:
        raise RunError(
            f"--quantization_aware {folder} was made for --max_seq_length {recipe['max_seq_length']}, not {length}."
        )
    in_fractions = args.length_adaptive.length_adaptive and args.length_adaptive.length_unit == "ratio"
    if backend != "native" and (in_fractions or (length_config and is_fractional(length_config))):
        raise RunError(
            f"--quantization_aware {folder}: the backend {backend} knows length configs in tokens, not in fractions of the "
            "real length: --tune with --quantization_backend native for those."
        )
    if backend == "native" and args.run.bf16 and args.run.do_eval:
        raise RunError(
            f"--quantization_aware {folder}: the backend native computes what is not INT8 in float32: evaluate in the next "
            "command, with --int8 and without --bf16."
        )


def finishing_trainer(
    args: Arguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_features: Dataset,
    validation: QuestionSet | None,
    length_config: LengthConfig | None,
) -> QuantizationAwareTrainer:
    """A trainer around `model`, whose modules become fake-quantized ones; a copy of it is the target."""
    folder, target = args.quantization.quantization_aware, copy.deepcopy(model)
    recipe = read_recipe(folder)
    fake_quantize(model, read_modules(folder, recipe), recipe["recipe"]["weight_bits"])
    if args.model.hidden_dropout is None and args.model.attention_dropout is None:
        switch_dropout_off(model)  # it would change the logits by far more than rounding does
    if length_config is None and not args.length_adaptive.length_adaptive:
        length_config = full_config(args, model.config)
    settings = {"length_drop": length_drop_settings(args), "length_config": length_config, "target": target}
    leave = partial(leave_finished, args, recipe, length_config, tokenizer)
    make = partial(QuantizationAwareTrainer, leave=leave, **settings)
    return make_trainer(args, model, tokenizer, train_features, validation, make=make)


def switch_dropout_off(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def leave_finished(args: Arguments, recipe: dict, length_config, tokenizer, model: nn.Module, steps: int) -> None:
    """Leave an INT8 folder as --tune does; its recipe says what was finished, and how."""
    finished = {"from": args.quantization.quantization_aware, "sha256": recipe["sha256"], "steps": steps}
    finished |= {"length_config": length_config and list(length_config), "settings": run_settings(args)}
    made = {name: recipe[name] for name in KEPT} | {"finished": finished} | how_made(args)
    leave_int8_folder(Path(args.run.output_dir), model, Recipe(**recipe["recipe"]), made, tokenizer)


def finished_trainer(
    args: Arguments, tokenizer, questions: QuestionSet, length_config: LengthConfig | None
) -> QuestionAnsweringTrainer:
    """A trainer around the engine of the INT8 folder that was left: it is evaluated the way it will be used."""
    engine = open_int8(args, Path(args.run.output_dir))
    prepare_engines(args, engine, length_config)
    return make_trainer(args, engine, tokenizer, None, questions, make=QuestionAnsweringTrainer)


def describe_finish(args: Arguments) -> str:
    """The model card's words for it."""
    adaptive, data = args.length_adaptive, args.data
    lengths = adaptive.length_config or adaptive.length_ratios or adaptive.length_config_from
    lengths = "LengthDrop's sub-models" if adaptive.length_adaptive else lengths or "full length"
    return (
        f"the base model's own; quantized to INT8 ({args.quantization.quantization_aware}), then distilled from the base "
        f"model in quantization-aware training on {data.train_file or data.dataset_name}, at {lengths}"
    )
