"""Result files, and what they say about the machine and the code."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from results_qa import environment, git_state, write_json


def test_write_json_is_utf8_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"name": "Brückstadt", "array": np.arange(2), "tensor": torch.tensor(1.5), "path": Path("b")})
    assert json.loads(path.read_bytes()) == {"name": "Brückstadt", "array": [0, 1], "tensor": 1.5, "path": "b"}
    assert "Brückstadt".encode() in path.read_bytes()
    before = path.read_bytes()
    with pytest.raises((AttributeError, TypeError)):
        write_json(path, {"first": 1, "second": object()})
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_environment_names_versions_processor_and_threads():
    found = environment()
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert found["instruction_set"] in ("amx", "avx512_vnni", "avx512", "avx2", "other") and found["cpu"]
    assert {"python", "transformers", "datasets", "accelerate", "git_commit", "git_dirty", "cores", "gpu"} <= set(
        found
    )
    assert json.loads(json.dumps(found)) == found


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_state_is_the_commit_with_a_mark_for_changes_and_none_outside_git(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {"git_commit": None, "git_dirty": None}
    (tmp_path / "a.txt").write_text("one")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
    for arguments in (["init", "-q"], ["add", "a.txt"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path, text=True).strip()
    assert git_state(tmp_path) == {"git_commit": commit, "git_dirty": False}
    (tmp_path / "a.txt").write_text("two")
    assert git_state(tmp_path) == {"git_commit": commit, "git_dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) == {"git_commit": None, "git_dirty": None}
