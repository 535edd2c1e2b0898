"""Pictures of a search as PNG files: its frontier, beside what others published, and its progress.  Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from plots import BLUE, GREEN, GREY, ORANGE, RED, PlotError, new_figure

PINK = "#CC79A7"  # of the same palette
DROPS_SHOWN = 5.0  # F1 points; what loses more is no alternative, and would squeeze the others
BARS = {"elinewidth": 1, "capsize": 2.5, "capthick": 1}
CHOSEN = {
    "color": RED,
    "markersize": 17,
    "markerfacecolor": "none",
    "markeredgewidth": 1.8,
    "zorder": 5,
}  # shows its bar

# label, (GMACs, GMACs at full length), (F1, F1 at full length), colour, marker
PUBLISHED = (
    ("LA-MiniLM float32 (269, 253, 252, 202, 104, 34)", (2.49, 4.76), (87.76, 89.28), GREEN, "^"),
    ("QuaLA-MiniLM INT8 (315, 251, 242, 159, 142, 33)", (2.55, 4.76), (87.68, 88.85), PINK, "v"),
)


def plot_pareto(
    path: str | Path,
    *,
    frontier: Sequence[dict],
    candidates: Sequence,
    full: dict,
    constant_ratio: Sequence = (),
    chosen: dict | None = None,
    cost: str = "macs",
    candidates_on: str = "",
) -> None:
    """Draw F1 against cost, every candidate, and, in a second panel, the F1 drop against the MACs ratio.

    `frontier`, `full` and `chosen` are rows of search_results.json, whose "macs" or "latency_ms" is the `cost`; a
    candidate has that as `cost`, and a `score`. Bars are the rows' 95 % intervals. `candidates_on` says what candidates
    and constant ratios were scored on, if not on what the frontier was. Raises PlotError without matplotlib.
    """
    figure, (left, right) = new_figure(13, panels=2)
    frontier = [row for row in frontier if row[cost] is not None]
    draw_frontier(left, frontier, candidates, full, constant_ratio, chosen, cost, candidates_on)
    draw_drops(right, frontier, chosen)
    figure.savefig(path, dpi=150)


def draw_frontier(axes, frontier, candidates, full, constant_ratio, chosen, cost: str, candidates_on: str) -> None:
    """F1 against cost; the top axis is the cost as a fraction of the full model's."""
    scale, label = _axis(cost, full[cost])
    curve = sorted(constant_ratio, key=lambda point: point.cost)
    points = [c.cost / scale for c in candidates], [c.score for c in candidates]
    axes.scatter(*points, s=14, color=GREY, alpha=0.5, linewidths=0, label=f"candidates{candidates_on}")
    if curve:
        points = [c.cost / scale for c in curve], [c.score for c in curve]
        label_of_curve = f"constant ratio{candidates_on}"
        axes.plot(*points, "s--", color=ORANGE, markersize=4, linewidth=1.3, label=label_of_curve)
    costs, scores = [row[cost] / scale for row in frontier], [row["score"] for row in frontier]
    axes.plot(costs, scores, drawstyle="steps-post", color=BLUE, linewidth=1.8)
    bars = _bars(frontier)
    axes.errorbar(
        costs, scores, bars, fmt="o", color=BLUE, markersize=5, label=f"Pareto frontier{_of_bars(bars)}", **BARS
    )
    axes.plot(
        [full[cost] / scale],
        [full["score"]],
        "D",
        color="black",
        markersize=8,
        label=f"full length: {full['score']:.2f}",
    )
    if chosen is not None:
        share, lengths = f"{chosen['macs_ratio']:.3f} of the MACs", tuple(chosen["length_config"])
        label_of_chosen = f"chosen: {chosen['score']:.2f} at {share}\n{lengths}"
        axes.plot([chosen[cost] / scale], [chosen["score"]], "*", label=label_of_chosen, **CHOSEN)
    shown = [row["score"] for row in (*frontier, full, *([chosen] if chosen else []))] + [c.score for c in curve]
    axes.set_ylim(*_score_limits(shown, [c.score for c in candidates]))
    axes.set_xlabel(label)
    axes.set_ylabel("F1")
    if full[cost]:
        top = axes.secondary_xaxis("top", functions=(_Times(scale / full[cost]), _Times(full[cost] / scale)))
        top.set_xlabel(f"fraction of the full model's {'MACs' if cost == 'macs' else 'latency'}")
    axes.legend(loc="lower right", fontsize=8.5, framealpha=0.95)


