"""What the command line changes in a model's configuration, and which questions can be scored."""

import pytest
from datasets import Dataset
from transformers import BertConfig

from command_line import parse_args
from data_qa import FEATURES
from loading import QuestionSet, adapt_config
from utils_qa import Answers, AnswerSettings

TRAIN = ["--model_name_or_path", "m", "--output_dir", "o", "--train_file", "t.json", "--do_train"]


def test_the_dropout_flags_replace_the_configurations_rates():
    config = BertConfig(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    adapt_config(parse_args([*TRAIN, "--hidden_dropout", "0", "--attention_dropout", "0.25"]), config)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.0, 0.25)


def test_without_dropout_flags_the_configurations_rates_stay():
    config = BertConfig(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    adapt_config(parse_args(TRAIN), config)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.3)


def question_set(version_2: bool, *golds: list[str] | None) -> QuestionSet:
    """Questions 0, 1, ... with these gold answers; None where they are not known."""
    row = {"title": "", "context": "The Elbe", "question": "?"}
    answers = [None if gold is None else {"text": gold, "answer_start": [4] * len(gold)} for gold in golds]
    rows = [row | {"id": str(number), "answers": answer} for number, answer in enumerate(answers)]
    settings = AnswerSettings(version_2_with_negative=version_2)
    return QuestionSet(Dataset.from_list(rows, features=FEATURES), Dataset.from_list([]), settings)


@pytest.mark.parametrize(
    ("version_2", "golds", "scores"),
    [
        (False, [["Elbe"], []], {"exact_match": 50, "f1": 50}),
        (False, [[], []], {}),
        (False, [None, None], {}),
        (True, [None, None], {}),
        (True, [[], []], {"exact": 50, "f1": 50, "total": 2}),  # known to be unanswerable
        (True, [["Elbe"], None], {"exact": 100, "f1": 100, "total": 1}),
    ],
)
def test_only_questions_whose_gold_answers_are_known_are_scored(version_2, golds, scores):
    answers = Answers({"0": "Elbe", "1": ""}, null_odds={"0": -1.0, "1": 1.0})
    found = question_set(version_2, *golds).score(answers)
    assert {name: found[name] for name in scores} == scores and bool(found) == bool(scores)
