"""The search: frontier, offspring, stores, resuming, choosing; oracles are brute force and published numbers."""

import csv
import itertools
import json
import logging
import math
import random
from collections import Counter
from types import SimpleNamespace

import pytest

from evolution import (
    Candidate,
    CandidateStore,
    EvolutionarySearch,
    SearchError,
    SearchSettings,
    choose,
    crossover,
    hypervolume,
    initial_configs,
    load_store,
    mutate,
    pareto_frontier,
    write_frontier_csv,
)
from length_drop import constant_ratio_config, count_macs

MINILM = SimpleNamespace(hidden_size=384, intermediate_size=1536, num_hidden_layers=6)
BERT = SimpleNamespace(hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
SETTINGS = {"model": "reader", "questions": 1000, "max_length": 64}
# Four rows of the frontier published with QuaLA-MiniLM: length config, MACs, F1, method, parents.
PUBLISHED = """\
(308, 247, 198, 159, 128, 103)\t2484739968\t87.33049546363097\t0\tNone
(269, 253, 252, 202, 104, 34)\t2485456896\t87.76366630183897\t1\t((300, 263, 248, 202, 104, 38),)
(284, 262, 248, 200, 95, 36)\t2510150400\t88.12499528628362\t2\t\
((284, 252, 237, 197, 129, 36), (283, 272, 258, 203, 60, 36))
(315, 251, 242, 159, 142, 33)\t2546934912\t88.33566781744294\t1\t((315, 278, 231, 169, 105, 33),)
"""


def candidate(cost, score, config=(1,)):
    return Candidate(config, cost, score, "initial")


def tiny_cost(config):
    return sum(config)


def tiny_score(config):
    """Diminishing returns, and a different worth of every layer."""
    return sum(weight * math.log(length) for weight, length in zip((3.0, 1.0, 2.0), config))


def small_settings(**changes):
    sizes = {"iterations": 4, "population_size": 6, "mutation_size": 8, "crossover_size": 8}
    return SearchSettings(**({"num_layers": 4, "max_length": 64} | sizes | changes))


def small_score(config):
    return 90 - sum(20 / length for length in config) + random.Random(str(config)).random()


def run_small(seed=7, score=small_score, store=None, loaded=(), **changes):
    settings = small_settings(**changes)
    search = EvolutionarySearch(sum, score, random.Random(seed), settings, store, loaded, progress=False)
    return search.run(), search


def all_configs(num_layers, lowest, highest):
    configs = itertools.product(range(lowest, highest + 1), repeat=num_layers)
    return [config for config in configs if list(config) == sorted(config, reverse=True)]


# ---- frontier ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_frontier_equals_the_quadratic_definition_with_ties_and_duplicates(seed):
    rng = random.Random(seed)
    points = [candidate(rng.randint(0, 12), rng.randint(0, 12), (rng.randint(1, 3),)) for _ in range(60)]
    points += points[:10]
    expected = set()
    for one in points:
        beaten = any(
            o.cost <= one.cost and o.score >= one.score and (o.cost, o.score) != (one.cost, one.score) for o in points
        )
        if not beaten:
            equals = [o.length_config for o in points if (o.cost, o.score) == (one.cost, one.score)]
            expected.add((one.cost, one.score, min(equals)))
    shuffled = rng.sample(points, len(points))
    assert [(c.cost, c.score, c.length_config) for c in pareto_frontier(shuffled)] == sorted(expected)


def test_a_dominated_dearest_candidate_is_not_on_the_frontier():
    frontier = pareto_frontier([candidate(1, 80), candidate(2, 90), candidate(9, 89)])
    assert [c.cost for c in frontier] == [1, 2]


def test_of_equal_costs_only_the_best_score_stays():
    assert [c.score for c in pareto_frontier([candidate(5, 1), candidate(5, 3), candidate(5, 2)])] == [3]


def test_frontier_of_nothing_is_empty():
    assert pareto_frontier([]) == []


def test_hypervolume_of_a_hand_computed_staircase():
    # Steps at cost 2, 4, 7 up to the reference cost 10, above score 1: 2*(3-1) + 3*(5-1) + 3*(6-1) = 31.
    points = [candidate(2, 3), candidate(4, 5), candidate(7, 6), candidate(8, 2), candidate(12, 9), candidate(1, 0)]
    assert hypervolume(points, reference_cost=10, reference_score=1) == 31


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_equals_counting_dominated_cells(seed):
    rng = random.Random(seed)
    points = [candidate(rng.randint(0, 20), rng.randint(0, 20)) for _ in range(15)]
    cells = itertools.product(range(15), range(3, 20))  # unit cells left of cost 15 and above score 3
    covered = sum(any(p.cost <= x and p.score >= y + 1 for p in points) for x, y in cells)
    assert hypervolume(points, reference_cost=15, reference_score=3) == covered


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


def test_min_cost_below_the_floor_config_lets_the_search_go_there():
    floor = sum(constant_ratio_config(0.35, 4, 64))
    frontier, _ = run_small(min_cost=0, iterations=10)
    assert frontier[0].cost < floor


@pytest.mark.parametrize("seed", range(3))
def test_search_finds_the_frontier_of_an_exhaustible_space(seed):
    settings = SearchSettings(3, 9, iterations=40, floor_ratio=0.6)
    floor = tiny_cost(constant_ratio_config(0.6, 3, 9))
    space = [Candidate(c, tiny_cost(c), tiny_score(c), "full") for c in all_configs(3, 2, 9) if sum(c) >= floor]
    search = EvolutionarySearch(tiny_cost, tiny_score, random.Random(seed), settings, progress=False)
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
        search = EvolutionarySearch(lambda config: 0, score, random.Random(0), settings, store, progress=False)
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
    with caplog.at_level(logging.INFO, logger="evolution"):
        run_small(iterations=3)
    assert [record.message.split(":")[0] for record in caplog.records] == [f"Search {i}/3" for i in range(4)]
    assert "6 scored" in caplog.records[1].message and "frontier" in caplog.records[1].message


def test_loaded_candidates_join_unscored_with_their_cost_recomputed():
    loaded = [Candidate((60, 50, 40, 30), -1.0, 95.0, "mutation"), Candidate((64,) * 4, -1.0, 93.0, "full")]

    def score(config):
        assert config not in [c.length_config for c in loaded]
        return small_score(config)

    frontier, search = run_small(score=score, loaded=loaded, max_candidates=10)
    assert search.candidates[0] == Candidate((60, 50, 40, 30), 180, 95.0, "loaded")
    assert search.full.score == 93.0 and frontier[-1].score == 95.0
    assert len(search.candidates) == 12  # the budget counts what had to be scored


# ---- store and resume ----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("length", range(0, 400, 7))
def test_a_store_cut_at_any_byte_opens_with_its_whole_lines(tmp_path, length):
    path = tmp_path / "store.jsonl"
    run_small(iterations=0, store=CandidateStore(path, SETTINGS))
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    store = CandidateStore(path, SETTINGS)
    lines = whole[:length].count(b"\n")
    assert len(store.known) == max(0, lines - 1)
    assert whole.startswith(path.read_bytes()) and path.read_bytes().count(b"\n") == max(1, lines)


def test_a_torn_last_line_is_logged(tmp_path, caplog):
    path = tmp_path / "store.jsonl"
    CandidateStore(path, SETTINGS)
    path.write_bytes(path.read_bytes() + b'{"le')
    CandidateStore(path, SETTINGS)
    assert "cut off" in caplog.text


def test_each_candidate_is_on_disk_before_the_next_is_scored(tmp_path):
    path = tmp_path / "store.jsonl"
    lines = []

    def score(config):
        lines.append(path.read_text().count("\n"))
        return 1.0

    run_small(score=score, store=CandidateStore(path, SETTINGS), iterations=1)
    assert lines == list(range(1, len(lines) + 1))


def test_every_line_is_synchronised_to_disk(tmp_path, monkeypatch):
    synchronised = []
    monkeypatch.setattr("evolution.os.fsync", lambda _: synchronised.append(path.read_bytes().count(b"\n")))
    path = tmp_path / "store.jsonl"
    store = CandidateStore(path, SETTINGS)
    store.append(candidate(1, 2.5, (4, 3)))
    assert synchronised == [1, 2]


def test_other_settings_are_refused_naming_what_differs_and_the_remedy(tmp_path):
    path = tmp_path / "store.jsonl"
    CandidateStore(path, SETTINGS)
    before = path.read_bytes()
    with pytest.raises(SearchError) as error:
        CandidateStore(path, {**SETTINGS, "model": "other"})
    message = str(error.value)
    assert "'reader'" in message and "'other'" in message and "questions" not in message and "folder" in message
    assert "\n" not in message and path.read_bytes() == before


@pytest.mark.parametrize("content", ["notes\n", "no newline", '{"candidates": []}', "[1]\n"])
def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "store.jsonl"
    path.write_text(content)
    with pytest.raises(SearchError, match="is no store"):
        CandidateStore(path, SETTINGS)
    assert path.read_text() == content


def test_a_damaged_line_within_a_store_is_named(tmp_path):
    path = tmp_path / "store.jsonl"
    run_small(iterations=0, store=CandidateStore(path, SETTINGS))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "garbage", *lines[2:], ""]))
    with pytest.raises(SearchError, match="line 3"):
        CandidateStore(path, SETTINGS)


