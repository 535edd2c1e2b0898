"""Pictures as PNG files: the loss of a training, the engines beside each other.  Needs matplotlib."""

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


def new_figure(width: float = 8, panels: int = 1):
    """A new figure of `width` x 5 inches and the axes of its panels, outside pyplot: no display, no global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(width, 5), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    for axes in all_axes:
        axes.grid(True, color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def plot_loss_curve(path: str | Path, log_history: Sequence[dict]) -> None:
    """Draw the training loss by optimiser step, and the parts of a LengthDrop loss where they were logged.

    `log_history` is that of trainer_state.json. Raises PlotError without matplotlib, or if no loss was logged.
    """
    records = [record for record in log_history if "loss" in record]
    if not records:
        raise PlotError("no training loss was logged: lower --logging_steps.")
    figure, (axes,) = new_figure()
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
    figure, (axes,) = new_figure()
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
    axes.legend(fontsize=9, framealpha=0.95)
    figure.savefig(path, dpi=150)
