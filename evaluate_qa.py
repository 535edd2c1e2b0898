"""The stages that answer questions: evaluation, latency, the curve of constant ratios, prediction."""

import logging
from collections import Counter
from pathlib import Path

import torch
from transformers import PreTrainedModel

from arguments import Arguments
from benchmark import Contender, benchmark_rows
from candidates import SearchError
from checks import parse_rates
from errors import RunError
from features_qa import make_collator
from frontier_qa import choose_from
from int8_engine import Int8Model
from length_arguments import LENGTH_CONFIGS
from length_config import (
    LengthConfigError,
    constant_ratio_config,
    count_macs,
    in_unit,
    is_fractional,
    parse_length_config,
    parse_length_ratios,
    validate_length_config,
)
from loading import QuestionSet
from native_ops import load_fused_operators
from results_qa import engine_cache, how_made, write_json, write_results
from trainer_qa import QuestionAnsweringTrainer
from utils_qa import write_answers

logger = logging.getLogger(__name__)


# ---- length configs ------------------------------------------------------------------------------------------------


def full_config(args: Arguments, config) -> tuple[int, ...]:
    return (args.data.max_seq_length,) * config.num_hidden_layers


def cost_facts(args: Arguments, config, length_config: tuple[int, ...], prefix: str = "") -> dict:
    """A length config with its multiply-accumulates on a passage of --max_seq_length tokens."""
    macs, full = (count_macs(config, lengths, args.data.max_seq_length) for lengths in (length_config, None))
    names = ("length_config", "macs", "macs_ratio")
    return {prefix + name: value for name, value in zip(names, (list(length_config), macs, round(macs / full, 4)))}


def mean_cost_facts(config, length_config: tuple[float, ...], lengths: list[int]) -> dict:
    """Multiply-accumulates on windows of these real `lengths`, on average."""
    totals = [
        sum(count_macs(config, kept, length) * windows for length, windows in Counter(lengths).items())
        for kept in (length_config, None)
    ]
    return {"eval_mean_macs": totals[0] // len(lengths), "eval_mean_macs_ratio": round(totals[0] / totals[1], 4)}


def asked_length_config(args: Arguments, config) -> tuple[int, ...] | None:
    """The length config that the command line gives or has chosen from a search; None if it asks for none."""
    adaptive, layers, length = args.length_adaptive, config.num_hidden_layers, args.data.max_seq_length
    flag = next((name for name in LENGTH_CONFIGS if getattr(adaptive, name)), None)
    try:
        if adaptive.length_config:
            return parse_length_config(adaptive.length_config, layers, length)
        if adaptive.length_ratios:
            return parse_length_ratios(adaptive.length_ratios, layers)
        if adaptive.length_config_from:
            chosen, reason = choose_from(args)
            logger.info("%s", reason)
            return validate_length_config(chosen, layers, length)
    except (LengthConfigError, SearchError) as error:
        source = f" {adaptive.length_config_from}" if flag == "length_config_from" else ""
        raise RunError(f"--{flag}{source}: {error}") from error
    return None


def default_length_config(args: Arguments, config) -> tuple[int, ...]:
    """The length config stored in the model, or full length."""
    stored = getattr(config, "length_config", None)
    if not stored:
        return full_config(args, config)
    logger.info("using the length config stored in the model: %s", tuple(stored))
    if config.length_config_max_length != args.data.max_seq_length and not is_fractional(stored):
        made_for = config.length_config_max_length
        logger.warning("it was made for --max_seq_length %d, not %d", made_for, args.data.max_seq_length)
    return tuple(stored)


# ---- stages --------------------------------------------------------------------------------------------------------


def prepare_engines(args: Arguments, model: Int8Model, length_config: tuple[int, ...] | None) -> None:
    """Load the engines that the stages will need, and compile those that are missing, before any question is read."""
    full, adaptive = full_config(args, model.config), args.length_adaptive
    wanted = {length_config or getattr(model.config, "length_config", None) or full}
    if args.search.do_search or args.run.benchmark or adaptive.measure_rate:
        wanted |= {in_unit(adaptive.length_unit, lengths, full[0]) for lengths in (full, (1,) * len(full))}
    with args.run.main_process_first(desc="INT8 engines"):
        for lengths in wanted:
            model.prepare(tuple(lengths))


def prepare_attention(args: Arguments, model: PreTrainedModel, length_config: tuple[int, ...] | None) -> None:
    """Load the fused attention for a float model that will drop tokens on a CPU; compiled where it is missing."""
    lengths = length_config or getattr(model.config, "length_config", None)
    drops = args.search.do_search or args.length_adaptive.measure_rate or lengths
    slower_in_bf16 = args.run.bf16 and not torch.cpu._is_amx_tile_supported()  # which has the attention in bf16
    if not drops or slower_in_bf16 or args.run.device.type != "cpu":
        return
    with args.run.main_process_first(desc="fused attention"):
        load_fused_operators(engine_cache(args.quantization.engine_cache_dir))


def without_timing(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if not name.endswith(("runtime", "per_second"))}


def evaluate(trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet, length_config) -> None:
    """EM, F1 and MACs at the length config asked for, and every predicted answer."""
    length_config = length_config or default_length_config(args, trainer.model.config)
    answers, metrics = trainer.answer(questions, length_config, "eval")
    metrics |= {"eval_samples": len(questions.examples), "eval_features": len(questions.features)}
    metrics |= cost_facts(args, trainer.model.config, length_config, "eval_")
    metrics |= mean_cost_facts(trainer.model.config, length_config, questions.features["length"][:])
    if args.run.accuracy_only:
        metrics = without_timing(metrics)
    if args.run.benchmark and trainer.is_world_process_zero():
        metrics |= benchmark(trainer, args, questions, length_config)
    report(trainer, args, "eval", metrics, answers)


def padded_batch(tokenizer, features, max_seq_length: int) -> dict[str, torch.Tensor]:
    """The rows of `features` as one batch, padded to `max_seq_length`."""
    rows = features.select_columns(list(tokenizer.model_input_names)).to_list()
    return dict(make_collator(tokenizer, True, max_seq_length)(rows))


def benchmark(trainer, args: Arguments, questions: QuestionSet, length_config: tuple[int, ...]) -> dict:
    """Latency at `length_config` and at full length on the longest questions; also kept in benchmark_results.json."""
    size, config = min(args.run.per_device_eval_batch_size, len(questions.features)), trainer.model.config
    longest, length = questions.features.select(range(size)), args.data.max_seq_length
    batch = padded_batch(trainer.processing_class, longest, length)
    half = torch.bfloat16 if args.run.bf16 else torch.float16 if args.run.fp16 else None
    half = None if args.quantization.int8 else half  # an engine has its own
    configs = dict.fromkeys((length_config, full_config(args, config)))
    contenders = [Contender(trainer.model, lengths, half, cost_facts(args, config, lengths)) for lengths in configs]
    rows = benchmark_rows(contenders, batch)
    write_json(Path(args.run.output_dir, "benchmark_results.json"), how_made(args) | {"rows": rows})
    median, full_median = rows[0]["latency_ms_median"], rows[-1]["latency_ms_median"]
    return {"eval_latency_ms": round(median / size, 3), "eval_speedup": round(full_median / median, 3)}


def measure_rates(trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet) -> None:
    """F1 against MACs when every layer drops the same fraction: one row a rate in measure_rate_results.json."""
    config, rows = trainer.model.config, []
    for rate in parse_rates(args.length_adaptive.measure_rate):
        length_config = constant_ratio_config(rate, config.num_hidden_layers, args.data.max_seq_length)
        length_config = in_unit(args.length_adaptive.length_unit, length_config, args.data.max_seq_length)
        _, metrics = trainer.answer(questions, length_config, "eval")
        metrics = without_timing(metrics) if args.run.accuracy_only else metrics
        rows.append({"rate": rate, **cost_facts(args, config, length_config), **metrics})
        if trainer.is_world_process_zero():
            results = how_made(args) | {"eval_samples": len(questions.examples), "rows": rows}
            write_json(Path(args.run.output_dir, "measure_rate_results.json"), results)
    logger.info("constant ratios:\n%s", rate_table(rows))


def rate_table(rows: list[dict]) -> str:
    """The rows of measure_rate_results.json as lines of text: rate, MACs, their ratio, F1, length config."""
    lines = [f"{'rate':>6} {'MACs':>10} {'ratio':>6} {'F1':>6}  length config"]
    for row in rows:
        numbers = f"{row['rate']:>6.3f} {row['macs']:>10.4g} {row['macs_ratio']:>6.3f} {row.get('eval_f1', 0):>6.2f}"
        lines.append(f"{numbers}  {tuple(row['length_config'])}")
    return "\n".join(lines)


def predict(trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet, length_config) -> None:
    """Answer the test questions at the length config asked for; scores too where gold answers are known."""
    length_config = length_config or default_length_config(args, trainer.model.config)
    answers, metrics = trainer.answer(questions, length_config, "predict")
    metrics |= {"predict_samples": len(questions.examples)}
    metrics |= cost_facts(args, trainer.model.config, length_config, "predict_")
    report(trainer, args, "predict", metrics, answers)


def report(trainer: QuestionAnsweringTrainer, args: Arguments, stage: str, metrics: dict, answers) -> None:
    trainer.log_metrics(
        stage, {name: str(value) if isinstance(value, list) else value for name, value in metrics.items()}
    )
    if trainer.is_world_process_zero():
        write_results(args, stage, metrics)
        write_answers(answers, args.run.output_dir, stage)
