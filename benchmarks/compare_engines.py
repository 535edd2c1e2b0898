"""Time the INT8 engines of a reader beside their peers, in turn, in one process, on the same batches.

    python benchmarks/compare_engines.py --model output/dynamic --int8 output/quantized output/quantized_native \\
        --peers output/peers --validation_file dev-v1.1.json --length_config "(315, 251, 242, 159, 142, 33)" \\
        --max_questions 500 --output benchmarks/results/engines.json

Latency: one window and 32, padded to --max_seq_length.  Throughput: the questions of the whole set (or --max_questions drawn
by --seed) at their real lengths, windows sorted by length, in batches of --batch_sizes padded to their longest, without
post-processing.  Both at full length and at the length config.  Every engine's logits are compared with the float32
reader's at the same config, unless --without_float32 leaves that out (it takes most of the time), and its answers are
scored.  Leaves the numbers as JSON, a table (.md) and a picture (.png).

It runs in any environment that has the engines asked for: those of --peers need benchmarks/requirements-peers.txt, an INT8
folder for IPEX needs requirements-ipex.txt.  --beside names results of another environment for the same picture.
"""

import argparse
import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import quiet_libraries  # noqa: F401  (before transformers)

# isort: split
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from benchmark import Contender
from benchmarks.measures import int8_peak, measure_latency, measure_throughput
from benchmarks.peers import PEERS, read_peers
from data_qa import load_splits
from errors import RunError
from features_qa import featurize
from int8_backends import open_int8
from length_config import count_macs, parse_length_config, parse_length_ratios
from loading import QuestionSet, weights_checksum
from modeling_la_auto import MODEL_CLASSES
from native_engine import NativeModel
from native_ops import load_fused_operators
from plots import plot_engines
from results_qa import engine_cache, environment, write_json
from utils_qa import AnswerSettings

PACKAGES = ("openvino", "nncf", "onnxruntime", "onnx", "intel_extension_for_pytorch")
MEASURES = {"latency": measure_latency, "throughput": measure_throughput}
COLUMNS = {  # of the tables: key of a row, how it is written
    "latency": {
        "ms_a_window": ("ms a window", "{:.2f}"),
        "ms_a_window_p90": ("p90", "{:.2f}"),
    },
    "throughput": {
        "questions_per_second": ("questions/s", "{:.1f}"),
        "seconds_median": ("seconds", "{:.2f}"),
        "seconds_p90": ("p90", "{:.2f}"),
        "f1": ("F1", "{:.2f}"),
    },
}
FIRST = {"batch_size": ("batch", "{}")}
LAST = {"same_spans": ("same spans", "{:.3f}"), "logit_difference_mean": ("mean difference", "{:.3f}")}


def read_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the float reader")
    parser.add_argument(
        "--int8", nargs="*", default=[], help="folders of INT8 readers, from --tune, each for a backend"
    )
    parser.add_argument("--bf16", action="store_true", help="the float reader in bf16 too")
    parser.add_argument(
        "--without_float32", action="store_true", help="leave out the float32 reader, and the comparison with it"
    )
    parser.add_argument("--peers", help="folder from benchmarks/make_peers.py")
    parser.add_argument("--validation_file", required=True, help="questions that are timed")
    parser.add_argument("--length_config", required=True, help='the config beside full length: "(315, 251, ...)"')
    parser.add_argument("--length_ratios", help="and one in fractions, for the engines that know them")
    parser.add_argument(
        "--output", type=Path, required=True, help="file of the results, .json; .md and .png beside it"
    )
    parser.add_argument("--modes", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument(
        "--max_questions", type=int, help="throughput on so many questions, drawn by --seed (default: all)"
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32], help="windows a batch of the throughput")
    parser.add_argument("--repeats", type=int, default=10, help="timed turns a batch of the latency")
    parser.add_argument("--passes", type=int, default=3, help="timed turns a batch of the throughput")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="other results for the picture")
    parser.add_argument("--max_seq_length", type=int, default=384)
    parser.add_argument("--doc_stride", type=int, default=128)
    parser.add_argument("--engine_cache_dir", help="folder of the compiled engines (default: ~/.cache/quala)")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    numbers = {name: getattr(args, name) for name in ("max_questions", "repeats", "passes", "threads")}
    for name, number in (numbers | {"batch_sizes": min(args.batch_sizes)}).items():
        if number is not None and number < 1:
            parser.error(f"--{name} must be at least 1.")
    if args.output.suffix != ".json":
        parser.error(f"--output {args.output} must end in .json.")
    if args.without_float32 and not (args.int8 or args.bf16 or args.peers):
        parser.error("--without_float32 leaves nothing to measure: name --int8, --bf16 or --peers.")
    return args


# ---- engines and questions -----------------------------------------------------------------------------------------


def check_source(what: str, made_from: str | None, args: argparse.Namespace) -> None:
    if made_from != weights_checksum(args.model):
        raise RunError(f"{what} was not made from the weights that --model {args.model} holds: make it again.")


