"""Which values and combinations of the flags about distillation make no sense."""

from pathlib import Path

from arguments import Arguments
from distillation_arguments import LAYER_LOSSES, parse_layers
from errors import require


def check_distillation(args: Arguments) -> None:
    """Raise ValueError, in one line that names the flags, for what cannot be learned from a teacher."""
    check_numbers(args)
    check_student(args)
    if args.trains:
        check_teacher(args)
        check_layer_losses(args)


def check_numbers(args: Arguments) -> None:
    distillation = args.distillation
    weight, temperature = distillation.distillation_weight, distillation.distillation_temperature
    require(0 <= weight <= 1, f"--distillation_weight must lie in [0, 1], not {weight}.")
    require(temperature > 0, f"--distillation_temperature must be above 0, not {temperature}.")
    require(
        weight > 0 or not distillation.pred_distill,
        "--distillation_weight 0 leaves --pred_distill nothing to say: raise it, or drop --pred_distill.",
    )
    for name in ("teacher_layers", "student_layers"):
        text = getattr(distillation, name)
        try:
            if text and not (name == "student_layers" and text.strip().isdigit()):
                parse_layers(text)
        except ValueError as error:
            raise ValueError(f"--{name} {error}") from None


def check_student(args: Arguments) -> None:
    distillation = args.distillation
    require(
        not (distillation.from_scratch and distillation.student_layers),
        "--from_scratch and --student_layers exclude each other: random weights are nobody's layers.",
    )


def learned(args: Arguments) -> list[str]:
    """The flags given that name something to learn from a teacher."""
    distillation = args.distillation
    flags = [f"--{name}" for name in ("pred_distill", *LAYER_LOSSES) if getattr(distillation, name)]
    if args.length_adaptive.length_adaptive and distillation.length_drop_teacher != "self":
        flags.append(f"--length_drop_teacher {distillation.length_drop_teacher}")
    return flags


def check_teacher(args: Arguments) -> None:
    teacher, flags, output = args.distillation.teacher_model_name_or_path, learned(args), args.run.output_dir
    if args.distillation.cache_teacher_logits and not teacher:
        flags.append("--cache_teacher_logits")
    verb = "needs" if len(flags) == 1 else "need"
    require(teacher or not flags, f"{' and '.join(flags)} {verb} a teacher: add --teacher_model_name_or_path.")
    require(
        not teacher or flags,
        f"--teacher_model_name_or_path {teacher} has nothing to teach: add --pred_distill, --state_loss_ratio, "
        "--att_loss_ratio, --relation_loss_ratio or, with --length_adaptive, --length_drop_teacher teacher.",
    )
    require(
        not (teacher and Path(teacher).is_dir() and Path(teacher).resolve() == Path(output).resolve()),
        f"--output_dir {output} is the folder of --teacher_model_name_or_path, which no stage writes into: name another.",
    )


def check_layer_losses(args: Arguments) -> None:
    given, run = [f"--{name}" for name in LAYER_LOSSES if getattr(args.distillation, name)], args.run
    if not given:
        return
    flag = given[0]
    require(
        not args.length_adaptive.length_adaptive,
        f"{flag} and --length_adaptive exclude each other: the layers of sub-models hold other tokens than the teacher's.",
    )
    require(
        not args.distillation.cache_teacher_logits,
        f"--cache_teacher_logits keeps the teacher's predictions only, and {flag} compares layers: drop one of them.",
    )
    for name in ("torch_compile", "activation_checkpointing"):
        require(not getattr(run, name), f"--{name} hides the layers that {flag} compares: drop one of them.")
    require(
        not run.ddp_find_unused_parameters,
        f"--ddp_find_unused_parameters cannot be used with {flag}, which uses every weight: drop it.",
    )
    require(run.n_gpu <= 1, f"{flag} needs a process a GPU: start it with torchrun or accelerate launch.")
