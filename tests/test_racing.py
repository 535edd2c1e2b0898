"""Racing: looks, paired differences, exact scores at the end, resumption; oracles are whole tables of scores."""

import itertools
import json
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic import FULL, World, small_race

from candidate_store import CandidateStore
from candidates import Candidate, hypervolume, pareto_frontier, thin
from evolution import EvolutionarySearch
from racing import GivenConfigs
from search_settings import SearchSettings, growing_looks

SETTINGS = {"model": "world"}
SMALL = {"questions": 200}
FEW = {"iterations": 2, "population_size": 5, "mutation_size": 4, "crossover_size": 4, "confirmed": 4}


# ---- looks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("questions", "looks"),
    [(1, (1,)), (18, (18,)), (32, (32,)), (100, (25, 100)), (2000, (32, 125, 500, 2000))],
)
def test_looks_grow_fourfold_from_about_32_to_all_questions(questions, looks):
    assert growing_looks(questions) == looks


@pytest.mark.parametrize("questions", [64, 65, 127, 128, 500, 2047, 10570, 87599])
def test_looks_of_any_number_of_questions_stay_near_their_factor(questions):
    looks = growing_looks(questions)
    assert looks[-1] == questions and 16 <= looks[0] <= 64
    assert all(a < b <= 4 * a for a, b in itertools.pairwise(looks))


# ---- comparison with the full model --------------------------------------------------------------------------------


def test_scores_are_compared_with_those_of_the_full_model_on_the_same_questions():
    easy = np.where(
        np.random.default_rng(0).random(2000) < 0.5, 100.0, 20.0
    )  # of 32 questions the mean is off by 7 points

    def score(config, questions):
        return easy[questions] - (sum(FULL) - sum(config)) / 20

    settings = SearchSettings(4, 64, iterations=0, population_size=20, looks=growing_looks(2000), confirmed=1)
    search = EvolutionarySearch(sum, score, random.Random(0), settings, progress=False)
    search.run()
    estimated = [c for c in search.candidates if c.std_error]
    assert len(estimated) > 10
    for c in estimated:
        assert c.score == pytest.approx(easy.mean() - (sum(FULL) - c.cost) / 20, abs=1.0)


def test_the_full_model_is_asked_all_questions_although_a_loaded_candidate_holds_it():
    world = World(**SMALL)
    search = small_race(world, loaded=[Candidate(FULL, 1.0, 12.5, "full")], **FEW)
    search.run()
    assert sorted(world.asked[FULL]) == list(range(200))
    assert search.full.score == pytest.approx(world.mean(FULL)) and search.full.cost == sum(FULL)


def test_a_loaded_candidate_keeps_its_score_and_is_not_asked():
    world, loaded = World(**SMALL), Candidate((60, 50, 40, 40), 1.0, 99.0, "loaded")
    search = small_race(world, loaded=[loaded], **FEW)
    frontier = search.run()
    assert loaded.length_config not in world.asked and replace(loaded, cost=190) in frontier


def test_each_config_begins_with_other_questions():
    world = World(**SMALL)
    small_race(world, **FEW).run()
    assert len({asked[0] for config, asked in world.asked.items()}) > len(world.asked) / 2


# ---- the whole search ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=range(3))
def raced(request):
    """A search by racing and one that asks each candidate all questions, in the same world with the same seed."""
    world, exhaustive = World(request.param), World(request.param)
    search = small_race(world, seed=request.param)
    other = small_race(exhaustive, seed=request.param, looks=(2000,))
    parts = {"world": world, "search": search, "frontier": search.run(), "exhaustive": other}
    return SimpleNamespace(**parts, whole_frontier=other.run())


def test_no_config_is_asked_a_question_twice(raced):
    asked = raced.world.asked
    assert all(len(set(numbers)) == len(numbers) for numbers in asked.values())
    assert raced.search.questions == sum(map(len, asked.values()))


def test_racing_asks_a_fraction_of_the_questions_and_ends_where_an_exhaustive_search_does(raced):
    as_many = thin(raced.whole_frontier, sum(FULL), 0.0, len(raced.frontier))
    true = [replace(c, score=raced.world.mean(c.length_config)) for c in raced.frontier]
    assert hypervolume(true, sum(FULL)) > 0.98 * hypervolume(as_many, sum(FULL))
    assert raced.search.questions < raced.exhaustive.questions / 4


def test_the_frontier_is_exact(raced):
    for c in [*raced.frontier, raced.search.full]:
        assert c.score == pytest.approx(raced.world.mean(c.length_config)) and c.std_error == 0
        assert raced.search.by_question(c.length_config) == pytest.approx(raced.world.scores(c.length_config))
    assert 1 < len(raced.frontier) <= 13


