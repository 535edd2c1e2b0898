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

import json
import logging
import sys
from pathlib import Path

import transformers
from transformers import set_seed

from arguments import Arguments, parse_args, parse_rates
from benchmark import benchmark_model
from data_qa import DataError, make_collator
from evolution import SearchError
from length_drop import (
    LengthConfigError,
    constant_ratio_config,
    count_macs,
    parse_length_config,
    validate_length_config,
)
from loading import QuestionSet, RunError, load_data, load_model, make_trainer, prepare_output_dir
from model_card import write_model_card
from plots import PlotError, plot_loss_curve
from search_qa import choose_from, search
from trainer_qa import QuestionAnsweringTrainer
from utils_qa import environment, write_answers, write_json

logger = logging.getLogger("run_qa")


# ---- results -------------------------------------------------------------------------------------------------------


def write_results(args: Arguments, stage: str, results: dict) -> None:
    """Write {stage}_results.json with its environment, and gather all stages' results in all_results.json."""
    folder = Path(args.run.output_dir)
    write_json(folder / f"{stage}_results.json", results | {"environment": environment()})
    gathered = {}
    for name in ("train", "eval", "search", "predict"):
        if (folder / f"{name}_results.json").is_file():
            gathered |= json.loads((folder / f"{name}_results.json").read_text(encoding="utf-8"))
    gathered.pop("candidates", None)  # hundreds of configs; they stay in search_results.json
    write_json(folder / "all_results.json", gathered)


def full_config(args: Arguments, config) -> tuple[int, ...]:
    return (args.data.max_seq_length,) * config.num_hidden_layers


def cost_facts(args: Arguments, config, length_config: tuple[int, ...], prefix: str = "") -> dict:
    """A length config with its multiply-accumulates on a passage of --max_seq_length tokens."""
    macs, full = (count_macs(config, lengths, args.data.max_seq_length) for lengths in (length_config, None))
    names = ("length_config", "macs", "macs_ratio")
    return {prefix + name: value for name, value in zip(names, (list(length_config), macs, round(macs / full, 4)))}


def resolve_length_config(args: Arguments, config) -> tuple[int, ...]:
    """The length config of --do_eval and --do_predict: given, chosen from a search, the model's own, or full."""
    adaptive, layers = args.length_adaptive, config.num_hidden_layers
    if adaptive.length_config:
        return parse_length_config(adaptive.length_config, layers, args.data.max_seq_length)
    if adaptive.length_config_from:
        chosen = choose_from(args, Path(adaptive.length_config_from)).length_config
        return validate_length_config(chosen, layers, args.data.max_seq_length)
    stored = getattr(config, "length_config", None)
    if stored:
        logger.info("using the length config stored in the model: %s", tuple(stored))
    return tuple(stored) if stored else full_config(args, config)


# ---- stages --------------------------------------------------------------------------------------------------------


def train(trainer: QuestionAnsweringTrainer, args: Arguments, checkpoint: str | None) -> None:
    """Train from `checkpoint` or from the start; leaves model, tokenizer, trainer state, results and loss curve."""
    if trainer.args.do_train and args.length_adaptive.length_adaptive:
        trainer.model.config.length_config_max_length = args.data.max_seq_length
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    metrics["train_samples"] = len(trainer.train_dataset)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", metrics)
    if trainer.is_world_process_zero():
        write_results(args, "train", metrics)
        plot_loss_curve(Path(args.run.output_dir, "loss.png"), trainer.state.log_history)


def evaluate(trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet) -> None:
    """EM, F1 and MACs at the length config asked for, and every predicted answer."""
    length_config = resolve_length_config(args, trainer.model.config)
    answers, metrics = trainer.answer(questions, length_config, "eval")
    metrics |= {"eval_samples": len(questions.examples), "eval_features": len(questions.features)}
    metrics |= cost_facts(args, trainer.model.config, length_config, "eval_")
    if args.run.accuracy_only:
        metrics = {name: value for name, value in metrics.items() if not name.endswith(("runtime", "per_second"))}
    if args.run.benchmark:
        metrics |= benchmark(trainer, args, questions, length_config)
    report(trainer, args, "eval", metrics, answers)


