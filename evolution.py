"""Evolutionary search for the length configs with the least cost and the best score.

Takes a cost and a score callable and knows no model and no data (Kim & Cho, "Length-Adaptive Transformer", ACL 2021,
section 3.2, https://aclanthology.org/2021.acl-long.508).  Cost is any number to minimise (multiply-accumulates, a
latency), score any number to maximise (F1, 0-100).  Every scored candidate goes to a CandidateStore at once; a killed
run is repeated with the same seed and takes the known scores from there, so it ends exactly as an undisturbed one.
"""

import functools
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from candidate_store import CandidateStore
from candidates import Candidate, LengthConfig, SearchError, finite, hypervolume, pareto_frontier
from length_config import MIN_LENGTH, constant_ratio_config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchSettings:
    """What the search does: sizes in length configs, costs in the unit of the cost callable.

    `floor_ratio` is the constant drop ratio of the cheapest initial config; offspring cost at least as much as that
    config (or `min_cost` if given) and at most `max_cost`; of what is dearer, nothing is bred and nothing returned. The
    full config is scored all the same, as what score drops are measured from. An offspring is given up after
    `max_retries` failed tries; the search ends after `max_candidates` scores, loaded ones not counted.
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
        """Search, and return the Pareto frontier by rising cost; SearchError if nothing within `max_cost` was scored."""
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
        return self._frontier()

    def _frontier(self) -> list[Candidate]:
        """The frontier of what `max_cost` allows: the full model, or a loaded one, may be above it."""
        high = self.settings.max_cost
        return pareto_frontier(c for c in self.candidates if high is None or c.cost <= high)

    def _expected_candidates(self) -> int:
        s = self.settings
        total = 1 + s.population_size + s.iterations * (s.mutation_size + s.crossover_size)
        return total if s.max_candidates is None else min(total, s.max_candidates)

    def _start(self) -> None:
        """Score the initial population."""
        for c in self.loaded:  # with its origin: the constant-ratio curve is drawn from the initial ones
            self._found[c.length_config] = replace(c, cost=finite(self.cost(c.length_config), "cost"))
        self._num_loaded = len(self._found)
        for config in initial_configs(self.cost, self.settings):
            if config not in self._found and not self._spent():
                self._add(config, "full" if config == self.settings.full_config else "initial")
        if not self._frontier():
            raise SearchError(
                f"the initial population has nothing of at most cost {self.settings.max_cost:.4g}; raise this bound, "
                "the population size or the largest number of candidates."
            )
        self._log(0)

    def _evolve(self) -> bool:
        """Add one iteration's offspring of the frontier; False if there is none."""
        settings, before = self.settings, len(self._found)
        population = [candidate.length_config for candidate in self._frontier()]
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
        score = self.store.known[config] if known else finite(self.score(config), f"score of {config}")
        candidate = Candidate(config, finite(self.cost(config), f"cost of {config}"), score, origin, parents)
        self._found[config] = candidate
        if self.store is not None and not known:
            self.store.append(candidate)
        self._counts["cached" if known else "scored"] += 1
        self._bar.update()

    def _log(self, iteration: int) -> None:
        frontier, counts = self._frontier(), self._counts
        logger.info(
            f"Search {iteration}/{self.settings.iterations}: best score {frontier[-1].score:.2f}, {len(frontier)} on "
            f"the frontier, hypervolume {hypervolume(frontier, self.full.cost):.6g}; {counts['scored']} scored, "
            f"{counts['cached']} from the store, {counts['failed']} failed tries."
        )
        counts.clear()
