"""Which values and combinations of flags make no sense."""

import re
from dataclasses import fields
from pathlib import Path

import torch
from accelerate.utils import DynamoBackend
from transformers import Trainer, get_scheduler
from transformers.integrations import get_available_reporting_integrations

from arguments import Arguments
from distillation_checks import check_distillation
from errors import require
from length_arguments import LENGTH_CONFIGS
from length_config import LengthConfigError, parse_length_config, parse_length_ratios
from quantization_checks import check_finish, check_quantization

READ = ("model_name_or_path", "config_name", "tokenizer_name", "teacher_model_name_or_path", "load_store_file")
BUDGETS = ("max_f1_drop", "target_macs", "target_macs_ratio", "target_latency_ms")

AT_LEAST = {
    8: "max_seq_length",
    1: "doc_stride gradient_accumulation_steps max_answer_length max_eval_samples max_predict_samples "
    "max_train_samples n_best_size num_calibration_samples per_device_eval_batch_size per_device_train_batch_size "
    "preprocessing_num_workers relation_heads search_max_candidates search_max_macs search_rescore search_samples target_macs",
    0: "att_loss_ratio crossover_size data_seed evo_iter hold_out_samples hold_out_seed layer_dropout_bound learning_rate max_f1_drop "
    "mutation_size num_sandwich num_train_epochs perf_tol population_size relation_loss_ratio search_min_macs seed "
    "state_loss_ratio weight_decay",
}
FRACTIONS = ("length_drop_ratio_bound", "layer_dropout_prob", "attention_dropout", "hidden_dropout")  # [0, 1)
PROBABILITIES = ("mutation_prob", "target_macs_ratio")  # (0, 1]


def check(args: Arguments) -> None:
    """Raise ValueError, in one line that names the flags, for values or combinations that make no sense."""
    check_ranges(args)
    check_question(args)
    check_stages(args)
    check_training(args)
    check_distillation(args)
    check_metric(args)
    check_optimizer(args)
    check_search(args)
    check_quantization(args)
    check_finish(args)
    check_data(args)
    check_length_config(args)
    check_output_dir(args)


def given_values(args: Arguments) -> dict[str, object]:
    """The value of every flag, whatever its group."""
    groups = (args.model, args.data, args.distillation, args.length_adaptive, args.search, args.quantization, args.run)
    return {item.name: getattr(group, item.name) for group in groups for item in fields(group)}


def check_ranges(args: Arguments) -> None:
    values = {name: value for name, value in given_values(args).items() if value is not None}
    for name, value in values.items():  # an unset variable of a script would silently mean the default
        require(value != "", f"--{name} is empty: give it a value, or leave it out.")
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
    latency = args.length_adaptive.target_latency_ms
    require(latency is None or latency > 0, f"--target_latency_ms must be above 0, not {latency}.")


def check_question(args: Arguments) -> None:
    data, run = args.data, args.run
    require(
        run.output_dir or data.question is not None,
        "--output_dir is required: the folder for everything this run leaves.",
    )
    if data.question is None:
        for name in ("context", "print_json"):
            require(not getattr(data, name), f"--{name} goes with --question: give that too.")
        return
    require(data.question.strip(), "--question is blank: ask something.")
    require(
        data.context is not None, "--question needs a passage: give --context FILE, or --context - for standard input."
    )
    require(run.do_predict, "--question is answered by --do_predict: add it.")
    others = {
        "do_train": run.do_train,
        "do_eval": run.do_eval,
        "do_search": args.search.do_search,
        "test_file": data.test_file,
    }
    for name, given in others.items():
        require(not given, f"--question and --{name} exclude each other: a question is a command of its own.")
    require(
        run.world_size == 1, "--question is answered by one process: start it without torchrun or accelerate launch."
    )


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
    require(
        not run.use_liger_kernel, "--use_liger_kernel cannot be used: there are no such kernels for BERT and RoBERTa."
    )
    backend = run.torch_compile_backend
    require(
        backend is None or backend.upper() in DynamoBackend,
        f"--torch_compile_backend {backend} is none of {', '.join(DynamoBackend.list()).lower()}.",
    )
    available = get_available_reporting_integrations()
    for name in [run.report_to] if isinstance(run.report_to, str) else run.report_to or []:
        require(
            name in ("all", "none", *available),
            f"--report_to {name} is not installed here; available: {', '.join(['none', *available])}.",
        )


def check_metric(args: Arguments) -> None:
    metric = args.run.metric_for_best_model
    require(
        args.run.save_strategy != "best" or args.run.eval_strategy != "no" or not args.run.do_train,
        "--save_strategy best saves after an evaluation: add --eval_strategy steps or epoch.",
    )
    known = ("f1", "exact") if args.data.version_2_with_negative else ("f1", "exact_match")
    require(
        not args.run.do_train or metric is None or metric.removeprefix("eval_") in known,
        f"--metric_for_best_model {metric} is not what evaluation gives here: {' or '.join(known)}.",
    )


