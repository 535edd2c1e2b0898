"""Running the stages through run_qa.main on random models of three small layers; shared by the tests of the stages."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import run_qa

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}
LENGTHS = ["--max_seq_length", "64", "--doc_stride", "16", "--disable_tqdm"]
TRAINING = ["--do_train", "--max_steps", "4", "--learning_rate", "1e-3", "--logging_steps", "1"]
SEARCH = ["--do_search", "--evo_iter", "2", "--population_size", "3", "--mutation_size", "2", "--crossover_size", "2"]
SEARCH += ["--search_split", "validation"]  # the training split: test_hold_out.py


def run(*argv: object) -> int:
    return run_qa.main([*map(str, argv), *LENGTHS])


def succeed(*argv: object) -> None:
    assert run(*argv) == 0


def run_in_two_processes(script: str, folder: Path) -> None:
    """Run `script` under torchrun with gloo; {root} and {tests} stand for folders, `folder` is its argument."""
    worker, tests = folder / "worker.py", Path(__file__).parent
    worker.write_text(script.format(root=str(tests.parent), tests=str(tests)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    command += ["--standalone", str(worker), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def failure(capsys, *argv: object) -> str:
    """The one line with which the run ends, exit status 1."""
    capsys.readouterr()
    assert run(*argv) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run_qa.py: error")]
    assert len(lines) == 1
    return lines[0]
