"""Files of scored candidates: the store that a search appends to, and what earlier searches left in other forms."""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from candidates import ORIGINS, Candidate, LengthConfig, SearchError, finite
from length_config import parse_length_config, validate_length_config

logger = logging.getLogger(__name__)

TSV_ORIGINS = {"0": "initial", "1": "mutation", "2": "crossover"}
TSV_PARENTS = re.compile(r"(?:None|\(\([\d, ]+\)(?:, *\([\d, ]+\))*,?\))?", re.ASCII)


class CandidateStore:
    """A JSON-lines file of looks at candidates: a line of `settings`, then a line a look, only ever appended.

    `settings` says what the scores belong to (model, data, samples ...); `known` maps length configs to their scores,
    question by question. A line is on disk before `append` returns, so a kill loses at most the evaluation in flight.
    Raises SearchError if the file holds something else, or scores of other settings. With `readonly` (the other
    processes of a distributed run) the file is read and never touched; without a `path` there is none.
    """

    def __init__(self, path: str | Path | None = None, settings: dict | None = None, readonly: bool = False):
        self.path, self.readonly = path and Path(path), readonly or not path
        self.known: dict[LengthConfig, list[float]] = {}
        self.candidates: dict[LengthConfig, Candidate] = {}  # of other processes: a SharedStore has them
        self.claimed: set[LengthConfig] = set()
        self.pending, self.worker = False, 0
        if path:
            self._open(json.loads(json.dumps(settings)))  # as the file will give them back: tuples are lists there

    def _open(self, settings: dict) -> None:
        header = json.dumps({"settings": settings}) + "\n"
        text = _read_text(self.path) if self.path.exists() else ""
        if text and not _is_store(text) and not header.startswith(text):  # a torn header is a prefix of the header
            raise SearchError(f"{self.path}: is no store of search scores; move it away, or choose another folder.")
        complete = text[: text.rfind("\n") + 1]
        if complete:
            check_settings(self.path, json.loads(complete.splitlines()[0])["settings"], settings)
        for candidate, scores in _read_looks(self.path, text):
            self.known.setdefault(candidate.length_config, []).extend(scores)
        if len(complete) < len(text) and not self.readonly:
            os.truncate(self.path, len(complete.encode()))
        if not complete:
            self._write(header)

    def refresh(self) -> bool:
        """Nothing is new: one process writes."""
        return False

    def claim(self, config: LengthConfig, begin: int, takeover: bool = False) -> bool:
        """Every look is this process'."""
        return True

    def wait(self, patience: float) -> bool:
        """Nobody is waited for."""
        return False

    def append(self, candidate: Candidate, begin: int, scores: list[float]) -> None:
        """Keep the scores of `candidate` on the questions from `begin` on."""
        self._write(json.dumps(candidate.record() | {"begin": begin, "scores": scores}) + "\n")
        self.known[candidate.length_config] = [*self.known.get(candidate.length_config, ())[:begin], *scores]

    def _write(self, line: str) -> None:
        if self.readonly:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def check_settings(source: object, stored: dict, settings: dict) -> None:
    """SearchError if the scores kept in `source` were made with other settings."""
    changes = _changes(stored, settings)
    if changes:
        raise SearchError(
            f"{source}: its scores were made with {changes}; repeat the search with the stored settings, or "
            "start a new one in another folder (or after deleting this file)."
        )


def load_store(path: str | Path, num_layers: int, max_length: int, settings: dict | None = None) -> list[Candidate]:
    """Read the candidates of a CandidateStore, of search_results.json, or of the ancestors' header-less TSV file.

    TSV columns: length config, MACs, score and optionally method (0, 1, 2) and parents; nothing is evaluated. Of a
    store, those that were scored on all questions are taken. Raises SearchError naming file and line for whatever is no valid candidate of `num_layers` and `max_length`, and if the
    file says that its scores were made with other `settings`; where it does not say, warns.
    """
    path = Path(path)
    text = _read_text(path)
    if settings is not None:
        _check_loaded_settings(path, text, settings)
    read = _read_store if _is_store(text) else _read_results if text.lstrip()[:1] in ("{", "[") else _read_tsv
    candidates: dict[LengthConfig, Candidate] = {}
    for candidate in read(path, text, num_layers, max_length):
        first = candidates.setdefault(candidate.length_config, candidate)
        if first.score != candidate.score:
            scores = f"{first.score} and {candidate.score}"
            raise SearchError(f"{path}: {candidate.length_config} has two scores, {scores}; delete one of them.")
    if not candidates:
        logger.warning("%s: holds no candidates.", path)
    return list(candidates.values())


def _changes(stored: dict, settings: dict) -> str:
    """What differs, in words; empty if nothing does."""
    names = [name for name in {**stored, **settings} if stored.get(name) != settings.get(name)]
    return ", ".join(f"{name} {stored.get(name)!r}, now {settings.get(name)!r}" for name in names)


def _check_loaded_settings(path: Path, text: str, settings: dict) -> None:
    """SearchError if the scores belong to other settings; a warning if only a part of the settings is known."""
    stored, settings = _known_settings(text, settings), json.loads(json.dumps(settings))  # tuples are lists in a file
    changes = _changes(stored, {name: settings[name] for name in settings if name in stored})
    if changes:
        raise SearchError(
            f"{path}: its scores were made with {changes}; load scores that were made as in this run, or none."
        )
    missing = [name for name in settings if name not in stored]
    if missing:
        logger.warning("%s: its scores are taken as they are; it does not say their %s.", path, ", ".join(missing))


