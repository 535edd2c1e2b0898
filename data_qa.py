"""Questions from the hub, from a local folder or from files of several kinds, in one flat schema."""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from datasets import (
    Dataset,
    DatasetDict,
    DownloadMode,
    Features,
    List,
    NamedSplit,
    Value,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetsError
from datasets.packaged_modules.generator.generator import Generator

from errors import DataError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
EXTENSIONS = (".json", ".jsonl", ".csv")
FEATURES = Features(
    {
        "id": Value("string"),
        "title": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
    }
)
# The published one-word names, which huggingface_hub no longer accepts.
HUB_ALIASES = {"squad": "rajpurkar/squad", "squad_v2": "rajpurkar/squad_v2"}
# How the files of each split begin in a local folder: SQuAD's own names and the usual ones.
FILE_PREFIXES = {"train": ("train",), "validation": ("dev", "valid"), "test": ("test",)}


def load_splits(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    data_files: dict[str, str],
    cache_dir: str | None = None,
    token: str | None = None,
    overwrite_cache: bool = False,
) -> DatasetDict:
    """The splits among train, validation and test that a dataset and files offer, all with the schema FEATURES.

    `dataset_name` is a hub id, or a folder with raw SQuAD or other files by split or with what load_dataset reads.
    `data_files` maps splits to files, which win over the dataset's splits. Questions without an answer have empty
    lists; only the test split may leave answers out, which are null then. DataError if anything cannot be had or read.
    """
    splits, mode = {}, DownloadMode.FORCE_REDOWNLOAD if overwrite_cache else DownloadMode.REUSE_DATASET_IF_EXISTS
    files = find_files(dataset_name) if dataset_name else {}
    if dataset_name and not files:
        name = hub_name(dataset_name)
        try:
            if Path(name, "dataset_dict.json").is_file():
                splits = load_from_disk(name)
            else:
                splits = load_dataset(name, dataset_config_name, cache_dir=cache_dir, token=token, download_mode=mode)
        except (OSError, ValueError, DatasetsError) as error:
            raise DataError(
                f"--dataset_name {dataset_name} cannot be loaded ({one_line(error)}); without a network give "
                "--train_file / --validation_file / --test_file, or a local folder as --dataset_name."
            ) from error
        unreplaced = [split for split in SPLITS if split in splits and split not in data_files]
        splits = {split: conform(splits[split], split, dataset_name) for split in unreplaced}
    for split, path in (files | data_files).items():
        splits[split] = load_file(path, split, cache_dir, mode)
    if not splits:
        raise DataError(
            "there are no questions: give --dataset_name, or --train_file / --validation_file / --test_file."
        )
    return DatasetDict(splits)


def hub_name(dataset_name: str) -> str:
    if dataset_name in HUB_ALIASES and not Path(dataset_name).is_dir():
        logger.info("--dataset_name %s stands for %s on the hub", dataset_name, HUB_ALIASES[dataset_name])
        return HUB_ALIASES[dataset_name]
    return dataset_name


def find_files(folder: str) -> dict[str, str]:
    """The file of each split in a local folder, by name; empty if there are none or `folder` is a hub id."""
    if Path(folder).is_file():
        raise DataError(
            f"--dataset_name {folder} is a file: give it as --train_file, --validation_file or --test_file."
        )
    found = {}
    for split, prefixes in FILE_PREFIXES.items():
        paths = [path for path in Path(folder).glob("*") if path.suffix in EXTENSIONS and path.is_file()]
        paths = sorted(str(path) for path in paths if path.name.lower().startswith(prefixes))
        if len(paths) > 1:
            raise DataError(f"{folder}: {' and '.join(paths)} could all be {split}; choose with --{split}_file.")
        found |= {split: paths[0]} if paths else {}
    return found


def conform(dataset: Dataset, split: str, name: str) -> Dataset:
    """`dataset` with the schema FEATURES, its records checked; DataError if it lacks a column that must be there."""
    source = f"{name}, split {split}"
    optional = {"title"} | ({"answers"} if split == "test" else set())
    missing = [column for column in FEATURES if column not in dataset.column_names]
    if set(missing) - optional:
        lacking = ", ".join(column for column in missing if column not in optional)
        raise DataError(f"{source}: no column {lacking}; needed are {', '.join(FEATURES)}.")
    empty = {"title": "", "answers": None}
    for column in missing:
        dataset = dataset.add_column(column, [empty[column]] * len(dataset), feature=FEATURES[column])
    dataset = dataset.select_columns(list(FEATURES))
    try:
        dataset = dataset if dataset.features == FEATURES else dataset.cast(FEATURES)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(f"{source}: needed are the columns {FEATURES} ({one_line(error)}).") from error
    for _ in checked_records(source, dataset_rows(dataset), answers_required=split != "test"):
        pass
    dataset.info.description = source
    return dataset


def dataset_rows(dataset: Dataset) -> Iterator[tuple[str, dict]]:
    """(place, record) for every row."""
    tables = dataset.with_format("arrow").iter(batch_size=1000)  # several times as fast as row by row
    for number, row in enumerate((row for table in tables for row in table.to_pylist()), start=1):
        yield f"record {number}", row


def load_file(path: str, split: str, cache_dir: str | None = None, mode: DownloadMode | None = None) -> Dataset:
    """The questions of one file, cached by its content and by this module's code."""
    if not Path(path).is_file():
        raise DataError(f"{path}: there is no such file; check --{split}_file.")
    if Path(path).suffix not in EXTENSIONS:
        raise DataError(f"{path}: files end in {', '.join(EXTENSIONS)}; rename or convert the one of --{split}_file.")
    # Dataset.from_generator is this builder without the choice of a download mode.
    builder = Generator(
        generator=read_records,
        gen_kwargs={"path": str(path), "answers_required": split != "test"},
        features=FEATURES,
        split=NamedSplit(split),
        cache_dir=cache_dir,
        config_id=f"squad-{cache_key(__file__, Path(path).read_bytes(), split)}",
    )
    try:
        builder.download_and_prepare(download_mode=mode)
    except DatasetGenerationError as error:
        raise error.__cause__ if isinstance(error.__cause__, DataError) else error from None
    dataset = builder.as_dataset(split=split)
    dataset.info.description = path  # what later messages about a question name
    return dataset


def read_records(path: str, answers_required: bool = True) -> Iterator[dict]:
    """Flat, checked records (schema FEATURES) of raw SQuAD JSON, flat JSON, JSON lines or CSV.

    `plausible_answers` of SQuAD v2 are ignored. DataError names the file, the record and the remedy.
    """
    raws = read_csv(path) if Path(path).suffix == ".csv" else read_json(path)
    return checked_records(path, raws, answers_required)


def checked_records(source: str, raws: Iterable[tuple[str, object]], answers_required: bool) -> Iterator[dict]:
    """Flat records of (place, record) pairs; DataError names `source` (file or dataset), place and remedy."""
    seen = set()
    for where, raw in raws:
        where = f"{source}: {where}"
        if isinstance(raw, dict) and raw.get("id") is not None:
            where += f" (id {raw['id']!r})"
        try:
            record = flat_record(raw, answers_required)
        except DataError as error:
            raise DataError(f"{where} {error}") from None
        if record["id"] in seen:
            raise DataError(f"{where} has the id of an earlier question; give every question its own.")
        seen.add(record["id"])
        yield record
    if not seen:
        raise DataError(f"{source}: holds no questions; fill it or name another file.")


def read_json(path: str) -> Iterator[tuple[str, object]]:
    """(place, record) for every question of raw SQuAD, {"data": [...]}, a bare list, or JSON lines."""
    text = read_text(path)
    try:
        content = parse_json(text) if text.strip() and Path(path).suffix == ".json" else None
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise DataError(f"{path}: line {error.lineno} is not valid JSON ({error.msg}); repair it.") from None
        content = None
    if content is None:  # one object a line, as in .jsonl
        yield from read_json_lines(path, text)
        return
    if isinstance(content, dict):
        content = content.get("data", [content])
    if not isinstance(content, list):
        raise DataError(f'{path}: holds no list of questions; wrap them as {{"data": [...]}}.')
    number = 0
    for item in content:
        for raw in article_questions(path, item) if isinstance(item, dict) and "paragraphs" in item else [item]:
            number += 1
            yield f"record {number}", raw


def parse_json(text: str) -> object:
    """json.loads, with JSONDecodeError also for what is nested too deeply and for numbers of 5,000 digits."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise json.JSONDecodeError(str(error), text, 0) from None


def read_json_lines(path: str, text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", parse_json(line)
            except json.JSONDecodeError as error:
                message = f"{path}: line {number} is not valid JSON ({error.msg}); write one object a line."
                raise DataError(message) from None


def read_csv(path: str) -> Iterator[tuple[str, dict]]:
    """(place, record) for every row; the cell `answers` holds JSON, an empty one no answer."""
    for number, row in enumerate(csv_rows(path), start=1):
        where = f"record {number}"
        try:
            if row.get("answers") is not None:
                row["answers"] = parse_json(row["answers"] or "[]")
        except json.JSONDecodeError:
            example = '{"text": ["..."], "answer_start": [0]}'
            raise DataError(f"{path}: {where} has no valid JSON in the column answers; write {example}.") from None
        yield where, row


def csv_rows(path: str) -> list[dict]:
    text = read_text(path)
    limit = csv.field_size_limit(len(text))  # of the whole process: the usual 131,072 characters are too few
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if len(rows.fieldnames or []) == 1:
            raise DataError(f"{path}: line 1 has one column, {rows.fieldnames[0]!r}; separate the cells by commas.")
        return list(rows)
    except csv.Error as error:
        raise DataError(f"{path}: is not valid CSV ({error}); repair it.") from None
    finally:
        csv.field_size_limit(limit)


def read_text(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8.") from None


def article_questions(path: str, article: dict) -> Iterator[dict]:
    """The questions of one article of raw SQuAD, with its title and their paragraph's context."""
    title = article.get("title")
    try:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield question | {"title": title, "context": paragraph.get("context")}
    except (KeyError, TypeError, AttributeError):
        remedy = "write paragraphs as a list of {context, qas: [{id, question, answers}]}"
        raise DataError(f"{path}: article {title!r} is not in SQuAD's form; {remedy}.") from None


def flat_record(raw: object, answers_required: bool) -> dict:
    """One record in the schema FEATURES; DataError with the rest of a sentence that begins with its place."""
    if not isinstance(raw, dict):
        raise DataError("is no object; write {id, context, question, answers}.")
    needed = ["id", "context", "question", *(["answers"] if answers_required else [])]
    missing = [name for name in needed if raw.get(name) is None]
    if missing:
        raise DataError(f"has no {', '.join(missing)}; add it.")
    for name in ("context", "question"):
        if not isinstance(raw[name], str):
            raise DataError(f"has a {name} that is no text; quote it.")
    if not raw["context"].strip():
        raise DataError("has an empty context; add the passage or remove the question.")
    texts = {"id": str(raw["id"]), "title": str(raw.get("title") or "")}
    texts |= {"context": raw["context"], "question": raw["question"]}
    for name, text in texts.items():
        check_characters(name, text)
    answers = None if raw.get("answers") is None else flat_answers(raw["answers"], raw["context"])
    return texts | {"answers": answers}


def flat_answers(answers: object, context: str) -> dict[str, list]:
    """{text: [...], answer_start: [...]} of that form or of SQuAD's list of {text, answer_start}, all in `context`."""
    try:
        if isinstance(answers, list):
            answers = {name: [answer[name] for answer in answers] for name in ("text", "answer_start")}
        texts, starts = answers["text"], answers["answer_start"]
    except (KeyError, TypeError):
        raise DataError("has answers without text and answer_start; give both.") from None
    if not isinstance(texts, list) or not isinstance(starts, list):
        raise DataError("has answers whose text or answer_start is no list; put both in [ ].")
    if len(texts) != len(starts):
        raise DataError(f"has {len(texts)} answer texts but {len(starts)} answer_start; give one for each.")
    if not all(isinstance(text, str) for text in texts) or not all(type(start) is int for start in starts):
        raise DataError("has an answer whose text is no text or whose answer_start is no whole number; correct it.")
    for text, start in zip(texts, starts):
        check_answer(context, text, start)
    return {"text": texts, "answer_start": starts}


def check_characters(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"half a character ({text[error.start]!a})"
        raise DataError(f"has {half} at character {error.start} of its {name}; write the whole one.") from None


def check_answer(context: str, text: str, start: int) -> None:
    if not text.strip():
        raise DataError("has an empty answer text; leave the list of answers empty if there is no answer.")
    if start < 0 or not context.startswith(text, start):
        place = context.find(text)
        remedy = (
            f"set answer_start to {place}" if place >= 0 else "copy the answer from the context as it stands there"
        )
        raise DataError(f"has the answer {text!r}, which is not at character {start} of its context; {remedy}.")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def cache_key(source: str, *parts: object) -> str:
    """Names what the code in the file `source`, as it stands, made of `parts`, in any process."""
    digest = hashlib.sha256(Path(source).read_bytes())
    for part in parts:
        digest.update(hashlib.sha256(part if isinstance(part, bytes) else repr(part).encode()).digest())
    return digest.hexdigest()[:32]
