"""Fine-tune, LengthDrop, search and evaluate a length-adaptive question-answering reader.

    python run_qa.py --model_name_or_path ENCODER --train_file ... --do_train                   --output_dir fine
    python run_qa.py --model_name_or_path fine    --train_file ... --do_train --length_adaptive --output_dir dynamic
    python run_qa.py --model_name_or_path dynamic --validation_file ... --do_search             --output_dir search
    python run_qa.py --model_name_or_path dynamic --validation_file ... --do_eval --length_config_from search \
                     --max_f1_drop 1 --output_dir evaluation
    accelerate launch run_qa.py ...               # the same on several GPUs or processes

Stages run in the order train, evaluate, search, predict and meet only through the folders they write. `python
run_qa.py --help` explains every flag.
"""

import quiet_libraries  # noqa: F401  (before transformers)

# isort: split
import logging
import sys
from pathlib import Path

import datasets
import torch
import transformers
from safetensors.torch import load_model as load_weights
from transformers import set_seed
from transformers.trainer_callback import TrainerState

from arguments import Arguments
from benchmark import benchmark_model
from candidates import SearchError
from checks import parse_rates
from command_line import parse_args
from data_qa import DataError
from features_qa import make_collator
from length_drop import (
    LengthConfigError,
    constant_ratio_config,
    count_macs,
    parse_length_config,
    validate_length_config,
)
from loading import QuestionSet, load_data, load_model, make_trainer
from model_card import write_model_card
from output_folder import begin_output_dir, forget_scores, last_checkpoint, prepare_output_dir, trainer_state
from plots import PlotError, plot_loss_curve
from quantization import copy_int8
from quantize_qa import tune
from results_qa import RunError, how_made, write_json, write_results
from search_qa import choose_from, search
from trainer_qa import QuestionAnsweringTrainer
from utils_qa import write_answers

logger = logging.getLogger("run_qa")
OUR_MODULES = (
    "run_qa",
    "loading",
    "output_folder",
    "data_qa",
    "candidate_store",
    "evolution",
    "pt2e_engine",
    "quantize_qa",
    "search_qa",
    "utils_qa",
)


# ---- length configs ----------------------------------------------------------------------------------------------


def full_config(args: Arguments, config) -> tuple[int, ...]:
    return (args.data.max_seq_length,) * config.num_hidden_layers


def cost_facts(args: Arguments, config, length_config: tuple[int, ...], prefix: str = "") -> dict:
    """A length config with its multiply-accumulates on a passage of --max_seq_length tokens."""
    macs, full = (count_macs(config, lengths, args.data.max_seq_length) for lengths in (length_config, None))
    names = ("length_config", "macs", "macs_ratio")
    return {prefix + name: value for name, value in zip(names, (list(length_config), macs, round(macs / full, 4)))}


def asked_length_config(args: Arguments, config) -> tuple[int, ...] | None:
    """The length config that the command line gives or has chosen from a search; None if it asks for none."""
    adaptive, layers, length = args.length_adaptive, config.num_hidden_layers, args.data.max_seq_length
    flag = "--length_config" if adaptive.length_config else f"--length_config_from {adaptive.length_config_from}"
    try:
        if adaptive.length_config:
            return parse_length_config(adaptive.length_config, layers, length)
        if adaptive.length_config_from:
            return validate_length_config(choose_from(args).length_config, layers, length)
    except (LengthConfigError, SearchError) as error:
        raise RunError(f"{flag}: {error}") from error
    return None


def default_length_config(args: Arguments, config) -> tuple[int, ...]:
    """The length config stored in the model, or full length."""
    stored = getattr(config, "length_config", None)
    if not stored:
        return full_config(args, config)
    logger.info("using the length config stored in the model: %s", tuple(stored))
    if config.length_config_max_length != args.data.max_seq_length:
        made_for = config.length_config_max_length
        logger.warning("it was made for --max_seq_length %d, not %d", made_for, args.data.max_seq_length)
    return tuple(stored)


# ---- stages --------------------------------------------------------------------------------------------------------


def train(trainer: QuestionAnsweringTrainer, args: Arguments, checkpoint: str | None) -> None:
    """Train from `checkpoint` or from the start; leaves model, tokenizer, trainer state, results and loss curve."""
    if args.length_adaptive.length_adaptive:
        trainer.model.config.length_config_max_length = args.data.max_seq_length
    first_step = trainer_state(checkpoint)["global_step"] if checkpoint else 0
    if 0 < args.run.max_steps <= first_step:  # the Trainer would take one more step
        load_weights(trainer.model, Path(checkpoint, "model.safetensors"))
        trainer.state, metrics = TrainerState.load_from_json(Path(checkpoint, "trainer_state.json")), {}
    else:
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    complete = first_step and trainer.state.global_step == first_step
    if complete:
        logger.info("training was complete already; a larger --num_train_epochs or --max_steps continues it")
        metrics = {"epoch": trainer.state.epoch}  # loss and time are those of no step at all
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        leave_training_results(trainer, args, metrics, complete)


