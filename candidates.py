"""Candidates of a search: length configs with a cost and a score, their Pareto frontier, and the choice from it.

Cost is any number to minimise (multiply-accumulates, a latency), score any number to maximise (F1, 0-100).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

LengthConfig = tuple[int, ...]
ORIGINS = ("full", "initial", "mutation", "crossover", "sampled", "loaded")


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
    std_error: float = 0.0

    def record(self) -> dict:
        """This candidate as JSON; what `candidate_store.load_store` reads."""
        return {
            "length_config": list(self.length_config),
            "cost": _plain(self.cost),
            "score": self.score,
            "std_error": self.std_error,
            "origin": self.origin,
            "parents": [list(parent) for parent in self.parents],
        }


def _plain(cost: float) -> float:
    """Whole costs (MACs) are written as integers."""
    return int(cost) if float(cost).is_integer() else cost


def finite(value: object, name: str) -> float:
    """`value` as a number; SearchError with its `name` if it is none, or infinite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise SearchError(f"the {name} must be a finite number, not {value!r}.")
    return number


def pareto_frontier(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates that no other one beats (cost at most, score at least, one of them better), by rising cost.

    Of those with the same cost and score the one with the smallest length config stays.
    """
    frontier: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.cost, -c.score, c.length_config)):
        if not frontier or candidate.score > frontier[-1].score:
            frontier.append(candidate)
    return frontier


def thin(
    frontier: Sequence[Candidate], reference_cost: float, loss: float, members: int | None = None
) -> list[Candidate]:
    """The frontier without those who hardly add to its hypervolume; together they make up less than `loss` (a fraction).

    The least contribution goes first; those of its neighbours grow by that. More go if more than `members` are left.
    The best one stays: the full model, which the reference is measured by, adds nothing.
    """
    kept, allowed = list(frontier), loss * hypervolume(frontier, reference_cost)
    while len(kept) > 1:
        parts = _contributions(kept, reference_cost)
        least = min(range(len(kept) - 1), key=parts.__getitem__)
        allowed -= parts[least]
        if allowed <= 0 and (members is None or len(kept) <= members):
            break
        del kept[least]
    return kept


def most_useful(frontier: Sequence[Candidate], full: Candidate, members: int | None) -> list[Candidate]:
    """The `members` of the frontier (None: all) that add most to its hypervolume with the drop from `full` as log(1 + drop).

    By the scores themselves nearly all of them would lie where those fall steeply; users ask for drops of a point or less.
    """
    best = math.log1p(max(full.score, 0.0))
    scaled = [replace(c, score=best - math.log1p(max(full.score - c.score, 0.0))) for c in frontier]
    chosen = {c.length_config for c in thin(scaled, full.cost, 0.0, members)}
    return [c for c in frontier if c.length_config in chosen]


def _contributions(frontier: Sequence[Candidate], reference_cost: float) -> list[float]:
    """What the hypervolume would lose without each member, with the reference score 0."""
    costs = [min(c.cost, reference_cost) for c in frontier] + [reference_cost]
    scores = [0.0] + [c.score for c in frontier]
    return [
        (costs[i + 1] - costs[i]) * (scores[i + 1] - scores[i]) if i or scores[1] > 0 else 0.0
        for i in range(len(frontier))
    ]


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
    unit: str = "MACs",
) -> Candidate:
    """The cheapest candidate within `max_score_drop` of `full`, or the best one of at most the target cost.

    Takes exactly one criterion; `target_cost_ratio` is relative to `full.cost`. `unit` is that of the costs. Raises
    SearchError if none fits.
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
        nearest = cheapest_first[0]
        wanted = f"takes at most {target:.4g} {unit} ({target / full.cost:.3f} of the full model's)"
    if not fitting:
        raise SearchError(
            f"no length config found {wanted}; the nearest is {nearest.length_config}: score {nearest.score:.2f}, "
            f"{nearest.cost:.4g} {unit} ({nearest.cost / full.cost:.3f} of full). Relax the target, or search further."
        )
    return fitting[0]
