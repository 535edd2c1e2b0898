"""Which flags go with --quantization_aware: a misfit is one line and exit status 2, a flag without effect a warning."""

import pytest
from test_arguments import BASE, refusal

from command_line import parse_args

FINISH = [*BASE, "--quantization_aware", "int8"]


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--do_eval", "--quantization_aware is a way of training: add --do_train."),
        ("--do_train --do_eval --tune", "--tune makes the folder that --quantization_aware takes"),
        ("--do_train --do_search", "--quantization_aware and --do_search exclude each other"),
        ("--do_train --do_predict", "--quantization_aware and --do_predict exclude each other"),
        ("--do_train --do_eval --measure_rate 0.1", "--quantization_aware and --measure_rate exclude each other"),
        ("--do_train --push_to_hub", "--push_to_hub cannot be used with --quantization_aware: the Trainer would push"),
        (
            "--do_train --bf16_full_eval",
            "--bf16_full_eval cannot be used with --quantization_aware: it casts the weights",
        ),
        (
            "--do_train --length_adaptive --length_config (9,8)",
            "--length_adaptive and --length_config exclude each other with --quantization_aware",
        ),
        ("--do_train --output_dir int8", "--output_dir int8 is the folder of --quantization_aware"),
        (
            "--do_train --quantization_aware q/int8 --output_dir q --overwrite_output_dir",
            "--quantization_aware q/int8 lies in --output_dir q",
        ),
        ("--do_train --quantization_aware=", "--quantization_aware is empty"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(flags, message, capsys):
    assert message in refusal(capsys, [*FINISH, *flags.split()])


def test_int8_is_for_the_next_command(capsys):
    assert "--int8" in refusal(capsys, [*FINISH, "--do_train", "--int8"])


@pytest.mark.parametrize(
    "flags",
    [
        "--kl_direction full_sub --kl_temperature 2",
        "--length_config (9,8)",
        "--length_ratios (0.9,0.8)",
        "--length_adaptive --num_sandwich 1 --length_unit ratio --layer_dropout_prob 0.1",
        "--quantization_backend native --bf16",
        "--do_eval --validation_file v.json --engine_cache_dir c --accuracy_only",
        "--eval_strategy steps --eval_steps 5 --load_best_model_at_end --save_steps 5",
    ],
)
def test_what_the_finish_uses_is_not_warned_about(flags, capsys):
    parse_args([*FINISH, "--do_train", *flags.split()])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        ("--num_calibration_samples 9", "--num_calibration_samples has no effect without --tune"),
        ("--num_sandwich 9", "--num_sandwich has no effect without --length_adaptive"),
        ("--torch_empty_cache_steps 9", "--torch_empty_cache_steps has no effect with --quantization_aware"),
    ],
)
def test_what_the_finish_does_not_use_is_warned_about(flags, warned, capsys):
    parse_args([*FINISH, "--do_train", *flags.split()])
    assert warned in capsys.readouterr().err
