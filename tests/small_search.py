"""A search small enough to run many times in a test; shared by the tests of the search and of its stores."""

import random

from candidates import Candidate
from evolution import EvolutionarySearch
from search_settings import SearchSettings

SETTINGS = {"model": "reader", "questions": 1000, "max_length": 64}


def candidate(cost, score, config=(1,)):
    return Candidate(config, cost, score, "initial")


def small_settings(**changes):
    sizes = {"iterations": 4, "population_size": 6, "mutation_size": 8, "crossover_size": 8}
    return SearchSettings(**({"num_layers": 4, "max_length": 64} | sizes | changes))


def small_score(config):
    return 90 - sum(20 / length for length in config) + random.Random(str(config)).random()


def one_look(score):
    """`score(config)` as the scores of a single question."""
    return lambda config, questions: [score(config)]


def run_small(seed=7, score=small_score, store=None, loaded=(), **changes):
    settings = small_settings(**changes)
    search = EvolutionarySearch(
        sum, one_look(score), random.Random(seed), settings, store=store, loaded=loaded, progress=False
    )
    return search.run(), search
