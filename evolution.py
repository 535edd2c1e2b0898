"""Evolutionary search for the length configs with the least cost and the best score.

Takes a cost and a score callable and knows no model and no data (Kim & Cho, "Length-Adaptive Transformer", ACL 2021,
section 3.2, https://aclanthology.org/2021.acl-long.508).  Cost is any number to minimise (multiply-accumulates, a
latency), score any number to maximise (F1, 0-100).  Every scored candidate goes to a CandidateStore at once; a killed
run is repeated with the same seed and takes the known scores from there, so it ends exactly as an undisturbed one.
"""

import csv
import functools
import json
import logging
import math
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from length_drop import MIN_LENGTH, constant_ratio_config, parse_length_config, validate_length_config

logger = logging.getLogger(__name__)

LengthConfig = tuple[int, ...]
ORIGINS = ("full", "initial", "mutation", "crossover", "loaded")
TSV_ORIGINS = {"0": "initial", "1": "mutation", "2": "crossover"}
TSV_PARENTS = re.compile(r"(?:None|\(\([\d, ]+\)(?:, *\([\d, ]+\))*,?\))?", re.ASCII)


class SearchError(ValueError):
    """Settings, a store or a target that the search cannot work with."""


@dataclass(frozen=True)
class Candidate:
    """A length config with its cost, its score, and where it came from (`origin`, one of ORIGINS)."""

    length_config: LengthConfig
    cost: float
    score: float
    origin: str
    parents: tuple[LengthConfig, ...] = ()

    def record(self) -> dict:
        """This candidate as JSON; what `load_store` reads."""
        return {
            "length_config": list(self.length_config),
            "macs": _plain(self.cost),
            "score": self.score,
            "origin": self.origin,
            "parents": [list(parent) for parent in self.parents],
        }


def _plain(cost: float) -> float:
    """Whole costs (MACs) are written as integers."""
    return int(cost) if float(cost).is_integer() else cost


# ---- frontier ------------------------------------------------------------------------------------------------------


