"""What a search does: how many length configs of which costs, and how many questions it asks of them."""

import math
from dataclasses import dataclass, replace

from candidates import LengthConfig, SearchError
from length_config import MIN_LENGTH, constant_ratio_config


@dataclass(frozen=True)
class SearchSettings:
    """What the search does: sizes in length configs, costs in the unit of the cost callable.

    `floor_ratio` is the constant drop ratio of the cheapest initial config; offspring cost at least as much as that
    config (or `min_cost` if given) and at most `max_cost`; of what is dearer, nothing is bred and nothing returned. The
    full config is scored all the same, as what score drops are measured from. An offspring is given up after
    `max_retries` failed tries; the search ends after `max_candidates` configs, loaded ones not counted. `looks` are
    the numbers of questions that a config is scored on, one after the other.
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
    looks: tuple[int, ...] = (1,)
    confirmed: int | None = None

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
        if not self.looks or list(self.looks) != sorted(set(self.looks)) or self.looks[0] < 1:
            raise SearchError(f"looks must be growing numbers of questions, not {self.looks}.")

    @property
    def full_config(self) -> LengthConfig:
        return (self.max_length,) * self.num_layers

    def all_at_once(self, questions: int) -> "SearchSettings":
        """The same with a single look at so many questions."""
        return replace(self, looks=(questions,))

    @property
    def budget(self) -> int:
        """How many configs are scored at most."""
        total = 1 + self.population_size + self.iterations * (self.mutation_size + self.crossover_size)
        return total if self.max_candidates is None else min(total, self.max_candidates)

    def constant_ratio(self, ratio: float) -> LengthConfig:
        return constant_ratio_config(ratio, self.num_layers, self.max_length)


def growing_looks(questions: int, first: int = 32, factor: int = 4) -> tuple[int, ...]:
    """Numbers of questions, the last all of them and each about `factor` times the one before, from about `first`."""
    steps = max(0, round(math.log(questions / first, factor)))
    return tuple(dict.fromkeys(math.ceil(questions / factor**step) for step in range(steps, -1, -1)))
