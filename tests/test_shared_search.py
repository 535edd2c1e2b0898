"""Searches by several processes: workers that share a storage, one of which is killed, and the ranks of a launcher."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from stages import LENGTHS, SEARCH, read

# run_qa with looks of few questions, little patience and some time for each look: the tests' questions and models are few
# and small.
DRIVER = """
import functools, sys, time
sys.path.insert(0, {root!r})
import racing, run_qa, search_qa, search_settings, shared_store
racing.PATIENCE, shared_store.POLL = 1.0, 0.05
search_qa.growing_looks = functools.partial(search_settings.growing_looks, first=5)
class SlowScorer(search_qa.QuestionScorer):
    def __call__(self, *args):
        time.sleep({pause})
        return super().__call__(*args)
search_qa.QuestionScorer = SlowScorer
sys.exit(run_qa.main())
"""
ROOT = Path(__file__).parent.parent
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def command(searched, dynamic, squad_v1_file):
    """A search that takes what was compiled from `searched`, not one compiler a process."""
    files = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file)
    return [*map(str, files), *SEARCH, *LENGTHS, "--use_cpu", "--search_rescore", "20"]


def driver(folder: Path, pause: float) -> str:
    path = folder / "driver.py"
    path.write_text(DRIVER.format(root=str(ROOT), pause=pause))
    return str(path)


@pytest.fixture
def start():
    """Starts Python with a command line; what still runs at the end of the test is killed."""
    started = []

    def process(*command: object) -> subprocess.Popen:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        arguments = [sys.executable, *map(str, command)]
        started.append(subprocess.Popen(arguments, env=os.environ | ENVIRONMENT, **streams))
        return started[-1]

    yield process
    for left in started:
        left.kill()
        left.wait()


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


# ---- a shared storage ----------------------------------------------------------------------------------------------


def looks(database: Path) -> list[dict]:
    """The looks that the workers finished, in the order in which they did."""
    records: dict[int, dict] = {}
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
            query = "SELECT trial_id, key, value_json FROM trial_user_attributes ORDER BY trial_id"
            for trial, key, value in connection.execute(query):
                records.setdefault(trial, {})[key] = json.loads(value)
    except sqlite3.OperationalError:  # it is not made yet
        return []
    return [record for record in records.values() if "scores" in record]


def wait_until_both_have_finished_looks(database: Path, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 120
    while len({look["token"] for look in looks(database)}) < 2:
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.02)


def frontier(folder: Path) -> dict[tuple, float]:
    rows = read(folder / "search_results.json")["frontier"]
    return {tuple(row["length_config"]): row["score"] for row in rows}


def test_a_killed_worker_is_done_without_and_its_successor_ends_where_the_other_did(start, command, tmp_path):
    database = tmp_path / "store.db"
    command = [driver(tmp_path, pause=0.3), *command, "--search_storage", f"sqlite:///{database}", "--output_dir"]
    killed, other = start(*command, tmp_path / "killed"), start(*command, tmp_path / "other")
    wait_until_both_have_finished_looks(database, [killed, other])
    killed.kill()
    assert killed.wait() == -9 and not (tmp_path / "killed/search_results.json").exists()
    finish(other)
    before = looks(database)
    finish(start(*command, tmp_path / "killed"))
    after = looks(database)
    asked = [(*look["length_config"], look["begin"] + n) for look in after for n in range(len(look["scores"]))]
    assert after[: len(before)] == before and set(Counter(asked).values()) == {1}
    one, again = frontier(tmp_path / "other"), frontier(tmp_path / "killed")
    assert one and one == again


# ---- a launcher ----------------------------------------------------------------------------------------------------


def test_two_processes_of_a_launcher_find_what_one_does(start, command, tmp_path):
    program, folders = driver(tmp_path, pause=0), {1: tmp_path / "one", 2: tmp_path / "two"}
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 0, "--standalone", program]
    batch = ("--per_device_eval_batch_size", "4", "--output_dir")
    both = start(*launcher, *command, *batch, folders[2])
    finish(start(program, *command, *batch, folders[1]))
    finish(both)
    one, two = (read(folder / "search_results.json") for folder in folders.values())
    assert two["candidates"] == one["candidates"] and two["questions_evaluated"] == one["questions_evaluated"]
    assert {row["latency_ms"] for row in two["frontier"]} == {None}
    for name in ("length_config", "macs", "score", "f1_drop"):
        assert [row[name] for row in two["frontier"]] == [row[name] for row in one["frontier"]]
    stores = [(folder / "search_store.jsonl").read_text() for folder in folders.values()]
    assert stores[0] == stores[1]
