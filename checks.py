"""Which values and combinations of flags make no sense, and which flags have no effect in the chosen stages."""

import re
from dataclasses import fields
from pathlib import Path

from transformers.integrations import get_available_reporting_integrations

from arguments import Arguments
from length_drop import LengthConfigError, parse_length_config

BUDGETS = ("max_f1_drop", "target_macs", "target_macs_ratio")

AT_LEAST = {
    8: "max_seq_length",
    1: "doc_stride gradient_accumulation_steps max_answer_length max_eval_samples max_predict_samples "
    "max_train_samples n_best_size per_device_eval_batch_size per_device_train_batch_size preprocessing_num_workers "
    "search_max_candidates search_max_macs search_rescore search_samples target_macs",
    0: "crossover_size evo_iter layer_dropout_bound learning_rate max_f1_drop mutation_size num_sandwich "
    "num_train_epochs population_size search_min_macs weight_decay",
}
FRACTIONS = ("length_drop_ratio_bound", "layer_dropout_prob", "attention_dropout", "hidden_dropout")  # [0, 1)
PROBABILITIES = ("mutation_prob", "target_macs_ratio")  # (0, 1]

# Inherited from TrainingArguments, and about losses or metrics that question answering does not have.
UNUSED = (
    "batch_eval_metrics eval_use_gather_object include_for_metrics label_names label_smoothing_factor "
    "prediction_loss_only use_cache"
)
TRAINING_ONLY = (
    "activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon attention_dropout "
    "auto_find_batch_size average_tokens_across_devices data_seed ddp_broadcast_buffers ddp_bucket_cap_mb "
    "ddp_find_unused_parameters ddp_static_graph eval_delay eval_on_start eval_steps eval_strategy "
    "gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs greater_is_better "
    "hidden_dropout ignore_data_skip include_num_input_tokens_seen learning_rate length_adaptive "
    "load_best_model_at_end logging_first_step logging_nan_inf_filter logging_steps logging_strategy "
    "lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps max_train_samples metric_for_best_model "
    "neftune_noise_alpha num_train_epochs optim optim_args optim_target_modules per_device_train_batch_size restore_callback_states_from_checkpoint "
    "resume_from_checkpoint save_only_model save_steps save_strategy save_total_limit torch_empty_cache_steps "
    "train_file train_sampling_strategy warmup_steps weight_decay"
)
# Flags that do something only together with (one of) others.
NEEDS = {
    ("do_train",): TRAINING_ONLY,
    ("length_adaptive",): "kl_direction kl_temperature layer_dropout_bound layer_dropout_prob length_drop_ratio_bound "
    "num_sandwich",
    ("do_search",): "crossover_size evo_iter load_store_file mutation_prob mutation_size population_size "
    "search_floor_ratio search_max_candidates search_max_macs search_min_macs search_rescore search_samples",
    ("do_train", "do_search"): "full_determinism overwrite_output_dir seed",
    ("do_eval", "do_search"): "max_eval_samples validation_file",
    ("do_predict",): "max_predict_samples test_file",
    ("do_eval", "do_predict"): "length_config length_config_from",
    ("do_eval", "do_search", "do_predict"): "eval_accumulation_steps max_answer_length n_best_size "
    "null_score_diff_threshold per_device_eval_batch_size version_2_with_negative",
    ("search_samples",): "search_rescore",
    ("version_2_with_negative",): "null_score_diff_threshold",
    ("dataset_name",): "dataset_config_name",
    ("length_config_from", "do_search"): " ".join(BUDGETS),
}


def check(args: Arguments) -> None:
    """Raise ValueError, in one line that names the flags, for values or combinations that make no sense."""
    check_ranges(args)
    check_stages(args)
    check_training(args)
    check_search(args)
    check_data(args)
    check_length_config(args)
    check_output_dir(args)


