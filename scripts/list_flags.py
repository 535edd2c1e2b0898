"""Write docs/flags.md: every flag that run_qa.py adds to those of transformers, with its default and its meaning.

python scripts/list_flags.py > docs/flags.md
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import quiet_libraries  # noqa: F401  (before transformers)

# isort: split
from transformers import TrainingArguments

from command_line import build_parser

INTRO = """\
# Flags

Every flag that `run_qa.py` adds to [those of transformers](https://huggingface.co/docs/transformers/main_classes/trainer) \
(`--learning_rate`, `--num_train_epochs`, `--bf16`, ...), as `python run_qa.py --help` has them. A switch that is on \
by default has a twin that turns it off, `--no_quantize_embeddings`.
"""


def row(action: argparse.Action) -> str:
    """A line of a table."""
    flag = action.option_strings[0]
    default = "required" if action.required else "" if action.default in (None, False) else f"`{action.default}`"
    choices = " " + " / ".join(f"`{choice}`" for choice in action.choices) if action.choices else ""
    meaning = f"{' '.join(action.help.split())}".replace("|", "\\|").replace("%%", "%")
    return f"| `{flag}`{choices} | {default} | {meaning} |"


def own(action: argparse.Action) -> bool:
    """Whether transformers does not have it, nor is it the twin of another, or --help."""
    inherited = {item.name for item in fields(TrainingArguments)} - {"output_dir", "disable_tqdm", "logging_steps"}
    return action.dest not in {*inherited, "help"} and not action.option_strings[0].startswith("--no_")


def main() -> None:
    lines = [INTRO]
    for group in build_parser()._action_groups:
        actions = [action for action in group._group_actions if own(action)]
        if actions:
            lines += [f"## {group.title}\n", "| flag | default | |", "|---|---|---|", *map(row, actions), ""]
    print("\n".join(lines).rstrip())


if __name__ == "__main__":
    main()
