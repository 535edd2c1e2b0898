"""Frontier, hypervolume and choice among candidates, against their definitions and hand-computed values."""

import itertools
import random

import pytest
from small_search import candidate

from candidates import Candidate, SearchError, choose, hypervolume, most_useful, pareto_frontier, thin

FULL = Candidate((9, 9), 1000, 88.3, "full")
FRONTIER = [candidate(300, 84.0, (3, 3)), candidate(500, 87.3, (5, 5)), candidate(800, 88.4, (8, 8))]


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


HALVED = [candidate(100 * i, 90 - 32 / 2**i, (i,)) for i in range(9)]  # each step of cost halves the drop from 90


def test_the_most_useful_members_lie_along_the_costs_not_where_the_score_is_steep():
    full = Candidate((9,), 1000, 90.0, "full")
    drops = [full.score - c.score for c in most_useful(HALVED, full, 5)]
    assert sum(drop <= 2 for drop in drops) >= 3 and max(drops) > 8
    assert sum(full.score - c.score <= 2 for c in thin(HALVED, full.cost, 0.0, 5)) < 3


def test_members_that_score_above_the_full_model_are_told_by_the_cheapest_and_the_best():
    full = Candidate((9,), 1000, 90.0, "full")
    frontier = [candidate(200, 80, (1,)), *(candidate(cost, 90 + cost / 1000, (cost,)) for cost in (400, 500, 600))]
    assert [c.cost for c in most_useful(frontier, full, 3)] == [200, 400, 600]
    assert most_useful(frontier, full, None) == frontier
