"""What goes wrong in a run: one line that names the flag or file, exit status 1, nothing overwritten."""

import json
import shutil

import pytest
from stages import failure, read, run

import run_qa


def test_a_bad_model_is_one_line(dynamic, squad_v1_file, tmp_path, capsys):
    def refused(model, *flags):
        stage = ("--do_eval", "--validation_file", squad_v1_file, "--output_dir", tmp_path / "out")
        return failure(capsys, "--model_name_or_path", model, *stage, *flags)

    assert "no such folder" in refused(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "distilbert"}')
    assert "distilbert" in refused(tmp_path / "other")
    for name, damage in {"cut": lambda data: data[:1000], "headless": lambda data: b"\0" * 9}.items():
        shutil.copytree(dynamic, tmp_path / name)
        weights = tmp_path / name / "model.safetensors"
        weights.write_bytes(damage(weights.read_bytes()))
        assert str(tmp_path / name) in refused(tmp_path / name)
    shutil.copytree(dynamic, tmp_path / "wide")
    config = read(tmp_path / "wide/config.json")
    (tmp_path / "wide/config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    assert str(tmp_path / "wide") in refused(tmp_path / "wide")
    (tmp_path / "wide/config.json").write_text(json.dumps(config | {"hidden_size": "32"}))
    message = refused(tmp_path / "wide")
    assert "hidden_size" in message and "'32'" in message
    assert "--max_seq_length 384" in failure_at_384(capsys, dynamic, squad_v1_file, tmp_path)
    assert "huggingface" in refused("someone/some-model")  # HF_HUB_OFFLINE=1


@pytest.mark.parametrize("flag", ["--config_name", "--tokenizer_name"])
def test_a_missing_configuration_or_tokenizer_is_named_by_its_own_flag(flag, dynamic, squad_v1_file, tmp_path, capsys):
    stage = ("--do_eval", "--validation_file", squad_v1_file, "--output_dir", tmp_path / "out")
    message = failure(capsys, "--model_name_or_path", dynamic, *stage, flag, tmp_path / "missing")
    assert f"{flag} {tmp_path / 'missing'} cannot be loaded" in message


def test_a_tokenizer_that_does_not_fit_the_model_is_one_line(
    dynamic, roberta_tokenizer, squad_v1_file, tmp_path, capsys
):
    stage = ("--do_eval", "--validation_file", squad_v1_file, "--output_dir", tmp_path / "out")
    shutil.copytree(dynamic, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*", "vocab*"))
    message = failure(capsys, "--model_name_or_path", tmp_path / "bare", *stage)
    assert f"{tmp_path / 'bare'} has no tokenizer files" in message and "--tokenizer_name" in message
    assert len(roberta_tokenizer) > read(dynamic / "config.json")["vocab_size"]
    roberta_tokenizer.save_pretrained(tmp_path / "larger")
    message = failure(capsys, "--model_name_or_path", dynamic, *stage, "--tokenizer_name", tmp_path / "larger")
    assert f"--tokenizer_name {tmp_path / 'larger'} has a tokenizer of {len(roberta_tokenizer)} tokens" in message


def failure_at_384(capsys, model, file, tmp_path) -> str:
    command = ["--model_name_or_path", str(model), "--validation_file", str(file), "--do_eval"]
    assert run_qa.main([*command, "--output_dir", str(tmp_path / "out")]) == 1
    return capsys.readouterr().err.strip()


def test_a_bad_length_config_is_one_line_that_names_the_flag(dynamic, searched, squad_v1_file, tmp_path, capsys):
    def refused(*flags):
        stage = ("--do_eval", "--validation_file", squad_v1_file, "--output_dir", tmp_path / "out")
        return failure(capsys, "--model_name_or_path", dynamic, *stage, *flags)

    message = refused("--length_config", "(60, 50)")
    assert "--length_config" in message and "3 layers" in message
    source = ("--length_config_from", dynamic)
    assert "no results of a finished search" in refused(*source, "--max_f1_drop", 1)
    message = refused("--length_config_from", searched, "--target_macs", 2)
    assert "--length_config_from" in message and "nearest" in message
    results = read(searched / "search_results.json")
    for row in [results["full"], *results["frontier"]]:
        row["length_config"] = row["length_config"][:2]
    (tmp_path / "search_results.json").write_text(json.dumps(results))
    assert "3 layers" in refused("--length_config_from", tmp_path, "--max_f1_drop", 100)


def test_bad_data_is_one_line(dynamic, tmp_path, capsys, squad_v1_file):
    def refused(*flags):
        stage = ("--do_eval", "--output_dir", tmp_path / "out")
        return failure(capsys, "--model_name_or_path", dynamic, *stage, *flags)

    (tmp_path / "bad.json").write_text('[{"id": "1", "question": "q"}]')
    assert "bad.json: record 1" in refused("--validation_file", tmp_path / "bad.json")
    assert "no such file" in refused("--validation_file", tmp_path / "missing.json")
    assert "is a file" in refused("--dataset_name", squad_v1_file)
    (tmp_path / "data").mkdir()
    shutil.copy(squad_v1_file, tmp_path / "data/train.json")
    message = refused("--dataset_name", tmp_path / "data")
    assert "no validation split" in message and "--validation_file" in message
    assert "--dataset_name squad" in refused("--dataset_name", "squad")  # HF_HUB_OFFLINE=1


def test_an_output_folder_that_cannot_be_written_to_is_one_line(dynamic, squad_v1_file, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, "--do_eval")
    assert "cannot be written" in failure(capsys, *command, "--output_dir", tmp_path / "file/out")


def test_a_programming_error_keeps_its_traceback(dynamic, squad_v1_file, tmp_path, monkeypatch):
    def broken(*args):
        raise ValueError("a bug")

    monkeypatch.setattr(run_qa, "evaluate", broken)
    with pytest.raises(ValueError, match="a bug"):
        run(
            *("--model_name_or_path", dynamic, "--validation_file", squad_v1_file),
            *("--do_eval", "--output_dir", tmp_path / "out"),
        )
