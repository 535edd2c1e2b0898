"""The sample set that scripts/make_sample_data.py writes, and the commands in scripts/*.sh."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import command_line

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = ROOT / "scripts" / "make_sample_data.py"
QUESTION_WORDS = [
    "Who",
    "What",
    "When",
    "Where",
    "Which",
    "How",
    "Why",
    "In",
    "On",
    "From",
    "For",
    "Whose",
    "Whom",
    "To",
    "Of",
    "As",
    "Since",
]


def generate(folder: Path, *flags: str) -> dict[str, bytes]:
    """The bytes of train.json and validation.json after one run of the generator in a process of its own."""
    command = [sys.executable, str(GENERATOR), "--output_dir", str(folder), *flags]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": "random"})
    return {split: (folder / f"{split}.json").read_bytes() for split in ("train", "validation")}


def read_records(squad: dict) -> list[dict]:
    """One record a question, with its passage."""
    return [
        qa | {"context": paragraph["context"]}
        for article in squad["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> dict[str, dict]:
    files = generate(tmp_path_factory.mktemp("sample"))
    return {split: json.loads(text) for split, text in files.items()}


@pytest.fixture(scope="module")
def records(sample) -> dict[str, list[dict]]:
    return {split: read_records(squad) for split, squad in sample.items()}


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    size = ("--train_questions", "60", "--validation_questions", "30")
    first = generate(tmp_path / "a", *size, "--seed", "7")
    assert generate(tmp_path / "b", *size, "--seed", "7") == first
    other = generate(tmp_path / "c", *size, "--seed", "8")
    assert all(other[split] != first[split] for split in first)


def test_files_have_the_raw_squad_format_and_the_numbers_of_questions_asked_for(tmp_path):
    files = generate(tmp_path, "--train_questions", "41", "--validation_questions", "13")
    for (split, text), number in zip(files.items(), (41, 13)):
        squad = json.loads(text)
        assert set(squad) == {"version", "data"} and squad["version"] == "1.1"
        assert all(set(article) == {"title", "paragraphs"} and article["paragraphs"] for article in squad["data"])
        records = read_records(squad)
        assert len(records) == number
        assert all(set(record) == {"id", "question", "answers", "context"} for record in records)
        assert len({record["id"] for record in records}) == number, split


def test_every_answer_stands_at_its_offset_on_word_boundaries(records):
    for record in records["train"] + records["validation"]:
        assert record["answers"]
        for answer in record["answers"]:
            start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
            assert record["context"][start:end] == answer["text"] == answer["text"].strip()
            around = record["context"][max(start - 1, 0) : start] + record["context"][end : end + 1]
            assert not re.search(r"\w", around), (answer, around)


def test_train_has_one_gold_answer_and_validation_often_several(records):
    assert all(len(record["answers"]) == 1 for record in records["train"])
    several = sum(len(record["answers"]) > 1 for record in records["validation"])
    assert 0.2 < several / len(records["validation"]) < 0.9


def test_an_answer_is_told_once_and_a_question_asked_once_a_passage(records):
    for split in records.values():
        asked = [(record["context"], record["question"]) for record in split]
        assert len(set(asked)) == len(asked)
        assert all(record["context"].count(record["answers"][0]["text"]) == 1 for record in split)


def test_questions_are_sentences_without_leftover_slots(records):
    for record in records["train"] + records["validation"]:
        assert record["question"].endswith("?") and record["question"].split()[0] in QUESTION_WORDS
        assert not re.search(r"[{}]|  ", record["question"] + record["context"])
        assert record["context"].endswith(".") and record["context"][0].isupper()


def test_splits_share_no_passage_name_or_phrase_answer(sample, records):
    def capitalised(split: str) -> set[str]:
        return set(re.findall(r"\b[A-Z][a-z]{2,}", " ".join(record["context"] for record in records[split])))

    words = tomllib.loads((ROOT / "scripts" / "sample_templates.toml").read_text(encoding="utf-8"))["words"]
    surnames_and_first_names = set(words["last"].split()) | set(words["first"].split())
    starts = words["town_start"].split()
    towns = {start + end for start in starts for end in words["town_end"].split()}
    shared = capitalised("train") & capitalised("validation")
    assert not shared & (surnames_and_first_names | towns)

    answers = {split: {r["answers"][0]["text"] for r in records[split]} for split in records}
    numeric = {answer for answer in answers["validation"] if re.search(r"\d", answer)}
    assert not (answers["train"] & answers["validation"]) - numeric
    assert not {r["context"] for r in records["train"]} & {r["context"] for r in records["validation"]}
    titles = [{article["title"] for article in sample[split]["data"]} for split in ("train", "validation")]
    assert not titles[0] & titles[1]


def test_lengths_call_for_padding_truncation_and_doc_stride(records):
    """Measured: 1.1 word pieces a word or punctuation mark; 335 of them and a question fill a window of 384."""
    for split in records.values():
        lengths = sorted(len(re.findall(r"\w+|[^\w\s]", record["context"])) for record in split)
        assert 20 < lengths[0] < 45 and 400 < lengths[-1] < 460
        assert 0.05 < sum(length > 335 for length in lengths) / len(lengths) < 0.35


def test_the_first_span_of_the_right_type_is_a_poor_answer(records):
    """A reader that ignores the question's subject and relation and takes the first date must mostly fail."""
    pattern = re.compile(r"\d{1,2} [A-Z][a-z]+ \d{4}")
    dated = [record for record in records["train"] if pattern.fullmatch(record["answers"][0]["text"])]
    hits = sum(pattern.search(record["context"])[0] == record["answers"][0]["text"] for record in dated)
    assert len(dated) > 50 and hits / len(dated) < 0.5