def leave_training_results(trainer: QuestionAnsweringTrainer, args: Arguments, metrics: dict, complete: bool) -> None:
    """Results and loss curve of a training; if it was `complete` before, only where a kill has kept them away."""
    folder = Path(args.run.output_dir)
    if complete and (folder / "train_results.json").is_file():
        return
    forget_scores(folder)
    metrics["train_samples"] = len(trainer.train_dataset)
    trainer.log_metrics("train", metrics)
    write_results(args, "train", metrics)
    draw_losses(args, trainer.state.log_history)


def draw_losses(args: Arguments, log_history: list[dict]) -> None:
    if any("loss" in record for record in log_history):
        plot_loss_curve(Path(args.run.output_dir, "loss.png"), log_history)
    else:
        logger.info("no loss.png: training was shorter than --logging_steps %g", args.run.logging_steps)


def without_timing(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if not name.endswith(("runtime", "per_second"))}


def evaluate(trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet, length_config) -> None:
    """EM, F1 and MACs at the length config asked for, and every predicted answer."""
    length_config = length_config or default_length_config(args, trainer.model.config)
    answers, metrics = trainer.answer(questions, length_config, "eval")
    metrics |= {"eval_samples": len(questions.examples), "eval_features": len(questions.features)}
    metrics |= cost_facts(args, trainer.model.config, length_config, "eval_")
    if args.run.accuracy_only:
        metrics = without_timing(metrics)
    if args.run.benchmark and trainer.is_world_process_zero():
        metrics |= benchmark(trainer, args, questions, length_config)
    report(trainer, args, "eval", metrics, answers)


def benchmark(trainer, args: Arguments, questions: QuestionSet, length_config: tuple[int, ...]) -> dict:
    """Latency at `length_config` and at full length on the longest questions; also kept in benchmark_results.json."""
    size = min(args.run.per_device_eval_batch_size, len(questions.features))
    collate = make_collator(trainer.processing_class, True, args.data.max_seq_length)
    columns = [name for name in trainer.processing_class.model_input_names if name in questions.features.column_names]
    batch = collate([{name: row[name] for name in columns} for row in questions.features.select(range(size))])
    full = full_config(args, trainer.model.config)
    half = torch.bfloat16 if args.run.bf16 else torch.float16 if args.run.fp16 else None
    half = None if args.quantization.int8 else half  # an engine has its own
    configs = {lengths: lengths for lengths in (length_config, full)}
    rows = benchmark_model(trainer.model, dict(batch), configs, autocast=half)
    for lengths, row in rows.items():
        row |= cost_facts(args, trainer.model.config, lengths)
    write_json(Path(args.run.output_dir, "benchmark_results.json"), how_made(args) | {"rows": list(rows.values())})
    median, full_median = (rows[lengths]["latency_ms_median"] for lengths in (length_config, full))
    return {"eval_latency_ms": round(median / size, 3), "eval_speedup": round(full_median / median, 3)}


def measure_rates(trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet) -> None:
    """F1 against MACs when every layer drops the same fraction: one row a rate in measure_rate_results.json."""
    config, rows = trainer.model.config, []
    for rate in parse_rates(args.length_adaptive.measure_rate):
        length_config = constant_ratio_config(rate, config.num_hidden_layers, args.data.max_seq_length)
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


def quantize(args: Arguments, model, tokenizer, train_features, questions: QuestionSet) -> None:
    """An INT8 model within the tolerance, and its scores at full length beside the float model's."""
    tuned = tune(args, model, tokenizer, train_features, questions)
    full = full_config(args, model.config)
    metrics = tuned.metrics | {"eval_samples": len(questions.examples), "eval_features": len(questions.features)}
    metrics |= cost_facts(args, model.config, full, "eval_") | {"eval_float": tuned.results["float"]}
    report(tuned.trainer, args, "eval", without_timing(metrics) if args.run.accuracy_only else metrics, tuned.answers)
    logger.info("done: the INT8 model is in %s", args.run.output_dir)


def search_length_configs(trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet) -> None:
    """Search, and leave the model with the frontier in its configuration (and the chosen config as its default)."""
    results, config = search(trainer, args, questions), trainer.model.config
    config.length_config_max_length = args.data.max_seq_length
    config.length_configs = results["frontier"]
    config.length_config = results["chosen"]["length_config"] if results["chosen"] else None
    if not args.quantization.int8:
        trainer.save_model()
    if trainer.is_world_process_zero():
        if args.quantization.int8:
            copy_int8(trainer.model.folder, args.run.output_dir, config)
            trainer.processing_class.save_pretrained(args.run.output_dir)
        write_results(args, "search", results)