def benchmark(trainer, args: Arguments, questions: QuestionSet, length_config: tuple[int, ...]) -> dict:
    """Latency at `length_config` and at full length on the longest questions; also kept in benchmark_results.json."""
    size, collate = args.run.per_device_eval_batch_size, make_collator(trainer.processing_class, True, args.data.max_seq_length)
    columns = [name for name in trainer.processing_class.model_input_names if name in questions.features.column_names]
    batch = collate([{name: row[name] for name in columns} for row in questions.features.select(range(size))])
    config = trainer.model.config
    configs = {"config": length_config, "full": full_config(args, config)}
    rows = benchmark_model(trainer.model, dict(batch), configs, args.run.bf16)
    for row in rows.values():
        row |= cost_facts(args, config, tuple(row["length_config"]))
    if trainer.is_world_process_zero():
        results = {"environment": environment(), "rows": list(rows.values())}
        write_json(Path(args.run.output_dir, "benchmark_results.json"), results)
    medians = {name: row["latency_ms_median"] for name, row in rows.items()}
    return {
        "eval_latency_ms": round(medians["config"] / rows["config"]["batch_size"], 3),
        "eval_speedup": round(medians["full"] / medians["config"], 3),
    }


def measure_rates(trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet) -> None:
    """F1 against MACs when every layer drops the same fraction: one row a rate in measure_rate_results.json."""
    config, rows = trainer.model.config, []
    for rate in parse_rates(args.length_adaptive.measure_rate):
        length_config = constant_ratio_config(rate, config.num_hidden_layers, args.data.max_seq_length)
        _, metrics = trainer.answer(questions, length_config, "eval")
        rows.append({"rate": rate, **cost_facts(args, config, length_config), **metrics})
        logger.info("rate %.3f  %s", rate, json.dumps(rows[-1]))
        if trainer.is_world_process_zero():
            results = {"environment": environment(), "eval_samples": len(questions.examples), "rows": rows}
            write_json(Path(args.run.output_dir, "measure_rate_results.json"), results)


def predict(trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet) -> None:
    """Answer the test questions at the length config asked for; scores too where gold answers are known."""
    length_config = resolve_length_config(args, trainer.model.config)
    answers, metrics = trainer.answer(questions, length_config, "predict")
    metrics |= {"predict_samples": len(questions.examples)}
    metrics |= cost_facts(args, trainer.model.config, length_config, "predict_")
    report(trainer, args, "predict", metrics, answers)


def search_length_configs(trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet) -> None:
    """Search, and leave the model with the frontier in its configuration (and the chosen config as its default)."""
    results, config = search(trainer, args, questions), trainer.model.config
    config.length_config_max_length = args.data.max_seq_length
    config.length_configs = results["frontier"]
    config.length_config = results["chosen"]["length_config"] if results["chosen"] else None
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_results(args, "search", results)


def report(trainer: QuestionAnsweringTrainer, args: Arguments, stage: str, metrics: dict, answers) -> None:
    trainer.log_metrics(stage, {name: str(value) if isinstance(value, list) else value for name, value in metrics.items()})
    if trainer.is_world_process_zero():
        write_results(args, stage, metrics)
        write_answers(answers, args.run.output_dir, stage)
        logger.info("answers and scores are in %s", args.run.output_dir)


def run(args: Arguments) -> None:
    """The stages asked for, in their fixed order."""
    set_seed(args.run.seed)
    checkpoint = prepare_output_dir(args)
    model, tokenizer = load_model(args)
    if args.length_adaptive.length_config or args.length_adaptive.length_config_from:
        resolve_length_config(args, model.config)  # a misfit is said before any work is done
    train_features, questions = load_data(args, tokenizer)
    validation = questions.get("validation")
    trainer = make_trainer(args, model, tokenizer, train_features, validation)
    if args.run.do_train:
        train(trainer, args, checkpoint)
    if args.run.do_eval and args.length_adaptive.measure_rate:
        measure_rates(trainer, args, validation)
    elif args.run.do_eval:
        evaluate(trainer, args, validation)
    if args.search.do_search:
        search_length_configs(trainer, args, validation)
    if args.run.do_predict:
        predict(trainer, args, questions["test"])
    if (args.run.do_train or args.search.do_search) and trainer.is_world_process_zero():
        write_model_card(
            Path(args.run.output_dir),
            base_model=args.model.model_name_or_path,
            data=args.data.train_file or args.data.dataset_name or args.data.validation_file,
            max_seq_length=args.data.max_seq_length,
            doc_stride=args.data.doc_stride,
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 1 after one line that says what is wrong."""
    args = parse_args(argv)
    level = logging.INFO if args.run.process_index == 0 else logging.WARNING
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    for name in ("run_qa", "loading", "data_qa", "evolution", "search_qa", "utils_qa"):
        logging.getLogger(name).setLevel(level)
    transformers.logging.set_verbosity_warning()
    try:
        run(args)
    except (DataError, LengthConfigError, PlotError, RunError, SearchError) as error:
        print(f"run_qa.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
