"""Every command that the README and --help show is one that the parser takes without a warning; pinned imports."""

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest

from command_line import EPILOG, parse_args

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
DISTILLATION = (Path(__file__).parent.parent / "docs/distillation.md").read_text(encoding="utf-8")


def commands(text):
    """The flags of each `python run_qa.py ...` line, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(r"^(?:.*[ ])?python run_qa\.py (--(?!help).*)$", joined, flags=re.MULTILINE)
    return [shlex.split(command) for command in found]


def test_the_published_commands_are_among_them():
    assert len(commands("\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)))) >= 7
    assert len(commands(EPILOG)) == 9


@pytest.mark.parametrize("command", commands(README) + commands(DISTILLATION) + commands(EPILOG), ids=" ".join)
def test_a_shown_command_parses_without_a_warning(command, capsys):
    parse_args(command)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", re.findall(r"`((?:scripts/)?[\w/]+\.(?:py|sh))`", README))
def test_a_file_the_readme_names_exists(name):
    root = Path(__file__).parent.parent
    assert (root / name).is_file() or (root / "scripts" / name).is_file()


@pytest.mark.parametrize(
    ("folder", "files"), [(".", ["requirements.txt"]), ("tests", ["requirements.txt", "requirements-dev.txt"])]
)
def test_every_package_that_the_code_imports_is_pinned(folder, files):
    root = Path(__file__).parent.parent
    imported = set()
    for path in (root / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    ours = {"scripts", "benchmarks"} | {path.stem for where in (".", "tests") for path in (root / where).glob("*.py")}
    lines = "\n".join((root / file).read_text() for file in files)
    pinned = {
        name.replace("-", "_").removesuffix("_pt") for name in re.findall(r"^([\w-]+)==", lines, flags=re.MULTILINE)
    }
    assert imported - ours - sys.stdlib_module_names <= pinned
