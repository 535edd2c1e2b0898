"""Print one table of the eval_results.json files of several output folders.

    python scripts/summary_table.py output/evaluation_full output/evaluation_searched

Latency is the model's, in milliseconds a window; speed-up is against full length in the same run (--benchmark), since
latencies of different runs do not compare.
"""

import argparse
import json
import sys
from pathlib import Path

HEADER = ("model", "length config", "F1", "EM", "GMACs", "ms/sample", "speed-up")


def read_results(folder: Path) -> dict:
    """The results of an evaluation; exits with one line if there are none."""
    path = folder / "eval_results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        sys.exit(f"error: {path} does not exist: evaluate first (run_qa.py --do_eval --output_dir {folder})")
    except ValueError as error:
        sys.exit(f"error: {path} is not JSON ({error}): evaluate again")


def number(value: float | None, digits: int, suffix: str = "") -> str:
    return "-" if value is None else f"{value:.{digits}f}{suffix}"


def describe(length_config: list[int], macs_ratio: float | None) -> str:
    """The lengths, or "full" when no layer drops anything: equal lengths alone may all be below the passage's."""
    text = ", ".join(str(length) for length in length_config)
    return f"full ({length_config[0]})" if len(set(length_config)) == 1 and macs_ratio == 1 else f"({text})"


def make_row(name: str, results: dict) -> tuple[str, ...]:
    latency, macs = results.get("eval_latency_ms"), results.get("eval_macs")
    return (
        name,
        describe(results["eval_length_config"], results.get("eval_macs_ratio")),
        number(results.get("eval_f1"), 2),
        number(results.get("eval_exact_match", results.get("eval_exact")), 2),
        number(macs and macs / 1e9, 3),
        number(latency, 2),
        number(results.get("eval_speedup"), 2, "x"),
    )


def format_table(rows: list[tuple[str, ...]]) -> str:
    """The rows under their header as a Markdown table."""
    widths = [max(len(row[i]) for row in [HEADER, *rows]) for i in range(len(HEADER))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in [HEADER, *rows]]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" if i != 1 else f"|-{line}-|" for i, line in enumerate(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="output folders of run_qa.py --do_eval")
    folders = parser.parse_args().folders
    names = [folder.name for folder in folders]
    rows = [
        make_row(folder.name if names.count(folder.name) == 1 else str(folder), read_results(folder))
        for folder in folders
    ]
    print(format_table(rows))


if __name__ == "__main__":
    main()
