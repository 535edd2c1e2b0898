"""Distillation end to end through run_qa.main: teacher, intermediate layers, prediction layer, LengthDrop."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from stages import SIZES, TRAINING, digest, failure, read, run, succeed
from transformers import (
    AutoModelForQuestionAnswering,
    BertConfig,
    BertForQuestionAnswering,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

CLASSES = {"bert": (BertConfig, BertForQuestionAnswering), "roberta": (RobertaConfig, RobertaForQuestionAnswering)}


def make_reader(folder, family, tokenizer, seed=0, **sizes):
    """A random reader in a folder, with its tokenizer."""
    config_class, model_class = CLASSES[family]
    torch.manual_seed(seed)
    sizes = SIZES | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id} | sizes
    model_class(config_class(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_readers(family, tokenizer, folder):
    """(Folder of a wider, deeper teacher with more heads, folder of a student)."""
    wide = {"hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
    teacher = make_reader(folder / "teacher", family, tokenizer, seed=1, **wide)
    return teacher, make_reader(folder / "student", family, tokenizer)


@pytest.fixture(scope="session")
def readers(bert_tokenizer, tmp_path_factory):
    return make_readers("bert", bert_tokenizer, tmp_path_factory.mktemp("bert"))


@pytest.fixture
def distill(squad_v1_file, tmp_path):
    """Trains a student; returns the command, to be run or to fail."""

    def command(teacher, student, *flags, name="out"):
        files = ("--train_file", squad_v1_file, "--model_name_or_path", student)
        return *files, "--teacher_model_name_or_path", teacher, *TRAINING, *flags, "--output_dir", tmp_path / name

    return command


def losses(folder):
    return [row for row in read(folder / "trainer_state.json")["log_history"] if "loss" in row]


LAYERS = ("--state_loss_ratio", 1, "--relation_loss_ratio", 1, "--relation_heads", 8)


@pytest.mark.parametrize("family", CLASSES)
def test_intermediate_layers_then_prediction_then_length_drop(family, request, distill, squad_v1_file, tmp_path):
    teacher, student = make_readers(family, request.getfixturevalue(f"{family}_tokenizer"), tmp_path)
    before = digest(teacher)
    succeed(*distill(teacher, student, *LAYERS, name="layers"))
    for row in losses(tmp_path / "layers"):
        assert {"loss_task", "loss_hidden", "loss_relation"} <= row.keys() and "loss_prediction" not in row
        assert row["loss"] == pytest.approx(row["loss_hidden"] + row["loss_relation"], abs=2e-3)
    succeed(*distill(teacher, tmp_path / "layers", "--pred_distill", name="taught"))
    assert all(row["loss"] == pytest.approx(row["loss_prediction"], abs=2e-4) for row in losses(tmp_path / "taught"))
    drop = ("--length_adaptive", "--pred_distill", "--length_drop_teacher", "both", "--validation_file", squad_v1_file)
    succeed(*distill(teacher, tmp_path / "taught", *drop, "--do_eval", name="dynamic"))
    assert {"loss_prediction", "loss_smallest", "loss_random"} <= losses(tmp_path / "dynamic")[0].keys()
    assert "eval_f1" in read(tmp_path / "dynamic/eval_results.json") and digest(teacher) == before


def test_the_learned_projection_is_in_the_checkpoints_and_not_in_the_model(readers, distill, tmp_path):
    succeed(*distill(*readers, "--state_loss_ratio", 1))
    saved, checkpoint = (
        load_file(path / "model.safetensors") for path in (tmp_path / "out", tmp_path / "out/checkpoint-4")
    )
    assert checkpoint.keys() - saved.keys() == {"hidden_projection.weight", "hidden_projection.bias"}
    assert checkpoint["hidden_projection.weight"].shape == (48, 32)
    assert saved.keys() == load_file(readers[1] / "model.safetensors").keys()
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")


def test_an_interrupted_distillation_continues_to_the_same_weights(readers, distill, tmp_path, caplog):
    command = distill(*readers, *LAYERS, "--pred_distill", "--distillation_weight", 0.5, "--save_steps", 2)
    succeed(*command)
    weights = digest(tmp_path / "out")["model.safetensors"]
    for path in tmp_path.glob("out/*"):  # as a kill after step 2 leaves it
        if path.name not in ("run_args.json", "checkpoint-2"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    succeed(*command)
    assert "continuing from" in caplog.text and digest(tmp_path / "out")["model.safetensors"] == weights


def test_other_lessons_in_the_same_folder_are_refused_by_name(readers, distill, tmp_path, capsys):
    succeed(*distill(*readers, "--pred_distill"))
    line = failure(capsys, *distill(*readers, "--pred_distill", "--distillation_weight", 0.5, "--state_loss_ratio", 1))
    assert "--distillation_weight, --state_loss_ratio" in line and "--pred_distill" not in line


@pytest.mark.parametrize("drop", [(), ("--length_adaptive", "--length_drop_teacher", "teacher")])
def test_logits_from_a_file_train_the_student_that_the_teacher_trains(readers, distill, tmp_path, drop):
    padded = ("--pred_distill", *drop, "--pad_to_max_length", "--per_device_eval_batch_size", 8)
    succeed(*distill(*readers, *padded, name="live"))
    cache = ("--cache_teacher_logits", "--teacher_logits_dir", tmp_path / "logits")
    succeed(*distill(*readers, *padded, *cache, name="cached"))
    assert (tmp_path / "logits/logits.npy").is_file() and not (tmp_path / "cached/teacher_logits").exists()
    for ours, theirs in zip(losses(tmp_path / "live"), losses(tmp_path / "cached"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_logits_in_the_output_folder_are_used_again_and_go_when_it_is_cleared(readers, distill, tmp_path, caplog):
    command = distill(*readers, "--pred_distill", "--cache_teacher_logits")
    succeed(*command)
    made = (tmp_path / "out/teacher_logits/logits.npy").stat().st_mtime_ns
    succeed(*command, "--max_steps", 5)
    assert (tmp_path / "out/teacher_logits/logits.npy").stat().st_mtime_ns == made and "all there" in caplog.text
    other = distill(readers[1], readers[1], "--pred_distill", "--cache_teacher_logits")
    assert run(*other) == 1
    succeed(*other, "--overwrite_output_dir")


def test_a_student_of_the_teachers_layers_begins_with_them(readers, distill, squad_v1_file, tmp_path, caplog):
    teacher, _ = readers
    still = ("--student_layers", 3, "--learning_rate", 0, "--state_loss_ratio", 1, "--att_loss_ratio", 1, "--att_mse")
    succeed(*distill(teacher, teacher, *still, "--attention_dropout", 0, "--hidden_dropout", 0))
    assert read(tmp_path / "out/config.json")["num_hidden_layers"] == 3 and "[2, 4, 6]" in caplog.text
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", teacher))
    for name, tensor in ours.items():
        number = name.split(".")[3] if ".layer." in name else None
        source = name.replace(f".layer.{number}.", f".layer.{2 * int(number) + 1}.") if number else name
        assert torch.equal(tensor, theirs[source]), name
    assert "hidden_projection.weight" not in load_file(tmp_path / "out/checkpoint-4/model.safetensors")


def test_layers_can_be_kept_without_a_teacher(readers, squad_v1_file, tmp_path):
    files = ("--model_name_or_path", readers[0], "--train_file", squad_v1_file)
    succeed(*files, *TRAINING, "--student_layers", "1,6", "--output_dir", tmp_path / "out")
    assert read(tmp_path / "out/config.json")["num_hidden_layers"] == 2
    assert "the base model's layers 1,6" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_from_scratch_the_seed_alone_decides_on_the_first_weights(readers, squad_v1_file, tmp_path):
    files = ("--model_name_or_path", readers[1], "--train_file", squad_v1_file, "--from_scratch", "--learning_rate", 0)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        flags = ("--do_train", "--max_steps", 1, "--seed", seed, "--output_dir", tmp_path / name)
        succeed(*files, *flags)
    weights = {name: digest(tmp_path / name)["model.safetensors"] for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]
    assert weights["a"] != digest(readers[1])["model.safetensors"]
    assert "from random weights" in (tmp_path / "a/README.md").read_text(encoding="utf-8")


def test_the_card_and_the_results_name_the_teacher_and_what_was_learned(readers, distill, tmp_path):
    succeed(*distill(*readers, "--pred_distill", "--state_loss_ratio", 1))
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert f"distilled from {readers[0]} (pred_distill, state_loss_ratio)" in card
    assert read(tmp_path / "out/train_results.json")["run"]["teacher_model_name_or_path"] == str(readers[0])


def test_a_teacher_with_a_length_config_of_its_own_teaches_at_full_length(readers, distill, tmp_path):
    teacher, student = readers
    shutil.copytree(teacher, tmp_path / "dynamic")
    config = read(teacher / "config.json") | {"length_config": [8] * 6, "length_config_max_length": 64}
    (tmp_path / "dynamic/config.json").write_text(json.dumps(config))
    for name, folder in (("a", teacher), ("b", tmp_path / "dynamic")):
        succeed(*distill(folder, student, "--pred_distill", name=name))
    assert digest(tmp_path / "a")["model.safetensors"] == digest(tmp_path / "b")["model.safetensors"]


def test_a_teacher_of_another_tokenizer_is_refused(bert_tokenizer, roberta_tokenizer, distill, tmp_path, capsys):
    readers = [make_reader(tmp_path / n, n, t) for n, t in (("roberta", roberta_tokenizer), ("bert", bert_tokenizer))]
    for lesson in (("--pred_distill",), ("--state_loss_ratio", 1)):
        assert "another vocabulary" in failure(capsys, *distill(*readers, *lesson))
