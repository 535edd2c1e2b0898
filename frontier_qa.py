"""What a search leaves: the rows of its frontier, the table, pareto.csv and the pictures, and the choice of one config."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from arguments import Arguments
from candidates import Candidate, SearchError, choose
from length_config import in_unit
from search_plots import plot_pareto, plot_progress

# ---- rows ----------------------------------------------------------------------------------------------------------


def paired_drop(full_scores: Sequence[float], scores: Sequence[float]) -> tuple[float, list[float] | None]:
    """How much lower `scores` are than `full_scores` of the same questions: mean, and its 95 % interval [low, high].

    The interval is the normal approximation, mean +- 1.96 sd / sqrt(n) of the differences question by question (sd with
    n - 1); None for a single question. Raises ValueError if they are not the same number of questions.
    """
    full_scores, scores = np.asarray(full_scores, float), np.asarray(scores, float)
    if full_scores.shape != scores.shape or scores.ndim != 1 or not scores.size:
        raise ValueError(f"scores of the same questions are needed, not of {full_scores.shape} and {scores.shape}.")
    differences = full_scores - scores
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, None
    margin = 1.96 * float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return mean, [mean - margin, mean + margin]


def frontier_row(
    candidate: Candidate,
    full: Candidate,
    *,
    scores: Sequence[float] | None = None,
    full_scores: Sequence[float] | None = None,
    slice_scores: Sequence[float] | None = None,
    slice_full_scores: Sequence[float] | None = None,
    latency_ms: float | None = None,
    macs: float | None = None,
    full_macs: float | None = None,
) -> dict:
    """A row of search_results.json: `candidate` beside the full model, with everything that a choice may go by.

    The scores are F1 (0-100) by question, paired: of candidate and full model on the validation questions, and on the
    slice of questions that the search scored on. Without them F1 and drop are those of the two candidates, and the
    interval, as whatever is not known, is None. MACs are the candidates' costs unless they are given.
    """
    record = candidate.record()
    macs, full_macs = record["cost"] if macs is None else macs, full.cost if full_macs is None else full_macs
    score, drop, interval = _score_and_drop(scores, full_scores)
    slice_score, slice_drop, slice_interval = _score_and_drop(slice_scores, slice_full_scores)
    score = candidate.score if score is None else score
    return {
        "length_config": record["length_config"],
        "macs": macs,
        "macs_ratio": macs / full_macs,
        "latency_ms": latency_ms,
        "score": score,
        "slice_score": slice_score,
        "f1_drop": full.score - score if drop is None else drop,
        "f1_drop_interval": interval,
        "slice_f1_drop": slice_drop,
        "slice_f1_drop_interval": slice_interval,
        "origin": record["origin"],
        "parents": record["parents"],
    }


def _score_and_drop(scores, full_scores) -> tuple[float | None, float | None, list[float] | None]:
    if scores is None:
        return None, None, None
    return math.fsum(scores) / len(scores), *(
        (None, None) if full_scores is None else paired_drop(full_scores, scores)
    )


def read_candidate(row: dict, cost: str = "macs") -> Candidate:
    """The candidate of a row; its cost is the row's "macs" or "latency_ms"."""
    return Candidate(tuple(row["length_config"]), row[cost], row["score"], row["origin"])


def read_rows(results: dict) -> tuple[list[dict], dict]:
    """The frontier and the full model of search_results.json; what older rows do not have is computed, or None."""
    full = read_candidate(results["full"])
    rows = [frontier_row(read_candidate(row), full) | row for row in (*results["frontier"], results["full"])]
    return rows[:-1], rows[-1]


# ---- table and files -----------------------------------------------------------------------------------------------

COLUMNS = {  # of the printed frontier: heading, how a value is written
    "length_config": ("length config", lambda lengths: str(tuple(lengths))),
    "macs": ("MACs", "{:#.4g}".format),
    "macs_ratio": ("ratio", "{:.3f}".format),
    "latency_ms": ("ms a window", "{:.2f}".format),
    "slice_score": ("F1 on the slice", "{:.2f}".format),
    "score": ("F1", "{:.2f}".format),
    "f1_drop": ("drop", "{:.2f}".format),
    "f1_drop_interval": ("95 % of the drop", lambda ends: f"{ends[0]:.2f} to {ends[1]:.2f}"),
}


def frontier_table(rows: Sequence[dict]) -> str:
    """The frontier as lines of text; a column of which nothing is known is left out, a single value is "-"."""
    columns = []
    for name, (heading, write) in COLUMNS.items():
        if any(row[name] is not None for row in rows):
            columns.append([heading, *("-" if row[name] is None else write(row[name]) for row in rows)])
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(cell.rjust(width) if number else cell.ljust(width) for number, (cell, width) in enumerate(cells))
        for cells in (zip(line, widths) for line in zip(*columns))
    ]
    return "\n".join(["frontier:", *lines])


def write_frontier_csv(path: str | Path, rows: Iterable[dict]) -> None:
    """Write a line a row: the table's columns, the drop's interval as two; empty where nothing is known."""
    numbers = {"macs_ratio": 6, "latency_ms": 4, "slice_score": 4, "score": 4, "f1_drop": 4}  # decimals
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        header = [name.replace("score", "f1") for name in numbers]
        writer.writerow(["length_config", "macs", *header, "f1_drop_low", "f1_drop_high"])
        for row in rows:
            rounded = [None if row[name] is None else round(row[name], digits) for name, digits in numbers.items()]
            ends = [round(end, 4) for end in row["f1_drop_interval"] or ()] or [None, None]
            writer.writerow([json.dumps(list(row["length_config"])), row["macs"], *rounded, *ends])


