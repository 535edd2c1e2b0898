"""The commands of benchmarks/distillation_study.py, and the tables it makes of what they leave."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import distillation_study
from command_line import parse_args

SCORES = {"task_loss_only": 70.0, "prediction": 72.5, "intermediate_prediction": 71.0}


@pytest.fixture
def commands(monkeypatch):
    """The flags of every run_qa.py that the study starts; each leaves results as if it had run."""
    started = []

    def run(command, check):
        flags = [str(part) for part in command[2:]]
        started.append(flags)
        folder = Path(flags[-1])
        folder.mkdir(parents=True)
        f1 = next((value for name, value in SCORES.items() if folder.name.startswith(name)), 60.0)
        rows = [{"rate": rate, "eval_f1": f1 - 10 * rate} for rate in (0.1, 0.2)]
        (folder / "train_results.json").write_text("{}")
        (folder / "measure_rate_results.json").write_text(json.dumps({"rows": rows}))
        (folder / "eval_results.json").write_text(json.dumps({"eval_f1": f1, "eval_exact_match": f1 - 9}))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(distillation_study, "environment", dict)  # which asks git
    return started


@pytest.fixture
def study(monkeypatch, tmp_path):
    def start():
        flags = "--teacher t --train_file a.json --validation_file b.json --steps 100 --rates [0.1,0.2] --students"
        students = ["task loss only", "prediction", "intermediate, then prediction"]
        given = [*shlex.split(flags), *students, "--output_dir", str(tmp_path / "study"), "--", "--seed", "7"]
        monkeypatch.setattr(sys, "argv", ["distillation_study.py", *given])
        distillation_study.main()

    return start


def test_every_command_parses_without_a_warning_and_all_students_take_as_many_steps(commands, study, capsys):
    study()
    capsys.readouterr()
    steps = {}
    for flags in commands:
        args = parse_args(flags)
        assert "has no effect" not in capsys.readouterr().err.replace("--seed has no effect", ""), flags
        if args.run.do_train:
            name = Path(args.run.output_dir).name.rsplit("-", 1)[0]
            steps[name] = steps.get(name, 0) + args.run.max_steps
    assert steps.pop("length_drop") == 300 and len(steps) == 4 and set(steps.values()) == {100}


def test_the_best_student_is_trained_with_length_drop_by_every_teacher(commands, study, capsys):
    study()
    out = capsys.readouterr().out
    assert "| prediction | 63.50 | 72.50 |" in out and "LengthDrop of the student by prediction" in out
    dropped = [parse_args(flags) for flags in commands if "--length_adaptive" in flags]
    assert [args.distillation.length_drop_teacher for args in dropped] == ["self", "teacher", "both"]
    assert all(args.model.model_name_or_path.endswith("prediction-1") for args in dropped)


def test_beside_length_drop_the_same_student_is_trained_as_long_at_full_length(commands, study, capsys):
    study()
    assert "| (no sub-models) | " in capsys.readouterr().out
    (longer,) = [parse_args(flags) for flags in commands if flags[-1].endswith("/longer_training")]
    dropped = next(parse_args(flags) for flags in commands if "--length_adaptive" in flags)
    assert not longer.length_adaptive.length_adaptive and longer.model == dropped.model
    assert (longer.run.max_steps, longer.run.learning_rate) == (dropped.run.max_steps, dropped.run.learning_rate)


def test_runs_whose_results_exist_are_not_repeated(commands, study):
    study()
    before = len(commands)
    study()
    assert len(commands) == before
