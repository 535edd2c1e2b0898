"""Training in a folder that is not empty: going on, refusing, starting anew."""

import shutil

import pytest
from stages import digest, read, run, succeed

import run_qa


@pytest.fixture
def train(encoder, squad_v1_file, tmp_path):
    """Trains into one folder with more flags; returns the exit status."""
    command = ("--model_name_or_path", encoder, "--train_file", squad_v1_file, "--do_train", "--learning_rate", "1e-3")
    return lambda *flags: run(*command, "--logging_steps", 1, *flags, "--output_dir", tmp_path / "out")


def test_evaluation_after_training_in_groups_by_length_is_that_of_a_run_of_its_own(train, squad_v1_file, tmp_path):
    """The Trainer's own sampler would shuffle the evaluation windows and give each question another's answer."""
    evaluation = ("--validation_file", squad_v1_file, "--do_eval", "--per_device_eval_batch_size", 2)
    assert train("--max_steps", 2, "--train_sampling_strategy", "group_by_length", *evaluation) == 0
    succeed("--model_name_or_path", tmp_path / "out", *evaluation, "--output_dir", tmp_path / "again")
    predictions = [read(tmp_path / name / "eval_predictions.json") for name in ("out", "again")]
    assert predictions[0] == predictions[1]


def test_an_interrupted_training_continues_to_the_same_weights(train, tmp_path, caplog):
    assert train("--num_train_epochs", 1) == 0
    whole = read(tmp_path / "out/trainer_state.json")
    weights = digest(tmp_path / "out")["model.safetensors"]
    shutil.rmtree(tmp_path / "out")
    assert train("--num_train_epochs", 1, "--save_steps", 5) == 0
    for path in tmp_path.glob("out/*"):  # as a kill after step 10 leaves it
        if path.name not in ("run_args.json", "checkpoint-5", "checkpoint-10"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert train("--num_train_epochs", 1, "--save_steps", 5) == 0
    assert "continuing from" in caplog.text
    assert digest(tmp_path / "out")["model.safetensors"] == weights
    losses = [
        [row["loss"] for row in state["log_history"] if "loss" in row]
        for state in (whole, read(tmp_path / "out/trainer_state.json"))
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("flag", "amount", "more"), [("--max_steps", 2, 4), ("--num_train_epochs", 1, 2)])
def test_a_finished_training_is_left_alone_unless_more_is_asked_for(flag, amount, more, train, tmp_path, caplog):
    few = ("--max_train_samples", 6)
    assert train(*few, flag, amount) == 0
    before, steps = digest(tmp_path / "out"), read(tmp_path / "out/trainer_state.json")["global_step"]
    assert train(*few, flag, amount) == 0
    after = digest(tmp_path / "out")
    assert "complete already" in caplog.text
    assert all(after[name] == before[name] for name in ("model.safetensors", "train_results.json"))
    assert train(*few, flag, more) == 0
    state = read(tmp_path / "out/trainer_state.json")
    assert [row["step"] for row in state["log_history"] if "loss" in row] == list(range(1, 2 * steps + 1))


def test_a_kill_while_a_checkpoint_is_written_falls_back_to_the_one_before(train, tmp_path, caplog):
    few = ("--max_train_samples", 6, "--save_steps", 1, "--max_steps", 2)
    assert train(*few) == 0
    weights = digest(tmp_path / "out")["model.safetensors"]
    (tmp_path / "out/checkpoint-2/trainer_state.json").unlink()  # which the Trainer writes last
    assert train(*few) == 0
    assert "continuing from" in caplog.text and "checkpoint-1;" in caplog.text
    assert digest(tmp_path / "out")["model.safetensors"] == weights


@pytest.mark.parametrize(("flag", "amount"), [("--max_steps", 2), ("--num_train_epochs", 1)])
def test_a_kill_after_the_last_checkpoint_leaves_nothing_unwritten_in_the_end(flag, amount, train, tmp_path):
    few = ("--max_train_samples", 6, flag, amount)
    assert train(*few) == 0
    before = set(digest(tmp_path / "out"))
    for path in tmp_path.glob("out/*"):
        if path.name != "run_args.json" and not path.is_dir():
            path.unlink()
    assert train(*few) == 0
    assert set(digest(tmp_path / "out")) == before
    assert (
        read(tmp_path / "out/train_results.json")["train_samples"]
        == read(tmp_path / "out/all_results.json")["train_samples"]
    )


def test_further_training_forgets_the_scores_of_the_weights_it_changed(train, squad_v1_file, tmp_path):
    assert train("--num_train_epochs", 1, "--validation_file", squad_v1_file, "--do_eval") == 0
    assert "eval_f1" in read(tmp_path / "out/all_results.json")
    assert train("--num_train_epochs", 2) == 0
    assert "eval_f1" not in read(tmp_path / "out/all_results.json")
    assert not list(tmp_path.glob("out/eval_*")) and "eval_f1" not in (tmp_path / "out/README.md").read_text()


def test_evaluating_never_clears_a_folder(train, encoder, squad_v1_file, tmp_path):
    assert train("--max_steps", 1) == 0
    before = digest(tmp_path / "out")
    flags = ("--validation_file", squad_v1_file, "--do_eval", "--overwrite_output_dir")
    succeed("--model_name_or_path", encoder, *flags, "--output_dir", tmp_path / "out")
    after = digest(tmp_path / "out")
    assert all(after[name] == before[name] for name in before if name != "all_results.json")


def test_resuming_from_elsewhere_spares_the_run_in_the_folder(train, tmp_path, capsys):
    assert train("--max_steps", 1) == 0
    shutil.move(tmp_path / "out", tmp_path / "other")
    assert train("--max_steps", 1, "--seed", 7) == 0
    before = digest(tmp_path / "out")
    assert train("--max_steps", 2, "--resume_from_checkpoint", tmp_path / "other/checkpoint-1") == 1
    assert "holds another run" in capsys.readouterr().err and digest(tmp_path / "out") == before


def test_resume_false_does_not_resume(train, tmp_path, capsys):
    assert train("--max_steps", 1) == 0
    assert train("--max_steps", 2, "--resume_from_checkpoint", "false") == 1
    assert "holds checkpoints" in capsys.readouterr().err


def test_a_checkpoint_without_optimiser_state_is_not_continued(train, capsys):
    assert train("--max_steps", 1, "--save_only_model") == 0
    assert train("--max_steps", 2, "--save_only_model") == 1
    assert "--save_only_model" in capsys.readouterr().err


def test_other_settings_in_the_same_folder_are_refused_by_name(train, tmp_path, capsys):
    assert train("--max_steps", 1) == 0
    before = digest(tmp_path / "out")
    capsys.readouterr()
    assert train("--max_steps", 2, "--seed", 7, "--max_train_samples", 3) == 1
    message = capsys.readouterr().err
    assert "--seed" in message and "--max_train_samples" in message and "--overwrite_output_dir" in message
    assert "--learning_rate" not in message and digest(tmp_path / "out") == before


def test_a_run_that_failed_as_it_began_is_in_nobodys_way(train, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run_args.json").write_text('{"learning_rate": 7}')
    assert train() == 0


def test_overwriting_starts_anew_and_keeps_the_files_of_others(train, tmp_path):
    assert train("--max_steps", 2) == 0
    (tmp_path / "out/notes.txt").write_text("mine")
    assert train("--max_steps", 1, "--seed", 7, "--overwrite_output_dir") == 0
    assert read(tmp_path / "out/trainer_state.json")["global_step"] == 1
    assert not (tmp_path / "out/checkpoint-2").exists() and (tmp_path / "out/notes.txt").read_text() == "mine"


def test_overwriting_loses_nothing_when_the_data_turns_out_unusable(train, tmp_path, capsys):
    assert train("--max_steps", 1) == 0
    before = digest(tmp_path / "out")
    (tmp_path / "broken.json").write_text("{")
    assert train("--max_steps", 1, "--overwrite_output_dir", "--train_file", tmp_path / "broken.json") == 1
    assert "broken.json" in capsys.readouterr().err and digest(tmp_path / "out") == before


def test_a_folder_of_other_files_and_one_without_checkpoints_are_refused(train, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    assert train("--max_steps", 1) == 1
    assert "holds other files" in capsys.readouterr().err
    (tmp_path / "out/notes.txt").unlink()
    assert train("--max_steps", 1, "--save_strategy", "no") == 0
    assert train("--max_steps", 1, "--save_strategy", "no") == 1
    assert "without a checkpoint" in capsys.readouterr().err


def test_training_shorter_than_the_logging_interval_has_no_loss_curve(train, tmp_path, caplog):
    assert train("--max_steps", 1, "--logging_steps", 50) == 0
    assert not (tmp_path / "out/loss.png").exists() and "no loss.png" in caplog.text


def test_ctrl_c_in_training_says_how_to_go_on(train, tmp_path, monkeypatch, capsys):
    assert train("--max_steps", 1) == 0
    monkeypatch.setattr(run_qa.QuestionAnsweringTrainer, "train", interrupt)
    capsys.readouterr()
    assert train("--max_steps", 2) == 130
    assert "interrupted; the same command continues from" in capsys.readouterr().err


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt
