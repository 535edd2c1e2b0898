"""Every flag that does nothing in the chosen stages is named in a warning."""

import re

import pytest

from command_line import build_parser, parse_args
from idle_flags import NEEDS, OVERRIDDEN, TRAINING_ONLY, UNUSED

BASE = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "out"]
TAUGHT = "--teacher_model_name_or_path t"


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


EXAMPLE_VALUES = {
    "att_target": "scores",
    "calibration_method": "kl",
    "length_drop_teacher": "teacher",
    "quantization_backend": "native",
    "quantization_approach": "dynamic",  # where neither 1 nor the flag alone would do
    "dataset_config_name": "plain",
    "eval_strategy": "no",
    "hub_strategy": "end",
    "kl_direction": "full_sub",
    "attention_dropout": "0",
    "hidden_dropout": "0",
    "layer_dropout_prob": "0.1",
    "length_config": "(9,8)",
    "length_ratios": "(0.9, 0.8)",
    "length_unit": "ratio",
    "length_config_from": "s",
    "length_drop_ratio_bound": "0.1",
    "logging_strategy": "no",
    "lr_scheduler_kwargs": "{}",
    "lr_scheduler_type": "linear",
    "activation_checkpointing_kwargs": "{}",
    "gradient_checkpointing_kwargs": "{}",
    "optim": "adamw_torch",
    "save_strategy": "no",
    "search_floor_ratio": "0.3",
    "search_objective": "latency",
    "search_protocol": "exhaustive",
    "search_storage": "sqlite:///s.db",
    "search_strategy": "tpe",
    "search_split": "validation",
    "train_sampling_strategy": "random",
}
ELSEWHERE = {  # what such a flag needs to be accepted at all
    "length_config_from": ["--max_f1_drop", "1", "--do_search"],
    "load_best_model_at_end": ["--save_strategy", "no"],
}
REQUIRED_WITH = {  # what such a flag needs to be accepted at all
    "length_config_from": ["--max_f1_drop", "1"],
    "load_best_model_at_end": ["--save_strategy", "no"],
}


def idle_flags() -> list[tuple[str, str]]:
    """Every flag of the table with a stage in which it does nothing."""
    pairs = []
    for needed, names in NEEDS.items():
        if needed == ("length_config_from", "do_search"):
            continue  # an error, not a warning
        of_a_search = {"search_split train", "search_strategy evolution"} & {
            *needed
        }  # which are those flags' defaults
        needed = ("do_search", *needed) if of_a_search else needed
        stages = ("do_search", "do_train", "do_predict", "do_eval")
        stage = "do_train" if needed == ("length_adaptive",) else next(s for s in stages if s not in needed)
        if needed == ("dataset_name",):
            stage = None
        pairs += [(name, stage) for name in names.split() if name != "length_adaptive" and stage]  # an error as well
    return pairs


