"""Compare searches: strategies or protocols, the same budget of configs, several seeds, the same slice of questions.

    python benchmarks/search_study.py --strategies evolution tpe nsga2 random constant --seeds 0 1 2 --output_dir study -- \\
        --model_name_or_path reader --train_file train.json --validation_file dev.json --search_max_candidates 120

What follows `--` goes to every run_qa.py --do_search.  Runs whose results exist are not repeated.  Leaves a folder a run,
search_study.json, and the table it prints: hypervolumes of the frontier in points of F1 (costs as fractions of the full
model's), mean and range over the seeds; the questions that were evaluated; seconds of searching; and of the cheapest confirmed
config within --within points of full length its MACs and its measured latency, as fractions of full length's.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from results_qa import environment, write_json

STRATEGIES = {  # name: flags
    "evolution": ["--search_strategy", "evolution"],
    "exhaustive": ["--search_strategy", "evolution", "--search_protocol", "exhaustive"],
    "tpe": ["--search_strategy", "tpe"],
    "nsga2": ["--search_strategy", "nsga2"],
    "random": ["--search_strategy", "random"],
    "constant": ["--evo_iter", "0"],  # as many constant ratios as the others may score configs
}

DIGITS = {  # columns of the table
    "confirmed": 2,
    "estimated": 2,
    "candidates": 0,
    "questions": 0,
    "seconds": 0,
    "MACs ratio": 3,
    "latency ratio": 3,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--candidates", type=int, default=120, help="configs that every search may score (default: %(default)s)"
    )
    parser.add_argument("--within", type=float, default=1.0, help="points of F1 (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("run_qa", nargs=argparse.REMAINDER, metavar="-- FLAGS OF run_qa.py")
    return parser.parse_args()


def run_search(strategy: str, seed: int, args: argparse.Namespace) -> dict:
    """The results of one search, which is run unless they are there."""
    folder = args.output_dir / f"{strategy}-{seed}"
    results = folder / "search_results.json"
    if not results.is_file():
        size = "--population_size" if strategy == "constant" else "--search_max_candidates"
        flags = [*STRATEGIES[strategy], size, str(args.candidates), "--seed", str(seed), "--output_dir", str(folder)]
        given = [flag for flag in args.run_qa if flag != "--"]
        subprocess.run([sys.executable, ROOT / "run_qa.py", "--do_search", *given, *flags], check=True)
    return json.loads(results.read_text(encoding="utf-8"))


def facts(results: dict, within: float) -> dict:
    """What is compared."""
    last, full = results["progress"][-1], results["full"]
    good = [row for row in (*results["frontier"], full) if row["f1_drop"] <= within]
    chosen = min(good, key=lambda row: row["macs"])
    return {
        "MACs ratio": chosen["macs_ratio"],
        "latency ratio": chosen["latency_ms"] / full["latency_ms"],
        "confirmed": results["hypervolume"]["confirmed"],
        "estimated": results["hypervolume"]["estimated"],
        "candidates": last["candidates"],
        "questions": results["questions_evaluated"],
        "seconds": last["seconds"],
    }


def table(rows: dict[str, list[dict]]) -> str:
    """Markdown: a line a strategy, mean and range over the seeds."""
    lines = [f"| search | seeds | {' | '.join(DIGITS)} |", "|---" * (len(DIGITS) + 2) + "|"]
    for strategy, runs in rows.items():
        cells = []
        for name, digits in DIGITS.items():
            values = [run[name] for run in runs]
            low, middle, high = (f"{f(values):.{digits}f}" for f in (min, statistics.fmean, max))
            cells.append(middle if low == high else f"{middle} ({low} to {high})")
        lines.append(f"| {strategy} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    rows: dict[str, list[dict]] = {}
    for seed in args.seeds:
        for strategy in args.strategies:
            rows.setdefault(strategy, []).append({"seed": seed} | facts(run_search(strategy, seed, args), args.within))
            record = {"environment": environment(), "candidates": args.candidates, "flags": args.run_qa, "runs": rows}
            write_json(args.output_dir / "search_study.json", record)
    print(table(rows))


if __name__ == "__main__":
    main()
