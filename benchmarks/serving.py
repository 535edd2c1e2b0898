"""What it takes to serve a reader from Python: seconds from the start of a process to its first answer, and its memory.

    python benchmarks/serving.py --model output/quantized --validation_file dev-v1.1.json

Starts fresh processes in turn, each of which opens the folder and answers the questions one by one (batch 1), and reads the
memory of each from /proc (Linux) when it has answered them all: resident, the part of it that is private (the rest are
files, which processes share), and the peak. Prints medians with the smallest and largest value of all processes.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SERVER = """
import json, sys
from reader import Reader
try:
    reader, length_config = Reader.from_pretrained(sys.argv[1]), json.loads(sys.argv[2])
    for line in sys.stdin:
        print(json.dumps(reader(*json.loads(line), length_config=length_config).text), flush=True)
except (OSError, ValueError) as error:  # RunError, DataError and LengthConfigError are of these
    sys.exit(f"error: {' '.join(str(error).split())}")
"""
MEMORY = {"VmRSS": "resident_mib", "RssAnon": "private_mib", "VmHWM": "peak_resident_mib"}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder that Reader.from_pretrained opens, float or INT8")
    parser.add_argument("--validation_file", required=True, type=Path, help="questions, SQuAD JSON as published")
    parser.add_argument("--questions", type=int, default=300, help="how many, spread evenly over the file")
    parser.add_argument("--processes", type=int, default=5, help="how many are measured; one before them is not")
    parser.add_argument("--length_config", type=json.loads, help='as JSON: "[315, 251, ...]"')
    parser.add_argument("--output", type=Path, help="file for the numbers as JSON")
    return parser.parse_args()


def read_questions(path: Path, count: int) -> list[tuple[str, str]]:
    """(question, context), as many as asked for."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
        paragraphs = [paragraph for article in data for paragraph in article["paragraphs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: --validation_file {path} is no SQuAD JSON as published ({error!r}).")
    found = [(qa["question"], paragraph["context"]) for paragraph in paragraphs for qa in paragraph["qas"]]
    return found[:: max(1, len(found) // count)][:count]


def measure(args: argparse.Namespace, questions: list[tuple[str, str]]) -> dict[str, float]:
    """The numbers of one process."""
    command = [sys.executable, "-c", SERVER, args.model, json.dumps(args.length_config)]
    times = [time.perf_counter()]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        for question in questions:
            server.stdin.write(json.dumps(question) + "\n")
            server.stdin.flush()
            if not server.stdout.readline():
                sys.exit(f"error: --model {args.model} cannot be served: see the line above.")
            times.append(time.perf_counter())
        status = Path(f"/proc/{server.pid}/status").read_text()
        server.stdin.close()
    first, *latencies = [after - before for before, after in itertools.pairwise(times)]
    entries = dict(line.split(":", 1) for line in status.splitlines())
    numbers = {"first_answer_s": first, "answer_ms": statistics.median(latencies) * 1e3}
    return numbers | {name: int(entries[entry].split()[0]) / 1024 for entry, name in MEMORY.items()}


def main() -> None:
    args = read_arguments()
    args.model = str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model
    questions = read_questions(args.validation_file, args.questions)
    measure(args, questions[:2])  # what is compiled once, and the files that the system keeps in memory
    runs = [measure(args, questions) for _ in range(args.processes)]
    rows = {name: sorted(run[name] for run in runs) for name in runs[0]}
    print(f"{args.model}: {len(runs)} processes, {len(questions)} questions each, one at a time")
    for name, values in rows.items():
        print(f"{name:20} {statistics.median(values):8.2f}   ({values[0]:.2f} to {values[-1]:.2f})")
    if args.output:
        medians = {name: statistics.median(values) for name, values in rows.items()}
        facts = {"model": args.model, "questions": len(questions), "length_config": args.length_config}
        args.output.write_text(json.dumps(facts | {"median": medians, "processes": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
