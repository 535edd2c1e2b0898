"""Command line of run_qa.py: argument groups, what each flag means, and which combinations make no sense."""

import argparse
import difflib
import json
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import torch
from transformers import HfArgumentParser, TrainingArguments

from length_drop import LengthConfigError, parse_length_config

EPILOG = """\
one example a stage:
  fine-tune    python run_qa.py --model_name_or_path nreimers/MiniLMv2-L6-H384-distilled-from-RoBERTa-Large \\
                 --dataset_name squad --do_train --do_eval --learning_rate 3e-5 --num_train_epochs 2 \\
                 --output_dir output/finetuning
  LengthDrop   python run_qa.py --model_name_or_path output/finetuning --dataset_name squad --do_train --do_eval \\
                 --length_adaptive --layer_dropout_prob 0.2 --learning_rate 3e-5 --num_train_epochs 5 \\
                 --output_dir output/dynamic
  search       python run_qa.py --model_name_or_path output/dynamic --dataset_name squad --do_search \\
                 --per_device_eval_batch_size 32 --output_dir output/search
  evaluate     python run_qa.py --model_name_or_path output/dynamic --dataset_name squad --do_eval \\
                 --length_config_from output/search --max_f1_drop 1.0 --output_dir output/evaluation
  predict      python run_qa.py --model_name_or_path output/dynamic --test_file questions.json --do_predict \\
                 --length_config "(315, 251, 242, 159, 142, 33)" --output_dir output/answers
All flags can also stand in a JSON file: python run_qa.py settings.json [flags that override it]
"""

# What users of older scripts will type, and what it is called now.
RENAMED = {
    "do_lower_case": "nothing: the tokenizer's own setting is used",
    "evaluate_during_training": "--eval_strategy epoch",
    "evaluation_strategy": "--eval_strategy",
    "group_by_length": "--train_sampling_strategy group_by_length",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "no_cuda": "--use_cpu",
    "per_gpu_eval_batch_size": "--per_device_eval_batch_size",
    "per_gpu_train_batch_size": "--per_device_train_batch_size",
    "predict_file": "--validation_file (with --do_eval) or --test_file (with --do_predict)",
    "threads": "--preprocessing_num_workers",
    "use_auth_token": "--token",
    "warmup_ratio": "--warmup_steps with a number below 1",
}

TRAINING_ONLY = (
    "adam_beta1 adam_beta2 adam_epsilon attention_dropout eval_strategy eval_steps gradient_accumulation_steps "
    "gradient_checkpointing learning_rate load_best_model_at_end logging_steps lr_scheduler_type max_grad_norm max_steps "
    "max_train_samples num_train_epochs optim per_device_train_batch_size resume_from_checkpoint save_steps "
    "save_strategy save_total_limit train_file train_sampling_strategy warmup_steps weight_decay"
)
# inherited from TrainingArguments, and about losses or metrics that question answering does not have
UNUSED = "batch_eval_metrics include_for_metrics label_smoothing_factor prediction_loss_only use_cache"
# flags that do something only together with (one of) others
NEEDS = {
    ("do_train",): TRAINING_ONLY,
    ("length_adaptive",): "kl_direction kl_temperature layer_dropout_bound layer_dropout_prob length_drop_ratio_bound "
    "num_sandwich",
    ("do_search",): "crossover_size evo_iter load_store_file mutation_prob mutation_size population_size "
    "search_floor_ratio search_max_candidates search_max_macs search_min_macs search_samples",
    ("do_train", "do_search"): "overwrite_output_dir",
    ("do_eval", "do_search"): "max_eval_samples validation_file",
    ("do_predict",): "max_predict_samples test_file",
    ("do_eval", "do_predict"): "length_config length_config_from",
    ("do_eval", "do_search", "do_predict"): "n_best_size max_answer_length per_device_eval_batch_size",
    ("version_2_with_negative",): "null_score_diff_threshold",
    ("dataset_name",): "dataset_config_name",
    ("length_config_from", "do_search"): "max_f1_drop target_macs target_macs_ratio",
}


