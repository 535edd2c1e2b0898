"""Which combinations of flags make no sense with --quantization_aware."""

from pathlib import Path

from arguments import Arguments
from checks import LENGTH_CONFIGS, require

# Why some flags of the Trainer cannot be used.
REFUSED = {
    "fp16": "the float parts can be --bf16",
    "bf16_full_eval": "it casts the weights that are trained",
    "fp16_full_eval": "it casts the weights that are trained",
    "tf32": "it would round the operands of the integer products again",
    "fsdp": "the INT8 folder is made of whole weights",
    "deepspeed": "the INT8 folder is made of whole weights",
    "push_to_hub": "the Trainer would push its float weights",
}


def check_finish(args: Arguments) -> None:
    """Raise ValueError, in one line that names the flags, for what does not go with --quantization_aware."""
    quantization, run, adaptive = args.quantization, args.run, args.length_adaptive
    if not quantization.quantization_aware:
        return
    require(run.do_train, "--quantization_aware is a way of training: add --do_train.")
    require(not quantization.tune, "--tune makes the folder that --quantization_aware takes: give one of them.")
    later = {"int8": quantization.int8, "do_search": args.search.do_search, "do_predict": run.do_predict}
    for name, wanted in (later | {"measure_rate": adaptive.measure_rate}).items():
        require(
            not wanted, f"--quantization_aware and --{name} exclude each other: --{name} goes in the next command."
        )
    distillation = args.distillation
    for name in ("teacher_model_name_or_path", "student_layers", "from_scratch"):
        require(
            not getattr(distillation, name),
            f"--quantization_aware and --{name} exclude each other: the float model itself is the teacher.",
        )
    for name, why in REFUSED.items():
        require(not getattr(run, name), f"--{name} cannot be used with --quantization_aware: {why}.")
    for name in LENGTH_CONFIGS:
        require(
            not (adaptive.length_adaptive and getattr(adaptive, name)),
            f"--length_adaptive and --{name} exclude each other with --quantization_aware: many length configs, or one.",
        )
    require(
        run.device.type == "cpu" or not run.do_eval,
        "--do_eval runs the INT8 model, for processors: evaluate in the next command with --int8, or add --use_cpu.",
    )
    target = Path(run.output_dir)
    require(
        Path(quantization.quantization_aware).resolve() != target.resolve(),
        f"--output_dir {target} is the folder of --quantization_aware, which no stage writes into: name another.",
    )
