"""Evolutionary search for the length configs with the least cost and the best score.

Takes a cost and a score callable and knows no model and no data (Kim & Cho, "Length-Adaptive Transformer", ACL 2021,
section 3.2, https://aclanthology.org/2021.acl-long.508).  Cost is any number to minimise (multiply-accumulates, a
latency), score any number to maximise (F1, 0-100).  Every look at a candidate goes to a CandidateStore at once; a killed
run is repeated with the same seed and takes the known scores from there, so it ends exactly as an undisturbed one.
"""

import logging
import random
from collections.abc import Callable

from candidates import LengthConfig, SearchError
from length_config import MIN_LENGTH
from racing import RacingSearch
from search_settings import SearchSettings

logger = logging.getLogger(__name__)


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


class EvolutionarySearch(RacingSearch):
    """Breed from the frontier by mutation and crossover; all randomness comes from `rng`."""

    def __init__(self, cost: Callable, score: Callable, rng: random.Random, settings: SearchSettings, **kwargs):
        super().__init__(cost, score, settings, **kwargs)
        self.rng, self.initial = rng, initial_configs(self.cost, settings)

    def explore(self) -> None:
        self._start()
        for iteration in range(1, self.settings.iterations + 1):
            if self.spent() or not self._evolve():
                reason = "its budget of candidates is spent" if self.spent() else "it finds no new length config"
                logger.info("Search ends before iteration %d: %s.", iteration, reason)
                break
            self.settle(self.look_after(iteration / self.settings.iterations))
            self.log(f"{iteration}/{self.settings.iterations}")

    def _start(self) -> None:
        """Score the initial population."""
        for config in self.initial:
            if config not in self._found and not self.spent():
                self.add(config, "initial")
        self.require_frontier()
        self.settle(self.look_after(0.0))
        self.log(f"0/{self.settings.iterations}")

    def _evolve(self) -> bool:
        """Add one iteration's offspring of the frontier; False if there is none."""
        settings, before = self.settings, len(self._found)
        population = [candidate.length_config for candidate in self.frontier(self.settings.looks[0])]
        for origin in ["mutation"] * settings.mutation_size + ["crossover"] * settings.crossover_size:
            offspring = None if self.spent() else self._breed(population, origin)
            if offspring is not None:
                self.add(offspring[0], origin, offspring[1])
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
            if child not in self._found and self.within_bounds(child):
                return child, parents
            self._counts["failed"] += 1
        return None