def pareto_frontier(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates that no other one beats (cost at most, score at least, one of them better), by rising cost.

    Of those with the same cost and score the one with the smallest length config stays.
    """
    frontier: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.cost, -c.score, c.length_config)):
        if not frontier or candidate.score > frontier[-1].score:
            frontier.append(candidate)
    return frontier


def hypervolume(candidates: Iterable[Candidate], reference_cost: float, reference_score: float = 0.0) -> float:
    """The area that the frontier dominates, bounded by a reference point that is dearer and worse, in cost x score.

    With the frontier sorted by cost and c_{n+1} = reference_cost: sum_i (c_{i+1} - c_i) (s_i - reference_score), over
    the candidates that cost less and score more than the reference.
    """
    inside = [c for c in candidates if c.cost < reference_cost and c.score > reference_score]
    frontier = pareto_frontier(inside)
    ends = [candidate.cost for candidate in frontier[1:]] + [reference_cost]
    return sum((end - c.cost) * (c.score - reference_score) for c, end in zip(frontier, ends))


def choose(
    frontier: Sequence[Candidate],
    full: Candidate,
    *,
    max_score_drop: float | None = None,
    target_cost: float | None = None,
    target_cost_ratio: float | None = None,
) -> Candidate:
    """The cheapest candidate within `max_score_drop` of `full`, or the best one of at most the target cost.

    Takes exactly one criterion; `target_cost_ratio` is relative to `full.cost`. Raises SearchError if none fits.
    """
    if [max_score_drop, target_cost, target_cost_ratio].count(None) != 2:
        raise SearchError("choose by exactly one of: largest score drop, target cost, target cost ratio.")
    if not frontier:
        raise SearchError("there is no candidate to choose from: run the search first.")
    cheapest_first = sorted(frontier, key=lambda c: (c.cost, -c.score, c.length_config))
    best_first = sorted(frontier, key=lambda c: (-c.score, c.cost, c.length_config))
    if max_score_drop is not None:
        fitting = [
            c for c in cheapest_first if full.score - c.score <= max_score_drop + 1e-9
        ]  # in floats 87.4 - 86.7 > 0.7
        nearest, wanted = best_first[0], f"scores within {max_score_drop:g} of the full model's {full.score:.2f}"
    else:
        target = target_cost_ratio * full.cost if target_cost is None else target_cost
        fitting = [c for c in best_first if c.cost <= target]
        nearest, wanted = cheapest_first[0], f"costs at most {target:.4g} ({target / full.cost:.3f} of the full model)"
    if not fitting:
        raise SearchError(
            f"no length config found {wanted}; the nearest is {nearest.length_config}: score {nearest.score:.2f}, "
            f"cost {nearest.cost:.4g} ({nearest.cost / full.cost:.3f} of full). Relax the target, or search further."
        )
    return fitting[0]


def write_frontier_csv(path: str | Path, frontier: Sequence[Candidate], full: Candidate) -> None:
    """Write a row a candidate: length_config (JSON list), macs, macs_ratio (of `full`), f1, f1_drop (points)."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["length_config", "macs", "macs_ratio", "f1", "f1_drop"])
        for c in frontier:
            ratio, drop = round(c.cost / full.cost, 6), round(full.score - c.score, 4)
            writer.writerow([json.dumps(c.length_config), _plain(c.cost), ratio, round(c.score, 4), drop])


# ---- stores of scored candidates -----------------------------------------------------------------------------------


class CandidateStore:
    """A JSON-lines file of scored candidates: one line of `settings`, then one line a candidate, only ever appended.

    `settings` says what the scores belong to (model, data, samples ...); `known` maps length configs to scores. A line
    is on disk before `append` returns, so a kill loses at most the evaluation in flight. Raises SearchError if the
    file holds something else, or scores of other settings. With `readonly` (the other processes of a distributed run)
    the file is read and never touched.
    """

    def __init__(self, path: str | Path, settings: dict, readonly: bool = False):
        self.path, self.readonly = Path(path), readonly
        self.known: dict[LengthConfig, float] = {}
        settings = json.loads(json.dumps(settings))  # as the file will give them back: tuples are lists there
        header = json.dumps({"settings": settings}) + "\n"
        text = _read_text(self.path) if self.path.exists() else ""
        if text and not _is_store(text) and not header.startswith(text):  # a torn header is a prefix of the header
            raise SearchError(f"{self.path}: is no store of search scores; move it away, or choose another folder.")
        complete = text[: text.rfind("\n") + 1]
        if complete:
            self._check_settings(json.loads(complete.splitlines()[0])["settings"], settings)
        self.known = {c.length_config: c.score for c in _read_json_lines(self.path, text)}
        if len(complete) < len(text) and not readonly:
            os.truncate(self.path, len(complete.encode()))
        if not complete:
            self._write(header)

    def _check_settings(self, stored: dict, settings: dict) -> None:
        names = [name for name in {**stored, **settings} if stored.get(name) != settings.get(name)]
        if names:
            changes = ", ".join(f"{name} {stored.get(name)!r}, now {settings.get(name)!r}" for name in names)
            raise SearchError(
                f"{self.path}: its scores were made with {changes}; repeat the search with the stored settings, or "
                "start a new one in another folder (or after deleting this file)."
            )

    def append(self, candidate: Candidate) -> None:
        if not self.readonly:
            self._write(json.dumps(candidate.record()) + "\n")
        self.known[candidate.length_config] = candidate.score

    def _write(self, line: str) -> None:
        if self.readonly:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def load_store(path: str | Path, num_layers: int, max_length: int) -> list[Candidate]:
    """Read the candidates of a CandidateStore, of search_results.json, or of the ancestors' header-less TSV file.

    TSV columns: length config, MACs, score and optionally method (0, 1, 2) and parents; nothing is evaluated. Raises
    SearchError naming file and line for whatever is no valid candidate of `num_layers` and `max_length`.
    """
    path = Path(path)
    text = _read_text(path)
    read = _read_json_lines if _is_store(text) else _read_results if text.lstrip()[:1] in ("{", "[") else _read_tsv
    candidates: dict[LengthConfig, Candidate] = {}
    for candidate in read(path, text, num_layers, max_length):
        first = candidates.setdefault(candidate.length_config, candidate)
        if first.score != candidate.score:
            scores = f"{first.score} and {candidate.score}"
            raise SearchError(f"{path}: {candidate.length_config} has two scores, {scores}; delete one of them.")
    if not candidates:
        logger.warning("%s: holds no candidates.", path)
    return list(candidates.values())


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


def _read_json_lines(
    path: Path, text: str, num_layers: int | None = None, max_length: int | None = None
) -> Iterator[Candidate]:
    *lines, torn = text.split("\n")
    if torn:
        logger.warning("%s: dropped its last line, which was cut off when the search was interrupted.", path)
    for number, line in enumerate(lines[1:], start=2):
        with _naming(f"{path}, line {number}"):
            yield _parse_candidate(json.loads(line), num_layers, max_length)


def _read_results(path: Path, text: str, num_layers: int, max_length: int) -> Iterator[Candidate]:
    with _naming(str(path)):
        results = json.loads(text)
        records = results.get("candidates") if isinstance(results, dict) else None
        if not isinstance(records, list):
            raise ValueError('there is no list "candidates" in it')
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
        raise ValueError(f"parents {parents!r} are no list of length configs")
    return Candidate(
        _parse_lengths(record["length_config"], num_layers, max_length),
        _finite(record.get("macs"), "macs"),
        _finite(score, "score"),
        origin,
        tuple(_parse_lengths(parent, num_layers, max_length) for parent in parents),
    )


def _parse_lengths(lengths: str | list, num_layers: int | None, max_length: int | None) -> LengthConfig:
    if isinstance(lengths, str):
        return parse_length_config(lengths, num_layers, max_length)
    if not isinstance(lengths, list):
        raise ValueError(f"length config {lengths!r} is no list of integers")
    return validate_length_config(lengths, len(lengths) if num_layers is None else num_layers, max_length)


def _finite(value, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise SearchError(f"the {name} must be a finite number, not {value!r}.")
    return number


# ---- search --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchSettings:
    """What the search does: sizes in length configs, costs in the unit of the cost callable.

    `floor_ratio` is the constant drop ratio of the cheapest initial config; offspring cost at least as much as that
    config (or `min_cost` if given) and at most `max_cost`. An offspring is given up after `max_retries` failed tries;
    the search ends after `max_candidates` scores, loaded ones not counted.
    """

    num_layers: int
    max_length: int
    iterations: int = 30
    population_size: int = 20
    mutation_size: int = 30
    mutation_prob: float = 0.5
    crossover_size: int = 30
    floor_ratio: float = 0.35
    min_cost: float | None = None
    max_cost: float | None = None
    max_retries: int = 100
    max_candidates: int | None = None

    def __post_init__(self):
        lowest = {"num_layers": 1, "max_length": MIN_LENGTH, "max_retries": 1, "max_candidates": 1}
        lowest |= dict.fromkeys(["iterations", "population_size", "mutation_size", "crossover_size"], 0)
        for name, limit in lowest.items():
            value = getattr(self, name)
            if value is not None and value < limit:
                raise SearchError(f"{name} must be at least {limit}, not {value}.")
        if not 0 < self.mutation_prob <= 1:
            raise SearchError(f"mutation_prob must be above 0 and at most 1, not {self.mutation_prob}.")
        if not 0 < self.floor_ratio < 1:
            raise SearchError(f"the search's floor ratio must lie between 0 and 1, not {self.floor_ratio}.")

    @property
    def full_config(self) -> LengthConfig:
        return (self.max_length,) * self.num_layers

    def constant_ratio(self, ratio: float) -> LengthConfig:
        return constant_ratio_config(ratio, self.num_layers, self.max_length)


def mutate(rng: random.Random, parent: LengthConfig, max_length: int, prob: float) -> LengthConfig:
    """Redraw each length with probability `prob` between the parent's next one and the child's previous one.

    The first may rise to `max_length`, the last fall to MIN_LENGTH; the child never increases from layer to layer.
    """
    child, highest = [], max_length
    for length, lowest in zip(parent, (*parent[1:], min(MIN_LENGTH, parent[-1]))):
        highest = rng.randint(lowest, highest) if rng.random() < prob else length
        child.append(highest)
    return tuple(child)


def crossover(first: LengthConfig, second: LengthConfig) -> LengthConfig:
    """The element-wise mean ceil((a + b) / 2) of two length configs."""
    return tuple((a + b + 1) // 2 for a, b in zip(first, second))


def initial_configs(cost: Callable[[LengthConfig], float], settings: SearchSettings) -> list[LengthConfig]:
    """The full config and up to `population_size` constant-ratio ones, evenly spaced in cost from the floor up.

    Spacing runs to the full config's cost, or to `max_cost`. Raises SearchError if the bounds leave no room.
    """
    floor_cost, full_cost = cost(settings.constant_ratio(settings.floor_ratio)), cost(settings.full_config)
    low = floor_cost if settings.min_cost is None else max(floor_cost, settings.min_cost)
    high = full_cost if settings.max_cost is None else min(full_cost, settings.max_cost)
    if low > high:
        raise SearchError(
            f"nothing to search between cost {low:.4g} and {high:.4g} (constant ratio {settings.floor_ratio:g}: "
            f"{floor_cost:.4g}, full: {full_cost:.4g}); change the cost bounds, or raise the floor ratio."
        )
    targets = [low + (high - low) * step / settings.population_size for step in range(settings.population_size)]
    configs = [_config_at_cost(target, cost, settings) for target in targets]
    return list(dict.fromkeys([settings.full_config] + [config for config in configs if cost(config) <= high]))


def _config_at_cost(target: float, cost: Callable, settings: SearchSettings) -> LengthConfig:
    """The cheapest constant-ratio config of at least the cost `target`, by bisection on the ratio."""
    cheap, dear = settings.floor_ratio, 0.0
    if cost(settings.constant_ratio(cheap)) >= target:
        return settings.constant_ratio(cheap)
    while cheap - dear > 1e-6:
        middle = (cheap + dear) / 2
        if cost(settings.constant_ratio(middle)) >= target:
            dear = middle
        else:
            cheap = middle
    return settings.constant_ratio(dear)


class EvolutionarySearch:
    """Search the frontier of `cost(length_config)`, cheap and repeatable, and `score(length_config)`, dear.

    All randomness comes from `rng`. `loaded` candidates join the initial population with the scores they have;
    `store` (see CandidateStore) supplies known scores and receives new ones. A config is scored at most once.
    """

    def __init__(
        self,
        cost: Callable[[LengthConfig], float],
        score: Callable[[LengthConfig], float],
        rng: random.Random,
        settings: SearchSettings,
        store: CandidateStore | None = None,
        loaded: Sequence[Candidate] = (),
        progress: bool = True,
    ):
        self.cost, self.score, self.rng, self.settings = functools.cache(cost), score, rng, settings
        self.store, self.loaded, self.progress = store, loaded, progress
        self._found: dict[LengthConfig, Candidate] = {}
        self._counts: Counter[str] = Counter()  # since the last log line: scored, cached, failed

    @property
    def candidates(self) -> list[Candidate]:
        """Every candidate so far, once, in the order found."""
        return list(self._found.values())

    @property
    def full(self) -> Candidate:
        """The full-length candidate."""
        return self._found[self.settings.full_config]

    def run(self) -> list[Candidate]:
        """Search, and return the Pareto frontier by rising cost."""
        redirect = logging_redirect_tqdm() if self.progress else nullcontext()
        total = self._expected_candidates()
        with redirect, tqdm(total=total, desc="Search", unit="config", disable=not self.progress) as self._bar:
            self._start()
            for iteration in range(1, self.settings.iterations + 1):
                if self._spent() or not self._evolve():
                    reason = "its budget of candidates is spent" if self._spent() else "it finds no new length config"
                    logger.info("Search ends before iteration %d: %s.", iteration, reason)
                    break
                self._log(iteration)
        return pareto_frontier(self.candidates)

    def _expected_candidates(self) -> int:
        s = self.settings
        total = 1 + s.population_size + s.iterations * (s.mutation_size + s.crossover_size)
        return total if s.max_candidates is None else min(total, s.max_candidates)

    def _start(self) -> None:
        """Score the initial population."""
        for c in self.loaded:
            self._found[c.length_config] = Candidate(
                c.length_config, _finite(self.cost(c.length_config), "cost"), c.score, "loaded", c.parents
            )
        self._num_loaded = len(self._found)
        for config in initial_configs(self.cost, self.settings):
            if config not in self._found and not self._spent():
                self._add(config, "full" if config == self.settings.full_config else "initial")
        self._log(0)

    def _evolve(self) -> bool:
        """Add one iteration's offspring of the frontier; False if there is none."""
        settings, before = self.settings, len(self._found)
        population = [candidate.length_config for candidate in pareto_frontier(self.candidates)]
        for origin in ["mutation"] * settings.mutation_size + ["crossover"] * settings.crossover_size:
            offspring = None if self._spent() else self._breed(population, origin)
            if offspring is not None:
                self._add(offspring[0], origin, offspring[1])
        return len(self._found) > before

    def _breed(self, population: list[LengthConfig], origin: str) -> tuple[LengthConfig, tuple] | None:
        """A new config within the cost bounds and its parents, or None after `max_retries` failed tries."""
        settings = self.settings
        if origin == "crossover" and len(population) < 2:
            return None
        for _ in range(settings.max_retries):
            parents = tuple(self.rng.sample(population, 2 if origin == "crossover" else 1))
            if origin == "crossover":
                child = crossover(*parents)
            else:
                child = mutate(self.rng, parents[0], settings.max_length, settings.mutation_prob)
            if child not in self._found and self._within_bounds(child):
                return child, parents
            self._counts["failed"] += 1
        return None

    def _within_bounds(self, config: LengthConfig) -> bool:
        low, high = self.settings.min_cost, self.settings.max_cost
        low = self.cost(self.settings.constant_ratio(self.settings.floor_ratio)) if low is None else low
        return low <= self.cost(config) and (high is None or self.cost(config) <= high)

    def _spent(self) -> bool:
        budget = self.settings.max_candidates
        return budget is not None and len(self._found) - self._num_loaded >= budget

    def _add(self, config: LengthConfig, origin: str, parents: tuple[LengthConfig, ...] = ()) -> None:
        """Score `config`, or take its score from the store."""
        known = self.store is not None and config in self.store.known
        score = self.store.known[config] if known else _finite(self.score(config), f"score of {config}")
        candidate = Candidate(config, _finite(self.cost(config), f"cost of {config}"), score, origin, parents)
        self._found[config] = candidate
        if self.store is not None and not known:
            self.store.append(candidate)
        self._counts["cached" if known else "scored"] += 1
        self._bar.update()

    def _log(self, iteration: int) -> None:
        frontier, counts = pareto_frontier(self.candidates), self._counts
        logger.info(
            f"Search {iteration}/{self.settings.iterations}: best score {frontier[-1].score:.2f}, {len(frontier)} on "
            f"the frontier, hypervolume {hypervolume(frontier, self.full.cost):.6g}; {counts['scored']} scored, "
            f"{counts['cached']} from the store, {counts['failed']} failed tries."
        )
        counts.clear()
