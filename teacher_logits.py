"""The teacher's logits of all training windows, computed once and kept in a memory-mapped file, so that it can go.

A folder holds logits.npy, float32 (tokens of all windows, 2), the windows one after the other without padding, done.npy, a
byte a block of windows, and key.json, which says of which teacher and windows they are.  A killed computation goes on
with the blocks that are missing.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from arguments import RunArguments
from errors import RunError
from results_qa import write_json
from teacher import Teacher
from teaching import FEATURE_INDEX

logger = logging.getLogger(__name__)

BLOCK = 512  # windows that are computed and marked as done together


class CachedTeacher:
    """Answers like the Teacher that `logits` are of, for batches that say which windows their rows are."""

    def __init__(self, logits: np.ndarray, lengths: np.ndarray):
        self.logits, self.ends = logits, np.cumsum(lengths)
        self.starts = self.ends - lengths

    def __call__(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Start and end logits (B, S), float32, 0 at padding."""
        ids = inputs["input_ids"]
        found = np.zeros((*ids.shape, 2), np.float32)
        for row, window in enumerate(inputs[FEATURE_INDEX].tolist()):
            start, end = self.starts[window], self.ends[window]
            found[row, : end - start] = self.logits[start:end]
        return torch.from_numpy(found).to(ids.device).unbind(-1)


def with_feature_index(features: Dataset) -> Dataset:
    """The features with their numbers as one more column, which batches carry along."""
    return features.add_column(FEATURE_INDEX, np.arange(len(features)))


def cached_teacher(
    folder: Path, teacher: Teacher, features: Dataset, collate: Callable, run: RunArguments
) -> CachedTeacher:
    """What `teacher` says of all `features`, from `folder` or computed now by all processes; the teacher is released.

    RunError if the folder holds the logits of another teacher, of other windows, or damaged ones.
    """
    lengths = np.array(features["length"][:], np.int64)
    key = {"teacher": teacher.fingerprint(), "windows": fingerprint(features)}
    with run.main_process_first(desc="teacher logits"):
        begin(folder, key, lengths)
    logits, done = open_files(folder, lengths)
    started, before = time.perf_counter(), int(done.sum())
    for block in range(run.process_index, len(done), run.world_size):
        if not done[block]:
            windows = np.arange(block * BLOCK, min((block + 1) * BLOCK, len(lengths)))
            compute(teacher, features, windows, collate, run.per_device_eval_batch_size, logits, lengths)
            done[block] = 1
            done.flush()
    if run.world_size > 1:
        torch.distributed.barrier()
    report(len(lengths), len(done), before, time.perf_counter() - started)
    teacher.release()
    return CachedTeacher(np.load(folder / "logits.npy", mmap_mode="r"), lengths)


def fingerprint(features: Dataset) -> str:
    """A digest of what the model is fed: every window, in order."""
    digest, columns = hashlib.sha256(), sorted({"input_ids", "token_type_ids"} & {*features.column_names})
    for table in features.select_columns([*columns, "length"]).with_format("arrow").iter(batch_size=1000):
        for name in columns:
            digest.update(table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).tobytes())
        digest.update(table["length"].to_numpy().tobytes())
    return digest.hexdigest()


# ---- the files -----------------------------------------------------------------------------------------------------

REMEDY = "name another --teacher_logits_dir, or remove it."


def begin(folder: Path, key: dict, lengths: np.ndarray) -> None:
    """Make the files unless they are there; RunError if there are those of another teacher or of other windows."""
    record = folder / "key.json"
    if record.is_file():
        if read_key(record) != key:
            raise RunError(f"{folder} holds the logits of another teacher, precision or set of windows: {REMEDY}")
        return
    if folder.is_dir() and {path.name for path in folder.iterdir()} - {"logits.npy", "done.npy"}:
        raise RunError(f"{folder} holds other files: {REMEDY}")
    shutil.rmtree(folder, ignore_errors=True)  # killed before its key was written
    try:
        folder.mkdir(parents=True)
        for name, shape, kind in expected(lengths):
            np.save(folder / name, np.zeros(shape, kind))  # no sparse file, which a full disk would kill us for later
        write_json(record, key)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RunError(
            f"{folder} cannot be written ({error.strerror or error}): make room, or name another --teacher_logits_dir."
        ) from error


def read_key(record: Path) -> dict:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        return {}


def expected(lengths: np.ndarray) -> list[tuple[str, tuple, type]]:
    blocks = -(-len(lengths) // BLOCK)
    return [("logits.npy", (int(lengths.sum()), 2), np.float32), ("done.npy", (blocks,), np.uint8)]


def open_files(folder: Path, lengths: np.ndarray) -> list[np.ndarray]:
    """Logits and marks, to be written to; RunError if a file is missing, cut off or of another kind."""
    opened = []
    for name, shape, kind in expected(lengths):
        try:
            array = np.load(folder / name, mmap_mode="r")  # never a pickle; "r+" would lengthen a file that is cut off
        except (OSError, EOFError, ValueError) as error:
            raise RunError(f"{folder / name} cannot be read ({error}): {REMEDY}") from error
        if (array.shape, array.dtype) != (shape, kind):
            raise RunError(f"{folder / name} does not hold what it should, {shape} numbers: {REMEDY}")
        opened.append(np.load(folder / name, mmap_mode="r+"))
    return opened


def compute(
    teacher: Teacher,
    features: Dataset,
    windows: np.ndarray,
    collate: Callable,
    batch_size: int,
    logits: np.ndarray,
    lengths: np.ndarray,
) -> None:
    """Write the logits of these `windows` to the file; in batches of about one length, which pad little."""
    ends = np.cumsum(lengths)
    columns = features.select_columns(teacher.input_names)
    by_length = windows[np.argsort(-lengths[windows], kind="stable")]
    for at in range(0, len(by_length), batch_size):
        chosen = by_length[at : at + batch_size]
        batch = {name: tensor.to(teacher.device) for name, tensor in collate(columns.select(chosen).to_list()).items()}
        found = torch.stack(teacher(batch), -1).cpu().numpy()
        for row, window in enumerate(chosen):
            logits[ends[window] - lengths[window] : ends[window]] = found[row, : lengths[window]]
    logits.flush()


def report(windows: int, blocks: int, before: int, seconds: float) -> None:
    """Say what the logits cost, and what an epoch without the teacher saves."""
    if before == blocks:
        logger.info("teacher logits of %d windows: all there already", windows)
        return
    saved = seconds * blocks / (blocks - before)
    logger.info(
        "teacher logits of %d windows: %.1f s (%d of %d blocks were there); every epoch of training saves about %.1f s",
        *(windows, seconds, before, blocks, saved),
    )