def test_settings_with_tuples_match_what_json_made_of_them(tmp_path):
    for _ in range(2):
        CandidateStore(tmp_path / "store.jsonl", {"lengths": (1, 2)})


def test_a_readonly_store_knows_the_scores_and_never_touches_the_file(tmp_path):
    path = tmp_path / "store.jsonl"
    CandidateStore(path, SETTINGS).append(candidate(1, 2.5, (4, 3)))
    path.write_bytes(path.read_bytes() + b'{"torn')
    before = path.read_bytes()
    store = CandidateStore(path, SETTINGS, readonly=True)
    store.append(candidate(1, 3.5, (4, 2)))
    assert store.known == {(4, 3): 2.5, (4, 2): 3.5} and path.read_bytes() == before
    CandidateStore(tmp_path / "absent.jsonl", SETTINGS, readonly=True)
    assert not (tmp_path / "absent.jsonl").exists()


# ---- loading -------------------------------------------------------------------------------------------------------


def test_the_published_header_less_tsv_is_read(tmp_path):
    path = tmp_path / "parents-iter30.tsv"
    path.write_bytes(PUBLISHED.replace("\n", "\r\n").encode())  # csv.writer's line ends
    first, second, third, fourth = load_store(path, 6, 384)
    assert first == Candidate((308, 247, 198, 159, 128, 103), 2484739968, 87.33049546363097, "initial")
    assert second.origin == "mutation" and second.parents == ((300, 263, 248, 202, 104, 38),)
    assert third.origin == "crossover" and crossover(*third.parents) == third.length_config
    assert fourth.length_config == (315, 251, 242, 159, 142, 33)
    assert pareto_frontier([fourth, third, first, second]) == [first, second, third, fourth]


