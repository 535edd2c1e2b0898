"""The frame of every search: length configs scored on growing subsets of the questions, until the frontier is sure.

A search looks at a config on a few questions first, and again, on more, only while it may belong to the frontier
(racing: Maron & Moore, "Hoeffding Races", NIPS 1993; with normal instead of Hoeffding's bounds).  Scores are compared
question by question with those of the full model, which varies far less than the scores themselves.
"""

import functools
import logging
import math
import time
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from candidate_store import CandidateStore
from candidates import Candidate, LengthConfig, SearchError, finite, hypervolume, most_useful, pareto_frontier, thin
from search_settings import SearchSettings
from surrogate import paired_difference, smooth

logger = logging.getLogger(__name__)

CONFIDENCE = 0.5  # standard errors of its paired difference by which a candidate is thought better than it looks
NEGLIGIBLE = 0.02  # what may be lost of the hypervolume by not looking again at those who hardly add to it
PATIENCE = 10.0  # seconds to wait for another process, besides five times the longest look


class RacingSearch(ABC):
    """Search the frontier of `cost(length_config)`, cheap and repeatable, and `score`, dear.

    `score(length_config, questions)` gives the scores on the questions of these numbers, which are in random order; their
    mean counts. `loaded` candidates join with the scores they have; `store` (see CandidateStore) supplies known scores
    and receives new ones. No config is scored twice on a question.
    """

    def __init__(
        self,
        cost: Callable[[LengthConfig], float],
        score: Callable[[LengthConfig, np.ndarray], Sequence[float]],
        settings: SearchSettings,
        store: CandidateStore | None = None,
        loaded: Sequence[Candidate] = (),
        progress: bool = True,
    ):
        self.cost, self.score, self.settings = functools.cache(cost), score, settings
        self.store, self.loaded, self.progress = store or CandidateStore(), loaded, progress
        self.history: list[dict] = []  # how the hypervolume grew
        self.questions = 0  # evaluated by this process
        self._longest_look = 0.0  # seconds
        self._found: dict[LengthConfig, Candidate] = {}
        self._scores: dict[LengthConfig, np.ndarray] = {}
        self._counts: Counter[str] = Counter()  # since the last log line: scored, cached, failed

    # ---- what was found --------------------------------------------------------------------------------------------

    @property
    def candidates(self) -> list[Candidate]:
        """Every candidate so far, once, in the order found."""
        return list(self._found.values())

    @property
    def full_config(self) -> LengthConfig:
        return self.settings.full_config

    @property
    def full(self) -> Candidate:
        """The full-length candidate."""
        return self._found[self.full_config]

    def candidate(self, config: LengthConfig) -> Candidate:
        return self._found[config]

    def by_question(self, config: LengthConfig) -> np.ndarray | None:
        """The scores of `config` on all questions, in their order; None if it was not asked all of them."""
        scores, whole = self._scores.get(config, ()), self.settings.looks[-1]
        if len(scores) < whole:
            return None
        result = np.empty(whole)
        result[self._order(config)] = scores
        return result

    def frontier(self, seen: int = 1) -> list[Candidate]:
        """The frontier of what `max_cost` allows and was scored on `seen` questions: the full model may be above it."""
        high = self.settings.max_cost
        return pareto_frontier(
            c for c in self.candidates if self._seen(c) >= seen and (high is None or c.cost <= high)
        )

    def hypervolume(self, seen: int = 1) -> float:
        """That of the frontier, with costs as fractions of the full model's: in points of the score."""
        return hypervolume(self.frontier(seen), self.full.cost) / (self.full.cost or 1.0)

    def require_frontier(self) -> None:
        """SearchError if nothing within `max_cost` was scored."""
        if not self.frontier():
            raise SearchError(
                f"nothing was scored of at most cost {self.settings.max_cost:.4g}; raise this bound, the population size "
                "or the largest number of candidates."
            )

    # ---- the search ------------------------------------------------------------------------------------------------

    description = "Search"

    @property
    def total(self) -> int:
        """How many configs are scored at most."""
        return self.settings.budget

    @abstractmethod
    def explore(self) -> None:
        """Propose length configs to `add` until the budget is spent."""

    def run(self) -> list[Candidate]:
        """Search, and return the Pareto frontier by rising cost; SearchError if nothing within `max_cost` was scored."""
        redirect = logging_redirect_tqdm() if self.progress else nullcontext()
        self._started = time.monotonic()
        with (
            redirect,
            tqdm(total=self.total, desc=self.description, unit="config", disable=not self.progress) as self._bar,
        ):
            for c in self.loaded:  # with its origin: the constant-ratio curve is drawn from the initial ones
                self._found[c.length_config] = replace(c, cost=finite(self.cost(c.length_config), "cost"))
            self._num_loaded = len(self._found)
            self._score_full()
            self.explore()
            self.require_frontier()
            self.confirm()
            self.log("end")
        return self.frontier(self.settings.looks[-1])

    def _score_full(self) -> None:
        """The full model on all questions: with its scores the others' are paired, so that a loaded mean will not do."""
        full = self.full_config
        if full not in self._found or len(self.settings.looks) > 1:
            self.begin(Candidate(full, 0.0, 0.0, "full"))
            self._look_until([self.full], self.settings.looks[-1])

    def spent(self) -> bool:
        found = self._found.keys() | self.store.claimed
        return len(found) - self._num_loaded >= self.total

    def add(self, config: LengthConfig, origin: str, parents: tuple[LengthConfig, ...] = ()) -> None:
        """A first look at `config`, unless another process has it in hand."""
        self._join()
        if config not in self._scores:
            self.begin(Candidate(config, 0.0, 0.0, origin, parents))
            if not self._look(self._found[config]):
                del self._found[config], self._scores[config]
        self._bar.update(len(self._found) - self._num_loaded - self._bar.n)

    def begin(self, candidate: Candidate) -> None:
        """Take up a candidate that was not looked at yet."""
        config = candidate.length_config
        if config not in self._scores:
            self._found[config] = replace(candidate, cost=finite(self.cost(config), f"cost of {config}"))
            self._scores[config] = np.empty(0)

    def settle(self, size: int) -> None:
        """Look again at whoever may belong to the frontier, until all of them were scored on `size` questions."""
        while True:
            self._join()
            self._estimate()
            behind = [c for c in self._promising() if self._seen(c) < size]
            if not behind:
                break
            fewest = min(map(self._seen, behind))
            group = [c for c in behind if self._seen(c) == fewest]
            self._look_until(group, next(look for look in self.settings.looks if look > fewest))

    def confirm(self) -> None:
        """Score those members of the frontier that tell most of it on all questions."""
        while self.store.pending and self.store.wait(self._patience()):
            self._join()
        self._estimate()
        members = most_useful(self.frontier(), self.full, self.settings.confirmed)
        self._look_until(members, self.settings.looks[-1])
        self._estimate()

    def within_bounds(self, config: LengthConfig) -> bool:
        low, high = self.settings.min_cost, self.settings.max_cost
        low = self.cost(self.settings.constant_ratio(self.settings.floor_ratio)) if low is None else low
        return low <= self.cost(config) and (high is None or self.cost(config) <= high)

    def look_after(self, share: float) -> int:
        """How many questions the frontier rests on after this share of the search: the more the later, never all."""
        looks = self.settings.looks[1:-2] or self.settings.looks[:1]
        return looks[min(int(len(looks) * share), len(looks) - 1)]

    # ---- looks -----------------------------------------------------------------------------------------------------

    def _seen(self, candidate: Candidate) -> int:
        """On how many questions a candidate was scored; a loaded one counts as known."""
        scores = self._scores.get(candidate.length_config)
        return self.settings.looks[-1] if scores is None else len(scores)

    def _join(self) -> None:
        """Take over what other processes of this search have found."""
        self.store.refresh()
        for config, candidate in self.store.candidates.items():
            known = self.store.known[config]
            if len(known) > len(self._scores.get(config, ())):
                self._found[config] = replace(candidate, cost=finite(self.cost(config), "cost"))
                self._scores[config] = np.array(known)

    def _look_until(self, candidates: Sequence[Candidate], size: int) -> None:
        """Score `candidates` on `size` questions; what another process has in hand is waited for, and then taken over."""
        takeover = False
        while behind := [c for c in candidates if self._seen(c) < size]:
            looked = [self._look(c, takeover) for c in behind]
            takeover = not any(looked) and not self.store.wait(self._patience())
            self._join()

    def _patience(self) -> float:
        """Seconds after which a process that says nothing is thought dead."""
        return PATIENCE + 5 * self._longest_look

    def _look(self, candidate: Candidate, takeover: bool = False) -> bool:
        """Score `candidate` on the next subset of the questions, or take that from the store; False if it is claimed."""
        config, begin = candidate.length_config, self._seen(candidate)
        end = next(look for look in self.settings.looks if look > begin)
        known = self.store.known.get(config, ())[begin:end]  # of other looks' sizes (--search_protocol) perhaps a part
        begin += len(known)
        if begin < end and not self.store.claim(config, begin, takeover):
            return False
        new = self._ask(config, begin, end) if begin < end else []
        self._scores[config] = np.concatenate([self._scores[config], known, new])
        self._found[config] = replace(self._found[config], score=float(self._scores[config].mean()))
        if new:
            self.store.append(self._found[config], begin, new)
        self._counts["scored" if new else "cached"] += 1
        return True

    def _ask(self, config: LengthConfig, begin: int, end: int) -> list[float]:
        started = time.monotonic()
        scores = [finite(value, f"score of {config}") for value in self.score(config, self._order(config)[begin:end])]
        self._longest_look = max(self._longest_look, time.monotonic() - started)
        self.questions += end - begin
        return scores

    def _order(self, config: LengthConfig) -> np.ndarray:
        """The questions in the order in which `config` is asked: each begins elsewhere, so that errors are independent."""
        whole = self.settings.looks[-1]
        return (np.arange(whole) + zlib.crc32(str(config).encode())) % whole

    def _estimate(self) -> None:
        """Take the scores of all candidates anew from all looks: means, where all questions were asked."""
        configs = list(self._scores)
        if len(self.settings.looks) == 1:
            means, deviations = [0.0] * len(configs), [0.0] * len(configs)
        else:
            full = self.by_question(self.full_config)
            asked = (
                (self._scores[config], full[self._order(config)[: len(self._scores[config])]]) for config in configs
            )
            values, errors = np.array([paired_difference(*scores, whole=len(full)) for scores in asked]).T
            means, deviations = smooth(np.array(configs) / self.settings.max_length, values, errors)
            means = means + full.mean()
        for config, score, error in zip(configs, means, deviations):
            scores = self._scores[config]
            if len(scores) == self.settings.looks[-1]:  # exactly: the order of the questions must not break ties
                score, error = math.fsum(scores) / len(scores), 0.0
            self._found[config] = replace(self._found[config], score=float(score), std_error=float(error))

    def _promising(self) -> list[Candidate]:
        """Those who would be on the frontier if they were as good as they may be, but for those who hardly add to it."""
        allowed = [c for c in self.candidates if self.settings.max_cost is None or c.cost <= self.settings.max_cost]
        optimistic = [replace(c, score=c.score + CONFIDENCE * c.std_error) for c in allowed]
        chosen = thin(pareto_frontier(optimistic), self.full.cost, NEGLIGIBLE)
        return [self._found[candidate.length_config] for candidate in chosen]

    def log(self, stage: str) -> None:
        frontier, counts, volume = self.frontier(), self._counts, self.hypervolume()
        best = f"{frontier[-1].score:.2f}" if frontier else "none"
        self.history.append(
            {
                "candidates": len(self._found),
                "questions": self.questions,
                "seconds": round(time.monotonic() - self._started, 2),
                "hypervolume": volume,
            }
        )
        logger.info(
            f"{self.description} {stage}: best score {best}, {len(frontier)} on the frontier, hypervolume "
            f"{volume:.3f}; {counts['scored']} looks, {counts['cached']} from the store, {counts['failed']} failed tries."
        )
        counts.clear()


class GivenConfigs(RacingSearch):
    """No search: given candidates, and the full model, are scored on all of other questions."""

    description = "Scoring the frontier"

    def __init__(
        self, cost: Callable, score: Callable, given: Sequence[Candidate], settings: SearchSettings, **kwargs
    ):
        super().__init__(cost, score, settings, **kwargs)
        self.given = given

    @property
    def total(self) -> int:
        return len({self.full_config, *(c.length_config for c in self.given)})

    def explore(self) -> None:
        for candidate in self.given:
            self.begin(candidate)
        self._look_until([self._found[candidate.length_config] for candidate in self.given], self.settings.looks[-1])

    def _look(self, candidate: Candidate, takeover: bool = False) -> bool:
        looked = super()._look(candidate, takeover)
        self._bar.update(looked)
        return looked
