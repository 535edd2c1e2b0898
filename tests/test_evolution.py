"""The search: offspring, initial population, bounds, resuming; oracles are brute force and published numbers."""

import itertools
import logging
import math
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from small_search import SETTINGS, one_look, run_small, small_score, small_settings

from candidate_store import CandidateStore, load_store
from candidates import Candidate, SearchError, pareto_frontier
from evolution import EvolutionarySearch, crossover, initial_configs, mutate
from length_config import constant_ratio_config, count_macs
from search_settings import SearchSettings

MINILM = SimpleNamespace(hidden_size=384, intermediate_size=1536, num_hidden_layers=6)
BERT = SimpleNamespace(hidden_size=768, intermediate_size=3072, num_hidden_layers=12)


def tiny_cost(config):
    return sum(config)


def tiny_score(config):
    """Diminishing returns, and a different worth of every layer."""
    return sum(weight * math.log(length) for weight, length in zip((3.0, 1.0, 2.0), config))


def all_configs(num_layers, lowest, highest):
    configs = itertools.product(range(lowest, highest + 1), repeat=num_layers)
    return [config for config in configs if list(config) == sorted(config, reverse=True)]


# ---- offspring -----------------------------------------------------------------------------------------------------


def test_mutation_reaches_exactly_the_configs_its_rule_allows():
    parent, highest = (6, 4, 3), 7
    reachable = {
        child
        for child in all_configs(3, 2, highest)
        if 4 <= child[0] <= highest and 3 <= child[1] <= child[0] and 2 <= child[2] <= child[1]
    }
    rng = random.Random(0)
    assert {mutate(rng, parent, highest, 0.5) for _ in range(20_000)} == reachable


def test_mutation_probabilities_follow_the_rule():
    # With prob 1: first ~ U{2, 3}, second ~ U{2 ... first}: (2,2) 1/2, (3,2) and (3,3) 1/4 each.
    rng, draws = random.Random(1), 20_000
    counts = Counter(mutate(rng, (3, 2), 3, 1.0) for _ in range(draws))
    expected = {(2, 2): 0.5, (3, 2): 0.25, (3, 3): 0.25}
    assert set(counts) == set(expected)
    for child, probability in expected.items():
        assert abs(counts[child] / draws - probability) < 5 * math.sqrt(probability * (1 - probability) / draws)


def test_mutation_keeps_each_length_with_the_complementary_probability():
    rng, parent, draws = random.Random(2), (500, 300, 100), 5_000
    kept = sum(mutate(rng, parent, 512, 0.2)[1] == 300 for _ in range(draws))
    assert abs(kept / draws - 0.8) < 0.03


@pytest.mark.parametrize("parent", all_configs(3, 1, 5))
def test_every_mutation_is_monotone_and_in_bounds(parent):
    rng = random.Random(3)
    for _ in range(50):
        first, second, third = mutate(rng, parent, 5, 0.7)
        assert 5 >= first >= second >= third >= min(2, parent[-1])


def test_crossover_gives_the_published_children():
    assert crossover((284, 252, 237, 197, 129, 36), (283, 272, 258, 203, 60, 36)) == (284, 262, 248, 200, 95, 36)
    assert crossover((322, 284, 275, 166, 107, 22), (284, 252, 237, 197, 129, 36)) == (303, 268, 256, 182, 118, 29)


def test_crossover_of_any_two_configs_is_monotone_and_between_them():
    for one, other in itertools.product(all_configs(3, 1, 4), repeat=2):
        child = crossover(one, other)
        assert list(child) == sorted(child, reverse=True)
        assert all(min(a, b) <= c <= max(a, b) for a, b, c in zip(one, other, child))


# ---- initial population --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "max_length"), [(MINILM, 384), (BERT, 384), (BERT, 512), (MINILM, 128)])
def test_initial_costs_are_evenly_spaced_for_any_depth_and_length(config, max_length):
    settings = SearchSettings(config.num_hidden_layers, max_length, population_size=20)
    configs = initial_configs(lambda lengths: count_macs(config, lengths, max_length), settings)
    costs = sorted(count_macs(config, lengths, max_length) for lengths in configs)
    floor = constant_ratio_config(0.35, config.num_hidden_layers, max_length)
    assert len(configs) == 21 and floor in configs and (max_length,) * config.num_hidden_layers in configs
    even = [costs[0] + (costs[-1] - costs[0]) * step / 20 for step in range(21)]
    assert max(abs(cost - target) for cost, target in zip(costs, even)) < 0.25 * (costs[-1] - costs[0]) / 20


def test_initial_configs_without_room_for_all_are_not_repeated():
    configs = initial_configs(sum, SearchSettings(2, 4, population_size=50))
    assert len(configs) == len(set(configs)) <= 10


