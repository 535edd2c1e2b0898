"""The tutorial notebook: it runs from top to bottom, every command of it parses, and what is committed has been run."""

import json
import os
import runpy
import shutil
import subprocess
from pathlib import Path

import nbformat
import papermill
import pytest
import torch
from stages import SIZES
from transformers import BertConfig, BertModel

from command_line import parse_args

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks/tutorial.ipynb"
SMALL = {"TRAIN_QUESTIONS": 8, "DROP_QUESTIONS": 8, "EVAL_QUESTIONS": 8, "HELD_OUT": 4, "CONFIGS": 8}


@pytest.fixture
def encoder(tmp_path, bert_tokenizer) -> Path:
    """A random encoder for windows of 384 tokens."""
    torch.manual_seed(0)
    sizes = SIZES | {"max_position_embeddings": 384}
    BertModel(BertConfig(vocab_size=len(bert_tokenizer), **sizes)).save_pretrained(tmp_path / "encoder")
    bert_tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def code() -> list:
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


def test_it_runs_from_top_to_bottom_on_files_of_ones_own(encoder, squad_v1_file, tmp_path):
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        shutil.copy(squad_v1_file, tmp_path / name)
    settings = {"DATA": str(tmp_path), "ENCODER": str(encoder), "OUTPUT": str(tmp_path / "out")}
    done = papermill.execute_notebook(
        NOTEBOOK, tmp_path / "done.ipynb", settings | SMALL, cwd=NOTEBOOK.parent, progress_bar=False, log_output=False
    )
    assert "warning: --" not in nbformat.writes(done)  # of a flag without effect
    pictures = ["finetuning/loss", "dynamic/loss", "search/pareto", "tokens_1", "tokens_5", "tokens_50"]
    assert all((tmp_path / f"out/{name}.png").stat().st_size > 1000 for name in pictures)
    answers = [json.loads((tmp_path / f"out/answer_{points}.json").read_text()) for points in (1, 50)]
    assert answers[0]["macs_ratio"] >= answers[1]["macs_ratio"]


def test_with_a_data_set_of_the_hub_every_command_parses_without_a_warning(code, tmp_path, monkeypatch, capsys):
    """What the shell makes of the cells, taken down by a stand-in for Python."""
    parameters, setup = (next(cell.source for cell in code if word in cell.source) for word in ("DATA =", "import os"))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    settings = f"DATA, ENCODER, OUTPUT = 'squad', 'some/encoder', {str(tmp_path)!r}"
    (tmp_path / "cells.py").write_text(f"{parameters}\n{settings}\n{setup}")
    runpy.run_path(str(tmp_path / "cells.py"))
    stand_in = tmp_path / "bin/python"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" END >> {tmp_path}/commands\n')
    stand_in.chmod(0o755)
    variables = os.environ | {"PATH": f"{stand_in.parent}:{os.environ['PATH']}", "QUESTION": "Who wrote it?"}
    for cell in (cell.source for cell in code if cell.source.startswith("%%bash -e\n")):
        subprocess.run(["bash", "-ec", cell.split("\n", 1)[1]], check=True, env=variables, cwd=tmp_path)
    commands = [text.split("\0") for text in (tmp_path / "commands").read_text().split("\0END\0")]
    commands = [command[1:] for command in commands if command[0] == "run_qa.py"]
    assert len(commands) >= 12
    for command in commands:
        parse_args(command)
        assert capsys.readouterr().err == ""


def test_what_is_committed_was_run_in_one_go_and_is_small(code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) >= 6
    assert NOTEBOOK.stat().st_size < 1_000_000
