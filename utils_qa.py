"""From span logits to answers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from results_qa import write_json

if TYPE_CHECKING:  # a single question comes without datasets
    from datasets import Dataset

CHUNK = 128  # windows at a time: the (windows, n_best, n_best) pair scores stay in the processor's cache
Columns: TypeAlias = "Dataset | dict[str, list]"


@dataclass(frozen=True)
class AnswerSettings:
    """`n_best_size` starts and ends are considered, and as many answers kept; `max_answer_length` is in tokens.

    In version 2 a question is left unanswered if null score - best span score (logits) exceeds the threshold.
    """

    n_best_size: int = 20
    max_answer_length: int = 30
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0


@dataclass(frozen=True)
class Answers:
    """By question id: the answer, the best candidates, and in version 2 null score - best span score (logits).

    A candidate has text, probability among the candidates, start_logit, end_logit, and its characters start and end.
    """

    texts: dict[str, str]
    nbest: dict[str, list[dict]] = field(default_factory=dict)
    null_odds: dict[str, float] | None = None


@dataclass(frozen=True)
class BestSpans:
    """The best spans of each example, arrays (E, n), best first; where `found` is False there is none."""

    found: np.ndarray
    start_logit: np.ndarray
    end_logit: np.ndarray
    start: np.ndarray  # characters [start, end) of the context, 0 where there is none
    end: np.ndarray

    @property
    def score(self) -> np.ndarray:
        return np.where(self.found, self.start_logit + self.end_logit, -np.inf)


def extract_answers(
    examples: Columns,
    features: Columns,
    logits: tuple[np.ndarray, np.ndarray],
    settings: AnswerSettings = AnswerSettings(),
) -> Answers:
    """Answers to `examples` from the (start, end) logits of their `features`, arrays (N, S)."""
    return AnswerExtractor(examples, features, settings)(logits)


class AnswerExtractor:
    """Turns (start, end) logits of `features` into Answers to `examples`; what the logits do not change is done once.

    `features` are those of windows_qa.prepare_validation_features, in any order; ValueError if they were not made of
    these examples.
    """

    def __init__(self, examples: Columns, features: Columns, settings: AnswerSettings = AnswerSettings()):
        self.settings = settings
        self.ids, self.contexts = examples["id"][:], examples["context"][:]
        index = {name: number for number, name in enumerate(self.ids)}
        owners = features["example_id"][:]
        if set(owners) != index.keys():
            raise ValueError("the features were not made of these examples: prepare them again.")
        self.example = np.array([index[name] for name in owners], dtype=np.int64)  # of each window
        self.lengths, self.offsets = token_offsets(features)
        self.first_token = np.cumsum(self.lengths) - self.lengths  # of each window, among the tokens of all
        self.in_context = np.arange(self.lengths.max()) < self.lengths[:, None]  # (N, S)
        self.in_context[self.in_context] = self.offsets[:, 0] >= 0

    def __call__(self, logits: tuple[np.ndarray, np.ndarray], nbest: bool = True) -> Answers:
        """Answers from two float arrays (N, S), whatever stands beyond a window's length; ValueError if S is short.

        `nbest=False` leaves the n-best lists empty and takes about a third of the time.
        """
        start, end = (np.asarray(array, dtype=np.float32) for array in logits)
        if start.shape != end.shape or len(start) != len(self.lengths) or start.shape[1] < self.lengths.max():
            raise ValueError(f"logits {start.shape} and {end.shape} do not fit {self.in_context.shape} features.")
        best = self.best_spans(start, end, self.settings.n_best_size if nbest else 1)
        answered, null_odds = best.found[:, 0], None
        if self.settings.version_2_with_negative:
            null_window = smallest_per_group(start[:, 0] + end[:, 0], self.example, len(self.ids))
            null = start[null_window, 0] + end[null_window, 0]
            odds = null - np.where(answered, best.score[:, 0], 0)
            answered = answered & (odds <= self.settings.null_score_diff_threshold)
            null_odds = dict(zip(self.ids, odds.tolist()))
        spans = zip(self.contexts, best.start[:, 0].tolist(), best.end[:, 0].tolist(), answered.tolist())
        texts = [context[first:stop] if chosen else "" for context, first, stop, chosen in spans]
        if self.settings.version_2_with_negative and nbest:
            best = with_null(best, start[null_window, 0], end[null_window, 0])
        return Answers(dict(zip(self.ids, texts)), self.nbest_lists(best) if nbest else {}, null_odds)

    def best_spans(self, start: np.ndarray, end: np.ndarray, keep: int) -> BestSpans:
        """The `keep` best spans of each example over all its windows."""
        parts = []
        for first in range(0, len(start), CHUNK):
            rows = slice(first, first + CHUNK)
            width = self.lengths[rows].max()
            mask = self.in_context[rows, :width]
            masked = (np.where(mask, array[rows, :width], -np.inf) for array in (start, end))
            parts.append(window_spans(*masked, self.settings, keep))
        starts, ends, scores = (np.concatenate(arrays) for arrays in zip(*parts))  # (N, keep)
        pick = best_per_group(scores, self.example, len(self.ids))
        row, found = pick // keep, pick >= 0
        starts, ends = starts.ravel()[pick], ends.ravel()[pick]
        return BestSpans(
            found=found,
            start_logit=start[row, starts],
            end_logit=end[row, ends],
            start=np.where(found, self.offsets[self.first_token[row] + starts, 0], 0),
            end=np.where(found, self.offsets[self.first_token[row] + ends, 1], 0),
        )

    def nbest_lists(self, best: BestSpans) -> dict[str, list[dict]]:
        columns = [softmax(best.score), best.start_logit, best.end_logit, best.start, best.end]
        columns = zip(self.ids, self.contexts, best.found.sum(axis=1).tolist(), *(array.tolist() for array in columns))
        names = ("text", "probability", "start_logit", "end_logit", "start", "end")
        lists = {}
        for name, context, count, *values in columns:
            rows = list(zip(*values))[:count]
            lists[name] = [dict(zip(names, (context[row[-2] : row[-1]], *row))) for row in rows]
        return lists


def token_offsets(features: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each window (N,), and the characters [start, end) of all tokens (T, 2), -1 outside the context."""
    if isinstance(features, dict):
        windows = features["offset_mapping"]
        return np.array([len(window) for window in windows]), np.concatenate(windows)
    column = features.with_format("arrow")[:]["offset_mapping"].combine_chunks()
    return column.value_lengths().to_numpy(), column.flatten().flatten().to_numpy().reshape(-1, 2)


