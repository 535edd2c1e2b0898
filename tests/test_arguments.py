import json
import re
from pathlib import Path

import pytest

import run_qa
from checks import parse_rates
from command_line import RENAMED, build_parser, parse_args

BASE = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "out"]
PUBLISHED = {
    "fine-tune": "--model_name_or_path nreimers/MiniLMv2-L6-H384-distilled-from-RoBERTa-Large --dataset_name squad "
    "--do_train --do_eval --learning_rate 3e-5 --num_train_epochs 2 --max_seq_length 384 --doc_stride 128 "
    "--per_device_train_batch_size 8 --output_dir output/finetuning",
    "LengthDrop": "--model_name_or_path output/finetuning --dataset_name squad --do_train --do_eval --learning_rate "
    "3e-5 --num_train_epochs 5 --max_seq_length 384 --doc_stride 128 --per_device_train_batch_size 8 "
    "--length_adaptive --num_sandwich 2 --length_drop_ratio_bound 0.2 --layer_dropout_prob 0.2 --output_dir "
    "output/dynamic",
    "search": "--model_name_or_path output/dynamic --dataset_name squad --max_seq_length 384 --doc_stride 128 "
    "--do_eval --per_device_eval_batch_size 32 --do_search --output_dir output/search",
}


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refusal(capsys, flags: list[str], main=parse_args) -> str:
    """The one line with which the command line is refused; nothing may have been written."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as exit:
        main(flags)
    out, err = capsys.readouterr()
    assert exit.value.code == 2
    assert out == "" and err.endswith("\n") and err.count("\n") == 1 and err.startswith("run_qa.py: error: ")
    assert sorted(Path().rglob("*")) == before
    return err


# ---- what parses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", PUBLISHED)
def test_published_commands_parse_without_a_warning(stage, capsys):
    args = parse_args(PUBLISHED[stage].split())
    assert args.data.max_seq_length == 384 and args.data.doc_stride == 128
    assert args.run.do_train == (stage != "search") and args.run.do_eval
    assert args.search.do_search == (stage == "search")
    assert args.length_adaptive.length_adaptive == (stage == "LengthDrop")
    assert capsys.readouterr().err == ""


def test_defaults_are_those_of_the_ancestors():
    args = parse_args(PUBLISHED["search"].split())
    search, adaptive = args.search, args.length_adaptive
    assert (search.evo_iter, search.population_size, search.mutation_size) == (30, 20, 30)
    assert (search.mutation_prob, search.crossover_size) == (0.5, 30)
    assert (adaptive.num_sandwich, adaptive.length_drop_ratio_bound) == (2, 0.2)
    assert search.search_floor_ratio > 0.2


def test_a_json_file_may_hold_numbers_booleans_null_and_lists():
    settings = {
        "model_name_or_path": "m",
        "dataset_name": "d",
        "output_dir": "out",
        "do_eval": True,
        "do_train": False,
        "learning_rate": 3e-5,
        "max_eval_samples": None,
        "length_config": [9, 8, 7],
        "report_to": ["none"],
    }
    Path("settings.json").write_text(json.dumps(settings))
    args = parse_args(["settings.json"])
    assert args.run.do_eval and not args.run.do_train
    assert args.run.learning_rate == 3e-5 and args.data.max_eval_samples is None
    assert json.loads(args.length_adaptive.length_config) == [9, 8, 7]
    assert args.run.report_to == []  # as TrainingArguments reads "none"


def test_false_and_empty_settings_of_a_json_file_are_the_defaults_without_a_warning(capsys):
    names = ("overwrite_output_dir", "length_adaptive", "load_best_model_at_end", "no_remove_unused_columns")
    settings = {"do_eval": True, "report_to": []} | dict.fromkeys(names, False)
    Path("settings.json").write_text(json.dumps(settings))
    assert parse_args(["settings.json", *BASE]).run.report_to == []  # the default, "none"
    assert capsys.readouterr().err == ""


def test_a_no_flag_may_be_true_in_a_json_file(capsys):
    Path("settings.json").write_text(json.dumps({"do_eval": True, "no_remove_unused_columns": True}))
    assert "--no_remove_unused_columns cannot be used" in refusal(capsys, ["settings.json", *BASE])


def test_a_list_of_rates_in_a_json_file_is_one_value():
    Path("settings.json").write_text(json.dumps({"measure_rate": [0.1, 0.2], "do_eval": True}))
    args = parse_args(["settings.json", *BASE])
    assert parse_rates(args.length_adaptive.measure_rate) == [0.1, 0.2]


def test_flags_override_the_json_file():
    Path("settings.json").write_text(json.dumps({"do_eval": True, "seed": 1, "doc_stride": 32}))
    args = parse_args(["settings.json", *BASE, "--doc_stride", "64", "--max_seq_length=256"])
    assert (args.data.doc_stride, args.data.max_seq_length, args.run.do_eval) == (64, 256, True)


@pytest.mark.parametrize("flags", ["--load_best_model_at_end", "--save_strategy best", "--lr_scheduler_type greedy"])
def test_what_needs_a_metric_takes_f1_of_which_more_is_better(flags):
    run = parse_args([*BASE, "--do_train", "--eval_strategy", "steps", "--save_steps", "50", *flags.split()]).run
    assert (run.metric_for_best_model, run.greater_is_better) == ("f1", True)
    if flags.endswith("greedy"):
        assert run.lr_scheduler_kwargs["mode"] == "max"


@pytest.mark.parametrize("text", ["[0.1, 0.25]", "(0.1, 0.25)", "0.1,0.25", " [0.1,0.25,] "])
def test_rates_may_be_a_list_a_tuple_or_bare(text):
    assert parse_rates(text) == [0.1, 0.25]


# ---- what is refused -----------------------------------------------------------------------------------------------

REFUSED = [
    ("", ["--do_train", "--do_eval", "--do_search", "--do_predict"]),
    ("--length_adaptive --do_eval", ["--length_adaptive", "--do_train"]),
    ("--do_train --layer_dropout_prob 0.1 --layer_dropout_bound 1", ["--layer_dropout_prob", "--layer_dropout_bound"]),
    ("--do_predict --measure_rate 0.1", ["--measure_rate", "--do_eval"]),
    ("--do_train --accuracy_only", ["--accuracy_only", "--do_eval"]),
    ("--do_predict --benchmark", ["--benchmark", "--do_eval"]),
    ("--do_eval --accuracy_only --benchmark", ["--accuracy_only", "--benchmark"]),
    ("--do_eval --measure_rate 0.1 --benchmark", ["--measure_rate", "--benchmark"]),
    ("--do_eval --measure_rate 1.5", ["--measure_rate", "1.5"]),
    ("--do_eval --measure_rate abc", ["--measure_rate", "abc"]),
    ("--do_eval --measure_rate 0.1 --length_config (9,8)", ["--length_config", "--measure_rate"]),
    ("--do_eval --length_config (8,9)", ["--length_config", "(8, 9)"]),
    ("--do_eval --length_config (999,9)", ["--length_config", "384"]),
    ("--do_eval --length_config many", ["--length_config", "many"]),
    ("--do_eval --length_config (9,8) --length_config_from s", ["--length_config", "--length_config_from"]),
    ("--do_eval --length_config_from s", ["--length_config_from", "--max_f1_drop", "--target_macs_ratio"]),
    ("--do_eval --length_config_from s --max_f1_drop 1 --target_macs 9", ["--max_f1_drop", "--target_macs"]),
    ("--do_eval --max_f1_drop 1", ["--max_f1_drop", "--length_config_from", "--do_search"]),
    ("--do_eval --length_config_from s", ["exactly one of", "--target_macs,", "--target_latency_ms"]),
    (
        "--do_eval --length_config_from s --target_macs 9 --target_latency_ms 9",
        ["--target_macs", "--target_latency_ms"],
    ),
    ("--do_eval --length_config_from s --target_latency_ms 0", ["--target_latency_ms", "above 0"]),
    ("--do_eval --target_latency_ms 9", ["--target_latency_ms", "--length_config_from", "--do_search"]),
    (
        "--do_search --search_objective latency --search_min_macs 9",
        ["--search_min_macs", "--search_objective latency"],
    ),
    (
        "--do_search --search_objective latency --search_max_macs 9",
        ["--search_max_macs", "--search_objective latency"],
    ),
    ("--do_search --search_objective speed", ["--search_objective", "speed"]),
    ("--do_search --search_strategy luck", ["--search_strategy", "luck"]),
    ("--do_search --search_protocol lazy", ["--search_protocol", "lazy"]),
    (
        "--do_search --search_storage sqlite:///s.db --load_store_file s.jsonl",
        ["--search_storage", "--load_store_file"],
    ),
    ("--do_search --search_min_macs 9 --search_max_macs 5", ["--search_min_macs", "--search_max_macs"]),
    ("--do_search --search_floor_ratio 0", ["--search_floor_ratio"]),
    (
        "--do_train --quantization_aware q --pred_distill --teacher_model_name_or_path t",
        ["--quantization_aware", "--teacher_model_name_or_path"],
    ),
    ("--do_train --quantization_aware q --student_layers 2", ["--quantization_aware", "--student_layers"]),
    ("--do_search --mutation_prob 0", ["--mutation_prob"]),
    ("--do_search --bf16_full_eval", ["--bf16_full_eval", "--do_search", "use --bf16 (autocast)"]),
    ("--do_search --fp16_full_eval", ["--fp16_full_eval", "--do_search", "use --fp16 (autocast)"]),
    ("--do_search --search_split test", ["--search_split", "test"]),
    ("--do_train --hold_out_samples -1", ["--hold_out_samples", "at least 0"]),
    ("--do_search --population_size -1", ["--population_size", "-1"]),
    ("--do_eval --max_eval_samples 0", ["--max_eval_samples", "at least 1"]),
    ("--do_eval --per_device_eval_batch_size 0", ["--per_device_eval_batch_size"]),
    ("--do_eval --doc_stride 400", ["--doc_stride", "--max_seq_length"]),
    ("--do_eval --max_seq_length many", ["--max_seq_length", "many"]),
    ("--do_train --length_adaptive --length_drop_ratio_bound 1", ["--length_drop_ratio_bound"]),
    ("--do_train --length_adaptive --kl_temperature 0", ["--kl_temperature"]),
    ("--do_train --length_adaptive --kl_direction backwards", ["--kl_direction", "backwards"]),
    ("--do_eval --target_macs_ratio 1.5 --length_config_from s", ["--target_macs_ratio", "1.5"]),
    ("--do_eval --no_remove_unused_columns", ["--no_remove_unused_columns"]),
    ("--do_eval --no_eval_do_concat_batches", ["--no_eval_do_concat_batches"]),
    ("--do_eval --dataloader_drop_last", ["--dataloader_drop_last"]),
    ("--do_train --report_to nowhere", ["--report_to", "nowhere"]),
    ("--do_train --lr_scheduler_type wavy", ["wavy"]),
    ("--do_train --save_strategy best", ["--save_strategy best", "--eval_strategy"]),
    ("--do_train --metric_for_best_model loss", ["--metric_for_best_model", "f1 or exact_match"]),
    (
        "--do_train --version_2_with_negative --metric_for_best_model eval_exact_match",
        ["eval_exact_match", "f1 or exact."],
    ),
    ("--do_train --seed -1", ["--seed", "at least 0"]),
    ("--do_train --data_seed -1", ["--data_seed", "at least 0"]),
    ("--do_train --accelerator_config nope.json", ["--accelerator_config", "nope.json"]),
    ('--do_train --accelerator_config {"foo":1}', ["--accelerator_config", "foo"]),
    ("--do_train --optim lion_8bit", ["--optim lion_8bit", "bitsandbytes"]),
    ("--do_train --optim adamw_anyprecision", ["--optim adamw_anyprecision", "torchdistx"]),
    ("--do_train --optim_args rubbish", ["--optim_args rubbish"]),
    ("--do_train --lr_scheduler_type cosine_with_min_lr", ["--lr_scheduler_type cosine_with_min_lr", "min_lr"]),
    ("--do_train --lr_scheduler_kwargs [1]", ["--lr_scheduler_kwargs [1]", "JSON object"]),
    ('--do_train --lr_scheduler_kwargs {"a":1}', ["--lr_scheduler_kwargs", "'a'"]),
    ("--do_train --use_liger_kernel", ["--use_liger_kernel"]),
    ("--do_eval --torch_compile_backend nope", ["--torch_compile_backend nope", "inductor"]),
    ("--do_train --pred_distill", ["--pred_distill needs a teacher", "--teacher_model_name_or_path"]),
    ("--do_train --state_loss_ratio 1 --att_loss_ratio 1", ["--state_loss_ratio and --att_loss_ratio need a teacher"]),
    ("--do_train --length_adaptive --length_drop_teacher both", ["--length_drop_teacher both needs a teacher"]),
    ("--do_train --cache_teacher_logits", ["--cache_teacher_logits needs a teacher"]),
    ("--do_train --teacher_model_name_or_path t", ["t has nothing to teach", "--pred_distill"]),
    (
        "--do_train --teacher_model_name_or_path t --state_loss_ratio 1 --cache_teacher_logits",
        ["--cache_teacher_logits", "--state_loss_ratio compares layers"],
    ),
    (
        "--do_train --teacher_model_name_or_path t --att_loss_ratio 1 --length_adaptive",
        ["--att_loss_ratio and --length_adaptive exclude"],
    ),
    (
        "--do_train --teacher_model_name_or_path t --relation_loss_ratio 1 --torch_compile",
        ["--torch_compile hides", "--relation_loss_ratio"],
    ),
    (
        "--do_train --teacher_model_name_or_path t --state_loss_ratio 1 --activation_checkpointing",
        ["--activation_checkpointing hides"],
    ),
    ("--do_train --pred_distill --distillation_temperature 0", ["--distillation_temperature", "above 0"]),
    ("--do_train --pred_distill --distillation_weight 1.5", ["--distillation_weight", "[0, 1]"]),
    ("--do_train --pred_distill --distillation_weight 0", ["--distillation_weight 0", "--pred_distill nothing"]),
    ("--do_train --state_loss_ratio -1", ["--state_loss_ratio", "at least 0"]),
    ("--do_train --relation_heads 0", ["--relation_heads", "at least 1"]),
    ("--do_train --att_target logits", ["--att_target", "logits"]),
    ("--do_train --teacher_layers 2,x", ["--teacher_layers '2,x'", "2,4,6"]),
    ("--do_train --teacher_layers 0,1", ["--teacher_layers '0,1'", "counted from 1"]),
    ("--do_train --student_layers 2;4", ["--student_layers '2;4'", "2,4,6"]),
    ("--do_train --student_layers 3 --from_scratch", ["--from_scratch and --student_layers exclude"]),
    ("--do_tr --do_eval", ["--do_tr", "did you mean --do_train"]),
    ("--do_eval --max_seq_len 64", ["--max_seq_len;", "did you mean --max_seq_length"]),
    ("--do_eval --measure_rate 0.1 0.2", ["'0.2'", "quote"]),
]


@pytest.mark.parametrize(("flags", "named"), REFUSED, ids=[flags or "no stage" for flags, _ in REFUSED])
def test_senseless_values_and_combinations_are_refused_in_one_line(flags, named, capsys):
    message = refusal(capsys, [*BASE, *flags.split()])
    assert all(name in message for name in named), message


TEXTS = "student_layers teacher_layers teacher_model_name_or_path length_config length_ratios length_config_from measure_rate search_storage load_store_file dataset_name"


@pytest.mark.parametrize("name", TEXTS.split())
def test_an_empty_value_is_not_taken_for_the_default(name, capsys):
    assert f"--{name} is empty" in refusal(capsys, [*BASE, "--do_eval", f"--{name}", ""])


@pytest.mark.parametrize(("stage", "split"), [("train", "train"), ("eval", "validation"), ("predict", "test")])
def test_a_stage_without_data_is_refused(stage, split, capsys):
    message = refusal(capsys, ["--model_name_or_path", "m", "--output_dir", "out", f"--do_{stage}"])
    assert f"--do_{stage}" in message and f"--{split}_file" in message and "--dataset_name" in message


def test_a_search_on_training_questions_needs_some_before_anything_is_loaded(capsys):
    flags = ["--model_name_or_path", "m", "--output_dir", "out", "--validation_file", "v.json", "--do_search"]
    message = refusal(capsys, flags, main=run_qa.main)
    assert "--train_file" in message and "--search_split validation" in message
    assert parse_args([*flags, "--search_split", "validation"]).search.search_samples is None
    assert parse_args([*flags, "--train_file", "t.json"]).search.search_samples == 2000


def test_a_search_by_any_objective_may_be_chosen_from_by_latency():
    for flags in ([], ["--search_objective", "latency"]):
        assert parse_args([*BASE, "--do_search", *flags, "--target_latency_ms", "9"]).search.do_search


@pytest.mark.parametrize(
    "flag",
    [
        *("--model_name_or_path", "--config_name", "--tokenizer_name", "--load_store_file", "--length_config_from"),
        "--teacher_model_name_or_path",
    ],
)
def test_overwriting_may_not_clear_what_the_run_reads(flag, capsys):
    given = [*BASE, "--do_eval", "--do_search", "--max_f1_drop", "1", "--output_dir", "out", flag, "out/part"]
    assert f"{flag} out/part" in refusal(capsys, [*given, "--overwrite_output_dir"])
    parse_args(given)


@pytest.mark.parametrize("missing", ["model_name_or_path", "output_dir"])
def test_the_required_flags_are_required(missing, capsys):
    given = {"model_name_or_path": "m", "output_dir": "out", "dataset_name": "d"}
    flags = [token for name, value in given.items() if name != missing for token in (f"--{name}", value)]
    assert f"--{missing}" in refusal(capsys, [*flags, "--do_eval"])


def test_the_folder_of_the_model_is_no_output_folder(capsys):
    Path("model").mkdir()
    flags = ["--model_name_or_path", "model", "--dataset_name", "d", "--do_eval", "--output_dir", "model/../model/"]
    assert "--output_dir" in refusal(capsys, flags)


def test_the_folder_of_the_teacher_is_no_output_folder(capsys):
    Path("out").mkdir()
    flags = [*BASE, "--do_train", "--teacher_model_name_or_path", "./out", "--pred_distill"]
    assert "the folder of --teacher_model_name_or_path" in refusal(capsys, flags)


def test_a_list_of_layers_in_a_json_file_is_one_value():
    settings = {"student_layers": [1, 3], "teacher_layers": [2, 4], "do_train": True}
    settings |= {"teacher_model_name_or_path": "t", "state_loss_ratio": 1}
    Path("settings.json").write_text(json.dumps(settings))
    distillation = parse_args(["settings.json", *BASE]).distillation
    assert (distillation.student_layers, distillation.teacher_layers) == ("[1, 3]", "[2, 4]")


def test_a_file_is_no_output_folder(capsys):
    Path("out").write_text("")
    assert "--output_dir out is a file" in refusal(capsys, [*BASE, "--do_eval"])


@pytest.mark.parametrize("name", RENAMED)
def test_a_flag_of_older_scripts_is_explained(name, capsys):
    message = refusal(capsys, [*BASE, "--do_eval", f"--{name}", "1"])
    assert f"--{name} no longer exists" in message and RENAMED[name] in message


def test_hints_name_flags_that_exist():
    known = build_parser()._option_string_actions
    hints = " ".join(RENAMED.values())
    assert all(flag in known for flag in re.findall(r"--\w+", hints))
    assert not any(f"--{name}" in known for name in RENAMED)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"do_evil": true}', ["--do_evil", "did you mean --do_eval"]),
        ('{"evaluation_strategy": "epoch"}', ["--eval_strategy"]),
        ('{"do_eval": ', ["JSON"]),
        ('{"h": true}', ["there is no flag --h; see --help"]),
        ('{"query_encoder": "x"}', ["there is no flag --query_encoder; see --help"]),
        ('{"eval_all_checkpoints": true}', ["there is no flag --eval_all_checkpoints; see --help"]),
        ('{"no_remove_unused_columns": 1}', ["no_remove_unused_columns must be true or false"]),
        ('["do_eval"]', ["object"]),
        (None, ["cannot be read"]),
    ],
)
def test_a_bad_json_file_is_named_with_what_is_wrong(text, named, capsys):
    if text is not None:
        Path("settings.json").write_text(text)
    message = refusal(capsys, ["settings.json", *BASE])
    assert all(name in message for name in ["settings.json", *named]), message


def test_main_refuses_before_it_loads_or_writes_anything(capsys, monkeypatch):
    monkeypatch.setattr(run_qa, "run", lambda args: pytest.fail("something was run"))
    refusal(capsys, [*BASE, "--do_eval", "--max_eval_samples", "0"], main=run_qa.main)
