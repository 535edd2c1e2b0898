"""Ctrl-C, SIGTERM and a disk without room: one line, no traceback, and the same command goes on."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from stages import LENGTHS, read

from interruptions import Terminated, as_exceptions, storage_problem

ROOT = Path(__file__).parent.parent
TRAINING = ["--do_train", "--learning_rate", "1e-3", "--save_steps", "1", "--logging_steps", "1"]


def start(*flags, lengths=LENGTHS, **kwargs):
    command = [sys.executable, ROOT / "run_qa.py", *flags, *lengths]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(part) for part in command], **pipes, **kwargs)


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_sigterm_in_training_is_one_line_and_the_same_command_continues(dynamic, squad_v1_file, tmp_path):
    command = ("--model_name_or_path", dynamic, "--train_file", squad_v1_file, *TRAINING, "--output_dir", tmp_path)
    process = start(*command, "--max_steps", 10000, lengths=[flag for flag in LENGTHS if flag != "--disable_tqdm"])
    wait_for(lambda: list(tmp_path.glob("checkpoint-*/trainer_state.json")), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143 and "Traceback" not in err
    last = err.rstrip().splitlines()[-1]  # below the progress bar
    assert last.startswith(f"run_qa.py: interrupted; the same command continues from {tmp_path / 'checkpoint-'}")
    done = max(int(folder.name.split("-")[1]) for folder in tmp_path.glob("checkpoint-*"))
    _, err = start(*command, "--max_steps", done + 1).communicate()
    assert read(tmp_path / "trainer_state.json")["global_step"] == done + 1, err


def test_ctrl_c_while_libraries_are_imported_leaves_no_traceback():
    process = start("--help")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode in (130, 0) and "Traceback" not in err  # 0: a very fast machine


def test_a_disk_without_room_is_one_line_and_what_was_there_is_whole(dynamic, squad_v1_file, tmp_path):
    files = ("--validation_file", squad_v1_file, "--output_dir", tmp_path)
    assert start("--model_name_or_path", dynamic, "--do_eval", *files).wait() == 0
    before = (tmp_path / "eval_nbest_predictions.json").read_text()
    limit = len(before) // 2

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    flags = ("--do_eval", "--n_best_size", "19", "--overwrite_cache", *files)
    process = start("--model_name_or_path", dynamic, *flags, preexec_fn=no_room)
    _, err = process.communicate()
    assert process.returncode == 1 and "Traceback" not in err
    assert "run_qa.py: error: no room is left for" in err and "File too large" in err
    assert (tmp_path / "eval_nbest_predictions.json").read_text() == before and json.loads(before)


def test_sigterm_raises_in_this_process_and_not_in_a_forked_one():
    with as_exceptions(), pytest.raises(Terminated):
        reads, writes = os.pipe()
        child = os.fork()
        if not child:
            os.write(writes, b"!")  # Python forgets signals that came before
            time.sleep(30)
            os._exit(0)
        os.read(reads, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no room is left for"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no room is left for"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no room is left for"),
        (OSError(errno.EROFS, "Read-only file system", "{folder}/x.json"), "x.json cannot be written to"),
        (OSError(errno.ENOENT, "No such file", "{folder}/x.json"), None),
        (OSError(errno.EACCES, "Permission denied", "/elsewhere/x.json"), None),
        (RuntimeError("shapes do not fit"), None),
    ],
)
def test_only_what_comes_from_the_disk_is_said_to(tmp_path, error, words):
    if getattr(error, "filename", None):
        error.filename = error.filename.format(folder=tmp_path)
    message = storage_problem(error, tmp_path)
    assert message is None if words is None else words in message and "--output_dir" in message


def test_a_write_that_fails_on_a_full_disk_is_known_by_the_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 0))
    error = RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
    assert "no room is left" in storage_problem(error, tmp_path / "not" / "made")