def window_spans(
    start: np.ndarray, end: np.ndarray, settings: AnswerSettings, keep: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start tokens, end tokens (included) and scores of each window's best spans, (N, keep); -inf where there is none.

    `start` and `end` are logits (N, S), -inf outside the context. Every pair of the n_best_size best starts and ends
    that is in order and at most max_answer_length tokens long is considered. Of equal scores the first span wins.
    """
    starts, ends = (np.sort(top_indices(array, settings.n_best_size)) for array in (start, end))  # in text order
    lengths = ends[:, None, :] - starts[:, :, None] + 1
    scores = np.take_along_axis(start, starts, 1)[:, :, None] + np.take_along_axis(end, ends, 1)[:, None, :]
    scores[(lengths < 1) | (lengths > settings.max_answer_length) | ~(scores > -np.inf)] = -np.inf  # NaN too
    scores = scores.reshape(len(start), -1)
    best = top_indices(scores, keep)
    missing = ((0, 0), (0, keep - best.shape[1]))  # fewer pairs than asked for
    spans = [
        np.take_along_axis(starts, best // ends.shape[1], 1),
        np.take_along_axis(ends, best % ends.shape[1], 1),
    ]
    scores = np.pad(np.take_along_axis(scores, best, 1), missing, constant_values=-np.inf)
    return *(np.pad(array, missing) for array in spans), scores


def top_indices(values: np.ndarray, count: int) -> np.ndarray:
    """Indices (N, min(count, M)) of the largest values of each row of (N, M), best first, ties in index order."""
    if count == 1:
        return values.argmax(axis=1)[:, None]
    return np.argsort(-values, axis=1, kind="stable")[:, :count]


def best_per_group(scores: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Flat indices (groups, n) into `scores` (N, n) of the n best of the rows of each group, -1 where all are -inf."""
    owner = np.repeat(group, scores.shape[1])
    order = np.lexsort((-scores.ravel(), owner))  # stable: of equal scores the earlier window wins
    owner = owner[order]
    rank = np.arange(len(order)) - np.searchsorted(owner, owner)
    kept = (rank < scores.shape[1]) & (scores.ravel()[order] > -np.inf)
    pick = np.full((groups, scores.shape[1]), -1)
    pick[owner[kept], rank[kept]] = order[kept]
    return pick


def smallest_per_group(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Index of the smallest of `values` (N,) in each group."""
    order = np.lexsort((values, group))
    return order[np.searchsorted(group[order], np.arange(groups))]


def with_null(best: BestSpans, start_logit: np.ndarray, end_logit: np.ndarray) -> BestSpans:
    """`best` and, at its rank, the empty answer with these logits (E,) of [CLS]."""
    zero = np.zeros(len(start_logit), dtype=np.int64)
    null = BestSpans(zero == 0, start_logit, end_logit, zero, zero)
    order = np.argsort(-np.column_stack([best.score, null.score]), axis=1, kind="stable")
    both = {name: np.column_stack([getattr(best, name), getattr(null, name)]) for name in vars(null)}
    return BestSpans(**{name: np.take_along_axis(array, order, 1) for name, array in both.items()})


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis; a row of -inf alone gives zeros."""
    exponentials = np.exp(scores - np.maximum(scores.max(axis=-1, keepdims=True), np.finfo(np.float32).min))
    return exponentials / np.maximum(exponentials.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)


def write_answers(answers: Answers, output_dir: str | Path, prefix: str) -> None:
    """Write {prefix}_predictions.json, {prefix}_nbest_predictions.json and in version 2 {prefix}_null_odds.json."""
    write_json(Path(output_dir, f"{prefix}_predictions.json"), answers.texts)
    write_json(Path(output_dir, f"{prefix}_nbest_predictions.json"), answers.nbest)
    if answers.null_odds is not None:
        write_json(Path(output_dir, f"{prefix}_null_odds.json"), answers.null_odds)
