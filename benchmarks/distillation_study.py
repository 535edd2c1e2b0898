"""What a student gains by a teacher, the same number of steps each, and what sub-models should learn from.

    python benchmarks/distillation_study.py --teacher reader --train_file train.json --validation_file dev.json \\
        --questions 20000 --steps 1250 --output_dir study -- --bf16 --train_sampling_strategy group_by_length

The student is made of --student_layers of the teacher's layers and trained by the task loss only, by predictions, and by
intermediate layers for the first half of the steps and predictions for the second.  The best of them by F1 is then trained
with LengthDrop, its sub-models learning from the full model, from the teacher, or from both, and scored at constant ratios;
so is, to tell LengthDrop from longer training, the same student after as many steps at full length.
What follows `--` goes to every run_qa.py that trains or evaluates.  Runs whose results exist are not repeated.  Leaves a
folder a run, distillation_study.json, and the tables it prints.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from results_qa import environment, write_json

STUDENTS = {  # name: (flags of a training, share of the steps), one after the other
    "task loss only": [([], 1.0)],
    "prediction": [(["--pred_distill"], 1.0)],
    "task and prediction": [
        (["--pred_distill", "--distillation_weight", "0.5", "--distillation_temperature", "2"], 1.0)
    ],
    "intermediate, then prediction": [
        (["--state_loss_ratio", "1", "--att_loss_ratio", "1", "--att_mse"], 0.5),
        (["--pred_distill"], 0.5),
    ],
    "relations, then prediction": [(["--relation_loss_ratio", "1"], 0.5), (["--pred_distill"], 0.5)],
}
SOURCES = ("self", "teacher", "both")  # of what sub-models learn


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of a reader")
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--validation_file", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--student_layers", default="3", help="as run_qa.py's (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=20000, help="to train on (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1250, help="of every student's training (default: %(default)s)")
    parser.add_argument("--drop_steps", type=int, help="of LengthDrop (as many if unset)")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="of the students (default: %(default)s)")
    parser.add_argument("--drop_learning_rate", type=float, default=5e-5, help="of LengthDrop (default: %(default)s)")
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--rates", default="[0.1, 0.2, 0.3]", help="constant ratios that LengthDrop is scored at")
    parser.add_argument("run_qa", nargs=argparse.REMAINDER, metavar="-- FLAGS OF run_qa.py")
    args = parser.parse_args()
    args.run_qa = [flag for flag in args.run_qa if flag != "--"]
    args.drop_steps = args.drop_steps or args.steps
    return args


def run_qa(folder: Path, result: str, flags: list[object], args: argparse.Namespace) -> dict:
    """The result file of a command that writes into `folder`; it is run unless the file is there."""
    if not (folder / result).is_file():
        command = [sys.executable, ROOT / "run_qa.py", *flags, *args.run_qa, "--output_dir", folder]
        try:
            subprocess.run([*map(str, command)], check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode)  # run_qa.py has said why
    return json.loads((folder / result).read_text(encoding="utf-8"))


def training(args: argparse.Namespace, model: object, steps: int, learning_rate: float) -> list[object]:
    """The flags that every training shares."""
    data = ["--train_file", args.train_file]
    sizes = ["--max_train_samples", args.questions, "--max_steps", steps, "--learning_rate", learning_rate]
    sizes += ["--per_device_train_batch_size", args.batch_size, "--warmup_steps", "0.06"]
    return ["--model_name_or_path", model, *data, *sizes, "--do_train"]


def scoring(args: argparse.Namespace) -> list[object]:
    """The flags of an evaluation after a training."""
    return ["--validation_file", args.validation_file, "--do_eval", "--accuracy_only"]


def learning(args: argparse.Namespace, layers: bool = False) -> list[object]:
    """The flags of a training with the teacher: its logits are computed once for all of them, unless its layers teach."""
    flags = ["--teacher_model_name_or_path", args.teacher]
    return flags if layers else [*flags, "--cache_teacher_logits", "--teacher_logits_dir", args.output_dir / "logits"]


def train_student(name: str, args: argparse.Namespace) -> tuple[Path, dict]:
    """Folder and scores of a student after its last training."""
    folder = model = None
    for number, (lesson, share) in enumerate(STUDENTS[name], start=1):
        last = number == len(STUDENTS[name])
        folder = args.output_dir / f"{name.replace(', ', '_').replace(' ', '_')}-{number}"
        flags = training(args, model or args.teacher, round(args.steps * share), args.learning_rate) + lesson
        flags += [] if model else ["--student_layers", args.student_layers]
        flags += learning(args, layers="--pred_distill" not in lesson) if lesson else []
        flags += scoring(args) if last else []
        scores, model = run_qa(folder, "eval_results.json" if last else "train_results.json", flags, args), folder
    return folder, scores


def length_drop(source: str, args: argparse.Namespace) -> list[object]:
    """The flags of LengthDrop whose sub-models learn from `source`."""
    flags = ["--length_adaptive", "--kl_direction", "full_sub", "--length_drop_teacher", source]
    flags += ["--length_drop_ratio_bound", "0.3", "--num_sandwich", "1"]
    return flags if source == "self" else [*flags, *learning(args)]


def train_on(name: str, flags: list[object], student: Path, args: argparse.Namespace) -> list[dict]:
    """Scores by constant ratio, full length first, of the student after another training, `name`, with `flags`."""
    folder = args.output_dir / name
    flags = [*training(args, student, args.drop_steps, args.drop_learning_rate), *scoring(args), *flags]
    full = run_qa(folder, "eval_results.json", flags, args)
    return [full, *score_ratios(folder, args.output_dir / f"rates-{name}", args)]


def score_ratios(model: Path, folder: Path, args: argparse.Namespace) -> list[dict]:
    flags = ["--model_name_or_path", model, "--validation_file", args.validation_file, "--do_eval"]
    return run_qa(folder, "measure_rate_results.json", [*flags, "--measure_rate", args.rates], args)["rows"]


def table(header: list[str], rows: list[list[object]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def scores(results: dict) -> list[str]:
    return [f"{results['eval_exact_match']:.2f}", f"{results['eval_f1']:.2f}"]


def main() -> None:
    args = parse_args()
    evaluation = ["--model_name_or_path", args.teacher, "--validation_file", args.validation_file, "--do_eval"]
    results = {"teacher": run_qa(args.output_dir / "teacher", "eval_results.json", evaluation, args)}
    folders = {}
    for name in args.students:
        folders[name], results[name] = train_student(name, args)
    print(table(["trained by", "EM", "F1"], [[name, *scores(row)] for name, row in results.items()]), flush=True)
    best = max(folders, key=lambda name: results[name]["eval_f1"])
    curves = {"before": [results[best], *score_ratios(folders[best], args.output_dir / "rates-before", args)]}
    for source in SOURCES:
        curves[source] = train_on(f"length_drop-{source}", length_drop(source, args), folders[best], args)
    curves["(no sub-models)"] = train_on("longer_training", [], folders[best], args)
    header = ["sub-models learn from", "full length", *(f"ratio {row['rate']}" for row in curves["before"][1:])]
    rows = [[name, *(f"{row['eval_f1']:.2f}" for row in curve)] for name, curve in curves.items()]
    print(f"\nLengthDrop of the student by {best}, F1:\n\n{table(header, rows)}")
    record = {"environment": environment(), "settings": vars(args), "students": results, "length_drop": curves}
    write_json(args.output_dir / "distillation_study.json", record)


if __name__ == "__main__":
    main()
