"""Reading questions from every kind of file, and the windows made of them."""

import csv
import json
import logging
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from data_qa import FEATURES, DataError, featurize, load_splits, make_collator, read_records

RECORD = {
    "id": "q1",
    "title": "Rivers",
    "context": "The Elbe is long.",
    "question": "What is long?",
    "answers": {"text": ["Elbe"], "answer_start": [4]},
}
LENGTHS = {"max_seq_length": 64, "doc_stride": 16}


def load(path, split="validation", **kwargs) -> Dataset:
    return load_splits(data_files={split: str(path)}, **kwargs)[split]


def write_lines(path: Path, *records) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


# ---- reading -------------------------------------------------------------------------------------------------------


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
    assert load(path, "test")[0]["answers"] == {"text": [], "answer_start": []}
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
    assert splits["test"][0] == RECORD | {"title": "", "answers": {"text": [], "answer_start": []}}
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train-0.parquet")
    assert load_splits(dataset_name=str(tmp_path / "parquet"), data_files={})["train"][0] == RECORD


def test_a_dataset_without_a_needed_column_is_refused_with_its_name(tmp_path):
    DatasetDict(train=Dataset.from_list([RECORD]).remove_columns(["id", "answers"])).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="split train: no column id, answers; needed are id, title, context"):
        load_splits(dataset_name=str(tmp_path / "saved"), data_files={})


def test_squad_is_an_alias_and_the_hub_out_of_reach_gives_one_line_with_the_remedy(caplog):
    with caplog.at_level(logging.INFO, logger="data_qa"), pytest.raises(DataError) as caught:
        load_splits(dataset_name="squad", data_files={})
    assert "rajpurkar/squad" in caplog.text
    assert "\n" not in str(caught.value)
    assert "--dataset_name squad" in str(caught.value) and "--validation_file" in str(caught.value)


# ---- features ------------------------------------------------------------------------------------------------------


@pytest.fixture
def examples(squad_v2_file):
    return load(squad_v2_file)


def brute_force_windows(tokenizer, question: str, context: str) -> list[list[int]]:
    """Token ids of every window, cut by hand from the whole passage, with the families' published special tokens."""
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    between = [sep] if tokenizer.cls_token == "[CLS]" else [sep, sep]
    first, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question.lstrip(), context))
    room = 64 - len(first) - len(between) - 2
    windows, begin = [], 0
    while True:
        windows.append([cls, *first, *between, *whole[begin : begin + room], sep])
        if begin + room >= len(whole):
            return windows
        begin += room - 16


def test_windows_hold_the_question_and_overlap_by_the_doc_stride(tokenizer, examples):
    features = featurize(examples, tokenizer, **LENGTHS, training=False)
    for row in examples:
        expected = brute_force_windows(tokenizer, row["question"], row["context"])
        found = features.filter(lambda feature, name=row["id"]: feature["example_id"] == name)["input_ids"][:]
        assert sorted(found) == sorted(expected)
    assert len(features) > 2 * len(examples) and max(features["length"]) == 64


def test_every_training_span_decodes_to_the_answer_and_others_point_at_cls(tokenizer, examples):
    features = featurize(examples, tokenizer, **LENGTHS, training=True)
    windows = tokenizer(
        [question.lstrip() for question in examples["question"]],
        examples["context"][:],
        truncation="only_second",
        max_length=64,
        stride=16,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert features["input_ids"][:] == windows["input_ids"]
    with_answer = set()
    for row, sample in enumerate(windows["overflow_to_sample_mapping"]):
        context, answers = examples[sample]["context"], examples[sample]["answers"]
        text, start = (answers["text"] or [None])[0], (answers["answer_start"] or [None])[0]
        first, last = features["start_positions"][row], features["end_positions"][row]
        inside = [i for i, sequence in enumerate(windows.sequence_ids(row)) if sequence == 1]
        offsets = windows["offset_mapping"][row]
        whole = text and offsets[inside[0]][0] <= start and offsets[inside[-1]][1] >= start + len(text)
        if whole:
            assert first in inside and last in inside
            assert context[offsets[first][0] : offsets[last][1]] == text
            with_answer.add(examples[sample]["id"])
        else:
            assert (first, last) == (0, 0) and features["input_ids"][row][0] == tokenizer.cls_token_id
    assert with_answer == {row["id"] for row in examples if row["answers"]["text"]}


def test_offsets_are_those_of_the_context_and_minus_one_elsewhere(tokenizer, examples):
    features = featurize(examples, tokenizer, **LENGTHS, training=False)
    contexts = dict(zip(examples["id"], examples["context"]))
    for feature in features:
        outside = [tuple(span) == (-1, -1) for span in feature["offset_mapping"]]
        first, last = outside.index(False), len(outside) - outside[::-1].index(False)
        assert all(outside[:first]) and all(outside[last:]) and not any(outside[first:last])
        assert len(outside) == feature["length"] == len(feature["input_ids"])
        context, ids = contexts[feature["example_id"]], feature["input_ids"][first:last]
        slices = [context[begin:end] for begin, end in feature["offset_mapping"][first:last]]
        if tokenizer.cls_token == "[CLS]":  # token by token: lower-cased and without accents
            tokens = [token.removeprefix("##") for token in tokenizer.convert_ids_to_tokens(ids)]
            assert tokens == [unicodedata.normalize("NFD", text)[0].lower() + text[1:].lower() for text in slices]
        else:  # a character can take several tokens, so the window as a whole
            begin, end = feature["offset_mapping"][first][0], feature["offset_mapping"][last - 1][1]
            assert tokenizer.decode(ids).strip(" \ufffd") == context[begin:end].strip()


def test_validation_windows_come_longest_first(tokenizer, examples):
    lengths = featurize(examples, tokenizer, **LENGTHS, training=False)["length"][:]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1]