def require(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def given_values(args: Arguments) -> dict[str, object]:
    """The value of every flag, whatever its group."""
    groups = (args.model, args.data, args.length_adaptive, args.search, args.run)
    return {item.name: getattr(group, item.name) for group in groups for item in fields(group)}


def check_ranges(args: Arguments) -> None:
    values = {name: value for name, value in given_values(args).items() if value is not None}
    for limit, names in AT_LEAST.items():
        for name in values.keys() & set(names.split()):
            require(values[name] >= limit, f"--{name} must be at least {limit}, not {values[name]}.")
    for name in values.keys() & set(FRACTIONS):
        require(0 <= values[name] < 1, f"--{name} must lie in [0, 1), not {values[name]}.")
    for name in values.keys() & set(PROBABILITIES):
        require(0 < values[name] <= 1, f"--{name} must lie above 0 and at most at 1, not {values[name]}.")
    floor, temperature = args.search.search_floor_ratio, args.length_adaptive.kl_temperature
    require(0 < floor < 1, f"--search_floor_ratio must lie between 0 and 1, not {floor}.")
    require(temperature > 0, f"--kl_temperature must be above 0, not {temperature}.")


def check_stages(args: Arguments) -> None:
    run, adaptive = args.run, args.length_adaptive
    require(
        run.do_train or run.do_eval or run.do_predict or args.search.do_search,
        "nothing to do: give at least one of --do_train, --do_eval, --do_search, --do_predict.",
    )
    require(not adaptive.length_adaptive or run.do_train, "--length_adaptive is a way of training: add --do_train.")
    require(not adaptive.measure_rate or run.do_eval, "--measure_rate is a way of evaluating: add --do_eval.")
    for name in ("accuracy_only", "benchmark"):
        require(run.do_eval or not getattr(run, name), f"--{name} is a way of evaluating: add --do_eval.")
    require(not (run.accuracy_only and run.benchmark), "--accuracy_only and --benchmark exclude each other.")
    require(
        not (adaptive.measure_rate and run.benchmark),
        "--measure_rate and --benchmark exclude each other: --benchmark times one length config.",
    )


def check_training(args: Arguments) -> None:
    run, adaptive = args.run, args.length_adaptive
    require(
        adaptive.layer_dropout_prob is None or adaptive.layer_dropout_bound is None,
        "--layer_dropout_prob and --layer_dropout_bound are two ways of LayerDrop: give one.",
    )
    require(
        not (run.resume_from_checkpoint and run.overwrite_output_dir),
        "--resume_from_checkpoint and --overwrite_output_dir exclude each other: continue, or start anew.",
    )
    require(run.eval_do_concat_batches, "--no_eval_do_concat_batches cannot be used: answers need all logits.")
    require(run.remove_unused_columns, "--no_remove_unused_columns cannot be used: the model takes no question ids.")
    require(
        not (run.dataloader_drop_last and (run.do_eval or run.do_predict or args.search.do_search)),
        "--dataloader_drop_last would leave questions unanswered: train in a command of its own.",
    )
    available = get_available_reporting_integrations()
    for name in [run.report_to] if isinstance(run.report_to, str) else run.report_to or []:
        require(
            name in ("all", "none", *available),
            f"--report_to {name} is not installed here; available: {', '.join(['none', *available])}.",
        )


def check_search(args: Arguments) -> None:
    low, high = args.search.search_min_macs, args.search.search_max_macs
    require(
        low is None or high is None or low < high,
        f"--search_min_macs {low} must be below --search_max_macs {high}.",
    )
    for name in ("bf16_full_eval", "fp16_full_eval"):
        require(
            not (args.search.do_search and getattr(args.run, name)),
            f"--{name} casts the weights that --do_search saves: use --{name[:4]} (autocast) instead.",
        )


def check_data(args: Arguments) -> None:
    data, run = args.data, args.run
    require(
        data.doc_stride < data.max_seq_length,
        f"--doc_stride {data.doc_stride} must be below --max_seq_length {data.max_seq_length}.",
    )
    stages = {
        "train": (run.do_train, "--do_train"),
        "validation": (run.do_eval or args.search.do_search, "--do_eval / --do_search"),
        "test": (run.do_predict, "--do_predict"),
    }
    for split, (wanted, stage) in stages.items():
        require(
            not wanted or data.dataset_name or getattr(data, f"{split}_file"),
            f"{stage} needs data: give --{split}_file or --dataset_name.",
        )


def check_length_config(args: Arguments) -> None:
    adaptive = args.length_adaptive
    sources = [
        f"--{name}" for name in ("length_config", "length_config_from", "measure_rate") if getattr(adaptive, name)
    ]
    require(len(sources) <= 1, f"{' and '.join(sources)} exclude each other: give one.")
    given = [f"--{name}" for name in BUDGETS if getattr(adaptive, name) is not None]
    require(len(given) <= 1, f"{' and '.join(given)} exclude each other: give exactly one.")
    require(
        not adaptive.length_config_from or given,
        "--length_config_from needs exactly one of --max_f1_drop, --target_macs, --target_macs_ratio.",
    )
    require(
        not given or adaptive.length_config_from or args.search.do_search,
        f"{' '.join(given)} chooses from a search: add --length_config_from FOLDER or --do_search.",
    )
    if adaptive.length_config:
        try:
            parse_length_config(adaptive.length_config, None, args.data.max_seq_length)
        except LengthConfigError as error:
            raise ValueError(f"--length_config: {error}") from None
    if adaptive.measure_rate:
        parse_rates(adaptive.measure_rate)


def parse_rates(text: str) -> list[float]:
    """Read "[0.1, 0.2]" or "0.1, 0.2": fractions of the tokens dropped at every layer, each in [0, 1)."""
    inner = re.fullmatch(r"\s*(?:\[([^\[\]]*)\]|\(([^()]*)\)|([^\[\]()]*))\s*", text)
    items = next((group for group in inner.groups() if group is not None), "").split(",") if inner else []
    try:
        rates = [float(item) for item in items if item.strip() or len(items) == 1]
    except ValueError:
        rates = []
    require(
        rates and all(0 <= rate < 1 for rate in rates),
        f'--measure_rate {text!r} must list fractions in [0, 1), like "[0.1, 0.2, 0.3]".',
    )
    return rates


def check_output_dir(args: Arguments) -> None:
    source, target = Path(args.model.model_name_or_path), Path(args.run.output_dir)
    require(
        not (source.is_dir() and source.resolve() == target.resolve()),
        f"--output_dir {target} is the folder of --model_name_or_path, which no stage writes into: name another.",
    )
    require(not target.exists() or target.is_dir(), f"--output_dir {target} is a file: name a folder.")


def flags_without_effect(args: Arguments, given: set[str]) -> list[str]:
    """One line for each reason why some of the flags `given` do nothing in the chosen stages."""
    unused = sorted(given & set(UNUSED.split()))
    lines = [f"{flags(unused)} has no effect in question answering."] if unused else []
    values = given_values(args)
    for needed, names in NEEDS.items():
        idle = sorted(given & set(names.split()))
        if idle and not any(values[name] for name in needed):
            lines.append(f"{flags(idle)} has no effect without {' or '.join(f'--{name}' for name in needed)}.")
    return lines


def flags(names: list[str]) -> str:
    return " ".join(f"--{name}" for name in names)
