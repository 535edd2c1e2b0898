"""Pictures of a run as PNG files: the frontier of a search, the loss of a training.  Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

# Okabe & Ito's palette, which stays distinct for every kind of colour vision; markers and dashes differ as well.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#9A9A9A"
LOSSES = {  # key of trainer_state.json's log_history: label, colour, line
    "loss_full": ("full model", BLUE, "-"),
    "loss_smallest": ("smallest sub-model", ORANGE, "--"),
    "loss_random": ("random sub-models", GREEN, "-."),
}


class PlotError(ValueError):
    """A picture that cannot be drawn."""


def _figure():
    """A new 8 x 5 inch figure and its axes, outside pyplot: no display, no global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(True, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["right"].set_visible(False)
    return figure, axes


def plot_pareto(
    path: str | Path,
    *,
    frontier: Sequence,
    candidates: Sequence,
    full,
    constant_ratio: Sequence = (),
    chosen=None,
    cost_label: str = "MACs",
    score_label: str = "F1",
    candidates_on: str = "",
) -> None:
    """Draw score against cost: every candidate, the frontier, the constant-ratio curve, the full and the chosen model.

    A point is anything with `cost`, `score` and `length_config`. The top axis is the cost as a fraction of `full`'s.
    `candidates_on` says what candidates and constant ratios were scored on, if not on what the frontier was.
    Raises PlotError without matplotlib.
    """
    figure, axes = _figure()
    scale, unit = _cost_unit(full.cost)
    curve = sorted(constant_ratio, key=lambda point: point.cost)
    axes.scatter(
        *_points(candidates, scale), s=14, color=GREY, alpha=0.5, linewidths=0, label=f"candidates{candidates_on}"
    )
    if curve:
        label = f"constant ratio{candidates_on}"
        axes.plot(*_points(curve, scale), "s--", color=ORANGE, markersize=4, linewidth=1.3, label=label)
    axes.plot(*_points(frontier, scale), drawstyle="steps-post", color=BLUE, linewidth=1.8)
    axes.plot(*_points(frontier, scale), "o", color=BLUE, markersize=5)
    axes.plot([], [], "o-", color=BLUE, markersize=5, linewidth=1.8, label="Pareto frontier")
    axes.plot(*_points([full], scale), "D", color="black", markersize=8, label=f"full length: {full.score:.2f}")
    if chosen is not None:
        share = f"{chosen.cost / full.cost:.3f} of full" if full.cost else ""
        label = f"chosen: {chosen.score:.2f} at {share}\n{chosen.length_config}"
        axes.plot(
            *_points([chosen], scale), "*", color=RED, markersize=17, markeredgecolor="white", zorder=5, label=label
        )
    axes.set_ylim(*_score_limits([*frontier, *curve, full, *([chosen] if chosen else [])], candidates))
    axes.set_xlabel(f"{cost_label} ({unit})" if unit else cost_label)
    axes.set_ylabel(score_label)
    if full.cost:
        top = axes.secondary_xaxis("top", functions=(_Times(scale / full.cost), _Times(full.cost / scale)))
        top.set_xlabel(f"fraction of the full model's {cost_label}")
    axes.legend(loc="lower right", fontsize=9, framealpha=0.95)
    figure.savefig(path, dpi=150)


class _Times:
    """Multiplication by `factor`."""

    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, values):
        return values * self.factor


def _cost_unit(cost: float) -> tuple[float, str]:
    """The power of ten that leaves a few digits, and how to write it."""
    for scale, unit in ((1e9, "billions"), (1e6, "millions")):
        if cost >= scale:
            return scale, unit
    return 1.0, ""


def _points(candidates: Sequence, scale: float) -> tuple[list[float], list[float]]:
    return [c.cost / scale for c in candidates], [c.score for c in candidates]


def _score_limits(shown: Sequence, candidates: Sequence) -> tuple[float, float]:
    """Show the frontier and the curve well: hopeless candidates far below them may fall off the picture."""
    low, high = min(c.score for c in shown), max(c.score for c in [*shown, *candidates])
    span = (high - low) or 1.0
    low = max(low - span / 2, min([low, *(c.score for c in candidates)]))
    return low - 0.06 * span, high + 0.08 * span


def plot_loss_curve(path: str | Path, log_history: Sequence[dict]) -> None:
    """Draw the training loss by optimiser step, and the parts of a LengthDrop loss where they were logged.

    `log_history` is that of trainer_state.json. Raises PlotError without matplotlib, or if no loss was logged.
    """
    records = [record for record in log_history if "loss" in record]
    if not records:
        raise PlotError("no training loss was logged: lower --logging_steps.")
    figure, axes = _figure()
    marker = "o" if len(records) < 3 else None  # a line needs two points
    for key, (label, color, line) in LOSSES.items():
        part = [record for record in records if key in record]
        if part:
            steps, losses = [record["step"] for record in part], [record[key] for record in part]
            axes.plot(steps, losses, line, color=color, marker=marker, linewidth=1.2, label=label)
    steps, losses = [record["step"] for record in records], [record["loss"] for record in records]
    axes.plot(steps, losses, color="black", marker=marker, linewidth=1.8, label="training loss")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.spines["top"].set_visible(False)
    axes.legend(fontsize=9, framealpha=0.95)
    figure.savefig(path, dpi=150)


ENGINE_MARKERS = "osD^vP*Xh"
ENGINE_COLORS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "black", "#F0E442", GREY)


def plot_engines(path: str | Path, rows: Sequence[dict], macs_per_second: float) -> None:
    """Draw milliseconds a window against the MACs ratio: a line an engine, and two through the origin.

    A row has `engine`, `macs`, `full_macs` and `ms_a_window`. The dashed line is what the fastest engine at full length
    would take if time went with MACs; the dotted one is the machine's floor, the MACs at `macs_per_second`. Raises
    PlotError without matplotlib, or without a row at full length.
    """
    full = [row for row in rows if row["macs"] == row["full_macs"]]
    if not full:
        raise PlotError("no engine was measured at full length.")
    figure, axes = _figure()
    for number, engine in enumerate(dict.fromkeys(row["engine"] for row in rows)):
        points = sorted(
            (row["macs"] / row["full_macs"], row["ms_a_window"]) for row in rows if row["engine"] == engine
        )
        color, marker = (choices[number % len(choices)] for choices in (ENGINE_COLORS, ENGINE_MARKERS))
        axes.plot(*zip(*points), f"{marker}-", color=color, markersize=6, linewidth=1.5, label=engine)
    fastest = min(full, key=lambda row: row["ms_a_window"])
    floor = fastest["full_macs"] / macs_per_second * 1e3
    label = f"in proportion to MACs, from {fastest['engine']}"
    axes.plot([0, 1], [0, fastest["ms_a_window"]], "--", color=GREY, linewidth=1.2, label=label)
    label = f"the machine's floor: INT8 products at {macs_per_second / 1e9:.0f} GMAC/s"
    axes.plot([0, 1], [0, floor], ":", color="black", linewidth=1.2, label=label)
    axes.set_xlabel("MACs, as a fraction of full length's")
    axes.set_ylabel("ms a window")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(bottom=0)
    axes.spines["top"].set_visible(False)
    axes.legend(fontsize=9, framealpha=0.95)
    figure.savefig(path, dpi=150)
