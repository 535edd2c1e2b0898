"""A world of per-question scores without a model: what the tests of the racing search search in."""

import random
from collections import defaultdict

import numpy as np

from evolution import EvolutionarySearch
from optuna_search import OptunaSearch, make_study
from racing import RacingSearch
from search_settings import SearchSettings, growing_looks

LAYERS, LONGEST = 4, 64
FULL = (LONGEST,) * LAYERS


class World:
    """Every question breaks once the dropped tokens hurt it more than its margin; `asked` keeps who was asked what.

    In its call number `dies_at` it is interrupted.
    """

    def __init__(self, seed=0, questions=2000, dies_at=None):
        generator = np.random.default_rng(seed)
        self.questions, self.margins = questions, generator.gamma(1.5, 1.0, questions)
        self.intact = np.where(generator.random(questions) < 0.15, generator.random(questions) * 60, 100.0)
        self.weights = generator.random((questions, LAYERS)) * 2 * np.array([3.0, 2.0, 1.5, 1.0])
        self.whims = generator.standard_normal((questions, LAYERS))
        self.asked: dict[tuple, list[int]] = defaultdict(list)
        self.calls, self.dies_at = 0, dies_at

    def scores(self, config):
        lengths = np.array(config)
        damage = self.weights @ (1 - lengths / LONGEST) ** 2
        damage = damage * (1 + 0.2 * np.sin(lengths + 3 * self.whims).mean(1))
        return np.where(damage > self.margins, self.intact * 0.2, self.intact)

    def mean(self, config):
        return float(self.scores(config).mean())

    def __call__(self, config, questions):
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.asked[config].extend(questions.tolist())
        return self.scores(config)[questions].tolist()


def small_race(world, strategy="evolution", seed=0, looks=None, store=None, loaded=(), **changes) -> RacingSearch:
    """A search that was not run yet, with growing looks or with those given."""
    sizes = {"iterations": 4, "population_size": 10, "mutation_size": 10, "crossover_size": 10, "confirmed": 12}
    looks = looks or growing_looks(world.questions)
    settings = SearchSettings(**({"num_layers": LAYERS, "max_length": LONGEST, "looks": looks} | sizes | changes))
    common = {"store": store, "loaded": loaded, "progress": False}
    if strategy == "evolution":
        return EvolutionarySearch(sum, world, random.Random(seed), settings, **common)
    return OptunaSearch(sum, world, make_study(strategy, seed, settings.population_size), settings, **common)