def open_models(args: argparse.Namespace, model_type: str) -> dict[str, object]:
    """The models by the engines' names, the float32 reader first if it is wanted."""
    reader = MODEL_CLASSES[model_type].from_pretrained(args.model, dtype=torch.float32).eval()
    models = {} if args.without_float32 else {"float32 reader": reader}
    if args.bf16:
        load_fused_operators(engine_cache(args.engine_cache_dir))
        models["bf16 reader"] = reader
    for folder in args.int8:
        model = open_int8(folder, args.engine_cache_dir)
        check_source(f"--int8 {folder}", model.recipe.get("source", {}).get("sha256"), args)
        models[model.backend] = model
    if args.peers:
        made = read_peers(args.peers)
        check_source(f"--peers {args.peers}", made["source"], args)
        for kind in (kind for engine in made["engines"] for kind in PEERS[engine]):
            models[kind.backend] = kind(args.peers, args.threads)
    return models


def make_contenders(args: argparse.Namespace) -> list[Contender]:
    """Each engine at full length and at the length config, and at --length_ratios if it knows fractions."""
    config, length = AutoConfig.from_pretrained(args.model), args.max_seq_length
    full = (length,) * config.num_hidden_layers
    asked = {"full": full, "config": parse_length_config(args.length_config, config.num_hidden_layers, length)}
    if args.length_ratios:
        asked["ratios"] = parse_length_ratios(args.length_ratios, config.num_hidden_layers)
    contenders = []
    for name, model in open_models(args, config.model_type).items():
        for at, lengths in asked.items():
            if at == "ratios" and not isinstance(model, PreTrainedModel | NativeModel):
                continue
            macs = {"macs": count_macs(config, lengths, length), "full_macs": count_macs(config, None, length)}
            autocast = torch.bfloat16 if name == "bf16 reader" else None
            contenders.append(Contender(model, lengths, autocast, {"engine": name, "at": at} | macs))
    return contenders


def load_questions(args: argparse.Namespace, tokenizer) -> QuestionSet:
    """All questions, their windows sorted by length, longest first."""
    examples = load_splits(data_files={"validation": args.validation_file})["validation"]
    lengths = {"max_seq_length": args.max_seq_length, "doc_stride": args.doc_stride}
    return QuestionSet(examples, featurize(examples, tokenizer, training=False, **lengths), AnswerSettings())


# ---- results -------------------------------------------------------------------------------------------------------


def machine() -> dict:
    """The environment, with the versions of the peers that it has and how busy the machine is."""
    found = environment()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"load_average": os.getloadavg()[0]}


def settings(args: argparse.Namespace) -> dict:
    """What decides on the numbers; of files and folders their names, not where they lie."""
    found = {name: value for name, value in vars(args).items() if name not in ("beside", "engine_cache_dir", "output")}
    names = {name: found[name] and Path(found[name]).name for name in ("model", "peers", "validation_file")}
    return found | names | {"int8": [Path(folder).name for folder in args.int8]}


def table(mode: str, rows: list[dict]) -> str:
    """The rows of a mode as Markdown."""
    columns = FIRST | COLUMNS[mode] | LAST
    lines = ["| engine | config | " + " | ".join(title for title, _ in columns.values()) + " |"]
    lines.append("|" + "---|" * (len(columns) + 2))
    for row in rows:
        cells = [text.format(row[key]) if key in row else "-" for key, (_, text) in columns.items()]
        at = "full" if row["at"] == "full" else str(tuple(row["length_config"]))
        lines.append("| " + " | ".join([row["engine"], at, *cells]) + " |")
    return "\n".join(lines)


def report(args: argparse.Namespace, results: dict) -> str:
    """The tables, and what they were made on."""
    facts = "{cpu} ({instruction_set}), {threads} threads, torch {torch}, commit {git_commit!s:.12}"
    peak = f"INT8 products at up to {results['int8_macs_per_second'] / 1e9:.0f} GMAC/s"
    tables = [table(mode, results[mode]) for mode in args.modes]
    return "\n\n".join([f"{facts.format(**results['environment'])}; {peak}", *tables]) + "\n"


def draw(args: argparse.Namespace, results: dict) -> None:
    """The picture of these latencies and those of --beside, in the larger batches, where there are any."""
    drawn = {}
    for result in (results, *(json.loads(path.read_text(encoding="utf-8")) for path in args.beside)):
        rows = [row for row in result.get("latency", ()) if row["batch_size"] > 1]
        names = {row["engine"] for row in rows} - drawn.keys()  # an engine of several results is drawn once
        drawn |= {name: [row for row in rows if row["engine"] == name] for name in names}
    if drawn:
        rows = [row for engine in sorted(drawn) for row in drawn[engine]]
        plot_engines(args.output.with_suffix(".png"), rows, results["int8_macs_per_second"])


def compare(args: argparse.Namespace) -> None:
    """Measure, and leave the results; after each mode, so that an interrupted run keeps what it has."""
    torch.set_num_threads(args.threads)
    tokenizer, contenders = AutoTokenizer.from_pretrained(args.model), make_contenders(args)
    questions = load_questions(args, tokenizer)
    results = {"environment": machine(), "settings": settings(args), "int8_macs_per_second": int8_peak()}
    for mode in args.modes:
        results[mode] = MEASURES[mode](args, contenders, tokenizer, questions)
        results["load_average_after"] = os.getloadavg()[0]
        write_json(args.output, results)
    text = report(args, results)
    args.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    draw(args, results)


def main() -> None:
    args = read_arguments()
    try:
        compare(args)
    except (OSError, ValueError) as error:  # RunError, DataError, LengthConfigError and PlotError are of these
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