def test_initial_configs_never_exceed_the_cost_bounds_where_costs_are_coarse():
    for low, high in itertools.combinations(range(9, 28), 2):
        configs = initial_configs(sum, SearchSettings(3, 9, floor_ratio=0.6, min_cost=low, max_cost=high))
        assert all(low <= sum(config) <= high for config in configs[1:])


def test_initial_configs_stay_within_the_cost_bounds():
    configs = initial_configs(sum, SearchSettings(4, 64, min_cost=150, max_cost=200))
    assert configs[0] == (64,) * 4 and len(configs) > 5
    assert all(150 <= sum(config) <= 200 for config in configs[1:])


@pytest.mark.parametrize("bounds", [{"max_cost": 10}, {"min_cost": 257}, {"min_cost": 200, "max_cost": 150}])
def test_cost_bounds_that_leave_nothing_are_refused_before_scoring(bounds):
    with pytest.raises(SearchError, match="nothing to search"):
        run_small(score=lambda config: pytest.fail("scored"), **bounds)


@pytest.mark.parametrize(
    "change",
    [{"mutation_prob": 0.0}, {"mutation_prob": 1.5}, {"floor_ratio": 1.0}, {"iterations": -1}, {"max_candidates": 0}],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(SearchError):
        small_settings(**change)


# ---- search --------------------------------------------------------------------------------------------------------


def test_every_candidate_is_valid_within_bounds_and_scored_exactly_once():
    calls = Counter()

    def score(config):
        calls[config] += 1
        return small_score(config)

    frontier, search = run_small(score=score)
    assert set(calls.values()) == {1}
    assert sorted(calls) == sorted(c.length_config for c in search.candidates)
    floor = sum(constant_ratio_config(0.35, 4, 64))
    for c in search.candidates:
        assert list(c.length_config) == sorted(c.length_config, reverse=True)
        assert 1 <= c.length_config[-1] and c.length_config[0] <= 64 and floor <= c.cost == sum(c.length_config)
        assert len(c.parents) == {"full": 0, "initial": 0, "mutation": 1, "crossover": 2}[c.origin]
    assert frontier == pareto_frontier(search.candidates)
    assert len(calls) == 1 + 6 + 4 * (8 + 8)


def test_offspring_descend_from_the_frontier_and_stay_within_min_and_max_cost():
    _, search = run_small(min_cost=120, max_cost=180)
    offspring = [c for c in search.candidates if c.parents]
    assert offspring and all(120 <= c.cost <= 180 for c in offspring)


def test_what_is_dearer_than_max_cost_is_neither_on_the_frontier_nor_a_parent():
    dear = Candidate((64, 60, 60, 60), 244, 99.0, "mutation")
    frontier, search = run_small(score=sum, max_cost=180, loaded=[dear])  # the dearer, the better
    parents = {parent for c in search.candidates for parent in c.parents}
    assert search.full.score == 256 and frontier and parents
    assert all(c.cost <= 180 for c in frontier) and all(sum(parent) <= 180 for parent in parents)


@pytest.mark.parametrize("change", [{"population_size": 0}, {"max_candidates": 1}])
def test_a_search_that_scores_nothing_within_max_cost_says_so(change):
    with pytest.raises(SearchError, match="at most cost 180; raise"):
        run_small(max_cost=180, **change)


@pytest.mark.parametrize("looks", [(1000,), (50, 200, 1000)])
def test_configs_that_answer_alike_tie_in_whatever_order_they_were_asked(looks):
    scores = np.random.default_rng(0).random(1000) * 100
    settings = small_settings(looks=looks)
    ask = lambda config, questions: scores[questions].tolist()
    search = EvolutionarySearch(sum, ask, random.Random(0), settings, progress=False)
    (only,) = search.run()
    asked_all = [candidate for candidate in search.candidates if candidate.std_error == 0]
    assert only in asked_all and {c.score for c in asked_all} == {math.fsum(scores) / 1000} and len(asked_all) > 1


def test_min_cost_below_the_floor_config_lets_the_search_go_there():
    floor = sum(constant_ratio_config(0.35, 4, 64))
    frontier, _ = run_small(min_cost=0, iterations=10)
    assert frontier[0].cost < floor


@pytest.mark.parametrize("seed", range(3))
def test_search_finds_the_frontier_of_an_exhaustible_space(seed):
    settings = SearchSettings(3, 9, iterations=40, floor_ratio=0.6)
    floor = tiny_cost(constant_ratio_config(0.6, 3, 9))
    space = [Candidate(c, tiny_cost(c), tiny_score(c), "full") for c in all_configs(3, 2, 9) if sum(c) >= floor]
    search = EvolutionarySearch(tiny_cost, one_look(tiny_score), random.Random(seed), settings, progress=False)
    found = [(c.cost, c.score) for c in search.run()]
    assert found == [(c.cost, c.score) for c in pareto_frontier(space)]


def test_an_exhausted_space_ends_the_search_with_one_line(caplog):
    with caplog.at_level(logging.INFO, logger="evolution"):
        _, search = run_small(num_layers=2, max_length=3, iterations=1000)
    assert len(search.candidates) <= len(all_configs(2, 2, 3))
    assert sum("no new length config" in record.message for record in caplog.records) == 1
    assert len(caplog.records) < 10


def test_a_space_of_one_config_ends_at_once():
    frontier, search = run_small(num_layers=3, max_length=2)
    assert [c.length_config for c in search.candidates] == [(2, 2, 2)] and len(frontier) == 1


def test_zero_score_and_zero_cost_are_values_and_asked_for_once(tmp_path):
    calls = Counter()

    def score(config):
        calls[config] += 1
        return 0.0

    settings = small_settings(iterations=2)
    for _ in range(2):  # the second search takes every zero from the store
        store = CandidateStore(tmp_path / "store.jsonl", SETTINGS)
        search = EvolutionarySearch(
            lambda config: 0, one_look(score), random.Random(0), settings, store=store, progress=False
        )
        assert [(c.cost, c.score) for c in search.run()] == [(0, 0)]
    assert len(calls) == len(search.candidates) and set(calls.values()) == {1}


def test_a_score_that_is_no_number_stops_the_search():
    with pytest.raises(SearchError, match=r"score of \(64, 64, 64, 64\)"):
        run_small(score=lambda config: math.nan)


def test_the_budget_of_candidates_is_kept():
    _, search = run_small(max_candidates=17)
    assert len(search.candidates) == 17


def test_same_seed_same_result_other_seed_other_result():
    one, same, other = (run_small(seed)[1].candidates for seed in (7, 7, 8))
    assert one == same
    assert one != other


def test_the_global_random_state_is_neither_read_nor_changed():
    random.seed(1)
    state = random.getstate()
    one = run_small()[1].candidates
    assert random.getstate() == state
    random.seed(2)
    assert run_small()[1].candidates == one


def test_an_iteration_is_logged_in_one_line(caplog):
    with caplog.at_level(logging.INFO, logger="racing"):
        run_small(iterations=3)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        *(f"Search {i}/3" for i in range(4)),
        "Search end",
    ]
    assert "16 looks" in caplog.records[1].message and "frontier" in caplog.records[1].message


