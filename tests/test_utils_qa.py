"""Answers from logits against brute force, scores against hand-computed tables and torchmetrics."""

import json
from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value

from data_qa import FEATURES, load_splits
from features_qa import featurize
from squad_metric import SquadMetric, score_answers
from utils_qa import (
    AnswerExtractor,
    Answers,
    AnswerSettings,
    extract_answers,
    write_answers,
)


@pytest.fixture
def questions(tokenizer, squad_v2_file):
    """24 questions and their windows of at most 64 tokens."""
    examples = load_splits(data_files={"validation": str(squad_v2_file)})["validation"]
    return examples, featurize(examples, tokenizer, max_seq_length=64, doc_stride=16, training=False)


def random_logits(features: Dataset, seed: int = 0, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Normal logits, -100 beyond each window, as the Trainer pads them."""
    logits = np.random.default_rng(seed).normal(size=(2, len(features), width)).astype(np.float32)
    beyond = np.arange(width) >= np.array(features["length"])[:, None]
    logits[:, beyond] = -100
    return logits[0], logits[1]


# ---- answers -------------------------------------------------------------------------------------------------------


def best_positions(logits, positions, count):
    return sorted(positions, key=lambda token: (-logits[token], token))[:count]


def brute_force(example, features, logits, settings):
    """(text, n-best spans as (score, start, end), null score - best score) by a double loop over every window."""
    spans, null = [], np.inf
    for row, feature in enumerate(features):
        if feature["example_id"] == example["id"]:
            start, end = logits[0][row], logits[1][row]
            null = min(null, start[0] + end[0])
            inside = [token for token, offset in enumerate(feature["offset_mapping"]) if offset != [-1, -1]]
            for first in best_positions(start, inside, settings.n_best_size):
                for last in best_positions(end, inside, settings.n_best_size):
                    if first <= last < first + settings.max_answer_length:
                        characters = feature["offset_mapping"][first][0], feature["offset_mapping"][last][1]
                        spans.append((start[first] + end[last], *characters))
    spans = sorted(spans, key=lambda span: -span[0])[: settings.n_best_size]
    odds = null - spans[0][0]
    empty = settings.version_2_with_negative and odds > settings.null_score_diff_threshold
    text = "" if empty else example["context"][spans[0][1] : spans[0][2]]
    return text, spans, odds


@pytest.mark.parametrize("n_best_size", [1, 5, 20, 64])
@pytest.mark.parametrize("version_2", [False, True])
def test_answers_equal_a_brute_force_double_loop(questions, n_best_size, version_2):
    examples, features = questions
    logits = random_logits(features, seed=n_best_size)
    if n_best_size == 1:  # one start and one end a window are seldom in order: make them so
        features = features.filter(lambda feature: feature["length"] > 46)
        logits = tuple(array[: len(features)] for array in logits)
        logits[0][:, 40] = logits[1][:, 45] = 9
        examples = examples.filter(lambda example, kept=set(features["example_id"]): example["id"] in kept)
    # a threshold that leaves about half the questions unanswered
    odds = extract_answers(examples, features, logits, AnswerSettings(n_best_size, 12, True)).null_odds
    settings = AnswerSettings(n_best_size, 12, version_2, float(np.median(list(odds.values()))) - 1e-3)
    answers = extract_answers(examples, features, logits, settings)
    assert list(answers.texts) == examples["id"][:]
    rows = list(features)
    for example in examples:
        text, spans, odds = brute_force(example, rows, logits, settings)
        name = example["id"]
        assert answers.texts[name] == text
        found = [entry for entry in answers.nbest[name] if entry["text"]]
        expected = [span for span in spans if span[1] < span[2]]
        assert [(entry["start"], entry["end"]) for entry in found] == [span[1:] for span in expected]
        scores = [entry["start_logit"] + entry["end_logit"] for entry in found]
        assert scores == pytest.approx([span[0] for span in expected], abs=1e-5)
        if version_2:
            assert answers.null_odds[name] == pytest.approx(odds, abs=1e-6)
    assert version_2 or answers.null_odds is None
    assert not version_2 or 0 < sum(text == "" for text in answers.texts.values()) < len(examples)


def test_nbest_entries_are_ranked_consistent_and_sum_to_one(questions):
    examples, features = questions
    logits = random_logits(features)
    for version_2 in (False, True):
        answers = extract_answers(examples, features, logits, AnswerSettings(version_2_with_negative=version_2))
        for example in examples:
            entries = answers.nbest[example["id"]]
            assert len(entries) == 20 + version_2
            assert sum(entry["probability"] for entry in entries) == pytest.approx(1, abs=1e-5)
            for entry, following in pairwise(entries):
                assert entry["probability"] >= following["probability"]
            scores = [entry["start_logit"] + entry["end_logit"] for entry in entries]
            ratios = np.exp(np.array(scores) - scores[0])
            assert np.allclose([entry["probability"] for entry in entries], ratios / ratios.sum(), atol=1e-6)
            assert all(entry["text"] == example["context"][entry["start"] : entry["end"]] for entry in entries)
            assert not version_2 or any(entry["start"] == entry["end"] == 0 for entry in entries)


def test_neither_padding_nor_question_ever_yields_an_answer(questions):
    examples, features = questions
    clean = random_logits(features)
    outside = np.ones((len(features), 96), dtype=bool)
    for row, offsets in enumerate(features["offset_mapping"]):
        outside[row, : len(offsets)] = [offset == [-1, -1] for offset in offsets]
    loud = [np.pad(array, ((0, 0), (0, 32))) for array in clean]
    for array in loud:
        array[outside] = 1e4
    assert extract_answers(examples, features, tuple(loud)) == extract_answers(examples, features, clean)


def test_answers_depend_neither_on_padding_nor_on_the_order_of_the_windows(questions):
    examples, features = questions
    logits = random_logits(features)
    answers = extract_answers(examples, features, logits)
    wide = tuple(np.pad(array, ((0, 0), (0, 320)), constant_values=-100) for array in logits)
    assert extract_answers(examples, features, wide) == answers
    order = np.random.default_rng(1).permutation(len(features))
    shuffled = tuple(array[order] for array in logits)
    assert extract_answers(examples, features.select(order), shuffled) == answers


def test_texts_alone_are_those_of_the_full_answers(questions):
    examples, features = questions
    for settings in (AnswerSettings(), AnswerSettings(version_2_with_negative=True, null_score_diff_threshold=-3.0)):
        extractor = AnswerExtractor(examples, features, settings)
        logits = random_logits(features)
        full, light = extractor(logits), extractor(logits, nbest=False)
        assert light.texts == full.texts and light.null_odds == full.null_odds and light.nbest == {}


def test_of_equal_scores_the_first_token_of_the_first_window_wins(questions):
    examples, features = questions
    zeros = np.zeros((len(features), 64), dtype=np.float32)
    texts = extract_answers(examples, features, (zeros, zeros)).texts
    for feature in features:
        begin, end = next(offset for offset in feature["offset_mapping"] if offset != [-1, -1])
        context = examples[examples["id"][:].index(feature["example_id"])]["context"]
        if begin == 0:
            assert texts[feature["example_id"]] == context[begin:end]


def test_gold_logits_give_full_marks(questions):
    examples, features = questions
    gold = {row["id"]: row["answers"] for row in examples}
    logits = np.zeros((2, len(features), 64), dtype=np.float32)
    for row, feature in enumerate(features):
        answers = gold[feature["example_id"]]
        offsets = [tuple(offset) for offset in feature["offset_mapping"]]
        if answers["text"]:
            start, end = answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])
            covering = [token for token, (begin, stop) in enumerate(offsets) if begin < end and stop > start >= 0]
            if covering and offsets[covering[0]][0] <= start and offsets[covering[-1]][1] >= end:
                logits[0, row, covering[0]] = logits[1, row, covering[-1]] = 10
        else:
            logits[:, row, 0] = 10
    answers = extract_answers(examples, features, tuple(logits), AnswerSettings(version_2_with_negative=True))
    scores = score_answers(answers, examples, version_2=True)
    assert scores["exact"] == scores["f1"] == scores["HasAns_exact"] == scores["NoAns_exact"] == 100
    assert scores["total"] == 24 and scores["NoAns_total"] == 6


@pytest.fixture
def one_question():
    """The context "red green blue" in two windows: [CLS] red green [SEP] and [CLS] green blue [SEP]."""
    record = {"id": "q", "title": "", "context": "red green blue", "question": "?"}
    examples = Dataset.from_list([record | {"answers": {"text": [], "answer_start": []}}], features=FEATURES)
    offset = {"red": [0, 3], "green": [4, 9], "blue": [10, 14], "-": [-1, -1]}
    windows = [["-", "red", "green", "-"], ["-", "green", "blue", "-"]]
    rows = [{"example_id": "q", "offset_mapping": [offset[word] for word in window]} for window in windows]
    types = Features({"example_id": Value("string"), "offset_mapping": List(List(Value("int32"), length=2))})
    return examples, Dataset.from_list(rows, features=types)


def test_of_equal_scores_in_a_window_the_first_span_wins(one_question):
    start, end = np.array([[0, 1, 2, 0], [0, -9, -9, 0]]), np.array([[0, 5, 4, 0], [0, -9, -9, 0]])
    answers = extract_answers(*one_question, (start, end))  # red and green both have 6
    assert [entry["text"] for entry in answers.nbest["q"][:3]] == ["red", "green", "red green"]


def test_windows_of_a_question_are_merged_and_the_null_score_is_their_smallest(one_question):
    start = np.array([[2.0, 1.0, 0.0, 9.0], [1.0, 0.0, 3.0, 9.0]])
    end = np.array([[2.0, 1.0, 0.0, 9.0], [1.5, 0.0, 1.0, 9.0]])
    # best span: blue with 3 + 1; null scores 4 and 2.5, so the odds are 2.5 - 4
    for threshold, text in ((-1.6, ""), (-1.5, "blue"), (0.0, "blue")):
        settings = AnswerSettings(version_2_with_negative=True, null_score_diff_threshold=threshold)
        answers = extract_answers(*one_question, (start, end), settings)
        assert answers.null_odds == {"q": -1.5} and answers.texts == {"q": text}
    ranked = [(entry["text"], entry["start_logit"] + entry["end_logit"]) for entry in answers.nbest["q"]]
    assert ranked[:4] == [("blue", 4.0), ("", 2.5), ("red", 2.0), ("red green", 1.0)]
    assert len(ranked) == 7  # three spans a window and the empty answer


def test_a_question_without_any_valid_span_is_left_unanswered(one_question):
    start = np.array([[0, 0, 5, 0], [0, 0, 5, 0]])
    end = np.array([[0, 5, 0, 0], [0, 5, 0, 0]])
    answers = extract_answers(*one_question, (start, end), AnswerSettings(n_best_size=1))
    assert answers == Answers({"q": ""}, {"q": []})
    answers = extract_answers(*one_question, (start, end), AnswerSettings(1, version_2_with_negative=True))
    assert answers.texts == {"q": ""} and answers.null_odds == {"q": 0.0}
    undefined = np.full((2, 4), np.nan)
    assert extract_answers(*one_question, (undefined, undefined)).texts == {"q": ""}


def test_features_of_other_examples_and_short_logits_are_refused(questions):
    examples, features = questions
    with pytest.raises(ValueError, match="not made of these examples"):
        AnswerExtractor(examples.select(range(3)), features)
    short = np.zeros((len(features), 60))
    with pytest.raises(ValueError, match="do not fit"):
        extract_answers(examples, features, (short, short))


def test_answer_files_hold_what_was_found(one_question, tmp_path):
    logits = np.arange(8.0).reshape(2, 4)
    answers = extract_answers(*one_question, (logits, logits), AnswerSettings(version_2_with_negative=True))
    write_answers(answers, tmp_path / "new", "eval")
    read = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "new").iterdir()}
    assert read == {
        "eval_predictions.json": answers.texts,
        "eval_nbest_predictions.json": answers.nbest,
        "eval_null_odds.json": answers.null_odds,
    }
    write_answers(extract_answers(*one_question, (logits, logits)), tmp_path, "predict")
    assert not (tmp_path / "predict_null_odds.json").exists()


# ---- scores --------------------------------------------------------------------------------------------------------

# prediction, gold answers, exact match, F1 (version 1.1), by hand from the definition
TABLE = [
    ("Denver Broncos", ["Denver Broncos"], 1, 1),
    ("the denver broncos.", ["Denver Broncos"], 1, 1),  # article, case, punctuation
    ("Broncos", ["Denver Broncos"], 0, 2 / 3),  # precision 1, recall 1/2
    ("a an the Denver", ["Denver Broncos", "Denver"], 1, 1),  # the better gold answer
    ("in 1998 and 1999", ["1998"], 0, 2 / 5),  # precision 1/4, recall 1
    ("New New York", ["New York York"], 0, 2 / 3),  # words count as often as in both
    ("U.S.", ["US"], 1, 1),  # punctuation goes without leaving a blank
    ("well-known", ["well known"], 0, 0),  # so these are "wellknown" and "well known"
    ("theory", ["ory"], 0, 0),  # an article only as a whole word
    ("“Red”", ["Red"], 0, 0),  # only ASCII punctuation goes
    ("", ["Denver"], 0, 0),
    ("the", ["a"], 1, 0),  # both empty: v1.1 calls that a match, but shares no word
    ("caf\u00e9\u00a0bar", ["caf\u00e9 bar"], 1, 1),  # any blank separates
]


def compute(config: str, rows: list[tuple], null: list[float] | None = None) -> dict[str, float]:
    predictions = [{"id": str(number), "prediction_text": row[0]} for number, row in enumerate(rows)]
    if null is not None:
        predictions = [prediction | {"no_answer_probability": p} for prediction, p in zip(predictions, null)]
    golds = [{"text": row[1], "answer_start": [0] * len(row[1])} for row in rows]
    references = [{"id": str(number), "answers": gold} for number, gold in enumerate(golds)]
    return SquadMetric(config).compute(predictions=predictions, references=references)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0] or "empty")
def test_metric_equals_the_hand_computed_table(row):
    assert compute("squad", [row]) == pytest.approx({"exact_match": 100 * row[2], "f1": 100 * row[3]})


def test_metric_averages_over_questions_on_the_0_to_100_scale():
    exact, f1 = (100 * sum(row[column] for row in TABLE) / len(TABLE) for column in (2, 3))
    assert compute("squad", TABLE) == pytest.approx({"exact_match": exact, "f1": f1})


def test_metric_agrees_with_torchmetrics():
    text = pytest.importorskip("torchmetrics.text")
    words = ["the", "a", "Denver", "denver", "Broncos,", "1999", "New", "York", "-", "U.S."]
    rng = np.random.default_rng(0)
    # never articles and punctuation alone, where torchmetrics takes version 2's F1 of two empty answers
    phrases = [" ".join([*rng.choice(words, size=rng.integers(0, 5)), rng.choice(words[2:8])]) for _ in range(600)]
    rows = [(phrases[i], [phrases[i + 1], phrases[(7 * i) % 600]]) for i in range(0, 598, 2)]
    rows += [(phrase, [phrase.upper() + "!"]) for phrase in phrases[:50]]
    predictions = [{"id": str(number), "prediction_text": row[0]} for number, row in enumerate(rows)]
    golds = [{"text": row[1], "answer_start": [0] * len(row[1])} for row in rows]
    target = [{"id": str(number), "answers": gold} for number, gold in enumerate(golds)]
    expected = {name: float(value) for name, value in text.SQuAD()(predictions, target).items()}
    assert 10 < expected["exact_match"] < 90
    assert compute("squad", rows) == pytest.approx(expected, abs=1e-4)


def test_version_2_equals_the_hand_computed_table():
    # prediction, gold answers, no-answer probability
    rows = [
        ("Denver", ["Denver Broncos"]),  # exact 0, f1 2/3
        ("", ["Denver", "the"]),  # 0, 0; a gold answer of articles alone does not count
        ("", []),  # 1, 1
        ("Denver", []),  # 0, 0
        ("the", []),  # nothing is left of it: 1, 1
        ("Broncos", ["Broncos"]),  # 1, 1
    ]
    result = compute("squad_v2", rows, null=[0.1, 0.9, 0.8, 0.6, 0.5, 0.2])
    # From all unanswered (3 right) in order of the probability: Denver exact +0 / f1 +2/3 (0.1), Broncos +1 (0.2),
    # "the" -1 (0.5), the wrong Denver -1 (0.6), the empty ones 0.
    expected = {
        "exact": 300 / 6,
        "f1": 100 * (3 + 2 / 3) / 6,
        "total": 6,
        "HasAns_exact": 100 / 3,
        "HasAns_f1": 100 * (5 / 3) / 3,
        "HasAns_total": 3,
        "NoAns_exact": 200 / 3,
        "NoAns_f1": 200 / 3,
        "NoAns_total": 3,
        "best_exact": 100 * 4 / 6,
        "best_exact_thresh": 0.2,
        "best_f1": 100 * (4 + 2 / 3) / 6,
        "best_f1_thresh": 0.2,
    }
    assert result == pytest.approx(expected) and list(result) == list(expected)


def test_version_2_without_unanswerable_questions_has_no_scores_for_them():
    result = compute("squad_v2", [("Denver", ["Denver"])], null=[0.3])
    assert not any(name.startswith("NoAns") for name in result)
    assert result["best_exact"] == 100 and result["best_exact_thresh"] == 0.3
    assert compute("squad_v2", [("", [])], null=[0.3])["best_f1_thresh"] == 0  # nothing is worth answering


def test_best_thresholds_equal_trying_every_threshold():
    rng = np.random.default_rng(2)
    rows = [("x", [["x"], ["y"], []][kind]) if rng.random() < 0.7 else ("", []) for kind in rng.integers(0, 3, 80)]
    null = rng.random(80).tolist()
    scores = {}
    for threshold in [0.0, *null]:
        texts = ["" if probability > threshold else row[0] for row, probability in zip(rows, null)]
        scores[threshold] = sum(text == (row[1] or [""])[0] for text, row in zip(texts, rows))
    best = max(scores.values())
    result = compute("squad_v2", rows, null)
    assert result["best_exact"] == result["best_f1"] == pytest.approx(100 * best / 80)
    assert result["best_exact_thresh"] == min(threshold for threshold in scores if scores[threshold] == best)


def test_metrics_do_not_disturb_each_other_and_ids_must_match():
    first, second = SquadMetric("squad"), SquadMetric("squad")
    gold = {"text": ["x"], "answer_start": [0]}
    first.add_batch(predictions=[{"id": "1", "prediction_text": "x"}], references=[{"id": "1", "answers": gold}])
    second.add_batch(predictions=[{"id": "1", "prediction_text": "y"}], references=[{"id": "1", "answers": gold}])
    assert second.compute()["f1"] == 0 and first.compute()["f1"] == 100
    with pytest.raises(ValueError, match="same ids"):
        second.compute(predictions=[{"id": "2", "prediction_text": "x"}], references=[{"id": "1", "answers": gold}])
    with pytest.raises(ValueError, match="'squad' or 'squad_v2'"):
        SquadMetric("squad_v3")


def test_the_best_threshold_is_in_logits_and_gives_the_best_score(one_question):
    examples, _ = one_question
    answers = Answers({"q": "blue"}, null_odds={"q": -1.5})
    assert score_answers(answers, examples, version_2=True)["best_exact_thresh"] == 0  # unanswerable: never answer it
    golds = {"a": ["blue"], "b": [], "c": ["blue"], "d": []}
    rows = [{"id": name, "answers": {"text": gold, "answer_start": [0] * len(gold)}} for name, gold in golds.items()]
    odds = {"a": -2500.0, "b": 40.0, "c": -1.5, "d": 41.0}  # the sigmoid of the last two is 1

    def score(threshold: float) -> dict[str, float]:
        texts = {name: "blue" if value <= threshold else "" for name, value in odds.items()}
        return score_answers(Answers(texts, null_odds=odds), Dataset.from_list(rows), version_2=True)

    everything_answered = score(1e9)
    assert everything_answered["exact"] == 50 and everything_answered["best_exact"] == 100
    assert everything_answered["best_exact_thresh"] == everything_answered["best_f1_thresh"] == -1.5
    assert score(everything_answered["best_exact_thresh"])["exact"] == everything_answered["best_exact"]
    with pytest.raises(ValueError, match="version_2_with_negative"):
        score_answers(Answers({"q": "blue"}), examples, version_2=True)


def test_questions_without_gold_answer_are_reported_in_version_1(one_question, caplog):
    scores = score_answers(Answers({"q": "blue"}), one_question[0], version_2=False)
    assert scores == {"exact_match": 0, "f1": 0}
    assert "1 questions have no gold answer" in caplog.text
