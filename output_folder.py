"""The folder a run writes to: what it may hold already, what a new run replaces, where training goes on."""

import json
import logging
import shutil
import tempfile
from pathlib import Path

from arguments import Arguments, DataArguments
from distillation_arguments import DistillationArguments
from errors import RunError
from int8_folder import RECIPE_FILE
from results_qa import write_json

logger = logging.getLogger(__name__)

# a run that continues in a folder must agree with the run that began there on these
SAME_RUN = (
    "model_name_or_path config_name dataset_name train_file max_train_samples hold_out_samples hold_out_seed max_seq_length doc_stride attention_dropout "
    "hidden_dropout length_adaptive num_sandwich length_drop_ratio_bound layer_dropout_prob layer_dropout_bound "
    "kl_direction kl_temperature learning_rate per_device_train_batch_size gradient_accumulation_steps seed "
    "teacher_model_name_or_path pred_distill distillation_weight distillation_temperature state_loss_ratio "
    "state_distill_cs att_loss_ratio att_mse att_target relation_loss_ratio relation_heads partial_reps teacher_layers "
    "student_layers from_scratch length_drop_teacher"
)
# and those that quantize on these too: what others evaluate at
SAME_FINISH = "quantization_aware length_config length_ratios length_config_from length_unit"
# what earlier stages found for weights that training has changed since
SCORES = ("eval_*", "predict_*", "search_results.json", "*_rate_results.json", "benchmark_*.json", "all_results.json")


def prepare_output_dir(args: Arguments) -> str | None:
    """Check the output folder, before anything is loaded; returns the checkpoint that --do_train continues from."""
    folder = Path(args.run.output_dir)
    with args.run.main_process_first(desc="output folder"):
        make_folder(folder)
        replaces = not args.quantization.int8 or Path(args.model.model_name_or_path, RECIPE_FILE).is_file()
        if args.search.do_search and replaces and not (args.trains or args.run.overwrite_output_dir):
            check_search_folder(folder)
        if args.quantization.tune:
            check_int8_folder(folder, args.run.overwrite_output_dir)
        if args.quantization.tune or args.quantization.quantization_aware:
            check_no_float_model(folder)
        return checkpoint_to_resume(args) if args.trains else None


def begin_output_dir(args: Arguments) -> None:
    """Replace what --overwrite_output_dir replaces, once model and data are known to load; record the settings."""
    folder, run = Path(args.run.output_dir), args.run
    with run.main_process_first(desc="output folder"):
        if run.process_index == 0:
            if run.overwrite_output_dir and (args.trains or args.search.do_search):
                clear_output_dir(folder)
            if args.trains:
                write_json(folder / "run_args.json", run_settings(args))


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunError(f"--output_dir {folder} cannot be written to ({error.strerror}): name another.") from error


def check_search_folder(folder: Path) -> None:
    """RunError if the search would put its copy of the model over another one."""
    searched = any((folder / name).is_file() for name in ("search_store.jsonl", "search_results.json"))
    if (folder / "config.json").is_file() and not searched:
        raise RunError(f"--output_dir {folder} holds a model already: name another or add --overwrite_output_dir.")


def check_int8_folder(folder: Path, overwrite: bool) -> None:
    """RunError if an INT8 model would replace another one unasked."""
    if (folder / RECIPE_FILE).is_file() and not overwrite:
        raise RunError(f"--output_dir {folder} holds an INT8 model: name another or add --overwrite_output_dir.")


def check_no_float_model(folder: Path) -> None:
    if any(folder.glob("model*.safetensors")):
        raise RunError(
            f"--output_dir {folder} holds a float model, beside which no INT8 model is written: name another."
        )


OTHER_FILES = ("latency_model.json", "run_args.json", "trainer_state.json")


def clear_output_dir(folder: Path) -> None:
    """Remove what an earlier run of ours left that the new one would mix with; other files stay."""
    for left in (*folder.glob("checkpoint-*"), *folder.glob("teacher_logits")):
        shutil.rmtree(left)
    for pattern in ("*_results.json", "*_predictions.json", "*_store.jsonl", *OTHER_FILES):
        for file in folder.glob(pattern):
            file.unlink()