def test_loaded_candidates_join_unscored_with_their_cost_recomputed():
    loaded = [Candidate((60, 50, 40, 30), -1.0, 95.0, "mutation"), Candidate((64,) * 4, -1.0, 93.0, "full")]

    def score(config):
        assert config not in [c.length_config for c in loaded]
        return small_score(config)

    frontier, search = run_small(score=score, loaded=loaded, max_candidates=10)
    assert search.candidates[0] == Candidate((60, 50, 40, 30), 180, 95.0, "mutation")
    assert search.full.score == 93.0 and frontier[-1].score == 95.0
    assert len(search.candidates) == 12  # the budget counts what had to be scored


# ---- resuming ------------------------------------------------------------------------------------------------------


class DiesAfter:
    """A score that is interrupted in its `evaluations`-th call."""

    def __init__(self, evaluations):
        self.left, self.done = evaluations, []

    def __call__(self, config):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.done.append(config)
        return small_score(config)


@pytest.mark.parametrize("torn", [b"", b'{"length_config": [64, 3', b"{"])
@pytest.mark.parametrize("kill_after", [0, 1, 5, 7, 8, 30, 60])
def test_a_killed_and_repeated_search_equals_an_undisturbed_one(tmp_path, kill_after, torn):
    undisturbed = run_small()[1].candidates
    path, first = tmp_path / "store.jsonl", DiesAfter(kill_after)
    with pytest.raises(KeyboardInterrupt):
        run_small(score=first, store=CandidateStore(path, SETTINGS))
    with open(path, "ab") as file:
        file.write(torn)
    second = DiesAfter(1000)
    _, search = run_small(score=second, store=CandidateStore(path, SETTINGS))
    assert search.candidates == undisturbed
    assert first.done + second.done == [c.length_config for c in undisturbed]
    assert load_store(path, 4, 64) == undisturbed


def test_each_candidate_is_on_disk_before_the_next_is_scored(tmp_path):
    path = tmp_path / "store.jsonl"
    lines = []

    def score(config):
        lines.append(path.read_text().count("\n"))
        return 1.0

    run_small(score=score, store=CandidateStore(path, SETTINGS), iterations=1)
    assert lines == list(range(1, len(lines) + 1))