def test_version_2_leaves_about_a_third_without_an_answer(tmp_path):
    files = generate(tmp_path, "--version_2", "--train_questions", "600", "--validation_questions", "60")
    records = read_records(json.loads(files["train"]))
    assert all(record["is_impossible"] == (not record["answers"]) for record in records)
    assert 0.25 < sum(record["is_impossible"] for record in records) / len(records) < 0.42
    stated = {(r["context"], r["question"]) for r in records if r["answers"]}
    assert not stated & {(r["context"], r["question"]) for r in records if r["is_impossible"]}


# ---- the commands in scripts/*.sh ----------------------------------------------------------------------------------


def run_bash(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run bash in `folder` with no variables but `variables`, so that the caller's MODEL, FORCE, ... do not count."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    environment = keep | {"PYTHON": sys.executable} | variables
    command = ["bash", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def run_script(script: str, folder: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a script in a copy of scripts/ with a stand-in for Python."""
    shutil.copytree(ROOT / "scripts", folder / "scripts", dirs_exist_ok=True)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(
        f'#!/bin/sh\n[ "$1" = scripts/make_sample_data.py ] && exec {sys.executable} "$@"\n'
        '[ "$1" = run_qa.py ] && echo "HF_HUB_OFFLINE=$HF_HUB_OFFLINE"\nexit 0\n'
    )
    python.chmod(0o755)
    for name in ("requirements.txt", "requirements-ipex.txt"):
        (folder / name).write_text("")
        (folder / ".venv" / f"installed-{name}").write_text("")
    return run_bash(folder, f"scripts/{script}", *flags, **variables)


def printed_commands(script: str, folder: Path, *flags: str, **variables: str) -> list[list[str]]:
    """The run_qa.py command lines of a script that succeeds."""
    done = run_script(script, folder, *flags, **variables)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines() if " run_qa.py " in line]
    return [line[line.index("run_qa.py") + 1 :] for line in lines]


@pytest.mark.parametrize(
    ("script", "variables", "number"),
    [
        ("1_finetune.sh", {}, 1),
        ("2_length_drop.sh", {}, 1),
        ("3_search.sh", {}, 1),
        ("evaluate.sh", {}, 2),
        ("4_quantize.sh", {}, 1),
        ("5_evaluate_int8.sh", {}, 1),
        ("benchmark_table.sh", {"VALIDATION_FILE": "v.json", "TRAIN_FILE": "t.json", "LENGTH_CONFIG": "(9, 8)"}, 4),
        (
            "benchmark_table.sh",
            {"VALIDATION_FILE": "v.json", "LENGTH_CONFIG": "(9, 8)", "SCORES": "bfloat16 quantized_bfloat16"},
            8,
        ),
        ("int8_finish.sh", {"VALIDATION_FILE": "v.json", "TRAIN_FILE": "t.json", "LENGTH_CONFIG": "(9, 8)"}, 13),
        ("test_ipex.sh", {"VENV": ".venv"}, 0),
        ("test_ipex.sh", {"VENV": ".venv", "MODEL": "some/reader", "LENGTH_CONFIG": "(9, 8)"}, 2),
        ("distill.sh", {}, 4),
        ("distill.sh", {"TEACHER": "a", "STUDENT": "b", "TRAIN_FILE": "t.json", "VALIDATION_FILE": "v.json"}, 4),
        ("reproduce.sh", {}, 7),
        ("reproduce.sh", {"FORCE": "1"}, 7),
        ("quickstart.sh", {"MODEL": "some/encoder"}, 7),
        ("quickstart.sh", {"MODEL": "some/encoder", "TRAIN_FILE": "t.json", "VALIDATION_FILE": "v.json"}, 7),
    ],
)
def test_every_command_of_a_script_parses_without_a_warning(script, variables, number, tmp_path, capsys, monkeypatch):
    commands = printed_commands(script, tmp_path, **variables)
    assert len(commands) == number
    monkeypatch.chdir(tmp_path)
    for command in commands:
        command_line.parse_args(command)
        warnings = capsys.readouterr().err
        assert "has no effect" not in warnings, (command, warnings)
    if variables.get("TRAIN_FILE"):
        assert all(("v.json" in command) == bool({"--do_eval", "--do_search"} & {*command}) for command in commands)
        assert all(("t.json" in command) == bool({"--do_train", "--do_search"} & {*command}) for command in commands)


def test_the_published_commands_are_in_the_step_scripts(tmp_path):
    """The three commands of the paper's recipe, flag for flag and independent of their order."""
    recipe = "--max_seq_length 384 --doc_stride 128"
    published = {
        "1_finetune.sh": "--model_name_or_path nreimers/MiniLMv2-L6-H384-distilled-from-RoBERTa-Large "
        "--dataset_name squad --do_train --do_eval --learning_rate 3e-5 --num_train_epochs 2 "
        f"--per_device_train_batch_size 8 --output_dir output/finetuning {recipe}",
        "2_length_drop.sh": "--model_name_or_path output/finetuning --dataset_name squad --do_train --do_eval "
        "--learning_rate 3e-5 --num_train_epochs 5 --per_device_train_batch_size 8 --length_adaptive --num_sandwich 2 "
        f"--length_drop_ratio_bound 0.2 --layer_dropout_prob 0.2 --output_dir output/dynamic {recipe}",
        "3_search.sh": "--model_name_or_path output/dynamic --dataset_name squad --do_eval --do_search "
        f"--per_device_eval_batch_size 32 --output_dir output/search {recipe}",
    }
    for script, text in published.items():
        (command,) = printed_commands(script, tmp_path / script)
        assert sorted(command) == sorted(shlex.split(text)), script


def test_the_settings_of_dynamic_tinybert_are_in_the_distillation_script(tmp_path):
    recipe = "--dataset_name squad --do_train --do_eval --max_seq_length 384 --doc_stride 128"
    taught = f"{recipe} --teacher_model_name_or_path output/teacher --per_device_train_batch_size 16"
    published = {
        "teacher": f"--model_name_or_path bert-base-uncased {recipe} --learning_rate 3e-5 --num_train_epochs 2 "
        "--per_device_train_batch_size 8",
        "intermediate": f"--model_name_or_path huawei-noah/TinyBERT_General_6L_768D {taught} --state_loss_ratio 1.0 "
        "--att_loss_ratio 1.0 --att_mse --learning_rate 5e-5 --num_train_epochs 20",
        "student": f"--model_name_or_path output/intermediate {taught} --pred_distill --learning_rate 3e-5 "
        "--num_train_epochs 10",
        "dynamic_student": f"--model_name_or_path output/student {taught} --pred_distill --length_adaptive "
        "--num_sandwich 2 --length_drop_ratio_bound 0.2 --layer_dropout_prob 0.2 --learning_rate 2e-5 "
        "--num_train_epochs 10",
    }
    commands = printed_commands("distill.sh", tmp_path)
    for command, (folder, text) in zip(commands, published.items(), strict=True):
        assert sorted(command) == sorted(shlex.split(f"{text} --output_dir output/{folder}"))


def test_finished_steps_are_skipped_with_a_line_that_says_so(tmp_path):
    for step in ("finetuning", "dynamic", "evaluation_full", "evaluation_searched", "quantized", "evaluation_int8"):
        (tmp_path / "output/quickstart" / step).mkdir(parents=True)
        (tmp_path / "output/quickstart" / step / "eval_results.json").write_text("{}")
    made_from = "MODEL=some/encoder --train_file data/sample/train.json --validation_file data/sample/validation.json"
    (tmp_path / "output/quickstart/made_from.txt").write_text(made_from)
    commands = printed_commands("quickstart.sh", tmp_path, MODEL="some/encoder")
    assert len(commands) == 1 and "--do_search" in commands[0]


def test_results_of_another_model_or_data_are_refused_unless_forced(tmp_path):
    def refused(**variables):
        done = run_script("quickstart.sh", tmp_path, **variables)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and "OUTPUT_DIR=" in line and "FORCE=1" in line and "run_qa" not in done.stdout
        return line

    first = {"MODEL": "one", "DATASET": "squad"}
    results = tmp_path / "output/quickstart/finetuning/eval_results.json"
    results.parent.mkdir(parents=True)
    results.write_text("{}")
    assert "unknown" in refused(**first)  # nobody noted what it was made from
    assert len(printed_commands("quickstart.sh", tmp_path, FORCE="1", **first)) == 7
    assert len(printed_commands("quickstart.sh", tmp_path, **first)) == 6
    assert "MODEL=one" in refused(**first | {"MODEL": "two"}) and "squad" in refused(**first | {"DATASET": "other"})

    (tmp_path / "data").write_text("")  # so that the sample data cannot be written
    assert run_script("quickstart.sh", tmp_path, MODEL="two", FORCE="1").returncode == 1
    assert "unfinished" in refused(MODEL="two")  # the later steps still hold results of the first model


@pytest.mark.parametrize("python", [None, "#!/bin/sh\nexit 1\n"], ids=["no Python", "no pip"])
def test_an_environment_that_was_left_unfinished_is_made_anew(python, tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    if python:
        (tmp_path / ".venv/bin/python").write_text(python)
        (tmp_path / ".venv/bin/python").chmod(0o755)
    base = tmp_path / "python"  # without pip, because installing it takes seconds
    base.write_text(f'#!/bin/sh\n[ "$2" = venv ] && set -- "$@" --without-pip\nexec {sys.executable} "$@"\n')
    base.chmod(0o755)
    done = run_bash(tmp_path, "-c", "source scripts/common.sh; make_venv", PYTHON=str(base))
    assert done.returncode == 0, done.stderr
    subprocess.run([tmp_path / ".venv/bin/python", "-c", ""], check=True)


@pytest.mark.parametrize(
    ("variables", "offline"),
    [
        ({}, "1"),
        ({"MODEL": "scripts", "TRAIN_FILE": "t.json", "VALIDATION_FILE": "v.json"}, "1"),
        ({"MODEL": "someone/encoder"}, ""),
        ({"DATASET": "squad"}, ""),
        ({"DATASET": "squad", "HF_HUB_OFFLINE": "1"}, "1"),
    ],
)
def test_quickstart_is_offline_only_when_model_and_data_are_local(variables, offline, tmp_path):
    (tmp_path / "models/all-MiniLM-L6-v2").mkdir(parents=True)
    (tmp_path / "models/all-MiniLM-L6-v2/model.safetensors").write_text("")
    done = run_script("quickstart.sh", tmp_path, **variables)
    assert done.stdout.count(f"HF_HUB_OFFLINE={offline}\n") == 7, done.stderr


def test_reproduce_forces_training_and_search_and_hands_its_flags_to_every_step(tmp_path):
    for step, result in (("finetuning", "eval"), ("dynamic", "eval"), ("search", "search")):
        (tmp_path / "output" / step).mkdir(parents=True)
        (tmp_path / "output" / step / f"{result}_results.json").write_text("{}")
    assert len(printed_commands("reproduce.sh", tmp_path)) == 4
    commands = printed_commands("reproduce.sh", tmp_path, "--max_seq_length", "256", FORCE="1")
    assert ["--overwrite_output_dir" in command for command in commands] == [True] * 3 + [False] * 2 + [True, False]
    assert all(command[-2:] == ["--max_seq_length", "256"] for command in commands)


def test_summary_table_takes_the_speed_up_that_was_measured_side_by_side(tmp_path):
    full = {
        "eval_speedup": 1.0,
        "eval_f1": 90.5,
        "eval_exact_match": 85.25,
        "eval_macs": 4_758_552_960,
        "eval_macs_ratio": 1.0,
        "eval_latency_ms": 12.0,
    }
    small = {
        "eval_speedup": 1.4,
        "eval_f1": 89.5,
        "eval_exact_match": 84.0,
        "eval_macs": 2_546_934_528,
        "eval_macs_ratio": 0.5352,
        "eval_latency_ms": 8.0,
    }
    for name, results, lengths in (("full", full, [384] * 6), ("small", small, [315, 251, 242, 159, 142, 33])):
        (tmp_path / name).mkdir()
        text = json.dumps(results | {"eval_length_config": lengths})
        (tmp_path / name / "eval_results.json").write_text(text)
    command = [sys.executable, str(ROOT / "scripts" / "summary_table.py")]
    done = subprocess.run(
        [*command, tmp_path / "full", tmp_path / "small"], capture_output=True, text=True, check=True
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    assert rows[2] == ["full", "full (384)", "90.50", "85.25", "4.759", "12.00", "1.00x"]
    assert rows[3] == ["small", "(315, 251, 242, 159, 142, 33)", "89.50", "84.00", "2.547", "8.00", "1.40x"]
    missing = subprocess.run([*command, tmp_path / "none"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1 and "evaluate first" in missing.stderr and "Traceback" not in missing.stderr


def test_summary_table_tells_folders_of_one_name_and_equal_lengths_from_full_length_apart(tmp_path):
    for folder, length, ratio in (("a/run", 384, 1.0), ("b/run", 300, 0.7694)):
        (tmp_path / folder).mkdir(parents=True)
        text = json.dumps({"eval_length_config": [length] * 3, "eval_macs_ratio": ratio})
        (tmp_path / folder / "eval_results.json").write_text(text)
    command = [sys.executable, str(ROOT / "scripts" / "summary_table.py"), "a/run", "b/run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.strip("|").split("|")][:2] for line in done.stdout.splitlines()[2:]]
    assert rows == [["a/run", "full (384)"], ["b/run", "(300, 300, 300)"]]
