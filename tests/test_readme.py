"""Every command that the README and --help show is one that the parser takes without a warning."""

import re
import shlex
from pathlib import Path

import pytest

from command_line import EPILOG, parse_args

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def commands(text):
    """The flags of each `python run_qa.py ...` line, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(r"^(?:.*[ ])?python run_qa\.py (--(?!help).*)$", joined, flags=re.MULTILINE)
    return [shlex.split(command) for command in found]


def test_the_published_commands_are_among_them():
    assert len(commands("\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)))) >= 7
    assert len(commands(EPILOG)) == 5


@pytest.mark.parametrize("command", commands(README) + commands(EPILOG), ids=" ".join)
def test_a_shown_command_parses_without_a_warning(command, capsys):
    parse_args(command)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", re.findall(r"`((?:scripts/)?[\w/]+\.(?:py|sh))`", README))
def test_a_file_the_readme_names_exists(name):
    root = Path(__file__).parent.parent
    assert (root / name).is_file() or (root / "scripts" / name).is_file()