def forget_scores(folder: Path) -> None:
    """Remove the scores of weights that are no longer there, which model card and all_results.json would repeat."""
    for pattern in SCORES:
        for file in folder.glob(pattern):
            file.unlink()


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def trainer_state(checkpoint: str | Path) -> dict:
    """What trainer_state.json of a checkpoint says; empty if the Trainer was killed before it had written that."""
    try:
        return json.loads(Path(checkpoint, "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def last_checkpoint(folder: Path) -> str | None:
    """The checkpoint of `folder` with the most steps behind it, among those that were written to their end."""
    steps = {str(path): trainer_state(path).get("global_step", 0) for path in folder.glob("checkpoint-*")}
    return max(steps, key=steps.get) if any(steps.values()) else None


def checkpoint_to_resume(args: Arguments) -> str | None:
    """The checkpoint that training continues from, None to start; RunError if the folder holds anything else."""
    folder, run = Path(args.run.output_dir), args.run
    if run.overwrite_output_dir:
        return None
    asked = str(run.resume_from_checkpoint or "")
    checkpoint = None if asked.lower() == "false" else last_checkpoint(folder)
    if asked.lower() == "true" and checkpoint is None:
        raise RunError(f"--resume_from_checkpoint: there is no checkpoint in {folder}.")
    if asked.lower() not in ("", "true", "false"):
        checkpoint = asked
        if not trainer_state(asked):
            raise RunError(f"--resume_from_checkpoint {asked} is no checkpoint folder (it has no trainer_state.json).")
    if {path.name for path in folder.iterdir()} - {"run_args.json"}:  # which alone is a run that failed as it began
        check_same_run(args, checkpoint)
    if checkpoint:
        if not any(Path(checkpoint).glob("optimizer*")) and not any(Path(checkpoint).glob("global_step*")):
            raise RunError(
                f"{checkpoint} holds no optimiser state (--save_only_model), so training cannot continue there: start "
                "anew with --overwrite_output_dir, or from it as --model_name_or_path with another --output_dir."
            )
        logger.info("continuing from %s; --overwrite_output_dir starts anew", checkpoint)
    return checkpoint


def check_same_run(args: Arguments, checkpoint: str | None) -> None:
    """RunError unless `checkpoint` continues the run that the output folder holds."""
    folder, remedy = Path(args.run.output_dir), "name another or add --overwrite_output_dir."
    record = folder / "run_args.json"
    if not record.is_file():
        raise RunError(f"--output_dir {folder} holds other files: {remedy}")
    if checkpoint is None and (last_checkpoint(folder) or (folder / "train_results.json").is_file()):
        what = (
            "checkpoints" if last_checkpoint(folder) else "a finished training without a checkpoint to continue from"
        )
        raise RunError(f"--output_dir {folder} holds {what}: {remedy}")
    if checkpoint and Path(checkpoint).resolve().parent != folder.resolve():
        raise RunError(f"--output_dir {folder} holds another run than --resume_from_checkpoint: {remedy}")
    begun, now = json.loads(record.read_text()), run_settings(args)
    # a run that was begun before there was such a flag had what is its default now
    defaults = vars(DataArguments) | vars(DistillationArguments)
    differing = [f"--{name}" for name in now if begun.get(name, defaults.get(name)) != now[name]]
    if differing:
        raise RunError(f"--output_dir {folder} was begun with another {', '.join(differing)}: {remedy}")


def run_settings(args: Arguments) -> dict:
    """The settings that a continued run must share with the run that began."""
    groups = (args.model, args.data, args.distillation, args.length_adaptive, args.quantization, args.run)
    values = {name: value for group in groups for name, value in vars(group).items()}
    names = f"{SAME_RUN} {SAME_FINISH}" if args.quantization.quantization_aware else f"{SAME_RUN} quantization_aware"
    return {name: values[name] for name in names.split()}