@pytest.mark.parametrize(("name", "stage"), idle_flags())
def test_a_flag_without_effect_in_the_chosen_stages_is_warned_about(name, stage, capsys):
    action = build_parser()._option_string_actions[f"--{name}"]
    value = [] if action.nargs == "?" else [EXAMPLE_VALUES.get(name, "1")]
    parse_args([*BASE, f"--{stage}", f"--{name}", *value, *REQUIRED_WITH.get(name, [])])
    warned = capsys.readouterr().err
    assert re.search(rf"warning: .*--{name}\b.*has no effect without", warned), warned


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--eval_steps 5", "without --eval_strategy steps"),
        ("--eval_strategy epoch --eval_steps 5", "without --eval_strategy steps"),
        ("--eval_delay 5", "without --eval_strategy steps or --eval_strategy epoch"),
        ("--metric_for_best_model f1", "without --eval_strategy steps or --eval_strategy epoch"),
        ("--save_strategy epoch --save_steps 10", "without --save_strategy steps"),
        ("--logging_strategy epoch --logging_steps 5", "without --logging_strategy steps"),
        ("--length_column_name n", "without --train_sampling_strategy group_by_length"),
        ("--hub_model_id me/it", "without --push_to_hub"),
        ("--run_name first", "without --report_to"),
        ("--max_steps 10 --num_train_epochs 2", "with --max_steps"),
        ("--length_adaptive --torch_empty_cache_steps 2", "with --length_adaptive"),
        ("--att_mse", "without --att_loss_ratio"),
        ("--student_layers 3 --distillation_weight 0.5", "without --pred_distill or --state_loss_ratio"),
        (f"{TAUGHT} --state_loss_ratio 1 --distillation_temperature 2", "without --pred_distill"),
        (f"{TAUGHT} --pred_distill --teacher_layers 1,2", "without --state_loss_ratio or --att_loss_ratio or"),
        (f"{TAUGHT} --relation_loss_ratio 1 --partial_reps", "without --state_loss_ratio or --att_loss_ratio"),
        (f"{TAUGHT} --pred_distill --length_drop_teacher both", "without --length_adaptive"),
        (f"{TAUGHT} --pred_distill --teacher_logits_dir l", "without --cache_teacher_logits"),
        ("--model_name_or_path . --model_revision v1", "on a local folder"),
        ("--model_name_or_path . --dataset_name . --token secret", "on local folders"),
    ],
)
def test_a_flag_that_another_one_idles_in_training_is_warned_about(flags, reason, capsys):
    parse_args([*BASE, "--do_train", *flags.split()])
    warned = capsys.readouterr().err
    assert warned.count("has no effect") == 1 and f"has no effect {reason}" in warned, warned


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        ("", ""),
        ("--search_split validation", "--train_file has no effect"),
        ("--hold_out_seed 1", ""),
        ("--search_split validation --hold_out_seed 1", "--hold_out_seed has no effect"),
        ("--search_rescore 2", ""),
        ("--search_strategy nsga2 --population_size 9", ""),
        (
            "--search_strategy nsga2 --evo_iter 9 --crossover_size 9 --mutation_size 9 --mutation_prob 0.9",
            "--crossover_size --evo_iter --mutation_prob --mutation_size has no effect without --search_strategy evolution",
        ),
        ("--hold_out_samples 5", "--hold_out_samples has no effect without --do_train"),
        ("--max_train_samples 5", "--max_train_samples has no effect"),
    ],
)
def test_what_the_search_does_not_use_is_warned_about(flags, warned, capsys):
    parse_args([*BASE, "--do_search", "--train_file", "t.json", *flags.split()])
    shown = capsys.readouterr().err
    assert warned in shown and (warned or not shown)


def test_how_many_configs_are_confirmed_matters_with_either_split(capsys):
    for split in ("train", "validation"):
        parse_args([*BASE, "--do_search", "--search_split", split, "--search_rescore", "2"])
    assert capsys.readouterr().err == ""


def test_flags_that_do_something_are_not_warned_about(capsys):
    flags = "--eval_strategy steps --eval_steps 5 --save_steps 5 --max_steps 10 --token secret --push_to_hub"
    flags += " --hub_model_id me/it --train_sampling_strategy group_by_length --length_column_name n"
    parse_args([*BASE, "--do_train", *flags.split()])
    assert "no effect" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["label_smoothing_factor", "use_cache", "label_names"])
def test_a_flag_that_means_nothing_here_is_warned_about(name, capsys):
    action = build_parser()._option_string_actions[f"--{name}"]
    parse_args([*BASE, "--do_train", f"--{name}", *([] if action.nargs == "?" else ["1"])])
    assert f"--{name} has no effect in question answering" in capsys.readouterr().err


def test_every_flag_in_the_tables_exists():
    named = " ".join([TRAINING_ONLY, UNUSED, *NEEDS.values(), *OVERRIDDEN.values()]).split()
    named += [flag.split()[0] for flags in (*NEEDS, OVERRIDDEN) for flag in flags]
    known = build_parser()._option_string_actions
    assert not [name for name in named if f"--{name}" not in known]
