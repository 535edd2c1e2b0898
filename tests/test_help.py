"""What --help says, and that every flag it names is used."""

import dataclasses
import re
from pathlib import Path

import pytest

from arguments import DataArguments, ModelArguments, RunArguments
from command_line import build_parser, parse_args
from distillation_arguments import DistillationArguments
from length_arguments import LengthAdaptiveArguments, SearchArguments

ROOT = Path(__file__).parents[1]
OURS = (ModelArguments, DataArguments, DistillationArguments, LengthAdaptiveArguments, SearchArguments)
OF_RUN = ("output_dir", "overwrite_output_dir", "accuracy_only", "benchmark", "logging_steps", "disable_tqdm")


@pytest.fixture(scope="module")
def help_text() -> str:
    return build_parser().format_help()


def test_help_exits_0(capsys):
    with pytest.raises(SystemExit) as exit:
        parse_args(["--help"])
    assert exit.value.code == 0 and "--model_name_or_path" in capsys.readouterr().out


def test_help_is_grouped_and_ends_with_an_example_of_each_stage(help_text):
    groups = ["model:", "data:", "distillation:", "length-adaptive:", "search:", "training and evaluation"]
    places = [help_text.index(f"\n{group}") for group in groups]
    assert places == sorted(places)
    examples = help_text[help_text.index("one example a stage") :]
    assert all(
        f"\n  {stage}" in examples for stage in ("fine-tune", "distill", "LengthDrop", "search", "evaluate", "predict")
    )


def test_every_flag_of_ours_has_help_and_shows_its_default(help_text):
    fields = [field for group in OURS for field in dataclasses.fields(group)]
    fields += [field for field in dataclasses.fields(RunArguments) if field.name in OF_RUN]
    flat = " ".join(help_text.split())
    for field in fields:
        text = " ".join(field.metadata["help"].split())
        shown = "" if field.default in (dataclasses.MISSING, None) else f" (default: {field.default})"
        assert len(text) > 8 and text + shown in flat, field.name


def test_every_flag_of_ours_is_used_outside_the_command_line():
    command_line = ["arguments.py", "length_arguments.py", "checks.py", "command_line.py", "idle_flags.py"]
    command_line += ["distillation_arguments.py", "distillation_checks.py", "quantization_checks.py"]
    modules = [path for path in ROOT.glob("*.py") if path.name not in command_line]
    code = "\n".join(path.read_text(encoding="utf-8") for path in modules)
    names = [field.name for group in OURS for field in dataclasses.fields(group)]
    names += ["overwrite_output_dir", "accuracy_only", "benchmark", "disable_tqdm"]
    # "train_file" and its like are read as f"{split}_file"
    read = {f"{split}_file" for split in ("train", "validation", "test")} if '_file"' in code else set()
    read |= {name for name in ("config_name", "tokenizer_name") if f', "{name}")' in code}  # load(args, ..., flag)
    assert not [name for name in names if not re.search(rf"\.{name}\b", code) and name not in read]
