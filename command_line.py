"""Reads the command line of run_qa.py: flags, a JSON file, and one-line errors that name the flag and the remedy."""

import argparse
import difflib
import json
import sys
from pathlib import Path

from transformers import HfArgumentParser

from arguments import Arguments, DataArguments, ModelArguments, QuantizationArguments, RunArguments
from checks import check
from distillation_arguments import DistillationArguments
from idle_flags import flags_without_effect
from length_arguments import LengthAdaptiveArguments, SearchArguments

EPILOG = """\
one example a stage:
  fine-tune    python run_qa.py --model_name_or_path nreimers/MiniLMv2-L6-H384-distilled-from-RoBERTa-Large \\
                 --dataset_name squad --do_train --do_eval --learning_rate 3e-5 --num_train_epochs 2 \\
                 --output_dir output/finetuning
  distill      python run_qa.py --model_name_or_path output/finetuning --student_layers 3 --pred_distill \\
                 --teacher_model_name_or_path output/finetuning --dataset_name squad --do_train --do_eval \\
                 --learning_rate 3e-5 --num_train_epochs 10 --output_dir output/student
  LengthDrop   python run_qa.py --model_name_or_path output/finetuning --dataset_name squad --do_train --do_eval \\
                 --length_adaptive --layer_dropout_prob 0.2 --learning_rate 3e-5 --num_train_epochs 5 \\
                 --output_dir output/dynamic
  search       python run_qa.py --model_name_or_path output/dynamic --dataset_name squad --do_search \\
                 --per_device_eval_batch_size 32 --output_dir output/search
  quantize     python run_qa.py --model_name_or_path output/dynamic --dataset_name squad --tune --do_train --do_eval \\
                 --quantization_approach static --per_device_eval_batch_size 32 --output_dir output/quantized
  INT8         python run_qa.py --model_name_or_path output/dynamic --dataset_name squad --do_eval --int8 \\
                 --length_config "(315, 251, 242, 159, 142, 33)" --output_dir output/quantized
  evaluate     python run_qa.py --model_name_or_path output/dynamic --dataset_name squad --do_eval \\
                 --length_config_from output/search --max_f1_drop 1.0 --output_dir output/evaluation
  predict      python run_qa.py --model_name_or_path output/dynamic --test_file questions.json --do_predict \\
                 --length_config "(315, 251, 242, 159, 142, 33)" --output_dir output/answers
  ask          python run_qa.py --model_name_or_path output/dynamic --do_predict --question "Who wrote it?" \\
                 --context passage.txt
All flags can also stand in a JSON file: python run_qa.py settings.json [flags that override it]
"""

# What users of older scripts will type, and what it is called now.
RENAMED = {
    "data_dir": "--train_file, --validation_file and --test_file",
    "do_lower_case": "nothing: the tokenizer's own setting is used",
    "evaluate_during_training": "--eval_strategy epoch",
    "evaluation_strategy": "--eval_strategy",
    "group_by_length": "--train_sampling_strategy group_by_length",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "max_query_length": "nothing: questions are kept whole",
    "no_cuda": "--use_cpu",
    "per_gpu_eval_batch_size": "--per_device_eval_batch_size",
    "per_gpu_train_batch_size": "--per_device_train_batch_size",
    "predict_file": "--validation_file (with --do_eval) or --test_file (with --do_predict)",
    "teacher_model_or_path": "--teacher_model_name_or_path",
    "teacher_model_type": "nothing: the teacher's config.json says it",
    "threads": "--preprocessing_num_workers",
    "use_auth_token": "--token",
    "warmup_ratio": "--warmup_steps with a number below 1",
}


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
        return [token for name, value in settings.items() for token in self.tokens(argv[0], name, value)] + argv[1:]

    def tokens(self, file: str, name: str, value: object) -> list[str]:
        """One setting of a JSON file as it would stand on the command line; null and [] leave the default."""
        if f"--{name}" not in self._option_string_actions:
            self.error(f"{file}: {self.explain(f'--{name}')}")
        if value in (None, []):
            return []
        nargs = self._option_string_actions[f"--{name}"].nargs
        if nargs == 0:  # --no_...
            if not isinstance(value, bool):
                self.error(f"{file}: {name} must be true or false, not {json.dumps(value)}.")
            return [f"--{name}"] * value
        several = isinstance(value, list) and (len(value) == 1 or nargs)
        texts = [item if isinstance(item, str) else json.dumps(item) for item in (value if several else [value])]
        return [f"--{name}={texts[0]}"] if len(texts) == 1 else [f"--{name}", *texts]

    def explain(self, token: str) -> str:
        """Say why `token` is no flag, and what to write instead."""
        if not token.startswith("--"):
            return f"{token!r} belongs to no flag; quote a value that contains blanks."
        name = token.split("=")[0][2:].replace("-", "_")
        if name in RENAMED:
            return f"--{name} no longer exists; use {RENAMED[name]}."
        known = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        close = difflib.get_close_matches(name, known, 1, cutoff=0.75)  # at 0.6 many a guess misleads
        return f"there is no flag --{name}" + (f"; did you mean --{close[0]}?" if close else "; see --help.")

    def given(self, argv: list[str]) -> set[str]:
        """Names of the flags that stand in `argv`."""
        names = (token.split("=")[0] for token in argv if token.startswith("--"))
        return {self._option_string_actions[name].dest for name in names if name in self._option_string_actions}


def build_parser() -> QaArgumentParser:
    groups = [
        *(ModelArguments, DataArguments, DistillationArguments, LengthAdaptiveArguments),
        *(SearchArguments, QuantizationArguments, RunArguments),
    ]
    return QaArgumentParser(
        groups,
        prog="run_qa.py",
        usage="run_qa.py [SETTINGS.json] --model_name_or_path MODEL --output_dir FOLDER --do_STAGE ... [flags]",
        description="Fine-tune, distill, LengthDrop, search, quantize and evaluate a length-adaptive question-answering reader.",
        epilog=EPILOG,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )


def parse_args(argv: list[str] | None = None) -> Arguments:
    """Read the command line (sys.argv if None); exits with status 2 and one line on bad usage."""
    parser = build_parser()
    argv = parser.expand_json(list(sys.argv[1:] if argv is None else argv))
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
        if rest:
            raise ValueError(parser.explain(rest[0]))
        args = Arguments(*parsed)
        check(args)
    except (ValueError, ImportError) as error:  # ImportError: a training flag whose library is not installed
        parser.error(" ".join(str(error).split()))
    for line in flags_without_effect(args, parser.given(argv)):
        print(f"run_qa.py: warning: {line}", file=sys.stderr)
    return args