def write_pictures(
    folder: Path, results: dict, candidates: Sequence[Candidate], progress: Sequence[dict] = ()
) -> None:
    """pareto.csv, pareto.png and, where the search kept records of its progress, search_progress.png.

    `candidates` are all that were scored, the full model among them, with the cost that the search minimised.
    """
    rows, full = read_rows(results)
    write_frontier_csv(folder / "pareto.csv", rows)
    # A slice is easier or harder than all questions: what compares is the distance from the full model.
    shift = full["score"] - next(c.score for c in candidates if list(c.length_config) == list(full["length_config"]))
    shown = [replace(candidate, score=candidate.score + shift) for candidate in candidates]
    sampled = results["candidate_questions"]
    elsewhere = shift or sampled != results["frontier_questions"]
    plot_pareto(
        folder / "pareto.png",
        frontier=rows,
        candidates=shown,
        full=full,
        constant_ratio=[c for c in shown if c.origin in ("full", "initial")],
        chosen=results["chosen"],
        cost=cost_key("max_f1_drop", results.get("objective", "macs")),
        candidates_on=f" (on {sampled} questions, {shift:+.2f})" if elsewhere else "",
    )
    if progress:
        plot_progress(folder / "search_progress.png", progress)


# ---- choosing ------------------------------------------------------------------------------------------------------

UNITS = {"macs": "MACs", "latency_ms": "ms a window"}
CRITERIA = {  # flag: argument of `choose`
    "max_f1_drop": "max_score_drop",
    "target_macs": "target_cost",
    "target_macs_ratio": "target_cost_ratio",
    "target_latency_ms": "target_cost",
}


class Choice(NamedTuple):
    """The row of the frontier that was chosen, and why, in words."""

    row: dict
    reason: str


def budget(args: Arguments) -> tuple[str, float] | None:
    """The flag on the command line that says what to choose by, and its value; None if there is none."""
    adaptive = args.length_adaptive
    given = {
        "max_f1_drop": adaptive.max_f1_drop,
        "target_macs": adaptive.target_macs,
        "target_macs_ratio": adaptive.target_macs_ratio,
        "target_latency_ms": adaptive.target_latency_ms,
    }
    return next(((flag, value) for flag, value in given.items() if value is not None), None)


def cost_key(flag: str, objective: str) -> str:
    """What a choice by `flag` counts as cost, given the search's objective ("macs" or "latency")."""
    by_latency = flag == "target_latency_ms" or (flag == "max_f1_drop" and objective == "latency")
    return "latency_ms" if by_latency else "macs"


def choose_row(rows: Sequence[dict], full: dict, flag: str, value: float, objective: str = "macs") -> Choice:
    """The row that meets the budget; SearchError, with the nearest one, if none does, or if latency is not known."""
    key = cost_key(flag, objective)
    members = {read_candidate(row, key): row for row in rows if row[key] is not None}
    if full[key] is None or (rows and not members):
        raise SearchError(
            f"--{flag} chooses by latency, which this search did not measure: search again, in a single process."
        )
    reference = read_candidate(full, key)
    chosen = choose(list(members), reference, **{CRITERIA[flag]: value}, unit=UNITS[key])
    reason = f"--{flag} {value:g} chooses {described(members[chosen])}; {beaten(members, chosen, flag)}."
    if len(members) < len(rows):
        reason += f" ({len(rows) - len(members)} configs without a measured latency were left out.)"
    return Choice(members[chosen], reason)


def beaten(members: dict[Candidate, dict], chosen: Candidate, flag: str) -> str:
    """What the choice was made against, in words: the best of the cheaper ones, or the cheapest of the better ones."""
    if flag == "max_f1_drop":
        others, kind = [c for c in members if c.cost < chosen.cost], "cheaper"
        other = max(others, key=lambda c: (c.score, -c.cost), default=None)
    else:
        others, kind = [c for c in members if c.score > chosen.score], "better"
        other = min(others, key=lambda c: (c.cost, -c.score), default=None)
    return f"the next {kind} is {described(members[other])}" if other else f"nothing {kind} was found"


def described(row: dict) -> str:
    """Config, cost and score of a row in words."""
    latency = "" if row["latency_ms"] is None else f", {row['latency_ms']:.2f} ms a window"
    interval = row["f1_drop_interval"]
    ends = f" (95 %: {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    cost = f"{row['macs']:.4g} MACs ({row['macs_ratio']:.3f} of full){latency}"
    return f"{tuple(row['length_config'])}: {cost}, F1 {row['score']:.2f}, drop {row['f1_drop']:.2f}{ends}"


def choose_from(args: Arguments) -> tuple[tuple[float, ...], str]:
    """The length config of a finished search's frontier that meets the budget on the command line, and why it does."""
    path = Path(args.length_adaptive.length_config_from, "search_results.json")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        (frontier, full), objective = read_rows(results), results.get("objective", "macs")
        made_for, length, unit = results["max_seq_length"], args.data.max_seq_length, results.get("length_unit")
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise SearchError(f"no results of a finished search there ({error}).") from None
    if made_for != length:
        raise SearchError(
            f"its length configs were made for --max_seq_length {made_for}, not {length}; give that, or search again."
        )
    choice = choose_row(frontier, full, *budget(args), objective)
    return in_unit(unit, choice.row["length_config"], length), choice.reason