def test_estimates_are_nearer_to_the_truth_than_the_questions_that_were_asked(raced):
    unsure = [c for c in raced.search.candidates if c.std_error > 0]
    errors = {"estimated": [], "asked": []}
    for c in unsure:
        scores, truth = raced.world.scores(c.length_config), raced.world.mean(c.length_config)
        errors["estimated"].append(abs(c.score - truth))
        errors["asked"].append(abs(scores[raced.world.asked[c.length_config]].mean() - truth))
    assert len(unsure) > 40 and np.mean(errors["estimated"]) < np.mean(errors["asked"]) / 2
    assert all(raced.search.by_question(c.length_config) is None for c in unsure)


# ---- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["evolution", "tpe"])
@pytest.mark.parametrize("call", [1, 2, 9, 20, "last"])
def test_a_killed_race_goes_on_from_its_store_and_ends_like_an_undisturbed_one(strategy, call, tmp_path):
    world = World(**SMALL)
    undisturbed = small_race(world, strategy, max_candidates=20, **FEW)
    frontier, path = undisturbed.run(), tmp_path / "store.jsonl"
    first, second = World(**SMALL, dies_at=world.calls if call == "last" else call), World(**SMALL)
    with pytest.raises(KeyboardInterrupt):
        small_race(first, strategy, store=CandidateStore(path, SETTINGS), max_candidates=20, **FEW).run()
    search = small_race(second, strategy, store=CandidateStore(path, SETTINGS), max_candidates=20, **FEW)
    assert search.run() == frontier and search.candidates == undisturbed.candidates
    assert {config: first.asked[config] + second.asked[config] for config in world.asked} == world.asked


@pytest.mark.parametrize(("before", "after"), [((20, 60, 200), (200,)), ((200,), (20, 200)), ((30, 200), (50, 200))])
def test_scores_of_other_looks_are_taken_over_and_completed(before, after, tmp_path):
    path, worlds = tmp_path / "store.jsonl", [World(**SMALL) for _ in range(3)]
    small_race(worlds[0], looks=before, store=CandidateStore(path, SETTINGS), **FEW).run()
    search = small_race(worlds[1], looks=after, store=CandidateStore(path, SETTINGS), **FEW)
    frontier = search.run()
    assert [c.score for c in frontier] == pytest.approx([worlds[0].mean(c.length_config) for c in frontier])
    assert not any(set(worlds[0].asked[config]) & set(asked) for config, asked in worlds[1].asked.items())
    again = small_race(worlds[2], looks=after, store=CandidateStore(path, SETTINGS), **FEW)  # the file is whole
    assert again.run() == frontier and not worlds[2].calls


def test_every_look_is_a_line_with_cost_and_standard_error(tmp_path):
    path = tmp_path / "store.jsonl"
    small_race(World(**SMALL), store=CandidateStore(path, SETTINGS), **FEW).run()
    for line in path.read_text().splitlines()[1:]:
        record = json.loads(line)
        assert record["cost"] == sum(record["length_config"]) and record["std_error"] >= 0 and record["scores"]


# ---- given configs -------------------------------------------------------------------------------------------------


def test_given_configs_and_the_full_model_are_asked_all_questions():
    world, given = World(**SMALL), [Candidate(config, 1.0, 3.0, "mutation") for config in [(64, 40, 30, 20), (9,) * 4]]
    settings = small_race(world).settings.all_at_once(200)
    search = GivenConfigs(sum, world, given, settings, progress=True)
    search.run()
    assert {c.length_config: c.score for c in search.candidates} == pytest.approx(
        {config: world.mean(config) for config in [FULL, (64, 40, 30, 20), (9,) * 4]}
    )
    assert search._bar.n == search.total


# ---- thinning a frontier -------------------------------------------------------------------------------------------


def random_frontier(seed):
    rng = random.Random(seed)
    points = [Candidate((i,), rng.uniform(10, 100), rng.uniform(1, 90), "initial") for i in range(30)]
    return pareto_frontier(points)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("loss", "members"), [(0.0, None), (0.02, None), (0.2, None), (0.0, 3), (0.1, 2), (0.0, 1)])
def test_thin_removes_what_the_hypervolume_misses_least_one_after_the_other(seed, loss, members):
    kept = whole = random_frontier(seed)
    lost = 0.0
    while len(kept) > 1:
        rest = max((kept[:i] + kept[i + 1 :] for i in range(len(kept) - 1)), key=lambda rest: hypervolume(rest, 100))
        lost = 1 - hypervolume(rest, 100) / hypervolume(whole, 100)
        if lost >= loss and len(kept) <= (members or len(whole)):
            break
        kept = rest
    assert thin(whole, 100, loss, members) == kept


@pytest.mark.parametrize("seed", range(10))
def test_thin_loses_at_most_what_it_may(seed):
    frontier = random_frontier(seed)
    assert hypervolume(thin(frontier, 100, 0.05), 100) >= 0.95 * hypervolume(frontier, 100)


def test_the_full_model_stays_though_the_hypervolume_does_not_count_it():
    frontier = [Candidate((i,), cost, cost, "initial") for i, cost in enumerate([40, 60, 80, 100])]
    assert thin(frontier, 100, 0.0) == frontier and thin(frontier, 100, 0.0, 2)[-1] == frontier[-1]