@dataclass
class ModelArguments:
    _argument_group_name = "model"

    model_name_or_path: str = field(
        metadata={"help": "Folder or hub id of a BERT or RoBERTa encoder or question-answering model. Never written to."}
    )
    config_name: str | None = field(default=None, metadata={"help": "Configuration, if not the model's own."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if not the model's own."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for what is downloaded from the hub."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the hub."})
    token: str | None = field(default=None, metadata={"help": "Access token of the hub (default: `hf auth login`'s)."})
    attention_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Dropout of attention probabilities while training, instead of the configuration's. On a CPU, 0 "
            "saves about a third of a step."
        },
    )


@dataclass
class DataArguments:
    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id (squad and squad_v2 are understood) or a local folder."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that dataset."})
    train_file: str | None = field(
        default=None, metadata={"help": "Training questions: SQuAD JSON, flat JSON, JSON lines (.json, .jsonl) or CSV."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "Questions that --do_eval and --do_search use."})
    test_file: str | None = field(default=None, metadata={"help": "Questions that --do_predict answers."})
    overwrite_cache: bool = field(default=False, metadata={"help": "Read and tokenize the data anew."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that tokenize."})
    max_seq_length: int = field(
        default=384, metadata={"help": "Tokens of question and passage together; longer passages are split in windows."}
    )
    doc_stride: int = field(default=128, metadata={"help": "Tokens that neighbouring windows share."})
    pad_to_max_length: bool = field(
        default=False,
        metadata={"help": "Pad each batch to --max_seq_length, not to its longest member. Same answers, but slower."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first N training questions only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first N validation questions only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Answer the first N test questions only."})
    version_2_with_negative: bool = field(default=False, metadata={"help": "SQuAD v2: some have no answer."})
    null_score_diff_threshold: float = field(
        default=0.0, metadata={"help": "With v2: answer nothing if null score - best span score (logits) exceeds this."}
    )
    n_best_size: int = field(default=20, metadata={"help": "Answers kept a question; also starts and ends considered."})
    max_answer_length: int = field(default=30, metadata={"help": "Longest answer, in tokens."})


@dataclass
class LengthAdaptiveArguments:
    _argument_group_name = "length-adaptive"

    length_adaptive: bool = field(default=False, metadata={"help": "Train with LengthDrop (needs --do_train)."})
    num_sandwich: int = field(default=2, metadata={"help": "Random sub-models a step, beside full and smallest."})
    length_drop_ratio_bound: float = field(
        default=0.2, metadata={"help": "Largest fraction of the tokens that one layer drops while training."}
    )
    layer_dropout_prob: float | None = field(
        default=None, metadata={"help": "LayerDrop: probability with which a sub-model skips a layer."}
    )
    layer_dropout_bound: int | None = field(
        default=None, metadata={"help": "LayerDrop: a sub-model skips at most this many of the last layers."}
    )
    kl_direction: Literal["sub_full", "full_sub"] = field(
        default="sub_full",
        metadata={"help": "KL(sub||full), with which the published models were made, or KL(full||sub)."},
    )
    kl_temperature: float = field(default=1.0, metadata={"help": "Softens both distributions of that KL."})
    length_config: str | None = field(
        default=None,
        metadata={"help": 'Tokens kept after each layer in --do_eval and --do_predict: "(315, 251, ...)" or JSON.'},
    )
    length_config_from: str | None = field(
        default=None,
        metadata={
            "help": "Output folder of a search; the length config is chosen from its frontier by exactly one of "
            "--max_f1_drop, --target_macs, --target_macs_ratio."
        },
    )
    max_f1_drop: float | None = field(
        default=None, metadata={"help": "Cheapest config at most this many F1 points below the full model."}
    )
    target_macs: float | None = field(
        default=None, metadata={"help": "Best config of at most this many multiply-accumulates, e.g. 2.5e9."}
    )
    target_macs_ratio: float | None = field(
        default=None, metadata={"help": "Best config of at most this fraction of the full model's MACs."}
    )
    measure_rate: str | None = field(
        default=None,
        metadata={"help": 'Evaluate when every layer drops this fraction: "[0.1, 0.2, 0.3]" (needs --do_eval).'},
    )


@dataclass
class SearchArguments:
    _argument_group_name = "search"

    do_search: bool = field(
        default=False, metadata={"help": "Search length configs: fewest MACs, best F1. Continues an interrupted search."}
    )
    evo_iter: int = field(default=30, metadata={"help": "Iterations of the evolution."})
    population_size: int = field(default=20, metadata={"help": "Constant-ratio configs to start from."})
    mutation_size: int = field(default=30, metadata={"help": "Mutated configs an iteration."})
    mutation_prob: float = field(default=0.5, metadata={"help": "Probability of changing a layer in a mutation."})
    crossover_size: int = field(default=30, metadata={"help": "Crossed configs an iteration."})
    load_store_file: str | None = field(
        default=None,
        metadata={"help": "Start from the scored configs of search_results.json, search_store.jsonl or a LAT .tsv."},
    )
    search_floor_ratio: float = field(
        default=0.35,
        metadata={"help": "The cheapest config considered drops this fraction at every layer (published: 0.2)."},
    )
    search_min_macs: float | None = field(default=None, metadata={"help": "Lower bound of MACs, instead of that floor."})
    search_max_macs: float | None = field(default=None, metadata={"help": "Upper bound of MACs (full model if unset)."})
    search_samples: int | None = field(
        default=None,
        metadata={"help": "Score on N validation questions drawn by --seed; the frontier is re-scored on all of them."},
    )
    search_max_candidates: int | None = field(default=None, metadata={"help": "Stop after this many scored configs."})


@dataclass
class RunArguments(TrainingArguments):
    _argument_group_name = "training and evaluation (transformers.TrainingArguments)"

    output_dir: str | None = field(default=None, metadata={"help": "Folder for everything this run leaves (required)."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew in a folder that holds earlier results: its checkpoints and scores are replaced."},
    )
    accuracy_only: bool = field(default=False, metadata={"help": "With --do_eval: no timing, just EM, F1 and MACs."})
    benchmark: bool = field(
        default=False,
        metadata={
            "help": "With --do_eval: also measure the model's latency at the length config and at full length, side by "
            "side, on batches padded to --max_seq_length."
        },
    )
    logging_steps: float = field(default=50, metadata={"help": "Log the loss every N steps (below 1: a fraction)."})

    def __post_init__(self):
        if not torch.accelerator.is_available():  # what the Trainer would do, but it refuses --bf16 if not told
            self.use_cpu, self.dataloader_pin_memory = True, False
        super().__post_init__()


@dataclass(frozen=True)
class Arguments:
    """Everything the command line says."""

    model: ModelArguments
    data: DataArguments
    length_adaptive: LengthAdaptiveArguments
    search: SearchArguments
    run: RunArguments


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


class QaArgumentParser(HfArgumentParser):
    """Modifications: one-line errors, no abbreviations, a JSON file as the first argument, hints for old flags."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def expand_json(self, argv: list[str]) -> list[str]:
        """Put the settings of a leading JSON file before the flags, which then override them."""
        if not argv or not argv[0].endswith(".json"):
            return argv
        try:
            settings = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.error(f"{argv[0]}: cannot be read as JSON ({error}).")
        if not isinstance(settings, dict):
            self.error(f"{argv[0]}: must hold one JSON object of flags and values.")
        tokens = []
        for name, value in settings.items():
            if f"--{name}" not in self._option_string_actions:
                self.error(f"{argv[0]}: {self.explain(name)}")
            if value is not None:
                values = value if isinstance(value, list) and name != "length_config" else [value]
                texts = [item if isinstance(item, str) else json.dumps(item) for item in values]
                tokens += [f"--{name}={texts[0]}"] if len(texts) == 1 else [f"--{name}", *texts]
        return tokens + argv[1:]

    def explain(self, name: str) -> str:
        """Say why `name` is no flag, and what to write instead."""
        if name in RENAMED:
            return f"--{name} no longer exists; use {RENAMED[name]}."
        close = difflib.get_close_matches(name, [option.lstrip("-") for option in self._option_string_actions], 1)
        return f"there is no flag --{name}" + (f"; did you mean --{close[0]}?" if close else "; see --help.")

    def given(self, argv: list[str]) -> set[str]:
        """Names of the flags that stand in `argv`."""
        names = (token.split("=")[0] for token in argv if token.startswith("--"))
        return {self._option_string_actions[name].dest for name in names if name in self._option_string_actions}


def build_parser() -> QaArgumentParser:
    groups = [ModelArguments, DataArguments, LengthAdaptiveArguments, SearchArguments, RunArguments]
    return QaArgumentParser(
        groups,
        prog="run_qa.py",
        usage="run_qa.py [SETTINGS.json] --model_name_or_path MODEL --output_dir FOLDER --do_STAGE ... [flags]",
        description="Fine-tune, LengthDrop, search and evaluate a length-adaptive question-answering reader.",
        epilog=EPILOG,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )


def parse_args(argv: list[str] | None = None) -> Arguments:
    """Read the command line (sys.argv if None); exits with status 2 and one line on bad usage."""
    parser = build_parser()
    argv = parser.expand_json(list(sys.argv[1:] if argv is None else argv))
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
        if rest:
            raise ValueError(parser.explain(rest[0].split("=")[0].lstrip("-").replace("-", "_")))
        args = Arguments(*parsed)
        check(args)
    except ValueError as error:
        parser.error(" ".join(str(error).split()))
    warn_without_effect(args, parser.given(argv))
    return args


# ---- cross-checks --------------------------------------------------------------------------------------------------


def check(args: Arguments) -> None:
    """Raise ValueError, in one line that names the flags, for values or combinations that make no sense."""
    check_ranges(args)
    check_stages(args)
    check_data(args.data, args.run, args.search)
    check_length_config(args)
    check_output_dir(args)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_ranges(args: Arguments) -> None:
    data, adaptive, search = args.data, args.length_adaptive, args.search
    at_least = {"max_seq_length": 8, "doc_stride": 1, "n_best_size": 1, "max_answer_length": 1, "max_train_samples": 1}
    at_least |= {"max_eval_samples": 1, "max_predict_samples": 1, "preprocessing_num_workers": 1, "num_sandwich": 0}
    at_least |= {"layer_dropout_bound": 0, "evo_iter": 0, "population_size": 0, "mutation_size": 0, "crossover_size": 0}
    at_least |= {"search_samples": 1, "search_max_candidates": 1, "search_min_macs": 0, "search_max_macs": 1}
    at_least |= {"max_f1_drop": 0, "target_macs": 1}
    fractions = "length_drop_ratio_bound layer_dropout_prob search_floor_ratio attention_dropout".split()
    for group in (args.model, data, adaptive, search):
        for name, value in vars(group).items():
            if value is not None and name in at_least:
                require(value >= at_least[name], f"--{name} must be at least {at_least[name]}, not {value}.")
            if value is not None and name in fractions:
                require(0 <= value < 1, f"--{name} must lie in [0, 1), not {value}.")
    require(0 <= search.mutation_prob <= 1, f"--mutation_prob must lie in [0, 1], not {search.mutation_prob}.")
    require(adaptive.kl_temperature > 0, f"--kl_temperature must be above 0, not {adaptive.kl_temperature}.")
    ratio = adaptive.target_macs_ratio
    require(ratio is None or 0 < ratio <= 1, f"--target_macs_ratio must lie in (0, 1], not {ratio}.")
    require(
        data.doc_stride < data.max_seq_length,
        f"--doc_stride {data.doc_stride} must be below --max_seq_length {data.max_seq_length}.",
    )


def check_stages(args: Arguments) -> None:
    run, adaptive, search = args.run, args.length_adaptive, args.search
    require(bool(run.output_dir), "--output_dir is required: the folder for everything this run leaves.")
    require(
        run.do_train or run.do_eval or run.do_predict or search.do_search,
        "nothing to do: give at least one of --do_train, --do_eval, --do_search, --do_predict.",
    )
    require(not adaptive.length_adaptive or run.do_train, "--length_adaptive is a way of training: add --do_train.")
    require(
        adaptive.layer_dropout_prob is None or adaptive.layer_dropout_bound is None,
        "--layer_dropout_prob and --layer_dropout_bound are two ways of LayerDrop: give one.",
    )
    for name in ("accuracy_only", "benchmark"):
        require(run.do_eval or not getattr(run, name), f"--{name} is a way of evaluating: add --do_eval.")
    require(not (run.accuracy_only and run.benchmark), "--accuracy_only and --benchmark exclude each other.")
    require(run.eval_do_concat_batches, "--no_eval_do_concat_batches cannot be used: answers need all logits.")
    require(
        not (search.search_min_macs and search.search_max_macs) or search.search_min_macs < search.search_max_macs,
        "--search_min_macs must be below --search_max_macs.",
    )


def check_data(data: DataArguments, run: RunArguments, search: SearchArguments) -> None:
    wanted = {"train": run.do_train, "validation": run.do_eval or search.do_search, "test": run.do_predict}
    for split, stage in {"train": "--do_train", "validation": "--do_eval / --do_search", "test": "--do_predict"}.items():
        require(
            bool(not wanted[split] or data.dataset_name or getattr(data, f"{split}_file")),
            f"{stage} needs data: give --{split}_file or --dataset_name.",
        )


def check_length_config(args: Arguments) -> None:
    adaptive, run = args.length_adaptive, args.run
    sources = [name for name in ("length_config", "length_config_from", "measure_rate") if getattr(adaptive, name)]
    require(len(sources) <= 1, " and ".join(f"--{name}" for name in sources) + " exclude each other.")
    budgets = ["max_f1_drop", "target_macs", "target_macs_ratio"]
    given = [f"--{name}" for name in budgets if getattr(adaptive, name) is not None]
    require(len(given) <= 1, f"{' and '.join(given)} exclude each other: give exactly one.")
    require(
        not adaptive.length_config_from or len(given) == 1,
        "--length_config_from needs exactly one of --max_f1_drop, --target_macs, --target_macs_ratio.",
    )
    require(
        not given or bool(adaptive.length_config_from) or args.search.do_search,
        f"{' '.join(given)} chooses from a search: add --length_config_from FOLDER or --do_search.",
    )
    require(not adaptive.measure_rate or run.do_eval, "--measure_rate is a way of evaluating: add --do_eval.")
    if adaptive.length_config:
        try:
            parse_length_config(adaptive.length_config, None, args.data.max_seq_length)
        except LengthConfigError as error:
            raise ValueError(f"--length_config: {error}") from None
    if adaptive.measure_rate:
        parse_rates(adaptive.measure_rate)


def check_output_dir(args: Arguments) -> None:
    source, target = Path(args.model.model_name_or_path), Path(args.run.output_dir)
    require(
        not (source.is_dir() and target.exists() and source.resolve() == target.resolve()),
        f"--output_dir {target} is the model's own folder, which no stage writes into: name another.",
    )
    require(not target.exists() or target.is_dir(), f"--output_dir {target} is a file: name a folder.")


def parse_rates(text: str) -> list[float]:
    """Read "[0.1, 0.2]" or "0.1, 0.2": fractions of the tokens dropped at every layer, each in [0, 1)."""
    inner = re.fullmatch(r"\s*(?:\[([^\[\]]*)\]|\(([^()]*)\)|([^\[\]()]*))\s*", text)
    items = next((group for group in inner.groups() if group is not None), "").split(",") if inner else []
    try:
        rates = [float(item) for item in items if item.strip() or len(items) == 1]
    except ValueError:
        rates = []
    require(
        bool(rates) and all(0 <= rate < 1 for rate in rates),
        f'--measure_rate {text!r} must list fractions in [0, 1), like "[0.1, 0.2, 0.3]".',
    )
    return rates


def warn_without_effect(args: Arguments, given: set[str]) -> None:
    """Print a warning for each flag that does nothing in the chosen stages."""
    for name in sorted(given & set(UNUSED.split())):
        print(f"run_qa.py: warning: --{name} has no effect in question answering.", file=sys.stderr)
    groups = (args.model, args.data, args.length_adaptive, args.search, args.run)
    values = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
    for needed, names in NEEDS.items():
        idle = sorted(given & set(names.split()))
        if idle and not any(values[name] for name in needed):
            flags, stages = " ".join(f"--{name}" for name in idle), " or ".join(f"--{name}" for name in needed)
            print(f"run_qa.py: warning: {flags} has no effect without {stages}.", file=sys.stderr)
