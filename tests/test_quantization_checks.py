"""Which flags go with --tune, --int8 and --quantization_aware: a misfit is one line and exit status 2, a flag without effect a warning."""

import pytest
from test_arguments import BASE, refusal

from command_line import parse_args

FINISH = [*BASE, "--quantization_aware", "int8"]


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- --tune and --int8 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tune --do_train", "add --do_eval"),
        ("--tune --do_eval", "add --do_train"),
        ("--tune --do_train --do_eval --int8", "give one of them"),
        ("--int8 --do_train", "--int8 cannot be trained"),
        ("--int8 --do_eval --fp16_full_eval", "--fp16_full_eval cannot be used with --int8"),
        ("--tune --do_train --do_eval --length_adaptive", "--tune and --length_adaptive exclude each other"),
        ("--tune --do_train --do_eval --do_search", "--do_search goes with --int8"),
        ("--tune --do_train --do_eval --length_config 9,8", "tune first"),
        ("--tune --do_train --do_eval --metric_name eval_exact", "eval_f1 or eval_exact_match"),
        ("--int8 --do_eval --quantization_backend native --bf16", "remove --bf16"),
        ("--tune --do_train --do_eval --quantization_backend abacus", "--quantization_backend"),
        ("--tune --do_train --do_eval --perf_tol -1", "--perf_tol must be at least 0"),
        ("--tune --do_train --do_eval --num_calibration_samples 0", "--num_calibration_samples must be at least 1"),
    ],
)
def test_quantization_flags_that_make_no_sense_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args([*BASE, *flags.split()])
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("given", "meant"), [("PostTrainingStatic", "static"), ("PostTrainingDynamic", "dynamic")])
def test_the_published_names_of_the_approaches_are_understood(given, meant):
    args = parse_args([*BASE, "--tune", "--do_eval", "--do_train", "--quantization_approach", given])
    assert args.quantization.quantization_approach == meant
    assert not args.trains and args.calibrates == (meant == "static")


def test_tuning_trains_nothing_and_says_which_training_flags_idle(capsys):
    parse_args([*BASE, "--tune", "--do_train", "--do_eval", "--learning_rate", "1e-3", "--max_train_samples", "9"])
    warned = capsys.readouterr().err
    assert "--learning_rate has no effect" in warned and "max_train_samples" not in warned


def test_the_approach_does_not_idle_a_training(capsys):
    parse_args([*BASE, "--do_train", "--quantization_approach", "dynamic"])
    warned = capsys.readouterr().err
    assert "--quantization_approach has no effect without --tune" in warned and "--do_train has no" not in warned


def test_dynamic_quantization_says_that_it_calibrates_nothing(capsys):
    flags = ["--tune", "--do_eval", "--quantization_approach", "dynamic", "--num_calibration_samples", "9"]
    parse_args([*BASE, *flags])
    assert "--num_calibration_samples has no effect with --quantization_approach dynamic" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, taken", [([], "native"), (["--bf16"], "pt2e"), (["--quantization_backend", "pt2e"], "pt2e")]
)
def test_tuning_takes_the_native_backend_unless_the_float_parts_are_to_be_bf16(flags, taken):
    command = [*BASE, "--tune", "--do_train", "--do_eval", "--use_cpu", *flags]
    assert parse_args(command).tuned_backend == taken


# ---- --quantization_aware --------------------------------------------------------------------------------------


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
