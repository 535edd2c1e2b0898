"""The frontiers of searches beside each other, by latencies measured in turn in one run on the engine of the flags.

    python benchmarks/compare_frontiers.py --searches search_macs search_latency --output frontiers.json -- \\
        --model_name_or_path quantized --int8 --validation_file dev-v1.1.json --per_device_eval_batch_size 32

What follows `--` goes to run_qa.py's own parser: the engine, and the questions whose windows are timed.  Leaves the numbers
as JSON, a table (.md): the fastest config of each search within some drops of F1, and a picture (.png).
"""

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import quiet_libraries  # noqa: F401  (before transformers)

# isort: split
from candidates import Candidate, LengthConfig, SearchError, choose, hypervolume
from command_line import parse_args
from errors import DataError, RunError
from evaluate_qa import prepare_attention, prepare_engines
from frontier_qa import read_rows
from latency_qa import EngineLatency
from loading import load_data, load_model
from results_qa import environment, write_json
from search_plots import plot_frontiers
from serving_latency import measure_turns, passes, spread, without_drift
from trainers import make_trainer

DROPS = (0.5, 1.0, 2.0, 3.0, 5.0)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--searches", type=Path, nargs="+", required=True, help="output folders of run_qa.py --do_search"
    )
    parser.add_argument("--output", type=Path, required=True, help="file of the results, .json")
    parser.add_argument("--seconds", type=float, default=180, help="of measuring (default: %(default)s)")
    parser.add_argument("run_qa", nargs=argparse.REMAINDER, metavar="-- FLAGS OF run_qa.py")
    return parser.parse_args()


def measure(flags: list[str], configs: list[LengthConfig], folder: Path, seconds: float) -> tuple[dict, float]:
    """Milliseconds a window of each config, in batches that stand for all lengths of the questions, and their spread.

    The configs take turns in changing order for about so many seconds; what slows a whole turn is taken out.
    """
    search = ["--do_search", "--search_split", "validation", "--search_objective", "latency"]
    args = parse_args([*(flag for flag in flags if flag != "--"), *search, "--output_dir", str(folder)])
    model, tokenizer = load_model(args)
    prepare_engines(args, model, configs[0]) if args.quantization.int8 else prepare_attention(args, model, configs[0])
    _, questions = load_data(args, tokenizer, model)
    trainer = make_trainer(args, model, tokenizer, None, questions["validation"])
    latency = EngineLatency(trainer, args, questions["validation"])
    calls = passes(model, [latency.in_unit(config) for config in configs], latency.batches, latency.autocast)
    turns = measure_turns(calls, random.Random(args.run.seed), seconds)
    windows = sum(len(batch["input_ids"]) for batch in latency.batches)
    return dict(zip(configs, (without_drift(turns) / windows).tolist())), spread(turns)


def with_latency(rows: list[dict], latencies: dict[LengthConfig, float]) -> list[dict]:
    return [row | {"latency_ms": latencies[tuple(row["length_config"])]} for row in rows]


def table(frontiers: dict[str, list[dict]], full: dict) -> str:
    """Markdown: by search, hypervolume in latency and the fastest config within each drop, as a fraction of full length's."""
    lines = [
        f"| search | hypervolume | {' | '.join(f'drop <= {drop:g}' for drop in DROPS)} |",
        "|---" * (len(DROPS) + 2) + "|",
    ]
    reference = Candidate(tuple(full["length_config"]), full["latency_ms"], full["score"], "full")
    for name, rows in frontiers.items():
        members = [Candidate(tuple(row["length_config"]), row["latency_ms"], row["score"], "loaded") for row in rows]
        cells = [f"{hypervolume(members, reference.cost) / reference.cost:.2f}"]
        for drop in DROPS:
            try:
                cells.append(f"{choose(members, reference, max_score_drop=drop).cost / reference.cost:.3f}")
            except SearchError:  # it has none
                cells.append("-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compare(args: argparse.Namespace) -> None:
    read = {
        f.name: read_rows(json.loads((f / "search_results.json").read_text(encoding="utf-8"))) for f in args.searches
    }
    full = next(iter(read.values()))[1]
    everything = [full, *(row for rows, _ in read.values() for row in rows)]
    configs = list(dict.fromkeys(tuple(row["length_config"]) for row in everything))
    latencies, apart = measure(args.run_qa, configs, args.searches[0], args.seconds)
    (full,) = with_latency([full], latencies)
    frontiers = {name: with_latency(rows, latencies) for name, (rows, _) in read.items()}
    write_json(args.output, {"environment": environment(), "spread": apart, "full": full, "frontiers": frontiers})
    args.output.with_suffix(".md").write_text(table(frontiers, full) + "\n", encoding="utf-8")
    plot_frontiers(args.output.with_suffix(".png"), frontiers, full)
    print(f"{table(frontiers, full)}\nthe middle half of one config's times is {100 * apart:.0f} % apart")


def main() -> None:
    try:
        compare(read_arguments())
    except (OSError, ValueError, KeyError, DataError, RunError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
