"""One question on the command line, against the Reader and against what --do_predict leaves of the same question."""

import io
import json
from types import SimpleNamespace

import pytest
from conftest import passage
from stages import digest, failure, read, succeed

from command_line import parse_args
from reader import Reader

QUESTION = "Who founded the town?"


@pytest.fixture
def context(tmp_path):
    path = tmp_path / "passage.txt"
    path.write_text(passage(0), encoding="utf-8")
    return path


def asked(capsys, *flags):
    """What is printed."""
    capsys.readouterr()
    succeed("--do_predict", "--question", QUESTION, *flags)
    return capsys.readouterr().out


def test_the_answer_alone_is_printed_and_nothing_written(dynamic, context, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = digest(tmp_path)
    out = asked(capsys, "--model_name_or_path", dynamic, "--context", context)
    answer = out.removesuffix("\n")
    assert answer and "\n" not in answer and answer in passage(0)
    assert digest(tmp_path) == before


def test_a_question_is_answered_as_in_a_file_of_questions(dynamic, context, capsys, tmp_path):
    lengths = ("--length_config", "(40, 24, 10)")
    out = asked(capsys, "--model_name_or_path", dynamic, "--context", context, *lengths)
    file = tmp_path / "questions.json"
    file.write_text(json.dumps({"data": [{"id": "q", "question": QUESTION, "context": passage(0)}]}))
    succeed(
        "--model_name_or_path",
        dynamic,
        "--do_predict",
        "--test_file",
        file,
        *lengths,
        "--output_dir",
        tmp_path / "out",
    )
    assert out == read(tmp_path / "out" / "predict_predictions.json")["q"] + "\n"


def test_json_holds_the_n_best_answers_their_spans_and_the_cost(dynamic, context, capsys):
    flags = ("--print_json", "--n_best_size", "5", "--length_config", "(40, 24, 10)")
    found = json.loads(asked(capsys, "--model_name_or_path", dynamic, "--context", context, *flags))
    assert found["question"] == QUESTION and found["length_config"] == [40, 24, 10] and 0 < found["macs_ratio"] < 1
    assert len(found["nbest"]) == 5 and found["answer"] == found["nbest"][0]["text"]
    assert all(passage(0)[row["start"] : row["end"]] == row["text"] for row in found["nbest"])


def test_the_passage_may_come_from_standard_input(dynamic, context, capsys, monkeypatch):
    expected = asked(capsys, "--model_name_or_path", dynamic, "--context", context)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(context.read_bytes())))
    assert asked(capsys, "--model_name_or_path", dynamic, "--context", "-") == expected


def test_a_passage_of_many_windows_is_answered_as_in_one_batch(dynamic, monkeypatch):
    reader, context = Reader.from_pretrained(dynamic), " ".join(passage(n) for n in range(6))
    whole = reader(QUESTION, context)
    monkeypatch.setattr("reader.BATCH", 2)
    parts = reader(QUESTION, context)
    assert (parts.text, parts.start, parts.end) == (whole.text, whole.start, whole.end)
    assert parts.score == pytest.approx(whole.score, abs=1e-5)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), (b"\xff\xfe\xff", "cannot be read"), (b" \n", "is empty")]
)
def test_an_unusable_passage_is_one_line(dynamic, tmp_path, capsys, content, words):
    path = tmp_path / "passage.txt"
    if content is not None:
        path.write_bytes(content)
    flags = ("--do_predict", "--question", QUESTION, "--context", path)
    message = failure(capsys, "--model_name_or_path", dynamic, *flags)
    assert f"--context {path} {words}" in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--do_predict", "--question", "Who?"], "--context FILE"),
        (["--do_predict", "--question", " ", "--context", "c"], "--question is blank"),
        (["--question", "Who?", "--context", "c"], "add it"),
        (
            ["--do_predict", "--context", "c", "--output_dir", "o", "--test_file", "t"],
            "--context goes with --question",
        ),
        (
            ["--do_predict", "--print_json", "--output_dir", "o", "--test_file", "t"],
            "--print_json goes with --question",
        ),
        (["--do_predict", "--question", "Who?", "--context", "c", "--do_eval"], "--do_eval exclude each other"),
        (["--do_predict", "--question", "Who?", "--context", "c", "--test_file", "t"], "--test_file exclude"),
        (["--do_predict", "--test_file", "t"], "--output_dir is required"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, words, capsys):
    with pytest.raises(SystemExit) as error:
        parse_args(["--model_name_or_path", "m", *flags])
    assert error.value.code == 2 and words in capsys.readouterr().err


def test_an_output_folder_is_said_to_be_idle(capsys):
    parse_args(
        ["--model_name_or_path", "m", "--do_predict", "--question", "Who?", "--context", "c", "--output_dir", "o"]
    )
    assert "--output_dir has no effect with --question" in capsys.readouterr().err


def test_an_int8_folder_that_is_none_is_named(dynamic, context, capsys):
    flags = ("--do_predict", "--question", QUESTION, "--context", context, "--int8")
    message = failure(capsys, "--model_name_or_path", dynamic, *flags)
    assert f"--model_name_or_path {dynamic} holds no INT8 model: make one" in message
