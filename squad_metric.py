"""The SQuAD scores of answers."""

import logging
import re
import string
from collections import Counter
from functools import lru_cache

import evaluate
import numpy as np
from datasets import Dataset, Features, List, Value

from utils_qa import Answers

logger = logging.getLogger(__name__)


@lru_cache(maxsize=1 << 17)  # a search scores the same questions hundreds of times
def answer_words(text: str) -> tuple[str, ...]:
    """What the official scripts compare: lower case, without punctuation and articles, split at blanks."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return tuple(re.sub(r"\b(a|an|the)\b", " ", text).split())


def word_f1(prediction: tuple[str, ...], gold: tuple[str, ...]) -> float:
    common = sum((Counter(prediction) & Counter(gold)).values())
    return 2 * common / (len(prediction) + len(gold)) if common else 0.0


def question_scores(text: str, golds: list[str], version_2: bool) -> tuple[float, float]:
    """Exact match and F1 (0 or 1, 0-1) of the prediction with the gold answer that suits it best.

    Version 2 counts two empty answers as a match in F1 as well, and no gold answer as one empty one.
    """
    prediction, golds = answer_words(text), [answer_words(gold) for gold in golds]
    if version_2:
        golds = [gold for gold in golds if gold] or [()]
    exact = max((float(prediction == gold) for gold in golds), default=0.0)
    if version_2 and not (prediction and golds[0]):
        return exact, exact
    return exact, max((word_f1(prediction, gold) for gold in golds), default=0.0)


class SquadMetric(evaluate.Metric):
    """Exact match and F1 (0-100) as the official scripts of SQuAD v1.1 ("squad") and v2.0 ("squad_v2") compute them.

    "squad" gives exact_match and f1. "squad_v2" gives exact, f1 and total, these for questions with (HasAns_*) and
    without an answer (NoAns_*), and the best exact and f1 that leaving questions unanswered whose
    `no_answer_probability` exceeds a threshold could give, with that threshold, in the unit that these "probabilities"
    have (any that grows with them will do, as in the official script). Unlike the packaged metrics it needs
    no hub, and no files: everything stays in memory, so that any number of processes may compute at a time.
    """

    def __init__(self, config_name: str = "squad"):
        if config_name not in ("squad", "squad_v2"):
            raise ValueError(f"there is no SquadMetric {config_name!r}; use 'squad' or 'squad_v2'.")
        super().__init__(config_name=config_name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        prediction = {"id": Value("string"), "prediction_text": Value("string")}
        if self.config_name == "squad_v2":
            prediction["no_answer_probability"] = Value("float64")
        answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
        reference = {"id": Value("string"), "answers": answers}
        return evaluate.MetricInfo(
            description="SQuAD exact match and F1.",
            citation="Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822.",
            features=Features({"predictions": prediction, "references": reference}),
        )

    def _compute(self, predictions: list[dict], references: list[dict]) -> dict[str, float]:
        texts = {prediction["id"]: prediction["prediction_text"] for prediction in predictions}
        golds = {reference["id"]: reference["answers"]["text"] for reference in references}
        if texts.keys() != golds.keys():
            raise ValueError("predictions and references must have the same ids.")
        version_2 = self.config_name == "squad_v2"
        scores = np.array([question_scores(texts[name], golds[name], version_2) for name in golds])
        if not version_2:
            return dict(zip(("exact_match", "f1"), (100 * scores.mean(axis=0)).tolist()))
        null = {prediction["id"]: prediction["no_answer_probability"] for prediction in predictions}
        answerable = np.array([bool(golds[name]) for name in golds])
        result = group_scores("", scores)
        for prefix, chosen in (("HasAns_", answerable), ("NoAns_", ~answerable)):
            result |= group_scores(prefix, scores[chosen]) if chosen.any() else {}
        gains = np.where(answerable, 0, [-float(texts[name] != "") for name in golds])
        for column, name in enumerate(("exact", "f1")):
            gain = np.where(answerable, scores[:, column], gains)
            best, threshold = best_threshold(gain, np.array([null[name] for name in golds]), (~answerable).sum())
            result |= {f"best_{name}": 100 * best / len(scores), f"best_{name}_thresh": threshold}
        return result


def group_scores(prefix: str, scores: np.ndarray) -> dict[str, float]:
    exact, f1 = (100 * scores.mean(axis=0)).tolist()
    return {f"{prefix}exact": exact, f"{prefix}f1": f1, f"{prefix}total": len(scores)}


def best_threshold(gain: np.ndarray, null: np.ndarray, unanswered_score: float) -> tuple[float, float]:
    """The best sum of scores and its no-answer threshold (official v2.0 script, find_best_thresh).

    From all questions unanswered (threshold 0), they are answered one by one in order of their no-answer score
    `null`, in any unit, each for its `gain`.
    """
    order = np.argsort(null, kind="stable")
    sums = unanswered_score + np.concatenate([[0.0], np.cumsum(gain[order])])
    best = int(sums.argmax())
    return float(sums[best]), float(null[order[best - 1]]) if best else 0.0


def score_answers(answers: Answers, examples: Dataset, version_2: bool) -> dict[str, float]:
    """SquadMetric of `answers`; its best thresholds are in logits, as --null_score_diff_threshold is.

    Questions whose gold answers are not known (null) do not count.
    """
    golds = {name: gold for name, gold in zip(examples["id"][:], examples["answers"][:]) if gold}
    predictions = [{"id": name, "prediction_text": answers.texts[name]} for name in golds]
    if version_2:
        if answers.null_odds is None:
            raise ValueError("answers without null odds: extract them with version_2_with_negative.")
        for prediction in predictions:
            prediction["no_answer_probability"] = answers.null_odds[prediction["id"]]
    elif unanswerable := sum(not gold["text"] for gold in golds.values()):
        logger.warning(
            "%d questions have no gold answer and score 0; SQuAD v2 needs version_2_with_negative", unanswerable
        )
    references = [{"id": name, "answers": gold} for name, gold in golds.items()]
    return SquadMetric("squad_v2" if version_2 else "squad").compute(predictions=predictions, references=references)
