"""Every command that README, docs/ and --help show is one that its parser takes without a warning; pinned imports."""

import argparse
import ast
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import EPILOG, parse_args

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
DOCS = "\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md")))


def commands(text):
    """The flags of each `python run_qa.py ...` line, by whatever launcher, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(
        r"^(?:.*[ ])?(?:python|torchrun .*?|launch) run_qa\.py (--(?!help).*)$", joined, flags=re.MULTILINE
    )
    return [shlex.split(command) for command in found]


def tools(text):
    """The words of each `python benchmarks/... ...` and `python scripts/... ...` of code blocks and spans."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    shown = re.sub(r"\\\n\s*", "", "\n".join(blocks + [span.replace("\n", " ") for span in spans]))
    found = re.findall(r"^(?:.*[ /])?python ((?:benchmarks|scripts)/\w+\.py.*)$", shown, flags=re.MULTILINE)
    return [shlex.split(command) for command in found]


def test_the_published_commands_are_among_them():
    assert len(commands("\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)))) >= 7
    assert len(commands(DOCS)) >= 18 and len(tools(README + DOCS)) >= 10
    assert len(commands(EPILOG)) == 9


@pytest.mark.parametrize("command", commands(README) + commands(DOCS) + commands(EPILOG), ids=" ".join)
def test_a_shown_command_parses_without_a_warning(command, capsys):
    parse_args(command)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", [words for words in tools(README + DOCS) if len(words) > 1], ids=" ".join)
def test_a_shown_command_of_another_script_parses(command, monkeypatch):
    class Parsed(Exception):
        pass

    def parse(parser, *args):
        parse_known(parser, *args)
        raise Parsed

    parse_known = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")


def test_the_page_of_flags_is_what_the_parser_says():
    done = subprocess.run([sys.executable, ROOT / "scripts/list_flags.py"], capture_output=True, text=True, check=True)
    assert done.stdout == (ROOT / "docs/flags.md").read_text(encoding="utf-8")


def test_every_message_that_the_guide_explains_is_one_that_we_write():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.glob("*.py")]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    ours = "\n".join(text for text in texts if isinstance(text, str))
    messages = [
        span for row in re.findall(r"^\| (.*?) \|", GUIDE, flags=re.MULTILINE) for span in re.findall(r"`(.+?)`", row)
    ]
    parts = [part.strip() for text in messages for part in re.split(r"\.\.\.|--\w+(?: squad)?", text)]
    parts = [part for part in parts if " " in part]
    assert len(parts) >= 12 and [part for part in parts if part not in ours] == []


@pytest.mark.parametrize(
    "page, target",
    [
        (path, target)
        for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
        for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text(encoding="utf-8"))
    ],
)
def test_a_link_leads_to_a_file(page, target):
    assert (page.parent / target).is_file()


@pytest.mark.parametrize("name", sorted({*re.findall(r"`((?:scripts/)?[\w/]+\.(?:py|sh))`", README + DOCS)}))
def test_a_file_that_a_page_names_exists(name):
    assert (ROOT / name).is_file() or (ROOT / "scripts" / name).is_file()


@pytest.mark.parametrize(
    ("folder", "files"), [(".", ["requirements.txt"]), ("tests", ["requirements.txt", "requirements-dev.txt"])]
)
def test_every_package_that_the_code_imports_is_pinned(folder, files):
    imported = set()
    for path in (ROOT / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    ours = {"scripts", "benchmarks"} | {path.stem for where in (".", "tests") for path in (ROOT / where).glob("*.py")}
    lines = "\n".join((ROOT / file).read_text() for file in files)
    pinned = {
        name.replace("-", "_").removesuffix("_pt") for name in re.findall(r"^([\w-]+)==", lines, flags=re.MULTILINE)
    }
    assert imported - ours - sys.stdlib_module_names <= pinned