def report(trainer: QuestionAnsweringTrainer, args: Arguments, stage: str, metrics: dict, answers) -> None:
    trainer.log_metrics(
        stage, {name: str(value) if isinstance(value, list) else value for name, value in metrics.items()}
    )
    if trainer.is_world_process_zero():
        write_results(args, stage, metrics)
        write_answers(answers, args.run.output_dir, stage)


def prepare_engines(args: Arguments, model, length_config: tuple[int, ...] | None) -> None:
    """Load the engines that the stages will need, and compile those that are missing, before any question is read."""
    full = full_config(args, model.config)
    wanted = {length_config or getattr(model.config, "length_config", None) or full}
    if args.search.do_search or args.run.benchmark or args.length_adaptive.measure_rate:
        wanted |= {full, (1,) * len(full)}
    with args.run.main_process_first(desc="INT8 engines"):
        for lengths in wanted:
            model.prepare(tuple(lengths))


def describe_training(args: Arguments) -> str:
    """The model card's words for what this run has done to the base model's weights."""
    if not args.run.do_train:
        return (
            f"the base model's own; length configs searched on {args.data.validation_file or args.data.dataset_name}"
        )
    how = "with LengthDrop" if args.length_adaptive.length_adaptive else "at full length only (no LengthDrop)"
    return f"{args.data.train_file or args.data.dataset_name}, {how}"


def run(args: Arguments) -> None:
    """The stages asked for, in their fixed order."""
    set_seed(args.run.seed)
    checkpoint = prepare_output_dir(args)
    model, tokenizer = load_model(args)
    length_config = asked_length_config(args, model.config)  # a misfit is said before any work is done
    if args.quantization.int8:
        prepare_engines(args, model, length_config)
    train_features, questions = load_data(args, tokenizer)
    begin_output_dir(args)
    validation = questions.get("validation")
    if args.quantization.tune:
        return quantize(args, model, tokenizer, train_features, validation)
    trainer = make_trainer(args, model, tokenizer, train_features, validation)
    if args.run.do_train:
        train(trainer, args, checkpoint)
    if args.run.do_eval and args.length_adaptive.measure_rate:
        measure_rates(trainer, args, validation)
    elif args.run.do_eval:
        evaluate(trainer, args, validation, length_config)
    if args.search.do_search:
        search_length_configs(trainer, args, validation)
    if args.run.do_predict:
        predict(trainer, args, questions["test"], length_config)
    if (args.run.do_train or args.search.do_search) and trainer.is_world_process_zero():
        write_model_card(
            Path(args.run.output_dir),
            base_model=args.model.model_name_or_path,
            training=describe_training(args),
            max_seq_length=args.data.max_seq_length,
            doc_stride=args.data.doc_stride,
        )
    logger.info("done: results are in %s", args.run.output_dir)


def set_up_output(args: Arguments) -> None:
    """Our own lines from --log_level (info) up on the first process, warnings elsewhere; one progress bar a stage."""
    first, level = args.run.process_index == 0, args.run.get_process_log_level()
    chosen = logging.INFO if args.run.log_level == "passive" else level
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    for name in OUR_MODULES:
        logging.getLogger(name).setLevel(chosen if first else logging.WARNING)
    transformers.logging.disable_progress_bar()  # loading and saving take a moment
    for name in ("transformers.modeling_utils", "transformers.distributed.tensor_parallel"):
        logging.getLogger(name).setLevel(logging.ERROR)  # check_weights says in one line what matters
    if args.run.disable_tqdm or not first:
        datasets.disable_progress_bars()


def interruption(args: Arguments) -> str:
    """What Ctrl-C leaves, and what the same command does next."""
    folder = Path(args.run.output_dir)
    checkpoint = last_checkpoint(folder) if args.run.do_train else None
    command = "the same command" + (" without --overwrite_output_dir" if args.run.overwrite_output_dir else "")
    if args.search.do_search and (folder / "search_store.jsonl").is_file():
        return f"{command} continues the search with the scores in {folder / 'search_store.jsonl'}."
    if checkpoint:
        return f"{command} continues from {checkpoint}."
    return "the same command starts again."


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, or after one line that says what is wrong 1, or 130 after Ctrl-C."""
    args = parse_args(argv)
    set_up_output(args)
    try:
        run(args)
    except (DataError, LengthConfigError, PlotError, RunError, SearchError) as error:
        print(f"run_qa.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nrun_qa.py: interrupted; {interruption(args)}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
