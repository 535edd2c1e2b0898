"""What the command line changes in a model's configuration."""

from transformers import BertConfig

from command_line import parse_args
from loading import adapt_config

TRAIN = ["--model_name_or_path", "m", "--output_dir", "o", "--train_file", "t.json", "--do_train"]


def test_the_dropout_flags_replace_the_configurations_rates():
    config = BertConfig(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    adapt_config(parse_args([*TRAIN, "--hidden_dropout", "0", "--attention_dropout", "0.25"]), config)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.0, 0.25)


def test_without_dropout_flags_the_configurations_rates_stay():
    config = BertConfig(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    adapt_config(parse_args(TRAIN), config)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.3)
