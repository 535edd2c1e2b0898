"""Reading questions from every kind of file and from folders."""

import csv
import json
import logging
import os
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from data_qa import FEATURES, cache_key, load_splits, read_records
from errors import DataError

RECORD = {
    "id": "q1",
    "title": "Rivers",
    "context": "The Elbe is long.",
    "question": "What is long?",
    "answers": {"text": ["Elbe"], "answer_start": [4]},
}


def load(path, split="validation", **kwargs) -> Dataset:
    return load_splits(data_files={split: str(path)}, **kwargs)[split]


def write_lines(path: Path, *records) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def expected_records(squad_file: Path) -> list[dict]:
    """The flat form of a raw SQuAD file, by the published description of the format."""
    records = []
    for article in json.loads(squad_file.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = {key: [answer[key] for answer in qa["answers"]] for key in ("text", "answer_start")}
                flat = {"id": qa["id"], "question": qa["question"], "answers": answers}
                records.append({"title": article["title"], "context": paragraph["context"], **flat})
    return records


@pytest.mark.parametrize("file", ["squad_v1_file", "squad_v2_file"])
def test_raw_squad_flat_json_json_lines_and_csv_give_equal_datasets(file, request, tmp_path):
    raw = request.getfixturevalue(file)
    records = expected_records(raw)
    (tmp_path / "flat.json").write_text(json.dumps({"data": records}), encoding="utf-8")
    (tmp_path / "list.json").write_text(json.dumps(records), encoding="utf-8-sig")
    write_lines(tmp_path / "lines.jsonl", *records)
    write_lines(tmp_path / "lines.json", *records)
    with open(tmp_path / "table.csv", "w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, fieldnames=records[0])
        writer.writeheader()
        writer.writerows(record | {"answers": json.dumps(record["answers"])} for record in records)
    for path in [raw, *tmp_path.iterdir()]:
        dataset = load(path)
        assert dataset.features == FEATURES, path
        assert dataset.to_list() == [{name: record[name] for name in FEATURES} for record in records], path


def test_plausible_answers_are_ignored_and_unanswerable_questions_have_empty_lists(squad_v2_file):
    answers = {row["id"]: row["answers"] for row in load(squad_v2_file)}
    empty = {name for name, answer in answers.items() if answer == {"text": [], "answer_start": []}}
    assert empty == {f"mayor-{number}" for number in range(6)} and len(answers) == 24


def test_a_number_as_id_becomes_text_and_a_missing_title_is_empty(tmp_path):
    record = {name: value for name, value in RECORD.items() if name != "title"} | {"id": 7}
    row = load(write_lines(tmp_path / "a.jsonl", record))[0]
    assert row["id"] == "7" and row["title"] == ""


def test_only_the_test_split_may_leave_answers_out(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {name: RECORD[name] for name in ("id", "context", "question")})
    assert load(path, "test")[0]["answers"] is None  # not known, unlike the empty lists of "there is none"
    with pytest.raises(DataError, match=r"a\.jsonl: line 1 \(id 'q1'\) has no answers; add it"):
        load(path, "train")


def changed(**fields) -> str:
    return json.dumps(RECORD | fields)


WRONG_ANSWER = {"text": ["Elbe"], "answer_start": [5]}
MALFORMED = {
    "empty file": ("a.json", "", ["holds no questions", "name another file"]),
    "no questions": ("a.json", '{"version": "1.1", "data": []}', ["holds no questions"]),
    "unreadable JSON": ("a.json", '{"data": [\n{"id": "q1",\n oops}]}', ["line 3 is not valid JSON", "repair"]),
    "unreadable line": (
        "a.jsonl",
        f"{json.dumps(RECORD)}\n\n{{oops",
        ["line 3 is not valid JSON", "one object a line"],
    ),
    "not UTF-8": ("a.json", b'{"data": "\xff"}', ["not UTF-8", "convert"]),
    "no list": ("a.json", '{"data": {"id": "q1"}}', ["no list of questions", "wrap"]),
    "not an object": ("a.json", '["q1"]', ["record 1 is no object", "write {id"]),
    "missing field": (
        "a.json",
        f'[{changed()}, {{"id": "q2", "question": "?", "answers": []}}]',
        ["record 2 (id 'q2') has no context", "add it"],
    ),
    "missing id": ("a.jsonl", changed(id=None), ["line 1 has no id", "add it"]),
    "half a character": (
        "a.jsonl",
        changed(question="What \ud83d?"),
        ["(id 'q1') has half", "character 5 of its question"],
    ),
    "deep JSON": ("a.json", "[" * 100_000, ["line 1 is not valid JSON", "repair"]),
    "deep line": ("a.jsonl", f"{changed()}\n{'[' * 100_000}", ["line 2 is not valid JSON", "one object a line"]),
    "huge number": ("a.jsonl", changed(id="N").replace('"N"', "7" * 5000), ["line 1 is not valid JSON"]),
    "number as question": ("a.jsonl", changed(question=3), ["(id 'q1')", "question that is no text", "quote"]),
    "blank context": ("a.jsonl", changed(context=" "), ["(id 'q1') has an empty context", "add the passage"]),
    "answer elsewhere": ("a.jsonl", changed(answers=WRONG_ANSWER), ["not at character 5", "set answer_start to 4"]),
    "answer nowhere": (
        "a.jsonl",
        changed(answers={"text": ["Oder"], "answer_start": [4]}),
        ["'Oder'", "copy the answer from the context"],
    ),
    "negative offset": ("a.jsonl", changed(answers={"text": ["."], "answer_start": [-1]}), ["not at character -1"]),
    "empty answer": ("a.jsonl", changed(answers={"text": [""], "answer_start": [0]}), ["empty answer", "leave"]),
    "answer without offset": (
        "a.jsonl",
        changed(answers={"text": ["Elbe"]}),
        ["without text and answer_start", "give"],
    ),
    "answers not in lists": (
        "a.jsonl",
        changed(answers={"text": "Elbe", "answer_start": 4}),
        ["text or answer_start is no list", "in [ ]"],
    ),
    "empty text as answers": ("a.jsonl", changed(answers=""), ["without text and answer_start", "give both"]),
    "semicolons": (
        "a.csv",
        "id;context;question;answers\n1;The Elbe.;What?;\n",
        ["one column, 'id;context;question;answers'", "separate the cells by commas"],
    ),
    "offset as text": ("a.jsonl", changed(answers={"text": ["Elbe"], "answer_start": ["4"]}), ["no whole number"]),
    "unequal lists": ("a.jsonl", changed(answers={"text": ["Elbe"], "answer_start": []}), ["1 answer texts but 0"]),
    "duplicate id": ("a.jsonl", f"{changed()}\n{changed()}", ["line 2 (id 'q1')", "earlier question", "its own"]),
    "article without qas": (
        "a.json",
        '{"data": [{"title": "T", "paragraphs": [{"context": "c"}]}]}',
        ["article 'T' is not in SQuAD's form", "write paragraphs"],
    ),
    "paragraph without context": (
        "a.json",
        '{"data": [{"paragraphs": [{"qas": [{"id": "q1", "question": "?", "answers": []}]}]}]}',
        ["record 1 (id 'q1') has no context"],
    ),
    "answers not JSON": (
        "a.csv",
        "id,context,question,answers\n1,The Elbe.,What?,{'text': ['Elbe']}\n",
        ["record 1 has no valid JSON", "write {"],
    ),
    "column missing": ("a.csv", "id,question,answers\n1,What?,\n", ["record 1 (id '1') has no context"]),
    "wrong extension": ("a.txt", json.dumps([RECORD]), [".json, .jsonl, .csv", "--train_file"]),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_input_gives_one_line_naming_file_record_and_remedy(case, tmp_path):
    name, content, parts = MALFORMED[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load(path, "train")
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: "), message
    assert all(part in message for part in parts), message


def test_a_csv_cell_may_be_longer_than_the_csv_module_allows(tmp_path):
    limit, context = csv.field_size_limit(), "word " * 30_000
    path = tmp_path / "a.csv"
    path.write_text(f"id,context,question,answers\n1,{context},What?,\n")
    rows = list(read_records(str(path)))
    assert rows[0]["context"] == context and rows[0]["answers"] == {"text": [], "answer_start": []}
    assert csv.field_size_limit() == limit  # the limit of other readers in this process


def test_a_missing_file_and_no_data_at_all_name_the_flag():
    with pytest.raises(DataError, match="nowhere.json: there is no such file; check --test_file"):
        load("nowhere.json", "test")
    with pytest.raises(DataError, match="--dataset_name, or --train_file"):
        load_splits(data_files={})


def test_an_edited_file_is_read_anew_and_an_unchanged_one_is_not(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", RECORD)
    first = load(path)
    assert load(path).cache_files == first.cache_files
    stamp = os.stat(path)
    write_lines(path, RECORD | {"question": "Who is long?"})  # as long as before
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert load(path)[0]["question"] == "Who is long?" and first[0]["question"] == "What is long?"


def test_overwrite_cache_reads_anew(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", RECORD)
    cached = Path(load(path).cache_files[0]["filename"])
    before = cached.stat().st_mtime_ns
    load(path)
    assert cached.stat().st_mtime_ns == before
    load(path, overwrite_cache=True)
    assert cached.stat().st_mtime_ns > before


def test_a_cache_key_follows_the_code_in_its_source_file_and_the_parts(tmp_path):
    source = tmp_path / "code.py"
    source.write_text("step = 1")
    key = cache_key(str(source), b"content", "train")
    assert cache_key(str(source), b"content", "train") == key
    assert len({key, cache_key(str(source), b"content", "test"), cache_key(str(source), b"other", "train")}) == 3
    source.write_text("step = 2")
    assert cache_key(str(source), b"content", "train") != key


def test_a_local_folder_stands_for_a_dataset_and_files_win_over_it(squad_v1_file, tmp_path):
    folder = tmp_path / "squad"
    folder.mkdir()
    write_lines(folder / "train-v1.1.json", RECORD)
    (folder / "dev-v1.1.json").write_bytes(squad_v1_file.read_bytes())
    splits = load_splits(dataset_name=str(folder), data_files={})
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 1, "validation": 18}
    splits = load_splits(dataset_name=str(folder), data_files={"train": str(squad_v1_file)})
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 18, "validation": 18}
    write_lines(folder / "train-v2.0.json", RECORD)
    with pytest.raises(DataError, match=r"train-v1.1.json and .*train-v2.0.json could all be train; .* --train_file"):
        load_splits(dataset_name=str(folder), data_files={})


def test_folders_of_the_datasets_library_are_read(tmp_path):
    rows = Dataset.from_list([RECORD], features=FEATURES)
    DatasetDict(validation=rows, test=rows.remove_columns(["title", "answers"])).save_to_disk(tmp_path / "saved")
    splits = load_splits(dataset_name=str(tmp_path / "saved"), data_files={})
    assert splits["validation"][0] == RECORD
    assert splits["test"][0] == RECORD | {"title": "", "answers": None}
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train-0.parquet")
    assert load_splits(dataset_name=str(tmp_path / "parquet"), data_files={})["train"][0] == RECORD


def test_a_dataset_without_a_needed_column_is_refused_with_its_name(tmp_path):
    DatasetDict(train=Dataset.from_list([RECORD]).remove_columns(["id", "answers"])).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="split train: no column id, answers; needed are id, title, context"):
        load_splits(dataset_name=str(tmp_path / "saved"), data_files={})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([RECORD, RECORD], r"record 2 \(id 'q1'\) has the id of an earlier question"),
        ([RECORD, RECORD | {"id": "q2", "context": None}], r"record 2 \(id 'q2'\) has no context; add it"),
        (
            [RECORD | {"answers": WRONG_ANSWER}],
            r"record 1 \(id 'q1'\) has the answer 'Elbe', which is not at character 5",
        ),
        ([RECORD, RECORD | {"id": "q2", "answers": None}], r"record 2 \(id 'q2'\) has no answers; add it"),
    ],
)
def test_records_of_a_dataset_are_checked_like_those_of_a_file(rows, message, tmp_path):
    Dataset.from_list(rows, features=FEATURES).to_parquet(tmp_path / "validation-0.parquet")
    with pytest.raises(DataError, match=f"^{tmp_path}, split validation: {message}"):
        load_splits(dataset_name=str(tmp_path), data_files={})


def test_squad_is_an_alias_and_the_hub_out_of_reach_gives_one_line_with_the_remedy(caplog):
    with caplog.at_level(logging.INFO, logger="data_qa"), pytest.raises(DataError) as caught:
        load_splits(dataset_name="squad", data_files={})
    assert "rajpurkar/squad" in caplog.text
    assert "\n" not in str(caught.value)
    assert "--dataset_name squad" in str(caught.value) and "--validation_file" in str(caught.value)


def test_reader_streams_checked_records(squad_v1_file):
    assert next(read_records(str(squad_v1_file)))["id"] == "year-0"
