"""Which of the flags given have no effect in the chosen stages, and why."""

from dataclasses import fields
from pathlib import Path

from arguments import Arguments, RunArguments
from checks import BUDGETS, given_values
from distillation_arguments import LAYER_LOSSES

# Inherited from TrainingArguments, and about losses or metrics that question answering does not have.
UNUSED = (
    "batch_eval_metrics eval_use_gather_object include_for_metrics label_names label_smoothing_factor "
    "prediction_loss_only use_cache"
)
TRAINING_ONLY = (
    "activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon att_loss_ratio "
    "attention_dropout cache_teacher_logits from_scratch pred_distill relation_loss_ratio state_loss_ratio student_layers "
    "teacher_model_name_or_path "
    "auto_find_batch_size average_tokens_across_devices data_seed ddp_broadcast_buffers ddp_bucket_cap_mb "
    "ddp_find_unused_parameters ddp_static_graph enable_jit_checkpoint eval_delay eval_on_start eval_steps eval_strategy "
    "gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs greater_is_better "
    "hidden_dropout hold_out_samples ignore_data_skip include_num_input_tokens_seen learning_rate length_adaptive "
    "length_column_name "
    "load_best_model_at_end logging_first_step logging_nan_inf_filter logging_steps logging_strategy "
    "lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps metric_for_best_model "
    "neftune_noise_alpha num_train_epochs optim optim_args optim_target_modules per_device_train_batch_size restore_callback_states_from_checkpoint "
    "resume_from_checkpoint save_only_model save_steps save_strategy save_total_limit torch_empty_cache_steps "
    "train_sampling_strategy warmup_steps weight_decay"
)
# Flags that do something only together with (one of) others, or with a value of theirs.
NEEDS = {
    ("do_train",): TRAINING_ONLY,
    ("length_adaptive",): "layer_dropout_bound layer_dropout_prob length_drop_ratio_bound length_drop_teacher "
    "num_sandwich",
    ("length_adaptive", "quantization_aware"): "kl_direction kl_temperature",
    ("pred_distill",): "distillation_temperature",
    ("pred_distill", *LAYER_LOSSES): "distillation_weight",
    ("state_loss_ratio",): "state_distill_cs",
    ("att_loss_ratio",): "att_mse att_target",
    ("state_loss_ratio", "att_loss_ratio"): "partial_reps",
    ("relation_loss_ratio",): "relation_heads",
    LAYER_LOSSES: "teacher_layers",
    ("cache_teacher_logits",): "teacher_logits_dir",
    ("do_search",): "crossover_size evo_iter load_store_file mutation_prob mutation_size population_size "
    "search_floor_ratio search_max_candidates search_max_macs search_min_macs search_objective search_protocol "
    "search_rescore search_samples search_split search_storage search_strategy",
    ("search_strategy evolution",): "crossover_size evo_iter mutation_prob mutation_size",
    ("do_train", "tune"): "max_train_samples",
    ("do_train", "tune", "search_split train"): "train_file",
    ("hold_out_samples", "search_split train"): "hold_out_seed",
    ("tune",): "calibration_method is_relative metric_name num_calibration_samples perf_tol quantization_approach "
    "quantize_embeddings sensitivity",
    ("tune", "int8", "quantization_aware"): "quantization_backend",
    ("tune", "do_eval", "do_search", "do_predict"): "engine_cache_dir",
    ("do_train", "do_search", "tune"): "full_determinism overwrite_output_dir seed",
    ("do_eval", "do_search"): "max_eval_samples validation_file",
    ("do_predict",): "max_predict_samples test_file",
    ("do_eval", "do_predict", "quantization_aware"): "length_config length_ratios length_config_from",
    ("length_adaptive", "do_search", "measure_rate"): "length_unit",
    ("do_eval", "do_search", "do_predict"): "eval_accumulation_steps max_answer_length n_best_size "
    "null_score_diff_threshold per_device_eval_batch_size version_2_with_negative",
    ("version_2_with_negative",): "null_score_diff_threshold",
    ("dataset_name",): "dataset_config_name",
    ("length_config_from", "do_search"): " ".join(BUDGETS),
    ("do_search", "do_train"): "push_to_hub save_on_each_node",
    ("eval_strategy steps",): "eval_steps",
    # the metric also decides which checkpoint --save_total_limit spares, so an evaluation is all it needs
    ("eval_strategy steps", "eval_strategy epoch"): "eval_delay greater_is_better metric_for_best_model",
    ("save_strategy steps",): "save_steps",
    ("logging_strategy steps", "eval_strategy steps"): "logging_steps",  # evaluation takes them if it has none
    ("train_sampling_strategy group_by_length",): "length_column_name",
    ("push_to_hub",): "hub_always_push hub_model_id hub_revision hub_strategy hub_token",
    ("push_to_hub", "report_to"): "hub_private_repo",
    ("report_to",): "project run_name trackio_bucket_id trackio_space_id trackio_static_space_id",
}
# Flags that do nothing together with another.
OVERRIDDEN = {
    "question": "accuracy_only dataset_config_name dataset_name max_predict_samples overwrite_cache "
    "pad_to_max_length preprocessing_num_workers seed",
    "max_steps": "num_train_epochs",
    "length_adaptive": "torch_empty_cache_steps",
    "quantization_aware": "torch_empty_cache_steps",
    "int8": "config_name",
    "quantization_approach dynamic": "calibration_method do_train max_train_samples num_calibration_samples "
    "sensitivity train_file",
}
TRUE_UNLESS_NO = {item.name for item in fields(RunArguments) if item.default is True}  # flags --no_...


def flags_without_effect(args: Arguments, given: set[str]) -> list[str]:
    """One line for each reason why some of the flags `given` do nothing in the chosen stages."""
    values, lines = given_values(args) | {"do_train": args.trains}, []
    values["quantization_approach"] = args.quantization.quantization_approach if args.quantization.tune else None
    values["search_split"] = args.search.search_split if args.search.do_search else None
    left = {
        name for name in given if values.get(name) is not False or name in TRUE_UNLESS_NO
    }  # false asks for nothing
    rules = [(UNUSED, True, "in question answering")]
    for needed, names in NEEDS.items():
        idle = not any(is_on(values, flag) for flag in needed)
        rules.append((names, idle, f"without {' or '.join(f'--{flag}' for flag in needed)}"))
    rules += [(names, is_on(values, flag), f"with --{flag}") for flag, names in OVERRIDDEN.items()]
    rules += [
        ("output_dir", args.data.question is not None and not args.quantization.int8, "with --question"),
        ("model_revision", is_local(args), "on a local folder"),
        ("token", is_local(args, True), "on local folders"),
    ]
    for names, idle, reason in rules:
        found = sorted(left & set(names.split())) if idle else []
        left -= set(found)  # one reason is enough
        lines += [f"{flags(found)} has no effect {reason}."] if found else []
    return lines


def is_on(values: dict[str, object], flag: str) -> bool:
    """Whether a flag is set, or has the value that stands behind it."""
    name, _, value = flag.partition(" ")
    return values[name] == value if value else bool(values[name]) and values[name] != -1  # -1: --max_steps unset


def is_local(args: Arguments, with_data: bool = False) -> bool:
    """Whether the model, and the data too, come from this machine."""
    sources = [args.model.model_name_or_path, args.model.config_name, args.model.tokenizer_name]
    sources += [args.data.dataset_name, args.distillation.teacher_model_name_or_path] if with_data else []
    return all(source is None or Path(source).exists() for source in sources)


def flags(names: list[str]) -> str:
    return " ".join(f"--{name}" for name in names)