def draw_drops(axes, frontier: Sequence[dict], chosen: dict | None) -> None:
    """F1 points below full length against the fraction of its MACs, beside the published points, each below its own.

    Published: the results of QuaLA-MiniLM, arXiv:2210.17114 (SQuAD v1.1, 384 tokens). To be drawn, a result needs MACs
    and F1 of the same weights at full length too.
    """
    near = sorted((row for row in frontier if row["f1_drop"] <= DROPS_SHOWN), key=lambda row: row["macs_ratio"])
    hidden = len(frontier) - len(near)
    ratios, drops, bars = [row["macs_ratio"] for row in near], [row["f1_drop"] for row in near], _bars(near)
    label = f"this search's frontier{_of_bars(bars)}" + (f"\n({hidden} that lose more not shown)" if hidden else "")
    bars = bars and bars[::-1]  # a lower F1 is a larger drop
    axes.errorbar(ratios, drops, bars, fmt="o-", color=BLUE, markersize=5, linewidth=1.3, label=label, **BARS)
    for name, macs, f1, color, marker in PUBLISHED:
        axes.plot([macs[0] / macs[1]], [f1[1] - f1[0]], marker, color=color, markersize=9, label=f"published: {name}")
    axes.plot([1], [0], "D", color="black", markersize=8, label="full length")
    if chosen is not None and chosen["f1_drop"] <= DROPS_SHOWN:
        axes.plot([chosen["macs_ratio"]], [chosen["f1_drop"]], "*", label="chosen", **CHOSEN)
    axes.invert_yaxis()
    axes.set_xlabel("MACs, as a fraction of full length's")
    axes.set_ylabel("F1 points below full length")
    axes.legend(loc="lower right", fontsize=8.5, framealpha=0.95)


def _axis(cost: str, full_cost: float) -> tuple[float, str]:
    """What to divide a cost by, for a few digits, and how to write that on its axis."""
    if cost != "macs":
        return 1.0, "latency (ms a window)"
    for scale, unit in ((1e9, "billions"), (1e6, "millions")):
        if full_cost >= scale:
            return scale, f"MACs ({unit})"
    return 1.0, "MACs"


def _bars(rows: Sequence[dict]) -> tuple[list[float], list[float]] | None:
    """How far F1's 95 % interval reaches below and above each row's point; None if no row has one."""
    if not any(row["f1_drop_interval"] for row in rows):
        return None
    ends = [(row["f1_drop"], *(row["f1_drop_interval"] or [row["f1_drop"]] * 2)) for row in rows]
    return [high - drop for drop, low, high in ends], [drop - low for drop, low, high in ends]


def _of_bars(bars: tuple | None) -> str:
    return "" if bars is None else " (bars: 95 % of the difference to full)"


class _Times:
    """Multiplication by `factor`."""

    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, values):
        return values * self.factor


def _score_limits(shown: Sequence[float], candidates: Sequence[float]) -> tuple[float, float]:
    """Show the frontier and the curve well: hopeless candidates far below them may fall off the picture."""
    low, high = min(shown), max([*shown, *candidates])
    span = (high - low) or 1.0
    low = max(low - span / 2, min([low, *candidates]))
    return low - 0.06 * span, high + 0.08 * span


def plot_progress(path: str | Path, records: Sequence[dict]) -> None:
    """Draw the frontier's hypervolume against the questions evaluated and, where known, against wall-clock minutes.

    A record has `questions`, `hypervolume` and `candidates` (scored until then), and `seconds` or None. Raises
    PlotError without matplotlib, or without a record.
    """
    if not records:
        raise PlotError("there are no records of the search's progress.")
    timed = all(record.get("seconds") is not None for record in records)
    figure, all_axes = new_figure(13 if timed else 8, panels=2 if timed else 1)
    volumes = [record["hypervolume"] for record in records]
    label = f"{records[-1]['candidates']:,} length configs scored"
    all_axes[0].plot([record["questions"] for record in records], volumes, "o-", color=BLUE, markersize=4, label=label)
    all_axes[0].set_xlabel("questions evaluated")
    all_axes[0].xaxis.set_major_formatter("{x:,.0f}")
    if timed:
        minutes = [record["seconds"] / 60 for record in records]
        all_axes[1].plot(minutes, volumes, "s-", color=ORANGE, markersize=4, label=label)
        all_axes[1].set_xlabel("minutes")
    for axes in all_axes:
        axes.set_ylabel("hypervolume of the frontier (F1, over fractions of the full cost)")
        axes.legend(loc="lower right", fontsize=9, framealpha=0.95)
    figure.savefig(path, dpi=150)


def plot_frontiers(path: str | Path, frontiers: dict[str, Sequence[dict]], full: dict) -> None:
    """Draw the F1 drop against latency, a line a search, in milliseconds a window; what loses more than 5 points is left out.

    The rows and `full` are those of search_results.json, with latencies that may be compared. Raises PlotError without
    matplotlib.
    """
    figure, (axes,) = new_figure()
    for (name, rows), color, marker in zip(frontiers.items(), (BLUE, ORANGE, GREEN, PINK, RED), "os^vP"):
        near = sorted((r for r in rows if r["f1_drop"] <= DROPS_SHOWN), key=lambda row: row["latency_ms"])
        bars = _bars(near)
        points = [row["latency_ms"] for row in near], [row["f1_drop"] for row in near]
        style = {"color": color, "marker": marker, "markersize": 5, "linewidth": 1.3}
        axes.errorbar(*points, bars and bars[::-1], label=f"{name}{_of_bars(bars)}", **style, **BARS)
    axes.plot([full["latency_ms"]], [0], "D", color="black", markersize=8, label="full length")
    axes.invert_yaxis()
    axes.set_xlabel("latency (ms a window)")
    axes.set_ylabel("F1 points below full length")
    axes.legend(loc="lower right", fontsize=9, framealpha=0.95)
    figure.savefig(path, dpi=150)