def _known_settings(text: str, names: Iterable[str]) -> dict:
    """A store's settings; of search_results.json what has one of `names`; nothing of a TSV file."""
    if _is_store(text):
        return json.loads(text.partition("\n")[0])["settings"]
    try:
        results = json.loads(text)
    except ValueError:  # a TSV file; anything else is refused when its candidates are read
        return {}
    return {name: results[name] for name in names if name in results} if isinstance(results, dict) else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SearchError(f"{path}: cannot be read as a file of search scores ({error}); check the path.") from error


def _is_store(text: str) -> bool:
    """Whether the first line is complete and a store's header."""
    line, newline, _ = text.partition("\n")
    try:
        header = json.loads(line) if newline else None
    except ValueError:
        return False
    return isinstance(header, dict) and isinstance(header.get("settings"), dict) and "candidates" not in header


def _read_looks(
    path: Path, text: str, num_layers: int | None = None, max_length: int | None = None
) -> Iterator[tuple[Candidate, list[float]]]:
    """The lines of a store: a candidate and the scores of one look; each look begins where the one before ended."""
    *lines, torn = text.split("\n")
    if torn:
        logger.warning("%s: dropped its last line, which was cut off when the search was interrupted.", path)
    seen: Counter[LengthConfig] = Counter()
    for number, line in enumerate(lines[1:], start=2):
        with _naming(f"{path}, line {number}"):
            record = json.loads(line)
            candidate = _parse_candidate(record, num_layers, max_length)
            scores, begin = record.get("scores"), record.get("begin")
            if not isinstance(scores, list) or not scores or begin != seen[candidate.length_config]:
                raise SearchError("it holds no look that goes on where the one before ended")
            seen[candidate.length_config] += len(scores)
            yield candidate, [finite(score, "score of a question") for score in scores]


def _read_store(path: Path, text: str, num_layers: int, max_length: int) -> Iterator[Candidate]:
    """The candidates of a store that were scored on all questions, which the full model always is."""
    seen, last = Counter(), {}
    for candidate, scores in _read_looks(path, text, num_layers, max_length):
        seen[candidate.length_config] += len(scores)
        last[candidate.length_config] = candidate
    whole = max(seen.values(), default=0)
    return (candidate for config, candidate in last.items() if seen[config] == whole)


def _read_results(path: Path, text: str, num_layers: int, max_length: int) -> Iterator[Candidate]:
    with _naming(str(path)):
        results = json.loads(text)
        records = results.get("candidates") if isinstance(results, dict) else None
        if not isinstance(records, list):
            raise SearchError('there is no list "candidates" in it')
    for number, record in enumerate(records, start=1):
        with _naming(f"{path}, candidate {number}"):
            yield _parse_candidate(record, num_layers, max_length)


def _read_tsv(path: Path, text: str, num_layers: int, max_length: int) -> Iterator[Candidate]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        with _naming(f"{path}, line {number}"):
            yield _parse_candidate(_tsv_record(line.split("\t")), num_layers, max_length)


def _tsv_record(columns: list[str]) -> dict:
    if not 3 <= len(columns) <= 5:
        raise ValueError(
            f"{len(columns)} columns where length config, MACs, score, method, parents are expected (tabs)"
        )
    lengths, macs, score, method, parents = (*columns, "", "")[:5]
    if method not in ("", *TSV_ORIGINS) or not TSV_PARENTS.fullmatch(parents):
        raise ValueError(f"method {method!r} and parents {parents!r} are not those of a search")
    origin, parents = TSV_ORIGINS.get(method, "loaded"), re.findall(r"\([\d, ]+\)", parents)
    return {"length_config": lengths, "macs": macs, "score": score, "origin": origin, "parents": parents}


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn a ValueError into a SearchError that says where, and what to do."""
    try:
        yield
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise SearchError(f"{where}: {reason}. Correct or delete it, or load another file.") from error


def _parse_candidate(record: dict, num_layers: int | None, max_length: int | None) -> Candidate:
    """Build a candidate from a JSON record or from TSV columns; raises ValueError saying what is wrong with it."""
    if not isinstance(record, dict) or "length_config" not in record:
        raise ValueError(f"{str(record)[:80]!r} has no length_config")
    score = record["score"] if "score" in record else record.get("f1")
    origin = record.get("origin", "loaded")
    if origin not in ORIGINS:
        raise ValueError(f"origin {origin!r} is none of {', '.join(ORIGINS)}")
    parents = record.get("parents", [])
    if not isinstance(parents, list):
        raise SearchError(f"parents {parents!r} are no list of length configs")
    return Candidate(
        _parse_lengths(record["length_config"], num_layers, max_length),
        finite(record["cost"] if "cost" in record else record.get("macs"), "cost"),
        finite(score, "score"),
        origin,
        tuple(_parse_lengths(parent, num_layers, max_length) for parent in parents),
    )


def _parse_lengths(lengths: str | list, num_layers: int | None, max_length: int | None) -> LengthConfig:
    if isinstance(lengths, str):
        return parse_length_config(lengths, num_layers, max_length)
    if not isinstance(lengths, list):
        raise SearchError(f"length config {lengths!r} is no list of integers")
    return validate_length_config(lengths, len(lengths) if num_layers is None else num_layers, max_length)
