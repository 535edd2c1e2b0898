"""Fine-tune, LengthDrop, search and evaluate a length-adaptive question-answering reader.

    python run_qa.py --model_name_or_path ENCODER --train_file ... --do_train                   --output_dir fine
    python run_qa.py --model_name_or_path fine    --train_file ... --do_train --length_adaptive --output_dir dynamic
    python run_qa.py --model_name_or_path dynamic --train_file ... --validation_file ... --do_search --output_dir search
    python run_qa.py --model_name_or_path dynamic --validation_file ... --do_eval --length_config_from search \
                     --max_f1_drop 1 --output_dir evaluation
    python run_qa.py --model_name_or_path dynamic --train_file ... --do_train --quantization_aware quantized \
                     --output_dir finished
    accelerate launch run_qa.py ...               # the same on several GPUs or processes

Stages run in the order train, evaluate, search, predict (--tune, which quantizes, alone) and meet only through the
folders they write. `python run_qa.py --help` explains every flag.
"""

import interruptions

if __name__ == "__main__":  # the imports take seconds
    interruptions.exit_at_once()
import quiet_libraries  # noqa: F401  (before transformers)

# isort: split
import logging
import sys
from pathlib import Path

import datasets
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_model as load_weights
from transformers import set_seed
from transformers.trainer_callback import TrainerState

from arguments import Arguments
from ask_qa import ask
from candidates import SearchError
from command_line import parse_args
from distillation_checks import learned
from errors import DataError, RunError
from evaluate_qa import asked_length_config, evaluate, measure_rates, predict, prepare_attention, prepare_engines
from finish_qa import check_int8_source, describe_finish, finished_trainer, finishing_trainer
from length_config import LengthConfigError, in_unit
from loading import QuestionSet, load_data, load_model
from model_card import write_model_card
from output_folder import begin_output_dir, forget_scores, last_checkpoint, prepare_output_dir, trainer_state
from plots import PlotError, plot_loss_curve
from quantization import copy_int8
from quantize_qa import tune
from results_qa import write_results
from search_qa import search
from trainer_qa import QuestionAnsweringTrainer
from trainers import make_teaching, make_trainer

logger = logging.getLogger("run_qa")
OUR_MODULES = (
    "run_qa",
    "ask_qa",
    "loading",
    "output_folder",
    "data_qa",
    "candidate_store",
    "evaluate_qa",
    "evolution",
    "finish_qa",
    "hold_out",
    "int8_engine",
    "latency_model",
    "latency_qa",
    "native_engine",
    "native_ops",
    "quantize_qa",
    "racing",
    "search_qa",
    "shared_store",
    "teacher_logits",
    "utils_qa",
)
OF_A_LENGTH_CONFIG = ("macs", "macs_ratio", "score", "f1_drop", "latency_ms")  # in config.json


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


def search_length_configs(
    trainer: QuestionAnsweringTrainer, args: Arguments, scored_on: QuestionSet, questions: QuestionSet
) -> None:
    """Search, and leave the model with the frontier in its configuration (and the chosen config as its default)."""
    results, config = search(trainer, args, scored_on, questions), trainer.model.config
    config.length_config_max_length = args.data.max_seq_length
    config.length_configs = [in_this_unit(args, row) for row in results["frontier"]]
    config.length_config = in_this_unit(args, results["chosen"])["length_config"] if results["chosen"] else None
    if not args.quantization.int8:
        trainer.save_model()
    if trainer.is_world_process_zero():
        if args.quantization.int8:
            copy_int8(trainer.model.folder, args.run.output_dir, config)
            trainer.processing_class.save_pretrained(args.run.output_dir)
        write_results(args, "search", results)


def in_this_unit(args: Arguments, row: dict) -> dict:
    """What config.json keeps of a row of search_results.json, its length config as the model takes it."""
    lengths = in_unit(args.length_adaptive.length_unit, row["length_config"], args.data.max_seq_length)
    return {"length_config": list(lengths)} | {name: row[name] for name in OF_A_LENGTH_CONFIG}


def describe_training(args: Arguments) -> str:
    """The model card's words for what this run has done to the base model's weights."""
    data, split = args.data, args.search.search_split
    if not args.run.do_train:
        searched = getattr(data, f"{split}_file") or data.dataset_name
        return f"the base model's own; length configs searched on {split} questions of {searched}"
    if args.quantization.quantization_aware:
        return describe_finish(args)
    how = "with LengthDrop" if args.length_adaptive.length_adaptive else "at full length only (no LengthDrop)"
    return f"{data.train_file or data.dataset_name}, {how}" + describe_distillation(args)