def check_optimizer(args: Arguments) -> None:
    """Build optimizer and scheduler of a parameter, as the Trainer does once everything is loaded."""
    run = args.run
    if not args.trains or run.optim_target_modules:  # those modules are the real model's
        return
    require(
        isinstance(run.lr_scheduler_kwargs, dict | None),
        f"--lr_scheduler_kwargs {run.lr_scheduler_kwargs} must be a JSON object.",
    )
    model, given = torch.nn.Linear(1, 1), f"--optim {run.optim.value}"
    given += f" with --optim_args {run.optim_args}" if run.optim_args else ""
    try:
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(run, model)
        if "model" not in kwargs:
            kind(model.parameters(), **kwargs)
        given = (
            f"--lr_scheduler_type {run.lr_scheduler_type.value} with --lr_scheduler_kwargs {run.lr_scheduler_kwargs}"
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=run.learning_rate)
        get_scheduler(run.lr_scheduler_type, optimizer, 0, 1000, run.lr_scheduler_kwargs)
    except (ValueError, ImportError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{given} cannot be used: {error}") from error


def check_search(args: Arguments) -> None:
    low, high = args.search.search_min_macs, args.search.search_max_macs
    require(
        low is None or high is None or low < high,
        f"--search_min_macs {low} must be below --search_max_macs {high}.",
    )
    measured, alone = args.search.search_objective == "latency", args.run.world_size == 1
    require(
        not (measured and (low or high)),
        "--search_min_macs and --search_max_macs bound MACs, which --search_objective latency does not search by: drop them.",
    )
    require(
        not (args.search.do_search and measured) or alone,
        "--search_objective latency measures one process: start it without a launcher.",
    )
    require(
        not (args.search.do_search and args.length_adaptive.target_latency_ms) or alone,
        "--target_latency_ms chooses by what a search of one process has measured: start it without a launcher.",
    )
    require(
        not args.search.search_storage or alone,
        "--search_storage joins workers of one process each: start them without a launcher.",
    )
    require(
        not (args.search.search_storage and args.search.load_store_file),
        "--load_store_file and --search_storage exclude each other: the storage holds the scores.",
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
        "train": (args.trains or args.calibrates, "--do_train"),
        "validation": (run.do_eval or args.search.do_search, "--do_eval / --do_search"),
        "test": (run.do_predict and data.question is None, "--do_predict"),
    }
    for split, (wanted, stage) in stages.items():
        require(
            not wanted or data.dataset_name or getattr(data, f"{split}_file"),
            f"{stage} needs data: give --{split}_file or --dataset_name.",
        )
    require(
        not args.searches_training or data.dataset_name or data.train_file,
        "--do_search scores its candidates on training questions: give --train_file or --dataset_name, or --search_split "
        "validation.",
    )


def check_length_config(args: Arguments) -> None:
    adaptive = args.length_adaptive
    sources = [f"--{name}" for name in (*LENGTH_CONFIGS, "measure_rate") if getattr(adaptive, name) is not None]
    require(len(sources) <= 1, f"{' and '.join(sources)} exclude each other: give one.")
    given = [f"--{name}" for name in BUDGETS if getattr(adaptive, name) is not None]
    require(len(given) <= 1, f"{' and '.join(given)} exclude each other: give exactly one.")
    require(
        not adaptive.length_config_from or given,
        f"--length_config_from needs exactly one of {', '.join(f'--{name}' for name in BUDGETS)}.",
    )
    require(
        not given or adaptive.length_config_from or args.search.do_search,
        f"{' '.join(given)} chooses from a search: add --length_config_from FOLDER or --do_search.",
    )
    try:
        if adaptive.length_config:
            parse_length_config(adaptive.length_config, None, args.data.max_seq_length)
        if adaptive.length_ratios:
            parse_length_ratios(adaptive.length_ratios, None)
    except LengthConfigError as error:
        raise ValueError(f"{sources[0]}: {error}") from None
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
    if args.run.output_dir is None:  # a question leaves nothing
        return
    source, target = Path(args.model.model_name_or_path), Path(args.run.output_dir)
    require(
        not (source.is_dir() and source.resolve() == target.resolve()),
        f"--output_dir {target} is the folder of --model_name_or_path, which no stage writes into: name another.",
    )
    require(not target.exists() or target.is_dir(), f"--output_dir {target} is a file: name a folder.")
    values = given_values(args)
    for name in (*READ, "length_config_from", "quantization_aware"):
        inside = values[name] and target.resolve() in (
            Path(values[name]).resolve(),
            *Path(values[name]).resolve().parents,
        )
        require(
            not (inside and args.run.overwrite_output_dir),
            f"--{name} {values[name]} lies in --output_dir {target}, which --overwrite_output_dir clears: name another.",
        )