def test_collator_pads_to_the_batch_or_to_the_maximum(tokenizer, examples):
    columns = [*tokenizer.model_input_names, "start_positions"]
    rows = featurize(examples, tokenizer, **LENGTHS, training=True).select_columns(columns)
    shortest = sorted(rows, key=lambda row: len(row["input_ids"]))[:2]
    longest = max(len(row["input_ids"]) for row in shortest)
    width = make_collator(tokenizer, False, 64)(shortest)["input_ids"].shape[1]
    assert width % 8 == 0 and longest <= width < longest + 8
    padded = make_collator(tokenizer, True, 64)(shortest)
    assert padded["input_ids"].shape == (2, 64)
    assert padded["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in shortest]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"max_seq_length": 513, "doc_stride": 16}, "--max_seq_length 513 is over the tokenizer's 512"),
        ({"max_seq_length": 64, "doc_stride": 64}, "--doc_stride 64 must lie between 0 and 60"),
        ({"max_seq_length": 16, "doc_stride": 8}, "question 'year-0' has .* --max_seq_length 16.* --doc_stride 8"),
    ],
)
def test_lengths_that_do_not_fit_are_refused_with_the_flag(lengths, message, bert_tokenizer, examples):
    with pytest.raises(DataError, match=message):
        featurize(examples, bert_tokenizer, **lengths, training=False)


def test_a_wrong_answer_offset_in_a_dataset_is_refused_before_training(bert_tokenizer):
    dataset = Dataset.from_list([RECORD | {"answers": WRONG_ANSWER}], features=FEATURES)
    with pytest.raises(DataError, match="question 'q1': its answer is not at answer_start 5"):
        featurize(dataset, bert_tokenizer, **LENGTHS, training=True)


SECOND_PROCESS = """
import sys
from transformers import AutoTokenizer
from data_qa import featurize, load_splits
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
dataset = load_splits(data_files={"validation": sys.argv[1]})["validation"]
for training in (True, False):
    features = featurize(dataset, tokenizer, max_seq_length=64, doc_stride=16, training=training)
    print(features.cache_files[0]["filename"])
"""


def test_features_are_cached_across_processes_whatever_the_tokenizer_did_before(tokenizer, squad_v1_file, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    tokenizer("a call", "that leaves its truncation behind", truncation="only_second", max_length=9)
    dataset = load(squad_v1_file)
    here = [featurize(dataset, tokenizer, **LENGTHS, training=training) for training in (True, False)]
    files = [features.cache_files[0]["filename"] for features in here]
    stamps = [os.stat(file).st_mtime_ns for file in files]
    command = [sys.executable, "-c", SECOND_PROCESS, str(squad_v1_file), str(tmp_path)]
    root = Path(__file__).parent.parent
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert output.split() == files and [os.stat(file).st_mtime_ns for file in files] == stamps
    featurize(dataset, tokenizer, **LENGTHS, training=True, overwrite_cache=True)
    assert os.stat(files[0]).st_mtime_ns > stamps[0]


def test_reader_streams_checked_records(squad_v1_file):
    assert next(read_records(str(squad_v1_file)))["id"] == "year-0"