def test_a_tsv_with_only_three_columns_is_read(tmp_path):
    path = tmp_path / "store.tsv"
    path.write_text("(4, 3)\t10\t0\n\n(4, 4)\t12\t0.5")
    assert [(c.length_config, c.cost, c.score, c.origin) for c in load_store(path, 2, 4)] == [
        ((4, 3), 10, 0, "loaded"),
        ((4, 4), 12, 0.5, "loaded"),
    ]


@pytest.mark.parametrize("column", range(5))
@pytest.mark.parametrize("text", ["__import__('pathlib').Path('{}').touch()", "(open('{}', 'w'), 3)"])
def test_code_in_a_tsv_is_refused_and_not_executed(tmp_path, column, text):
    columns = ["(4, 3)", "10", "50.0", "0", "None"]
    columns[column] = text.format(tmp_path / "executed")
    path = tmp_path / "store.tsv"
    path.write_text("(4, 4)\t12\t60\t0\tNone\n" + "\t".join(columns) + "\n")
    with pytest.raises(SearchError, match=r"store\.tsv, line 2: "):
        load_store(path, 2, 4)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "line",
    [
        "(4, 3) 10 50",
        "(3, 4)\t10\t50",
        "(5, 4)\t10\t50",
        "(4, 3, 2)\t10\t50",
        "(4, 0)\t10\t50",
        "(4, 3)\tNone\t50",
        "(4, 3)\t10\tnan",
        "(4, 3)\t10\t50\t3\tNone",
        "(4, 3)\t10\t50\t1\t((4, 5),)",
    ],
)
def test_an_invalid_row_is_named_with_file_line_and_remedy(tmp_path, line):
    path = tmp_path / "store.tsv"
    path.write_text(f"(4, 4)\t12\t60\n{line}\n")
    with pytest.raises(SearchError) as error:
        load_store(path, 2, 4)
    message = str(error.value)
    assert f"{path}, line 2: " in message and "Correct or delete it" in message and "\n" not in message