def describe_distillation(args: Arguments) -> str:
    """What the student began as and learned from its teacher, to be added to the words about its training."""
    distillation, began = args.distillation, ""
    if distillation.from_scratch:
        began = ", from random weights"
    elif distillation.student_layers:
        began = f", from the base model's layers {distillation.student_layers}"
    if not args.is_taught:
        return began
    lessons = ", ".join(flag.removeprefix("--") for flag in learned(args))
    return f"{began}, distilled from {distillation.teacher_model_name_or_path} ({lessons})"


def leave_model_card(args: Arguments) -> None:
    write_model_card(
        Path(args.run.output_dir),
        base_model=args.model.model_name_or_path,
        training=describe_training(args),
        max_seq_length=args.data.max_seq_length,
        doc_stride=args.data.doc_stride,
    )


def run(args: Arguments) -> None:
    """The stages asked for, in their fixed order."""
    set_seed(args.run.seed)
    asks = args.data.question is not None
    checkpoint = None if asks else prepare_output_dir(args)
    model, tokenizer = load_model(args)
    length_config = asked_length_config(args, model.config)  # a misfit is said before any work is done
    if args.quantization.int8:
        prepare_engines(args, model, length_config)
    elif args.quantization.quantization_aware:
        check_int8_source(args, length_config)
    elif not args.quantization.tune:
        prepare_attention(args, model, length_config)
    if asks:
        return ask(args, model, tokenizer, length_config)
    teaching = make_teaching(args, model, tokenizer)
    train_features, questions = load_data(args, tokenizer, model)
    begin_output_dir(args)
    validation = questions.get("validation")
    if args.quantization.tune:
        return tune(args, model, tokenizer, train_features, validation)
    finishes = args.quantization.quantization_aware
    if finishes:
        trainer = finishing_trainer(args, model, tokenizer, train_features, validation, length_config)
    else:
        trainer = make_trainer(args, model, tokenizer, train_features, validation, teaching)
    if args.run.do_train:
        train(trainer, args, checkpoint)
    if finishes and args.run.do_eval:
        trainer = finished_trainer(args, tokenizer, validation, length_config)
    if args.run.do_eval and args.length_adaptive.measure_rate:
        measure_rates(trainer, args, validation)
    elif args.run.do_eval:
        evaluate(trainer, args, validation, length_config)
    if args.search.do_search:
        search_length_configs(trainer, args, questions["search"], validation)
    if args.run.do_predict:
        predict(trainer, args, questions["test"], length_config)
    if (args.run.do_train or args.search.do_search) and trainer.is_world_process_zero():
        leave_model_card(args)
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
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # a line a retry; the error says it once
    if args.run.disable_tqdm or not first:
        datasets.disable_progress_bars()


def interruption(args: Arguments) -> str:
    """What Ctrl-C leaves, and what the same command does next."""
    folder = Path(args.run.output_dir or "")
    checkpoint = last_checkpoint(folder) if args.run.do_train else None
    command = "the same command" + (" without --overwrite_output_dir" if args.run.overwrite_output_dir else "")
    if args.search.do_search and args.search.search_storage:
        return f"{command} joins the search again; what was scored is in --search_storage."
    if args.search.do_search and (folder / "search_store.jsonl").is_file():
        return f"{command} continues the search with the scores in {folder / 'search_store.jsonl'}."
    if checkpoint:
        return f"{command} continues from {checkpoint}."
    return "the same command starts again."


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, or after one line that says what is wrong 1, 130 (Ctrl-C), 143 (SIGTERM)."""
    args = parse_args(argv)
    set_up_output(args)
    try:
        with interruptions.as_exceptions():
            run(args)
        return 0
    except (DataError, LengthConfigError, PlotError, RunError, SearchError) as error:
        print(f"run_qa.py: error: {error}", file=sys.stderr)
        return 1
    except (OSError, RuntimeError, SafetensorError) as error:
        problem = interruptions.storage_problem(error, Path(args.run.output_dir or ""))
        if problem is None:
            raise
        print(f"run_qa.py: error: {problem}; {interruption(args)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        status = 143 if isinstance(stop, interruptions.Terminated) else 130
    # Here the interrupted frames are gone, and their progress bars with them, which would be drawn below this line.
    print(f"\nrun_qa.py: interrupted; {interruption(args)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
