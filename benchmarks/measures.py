"""What compare_engines.py measures: latency and throughput of contenders in turn, and how far their answers agree."""

import argparse
from functools import partial

import numpy as np
import torch

import benchmark
from benchmark import Contender, benchmark_rows
from evaluate_qa import padded_batch
from features_qa import make_collator
from loading import QuestionSet

PAUSE = 0.02  # seconds before a timed call, in which the threads of another engine's library come to rest


def group(windows: int, size: int) -> list[range]:
    """The numbers of so many windows, in order, in groups of `size`; the last may be smaller."""
    return [range(start, min(start + size, windows)) for start in range(0, windows, size)]


def run(contender: Contender, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """Start and end logits (2, B, S) of one pass, -100 at padding."""
    outputs = contender.outputs(batch)
    logits = torch.stack([outputs.start_logits, outputs.end_logits]).float()
    return logits.masked_fill(~batch["attention_mask"].bool(), -100).numpy()


def agreement(logits: list[np.ndarray], reference: list[np.ndarray]) -> dict[str, float]:
    """How far logits (2, B, S) of several batches are from the reference, and the share of windows with its span."""
    differences = [np.abs(a - b)[b > -100] for a, b in zip(logits, reference)]
    same = [(a.argmax(2) == b.argmax(2)).all(0) for a, b in zip(logits, reference)]
    return {
        "logit_difference_max": float(max(part.max() for part in differences)),
        "logit_difference_mean": float(np.concatenate(differences).mean()),
        "same_spans": float(np.concatenate(same).mean()),
    }


def compared(args: argparse.Namespace, contenders: list[Contender], logits: dict[int, list[np.ndarray]]) -> list[dict]:
    """The agreement of each contender with the float32 reader at the same config, if the first contenders are that."""
    if args.without_float32:
        return [{} for _ in contenders]
    reference = {contender.facts["at"]: logits[index] for index, contender in reversed([*enumerate(contenders)])}
    return [agreement(logits[index], reference[contender.facts["at"]]) for index, contender in enumerate(contenders)]


def measure_latency(
    args: argparse.Namespace, contenders: list[Contender], tokenizer, questions: QuestionSet
) -> list[dict]:
    """A row a contender and batch of the longest windows, all padded to the full length."""
    rows = []
    for size in sorted({1, min(32, len(questions.features))}):
        batch = padded_batch(tokenizer, questions.features.select(range(size)), args.max_seq_length)
        logits = {index: [run(contender, batch)] for index, contender in enumerate(contenders)}
        timed = benchmark_rows(contenders, batch, repeats=args.repeats, pause=PAUSE)
        for row, facts in zip(timed, compared(args, contenders, logits)):
            each = {"ms_a_window": row["latency_ms_median"] / size, "ms_a_window_p90": row["latency_ms_p90"] / size}
            rows.append(row | each | facts)
    return rows


def measure_throughput(args: argparse.Namespace, contenders: list[Contender], tokenizer, questions: QuestionSet):
    """A row a contender and --batch_sizes: questions a second at real lengths, agreement and scores.

    The time of the set is the sum of its batches' medians; the pass that compares the logits is each batch's warm-up.
    """
    contenders = [contender for contender in contenders if not getattr(contender.model, "static", False)]
    if args.max_questions:
        questions = questions.sample(args.max_questions, args.seed)
    rows, asked = [], len(questions.examples)
    for size in args.batch_sizes:
        seconds, logits = time_windows(args, contenders, tokenizer, questions.features, size)
        agreements = compared(args, contenders, logits)
        for index, contender in enumerate(contenders):
            speed = {"questions": asked, "windows": len(questions.features), "batch_size": size, "passes": args.passes}
            speed |= {"questions_per_second": asked / seconds[index][0]}
            speed |= {"seconds_median": seconds[index][0], "seconds_p90": seconds[index][1]}
            answers = questions.extractor(joined(logits[index], args.max_seq_length), nbest=False)
            rows.append(contender.row() | speed | agreements[index] | questions.score(answers))
    return rows


def time_windows(args: argparse.Namespace, contenders: list[Contender], tokenizer, features, size: int):
    """Seconds (contenders, 2), median and 90th percentile, for all windows in batches, and the logits by contender."""
    collate = make_collator(tokenizer, False, args.max_seq_length)
    windows = features.select_columns(list(tokenizer.model_input_names))
    logits, seconds = {index: [] for index in range(len(contenders))}, np.zeros((len(contenders), 2))
    for numbers in group(len(windows), size):
        batch = dict(collate(windows.select(numbers).to_list()))
        for index, contender in enumerate(contenders):
            logits[index].append(run(contender, batch))
        timed = benchmark_rows(contenders, batch, warm_up=0, repeats=args.passes, pause=PAUSE)
        seconds += [[row[f"latency_ms_{share}"] / 1e3 for share in ("median", "p90")] for row in timed]
    return seconds, logits


def joined(logits: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Batches of logits (2, B, S) as start and end logits (N, `length`)."""
    padded = [np.pad(part, ((0, 0), (0, 0), (0, length - part.shape[2])), constant_values=-100) for part in logits]
    start, end = np.concatenate(padded, axis=1)
    return start, end


def int8_peak(rows: int = 4096, sizes: tuple[int, ...] = (512, 1024, 2048)) -> float:
    """Multiply-accumulates a second of oneDNN's fastest INT8 product of square weights: what the machine can do."""
    calls, macs = {}, {size: rows * size * size for size in sizes}
    for size in sizes:
        weight = torch.ops.onednn.qlinear_prepack(torch.randint(-127, 128, (size, size), dtype=torch.int8), None)
        values = torch.randint(0, 256, (rows, size), dtype=torch.uint8)
        scales = torch.ones(size), torch.zeros(size, dtype=torch.int32)
        calls[size] = partial(int8_product, values, weight, *scales)
    timings = benchmark.measure_latency(calls)
    return max(macs[size] / timings[size]["latency_ms_median"] * 1e3 for size in sizes)


def int8_product(values, weight, scales, zero_points) -> torch.Tensor:
    ranges = 1.0, 128, weight, scales, zero_points, None, 1.0, 0
    return torch.ops.onednn.qlinear_pointwise(values, *ranges, torch.float32, "none", [], "")