def test_search_results_json_gives_back_the_candidates(tmp_path):
    _, search = run_small()
    path = tmp_path / "search_results.json"
    results = {"seed": 7, "settings": {}, "candidates": [c.record() for c in search.candidates]}
    for indent in (None, 2):
        path.write_text(json.dumps(results, indent=indent) + "\n")
        assert load_store(path, 4, 64) == search.candidates


def test_search_results_json_with_f1_and_without_origin_is_read(tmp_path):
    path = tmp_path / "search_results.json"
    path.write_text('{"candidates": [{"length_config": [4, 3], "macs": 7, "f1": 0}]}')
    assert load_store(path, 2, 4) == [Candidate((4, 3), 7, 0, "loaded")]


@pytest.mark.parametrize(
    "content",
    [
        '{"candidates": [{"length_config": [4, 3], "macs": 7}]}',
        '{"candidates": [{"length_config": "(4, 3', "{", '{"candidates": 3}', "[]", '{"candidates": [7]}',
        '{"candidates": [{"length_config": [4, 3.5], "macs": 7, "score": 1}]}',
        '{"candidates": [{"length_config": 4, "macs": 7, "score": 1}]}',
        '{"candidates": [{"length_config": [4, 3], "macs": 7, "score": 1, "parents": 3}]}',
        '{"candidates": [{"length_config": [4, 3], "macs": 7, "score": 1, "origin": []}]}',
    ],
)  # fmt: skip
def test_malformed_search_results_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "search_results.json"
    path.write_text(content)
    with pytest.raises(SearchError) as error:
        load_store(path, 2, 4)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_contradicting_scores_of_one_config_are_refused(tmp_path):
    path = tmp_path / "store.tsv"
    path.write_text("(4, 4)\t12\t60\n(4, 4)\t12\t60\n")
    assert len(load_store(path, 2, 4)) == 1
    path.write_text("(4, 4)\t12\t60\n(4, 4)\t12\t61\n")
    with pytest.raises(SearchError, match="two scores"):
        load_store(path, 2, 4)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SearchError, match="absent.tsv"):
        load_store(tmp_path / "absent.tsv", 2, 4)


# ---- choosing and writing ------------------------------------------------------------------------------------------

FULL = Candidate((9, 9), 1000, 88.3, "full")
FRONTIER = [candidate(300, 84.0, (3, 3)), candidate(500, 87.3, (5, 5)), candidate(800, 88.4, (8, 8))]


@pytest.mark.parametrize(
    ("criterion", "cost"),
    [
        ({"max_score_drop": 1.0}, 500),
        ({"max_score_drop": 0.9}, 800),
        ({"max_score_drop": 50}, 300),
        ({"max_score_drop": 0}, 800),
        ({"target_cost": 799}, 500),
        ({"target_cost": 800}, 800),
        ({"target_cost_ratio": 0.5}, 500),
        ({"target_cost_ratio": 1}, 800),
    ],
)
def test_choose_takes_the_cheapest_good_one_or_the_best_affordable_one(criterion, cost):
    assert choose(FRONTIER[::-1], FULL, **criterion).cost == cost


def test_choose_is_not_fooled_by_floating_point():
    assert 87.4 - 86.7 > 0.7
    chosen = choose([candidate(1, 86.7)], candidate(2, 87.4), max_score_drop=0.7)
    assert chosen.score == 86.7


@pytest.mark.parametrize(
    ("criterion", "nearest"),
    [({"target_cost": 100}, "(3, 3)"), ({"target_cost_ratio": 0.0}, "(3, 3)"), ({"max_score_drop": -1}, "(8, 8)")],
)
def test_an_impossible_target_names_the_nearest_candidate(criterion, nearest):
    with pytest.raises(SearchError) as error:
        choose(FRONTIER, FULL, **criterion)
    assert nearest in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("criteria", [{}, {"max_score_drop": 1, "target_cost": 0}])
def test_choose_wants_exactly_one_criterion(criteria):
    with pytest.raises(SearchError, match="exactly one"):
        choose(FRONTIER, FULL, **criteria)


def test_the_frontier_csv_has_ratios_and_drops_relative_to_the_full_model(tmp_path):
    write_frontier_csv(tmp_path / "pareto.csv", FRONTIER[:2], FULL)
    with open(tmp_path / "pareto.csv", newline="") as file:
        header, first, second = csv.reader(file)
    assert header == ["length_config", "macs", "macs_ratio", "f1", "f1_drop"]
    assert first == ["[3, 3]", "300", "0.3", "84.0", "4.3"]
    assert second == ["[5, 5]", "500", "0.5", "87.3", "1.0"]
