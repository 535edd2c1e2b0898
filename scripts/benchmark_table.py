"""Measure the readers of a pipeline side by side in one process, and print and save one table.

    python scripts/benchmark_table.py --model output/dynamic --int8 output/quantized --validation_file dev.json \\
        --length_config "(315, 251, 242, 159, 142, 33)" --accuracy output/benchmark --output_dir output/benchmark

Contenders: BERT-base in float32 (random weights: for its speed only), the reader in float32, in bf16 and in INT8 from one
or more folders, with the float parts of INT8 in float32 and in bf16, each at full length and at the length config.  All
take turns on the same batches: of 1 and of 32 windows, the longest ones padded to the full length, and ones of median
length unpadded.  --accuracy names a folder with run_qa.py's evaluations float32_full, bfloat16_full, quantized_full (an
INT8 folder's name), quantized_bfloat16_full and the same with _config.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import quiet_libraries  # noqa: F401  (before transformers)

# isort: split
import torch
from transformers import AutoConfig, AutoTokenizer, BertConfig

from benchmark import Contender, benchmark_rows
from compiled_engine import CompiledModel
from data_qa import load_splits
from evaluate_qa import padded_batch
from features_qa import featurize
from int8_backends import open_int8
from length_config import count_macs, parse_length_config
from modeling_la_auto import MODEL_CLASSES
from native_ops import load_fused_operators
from results_qa import engine_cache, environment, write_json

HEADER = ("model", "backend", "dtype", "length config", "MACs", "MiB", "F1", "EM", "batch", "tokens", "ms a batch")
HEADER += ("p90", "p99", "samples/s", "speed-up")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the float reader")
    parser.add_argument("--int8", required=True, nargs="+", help="folders of INT8 readers, from --tune")
    parser.add_argument("--validation_file", required=True, help="questions whose windows are timed")
    parser.add_argument("--length_config", required=True, help='the config beside full length: "(315, 251, ...)"')
    parser.add_argument("--accuracy", type=Path, help="folder of evaluations whose F1 and EM go into the table")
    parser.add_argument("--max_seq_length", type=int, default=384)
    parser.add_argument("--doc_stride", type=int, default=128)
    parser.add_argument("--engine_cache_dir", help="folder of the compiled engines (default: ~/.cache/quala)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for benchmark_results.json and .md")
    return parser.parse_args()


def folder_size(folder: str) -> int:
    """Bytes of the files that a reader is made of: weights, configuration, tokenizer."""
    wanted = ("*.safetensors", "config.json", "int8_recipe.json", "tokenizer*.json", "vocab.*", "merges.txt")
    return sum(file.stat().st_size for pattern in wanted for file in Path(folder).glob(pattern))


def scores(args: argparse.Namespace, name: str, at: str) -> dict:
    """F1 and EM of one of the evaluations, None where it was not run."""
    path = (args.accuracy or Path()) / f"{name}_{at}" / "eval_results.json"
    found = json.loads(path.read_text(encoding="utf-8")) if args.accuracy and path.is_file() else {}
    return {metric: found.get(metric) for metric in ("eval_f1", "eval_exact_match")}


def int8_readers(args: argparse.Namespace, folder: str) -> list[tuple[torch.nn.Module, str]]:
    """The INT8 reader of a folder, also with its float parts in bf16 where the backend can; each with its name."""
    found = [(open_int8(folder, args.engine_cache_dir), Path(folder).name)]
    if isinstance(found[0][0], CompiledModel):
        half = open_int8(folder, args.engine_cache_dir, torch.bfloat16)
        found.append((half, f"{Path(folder).name}_bfloat16"))
    return found


def make_contenders(args: argparse.Namespace) -> list[Contender]:
    config, length = AutoConfig.from_pretrained(args.model), args.max_seq_length
    chosen = parse_length_config(args.length_config, config.num_hidden_layers, length)
    reader = MODEL_CLASSES[config.model_type].from_pretrained(args.model, dtype=torch.float32)
    load_fused_operators(engine_cache(args.engine_cache_dir))
    bert = MODEL_CLASSES["bert"](BertConfig(architectures=["BERT-base"]))
    bert_facts = {"model": "BERT-base, random", "eval_f1": None, "eval_exact_match": None}
    bert_facts |= {"size_bytes": 4 * bert.num_parameters()}
    found = [Contender(bert, (length,) * bert.config.num_hidden_layers, facts=bert_facts)]
    readers = [(reader, None, "float32", args.model), (reader, torch.bfloat16, "bfloat16", args.model)]
    readers += [(model, None, name, folder) for folder in args.int8 for model, name in int8_readers(args, folder)]
    for model, half, name, folder in readers:
        for at, lengths in (("full", (length,) * config.num_hidden_layers), ("config", chosen)):
            facts = {"model": "reader", "size_bytes": folder_size(folder)}
            found.append(Contender(model, lengths, half, facts | scores(args, name, at)))
    return found


def make_batches(args: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    """One window and 32: the longest, padded to the full length, and those in the middle of the set, as long as they are."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    examples = load_splits(data_files={"validation": args.validation_file})["validation"]
    lengths = {"max_seq_length": args.max_seq_length, "doc_stride": args.doc_stride}
    features, batches = featurize(examples, tokenizer, training=False, **lengths), []
    for size in (1, 32):
        middle = range((len(features) - size) // 2, (len(features) + size) // 2)
        batches.append(padded_batch(tokenizer, features.select(range(size)), args.max_seq_length))
        real = features.select(middle)
        batches.append(padded_batch(tokenizer, real, max(real["length"])))
    return batches


def measure(contenders: list[Contender], batch: dict[str, torch.Tensor]) -> list[dict]:
    """A row for each contender on `batch`, with the MACs on a window of its length."""
    rows = benchmark_rows(contenders, batch)
    for contender, row in zip(contenders, rows):
        row["macs"] = count_macs(contender.model.config, contender.length_config, row["sequence_length"])
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown; speed-up over BERT-base on the same batch."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    base = {(row["batch_size"], row["sequence_length"]): row for row in rows if row["model"] != "reader"}
    for row in rows:
        slowest = base[row["batch_size"], row["sequence_length"]]["latency_ms_median"]
        optional = ("-" if row[name] is None else f"{row[name]:.2f}" for name in ("eval_f1", "eval_exact_match"))
        cells = [row["model"], row["backend"], row["dtype"], describe(row), f"{row['macs']:.3g}"]
        cells += [f"{row['size_bytes'] / 2**20:.1f}", *optional, row["batch_size"], row["sequence_length"]]
        cells += [f"{row[f'latency_ms_{name}']:.1f}" for name in ("median", "p90", "p99")]
        cells += [f"{row['samples_per_second']:.1f}", f"{slowest / row['latency_ms_median']:.2f}x"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def describe(row: dict) -> str:
    return "full" if min(row["length_config"]) >= row["sequence_length"] else str(tuple(row["length_config"]))


def machine(made_on: dict) -> str:
    """The sentence above the table: what its numbers were made on."""
    return "{cpu} ({instruction_set}), {threads} threads, torch {torch}, commit {git_commit!s:.12}".format(**made_on)


def main() -> None:
    args = read_arguments()
    try:
        batches, contenders = make_batches(args), make_contenders(args)
        rows = [row for batch in batches for row in measure(contenders, batch)]
    except (OSError, ValueError) as error:  # RunError, DataError and LengthConfigError are of these
        sys.exit(f"error: {' '.join(str(error).split())}")
    made_on = environment()
    write_json(args.output_dir / "benchmark_results.json", {"environment": made_on, "rows": rows})
    (args.output_dir / "benchmark_results.md").write_text(f"{machine(made_on)}\n\n{table(rows)}\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
