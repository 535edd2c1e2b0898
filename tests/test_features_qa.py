"""The windows made of questions, against windows cut by hand, and the cache of them."""

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from datasets import Dataset

import features_qa
import windows_qa
from data_qa import load_splits
from errors import DataError
from features_qa import featurize, make_collator

LENGTHS = {"max_seq_length": 64, "doc_stride": 16}


def load(path: Path) -> Dataset:
    return load_splits(data_files={"validation": str(path)})["validation"]


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


@pytest.mark.parametrize("training", [True, False])
def test_a_context_without_a_token_is_refused_with_file_and_question(training, bert_tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    record = {"id": "q1", "context": "\u200b", "question": "What is long?", "answers": []}
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=rf"^{path}: question 'q1' has a context without a token; add the passage"):
        featurize(load(path), bert_tokenizer, **LENGTHS, training=training)


SECOND_PROCESS = """
import sys
from transformers import AutoTokenizer
from data_qa import load_splits
from features_qa import featurize
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


@pytest.mark.parametrize("module", [features_qa, windows_qa])
def test_editing_the_feature_code_makes_features_anew_and_reads_no_file_anew(
    module, bert_tokenizer, squad_v1_file, tmp_path, monkeypatch
):
    def cached() -> list[str]:
        dataset = load(squad_v1_file)
        features = featurize(dataset, bert_tokenizer, **LENGTHS, training=True)
        return [part.cache_files[0]["filename"] for part in (dataset, features)]

    questions, features = cached()
    assert cached() == [questions, features]
    edited = tmp_path / "edited.py"
    edited.write_bytes(Path(module.__file__).read_bytes() + b"# edited\n")
    monkeypatch.setattr(module, "__file__", str(edited))
    questions_after, features_after = cached()
    assert questions_after == questions and features_after != features
