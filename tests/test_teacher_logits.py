"""Teacher logits from a file: the training they give, what a kill leaves, what is refused."""

import json
import logging
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_teaching import make_teacher
from test_trainer_qa import make_model, weights
from transformers import TrainingArguments

import teacher_logits
from distillation_arguments import DistillationArguments
from errors import RunError
from teacher import Teacher
from teacher_logits import cached_teacher, with_feature_index
from teaching import FEATURE_INDEX, Teaching
from trainer_qa import DistillationTrainer

LENGTHS = [16, 9, 12, 16, 5, 16, 7, 16, 11, 16]
NAMES = ["input_ids", "attention_mask"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(teacher_logits, "BLOCK", 4)  # three blocks of windows


def make_features(lengths=LENGTHS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(1, 50, (length,), generator=generator).tolist() for length in lengths]
    columns = {"input_ids": ids, "attention_mask": [[1] * length for length in lengths], "length": lengths}
    return Dataset.from_dict(columns | {"start_positions": [1] * len(ids), "end_positions": [3] * len(ids)})


def collate(rows, size=16):
    """Pads to 16 tokens, as --pad_to_max_length would."""
    padded = {name: [row[name] + [0] * (size - len(row[name])) for row in rows] for name in NAMES}
    others = {name: [row[name] for row in rows] for name in rows[0] if name not in (*NAMES, "length")}
    return {name: torch.tensor(values) for name, values in (padded | others).items()}


def settings(folder, **more):
    common = {"use_cpu": True, "dataloader_pin_memory": False, "disable_tqdm": True, "save_strategy": "no", "seed": 3}
    sizes = {"max_steps": 6, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "logging_steps": 1}
    return TrainingArguments(str(folder), **(common | sizes | more))


def make_cache(folder, features=None, model=None, **more):
    run = settings(folder.parent, **more)
    teacher = Teacher(model or make_teacher(), NAMES, run)
    return cached_teacher(folder, teacher, features or make_features(), collate, run)


def asked(monkeypatch):
    """The numbers of windows that the teacher is asked about from now on."""
    sizes, call = [], Teacher.__call__
    monkeypatch.setattr(
        Teacher, "__call__", lambda self, inputs: sizes.append(len(inputs["input_ids"])) or call(self, inputs)
    )
    return sizes


def train(folder, cached):
    torch.manual_seed(9)
    run, features, model = settings(folder), make_features(), make_model(hidden_dropout_prob=0.1)
    teacher = Teacher(make_teacher(), NAMES, run)
    if cached:
        teacher = cached_teacher(folder / "logits", teacher, features, collate, run)
        features = with_feature_index(features)
    teaching = Teaching(DistillationArguments(pred_distill=True, distillation_weight=0.7), teacher, model)
    trainer = DistillationTrainer(
        model=model, args=run, train_dataset=features, data_collator=collate, teaching=teaching
    )
    trainer.train()
    return weights(model), [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_a_training_by_the_file_equals_one_by_the_teacher_bit_for_bit(tmp_path):
    (live, losses), (cached, same) = train(tmp_path / "a", False), train(tmp_path / "b", True)
    assert torch.equal(live, cached) and losses == same


def test_every_window_has_its_own_logits_whatever_the_order_and_padding(tmp_path):
    features, teacher = make_features(), Teacher(make_teacher(), NAMES, settings(tmp_path))
    cached = make_cache(tmp_path / "logits")
    for windows, size in (([7, 1, 4], 16), ([2], 12)):
        batch = collate(with_feature_index(features).select(windows).to_list(), size)
        assert batch[FEATURE_INDEX].tolist() == windows
        for found, expected in zip(cached(batch), teacher(batch)):
            real = batch["attention_mask"].bool()
            torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-4)
            assert found[~real].abs().sum() == 0


def test_a_finished_file_is_used_again_and_its_time_is_said(tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        make_cache(tmp_path / "logits")
        assert "teacher logits of 10 windows: " in caplog.text and "every epoch of training saves about" in caplog.text
        sizes = asked(monkeypatch)
        make_cache(tmp_path / "logits")
    assert sizes == [] and "all there already" in caplog.text


def test_a_kill_in_the_middle_loses_only_the_block_it_interrupts(tmp_path, monkeypatch):
    whole = make_cache(tmp_path / "whole").logits[:]
    call, calls = Teacher.__call__, []

    def killed(self, inputs):
        calls.append(inputs)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return call(self, inputs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Teacher, "__call__", killed)
        make_cache(tmp_path / "logits")
    assert np.load(tmp_path / "logits/done.npy").tolist() == [1, 0, 0]
    sizes = asked(monkeypatch)
    assert np.array_equal(make_cache(tmp_path / "logits").logits, whole) and sum(sizes) == 6


def test_processes_share_the_blocks_out(tmp_path, monkeypatch):
    whole = make_cache(tmp_path / "whole").logits[:]
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    sizes, device = asked(monkeypatch), torch.device("cpu")
    for rank, marks in ((1, [0, 1, 0]), (0, [1, 1, 1])):
        run = SimpleNamespace(
            process_index=rank, world_size=2, per_device_eval_batch_size=2, device=device, bf16=False
        )
        run.fp16, run.main_process_first = False, lambda desc: nullcontext()
        teacher = Teacher(make_teacher(), NAMES, run)
        found = cached_teacher(tmp_path / "logits", teacher, make_features(), collate, run)
        assert np.load(tmp_path / "logits/done.npy").tolist() == marks
    assert np.array_equal(found.logits, whole) and sum(sizes) == len(LENGTHS)


def test_a_kill_before_the_files_are_complete_begins_anew(tmp_path):
    whole = make_cache(tmp_path / "logits").logits[:]
    (tmp_path / "logits/key.json").unlink()  # which is written last
    (tmp_path / "logits/done.npy").write_bytes(b"half")
    assert np.array_equal(make_cache(tmp_path / "logits").logits, whole)


def test_the_logits_of_another_teacher_windows_or_precision_are_refused(tmp_path):
    folder = tmp_path / "logits"
    make_cache(folder)
    other = make_teacher()
    with torch.no_grad():
        other.qa_outputs.bias.add_(1e-4)
    changes = [{"model": other}, {"features": make_features(seed=2)}, {"features": make_features(LENGTHS[::-1])}]
    for change in [*changes, {"bf16": True}]:
        with pytest.raises(
            RunError, match="another teacher, precision or set of windows: name another --teacher_logits"
        ):
            make_cache(folder, **change)


@pytest.mark.parametrize("name", ["logits.npy", "done.npy"])
@pytest.mark.parametrize("damage", ["cut", "missing", "foreign", "pickle"])
def test_a_damaged_or_foreign_file_is_one_line(name, damage, tmp_path):
    make_cache(tmp_path / "logits")
    path = tmp_path / "logits" / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    elif damage == "missing":
        path.unlink()
    else:
        np.save(path, np.zeros((3, 3), object if damage == "pickle" else float), allow_pickle=True)
    with pytest.raises(RunError, match=f"{name}.*--teacher_logits_dir"):
        make_cache(tmp_path / "logits")


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "logits").mkdir()
    (tmp_path / "logits/notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files"):
        make_cache(tmp_path / "logits")
    assert (tmp_path / "logits/notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_one_line_and_what_is_in_the_way_stays(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "logits"):
        with pytest.raises(RunError, match="cannot be written .*--teacher_logits_dir"):
            make_cache(folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_without_room_is_one_line_and_leaves_no_half_file(tmp_path, monkeypatch):
    def no_room(file, array):
        np.lib.format.open_memmap(file, "w+", array.dtype, array.shape)
        raise OSError("4096 requested and 1024 written")  # what NumPy says

    monkeypatch.setattr(np, "save", no_room)
    with pytest.raises(RunError, match="requested and 1024 written.*make room"):
        make_cache(tmp_path / "logits")
    assert not (tmp_path / "logits").exists()


def test_the_teachers_weights_are_given_back(tmp_path):
    run = settings(tmp_path)
    teacher = Teacher(make_teacher(), NAMES, run)
    cached_teacher(tmp_path / "logits", teacher, make_features(), collate, run)
    assert teacher.model is None
    assert json.loads((tmp_path / "logits/key.json").read_text()).keys() == {"teacher", "windows"}
    shutil.rmtree(tmp_path / "logits")
