"""Which combinations of flags make no sense with --tune, --int8 and --quantization_aware."""

from pathlib import Path

from arguments import Arguments
from errors import require
from length_arguments import LENGTH_CONFIGS

# Why some flags of the Trainer cannot be used with --quantization_aware.
REFUSED = {
    "fp16": "the float parts can be --bf16",
    "bf16_full_eval": "it casts the weights that are trained",
    "fp16_full_eval": "it casts the weights that are trained",
    "tf32": "it would round the operands of the integer products again",
    "fsdp": "the INT8 folder is made of whole weights",
    "deepspeed": "the INT8 folder is made of whole weights",
    "push_to_hub": "the Trainer would push its float weights",
}


def check_quantization(args: Arguments) -> None:
    """Raise ValueError, in one line that names the flags, for what does not go with --tune or --int8."""
    quantization, run = args.quantization, args.run
    if not (quantization.tune or quantization.int8):
        return
    flag = "--tune" if quantization.tune else "--int8"
    require(run.device.type == "cpu", f"{flag} is for processors, not for a GPU: add --use_cpu.")
    for name in ("fp16", "bf16_full_eval", "fp16_full_eval"):
        require(not getattr(run, name), f"--{name} cannot be used with {flag}: the float parts can be --bf16.")
    require(not (quantization.tune and quantization.int8), "--tune makes what --int8 uses: give one of them.")
    native_in_bf16 = quantization.quantization_backend == "native" and run.bf16
    require(not native_in_bf16, "--quantization_backend native computes what is not INT8 in float32: remove --bf16.")
    if quantization.int8:
        require(not run.do_train, "--int8 cannot be trained: remove --do_train, or --tune a float model.")
        return
    require(run.do_eval, "--tune compares INT8 with the float model on the validation questions: add --do_eval.")
    require(run.do_train or not args.calibrates, "--tune calibrates on training examples: add --do_train.")
    require(run.world_size == 1, "--tune runs in one process: start it without torchrun or accelerate launch.")
    for name in ("length_adaptive", "measure_rate", *LENGTH_CONFIGS):
        require(not getattr(args.length_adaptive, name), f"--tune and --{name} exclude each other: tune first.")
    for name, wanted in (("do_search", args.search.do_search), ("do_predict", run.do_predict)):
        require(not wanted, f"--tune and --{name} exclude each other: --{name} goes with --int8, in the next command.")
    known = ["eval_f1", "eval_exact" if args.data.version_2_with_negative else "eval_exact_match"]
    require(
        quantization.metric_name in known,
        f"--metric_name {quantization.metric_name} is not what evaluation gives here: {' or '.join(known)}.",
    )


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
