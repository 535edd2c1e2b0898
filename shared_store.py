"""The looks of one search by any number of processes and machines, in an Optuna storage.

Records are only ever added, each by one transaction of the storage, and never changed: a worker that dies leaves at most
a claim behind.  Nothing rests on clocks or on who is alive: a claim is respected for as long as there is other work, and
whoever has waited in vain takes it over.
"""

import hashlib
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

from candidates import Candidate, LengthConfig, SearchError
from optuna_search import import_optuna

logger = logging.getLogger(__name__)
T = TypeVar("T")

POLL = 0.5  # seconds between two looks into the storage while waiting
RETRIES = 6  # the last one half a minute after the first
OPENINGS = 20  # tries to open a database whose tables another process is making
LOCK_TIMEOUT = 60  # seconds that SQLite waits for another process' transaction


def without_password(url: str) -> str:
    """A database URL as it may be shown."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def open_storage(url: str):
    """The Optuna storage of --search_storage: a database URL, or journal:PATH of a file on a shared file system.

    SearchError if it cannot be opened.
    """
    for opening in range(OPENINGS):
        try:
            return _open(url)
        except Exception as error:  # of any database driver
            # Workers that start together make the tables of a new database together.
            meanwhile = any(text in str(error) for text in ("already exists", "IntegrityError"))
            if not meanwhile or opening == OPENINGS - 1:
                raise SearchError(
                    f"--search_storage {without_password(url)} cannot be opened ({first_line(error)}): give sqlite:///PATH, journal:PATH, or "
                    "the URL of a database whose driver is installed."
                ) from error
            time.sleep(POLL)


def _open(url: str):
    storages = import_optuna().storages
    if url.startswith("journal:"):
        return storages.JournalStorage(storages.journal.JournalFileBackend(url.removeprefix("journal:")))
    options = {"connect_args": {"timeout": LOCK_TIMEOUT}} if url.startswith("sqlite:") else {}
    return storages.RDBStorage(url, engine_kwargs=options)


def study_name(settings: dict) -> str:
    """One study for all scores that may be mixed: those made with the same settings."""
    text = json.dumps(settings, sort_keys=True)
    return f"length-configs-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class SharedStore:
    """Looks as trials of an Optuna study; `known` maps length configs to their scores as a CandidateStore's does.

    `candidates` are those of all workers, `worker` counts the processes that joined before this one. A look is scored by
    who claimed it first.
    """

    def __init__(self, url: str, settings: dict):
        optuna = import_optuna()
        self.url, self.storage, self.name = without_password(url), open_storage(url), study_name(settings)
        self.storage_error = optuna.exceptions.StorageInternalError
        self.state, self.create_trial = optuna.trial.TrialState, optuna.trial.create_trial
        self.study = optuna.create_study(
            storage=self.storage, study_name=self.name, directions=["minimize", "maximize"], load_if_exists=True
        )
        self.study.set_user_attr("settings", json.loads(json.dumps(settings)))
        self.token = secrets.token_hex(8)
        self.known: dict[LengthConfig, list[float]] = {}
        self.candidates: dict[LengthConfig, Candidate] = {}
        self._holders: dict[tuple[LengthConfig, int], str | None] = {}  # who is to do a look
        self._workers: list[str] = []
        self._read = 0
        self._add({"worker": self.token})
        self.refresh()
        self.worker = self._workers.index(self.token)
        logger.info(
            "joined %s in %s as worker %d: %d configs so far",
            self.name,
            self.url,
            self.worker + 1,
            len(self.candidates),
        )

    @property
    def claimed(self) -> set[LengthConfig]:
        """Configs that some worker has looked at or is looking at."""
        return {config for config, _ in self._holders}

    @property
    def pending(self) -> bool:
        """Whether another worker has claimed a look that is not there yet."""
        return any(len(self.known.get(config, ())) <= begin for config, begin in self._holders)

    def refresh(self) -> bool:
        """Read what all workers have added since; whether that was anything."""
        trials = self._patiently(lambda: self.study.get_trials(deepcopy=False))[self._read :]
        self._read += len(trials)
        for trial in trials:
            self._take(trial.user_attrs, trial.values)
        return bool(trials)

    def _take(self, record: dict, values: list[float] | None) -> None:
        if "worker" in record:
            self._workers.append(record["worker"])
            return
        config, begin = tuple(record["length_config"]), record["begin"]
        if "scores" not in record:
            if (
                self._holders.get((config, begin)) == record["instead_of"]
            ):  # of two that claim a look the first gets it
                self._holders[config, begin] = record["token"]
            return
        known = self.known.setdefault(config, [])
        if len(known) == begin:  # of two that scored the same look the first counts
            known += record["scores"]
            parents = tuple(map(tuple, record["parents"]))
            self.candidates[config] = Candidate(config, values[0], values[1], record["origin"], parents)

    def claim(self, config: LengthConfig, begin: int, takeover: bool = False) -> bool:
        """Whether this process is to score `config` on the questions from `begin` on."""
        holder = self._holders.get((config, begin))
        if holder not in (None, self.token) and not takeover:
            return False  # without a record, which would be news to all who wait for the same look
        self._add({"length_config": list(config), "begin": begin, "token": self.token, "instead_of": holder})
        self.refresh()
        return self._holders[config, begin] == self.token and len(self.known.get(config, ())) <= begin

    def append(self, candidate: Candidate, begin: int, scores: list[float]) -> None:
        """Keep the scores of `candidate` on the questions from `begin` on."""
        record = {"length_config": list(candidate.length_config), "begin": begin, "token": self.token}
        record |= {"scores": scores, "origin": candidate.origin, "parents": [list(p) for p in candidate.parents]}
        self._add(record, [candidate.cost, candidate.score])
        self.refresh()

    def wait(self, patience: float) -> bool:
        """Wait for news from other workers, at most `patience` seconds; whether there are any."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.refresh():
                return True
            time.sleep(POLL)
        return self.refresh()

    def _add(self, record: dict, values: list[float] | None = None) -> None:
        """One transaction; what is no result is a failed trial, which no sampler or dashboard takes for one."""
        state = self.state.FAIL if values is None else self.state.COMPLETE
        trial = self.create_trial(state=state, values=values, user_attrs=record)
        self._patiently(lambda: self.study.add_trial(trial))

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do `action` until the storage lets it; SearchError after RETRIES tries. What is added twice counts once."""
        for attempt in range(1, RETRIES + 1):
            try:
                return action()
            except self.storage_error as error:
                if attempt == RETRIES:
                    raise SearchError(
                        f"--search_storage {self.url} does not answer ({first_line(error)}): see to it and start this "
                        "worker again; no finished look is lost."
                    ) from error
                logger.warning("--search_storage %s does not answer (%s): trying again", self.url, first_line(error))
                time.sleep(POLL * 2**attempt)
