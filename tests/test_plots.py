"""The pictures: what is drawn, where it lies, and that nothing global is touched."""

import random
import subprocess
import sys

import pytest

import plots
from candidates import Candidate, pareto_frontier
from plots import PlotError, plot_loss_curve, plot_pareto

matplotlib = pytest.importorskip("matplotlib")

FULL = Candidate((384,) * 6, 4758552960, 89.3, "full")
CHOSEN = Candidate((315, 251, 242, 159, 142, 33), 2546934528, 88.34, "mutation")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were made, to look into."""
    figures, make = [], plots._figure

    def remember():
        figures.append(make())
        return figures[-1]

    monkeypatch.setattr(plots, "_figure", remember)
    return figures


def some_candidates():
    rng = random.Random(0)
    points = [Candidate((i,), rng.uniform(2e9, 4.7e9), rng.uniform(80, 89), "mutation") for i in range(2, 60)]
    return [FULL, CHOSEN, *points]


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_pareto_picture_is_a_png_of_8_by_5_inches_at_150_dpi(tmp_path):
    candidates = some_candidates()
    frontier = pareto_frontier(candidates)
    plot_pareto(
        tmp_path / "pareto.png",
        frontier=frontier,
        candidates=candidates,
        full=FULL,
        constant_ratio=candidates[:5],
        chosen=CHOSEN,
    )
    assert png_size(tmp_path / "pareto.png") == (1200, 750)


def test_pareto_picture_shows_every_part_at_its_place(tmp_path, drawn):
    candidates = some_candidates()
    frontier = pareto_frontier(candidates)
    curve = [candidates[9], candidates[8], FULL]
    plot_pareto(
        tmp_path / "p.png", frontier=frontier, candidates=candidates, full=FULL, constant_ratio=curve, chosen=CHOSEN
    )
    [(_, axes)] = drawn
    assert len(axes.collections[0].get_offsets()) == len(candidates)
    drawn_points = [list(zip(line.get_xdata(), line.get_ydata())) for line in axes.lines]
    assert [(c.cost / 1e9, c.score) for c in frontier] in drawn_points
    assert sorted((c.cost / 1e9, c.score) for c in curve) in drawn_points
    assert [(4.75855296, 89.3)] in drawn_points and [(2.546934528, 88.34)] in drawn_points
    assert axes.get_xlabel() == "MACs (billions)" and axes.get_ylabel() == "F1"
    legend = " ".join(text.get_text() for text in axes.get_legend().get_texts())
    assert all(word in legend for word in ("candidates", "constant ratio", "frontier", "full", "0.535", "(315, 251"))


def test_top_axis_is_the_fraction_of_the_full_cost(tmp_path, drawn):
    plot_pareto(tmp_path / "p.png", frontier=[CHOSEN, FULL], candidates=[CHOSEN, FULL], full=FULL)
    [(_, axes)] = drawn
    [top] = axes.child_axes
    to_fraction, to_cost = top._functions
    assert to_fraction(4.75855296) == pytest.approx(1) and to_cost(0.5) == pytest.approx(4.75855296 / 2)


def test_far_worse_candidates_do_not_squeeze_the_frontier(tmp_path, drawn):
    hopeless = Candidate((2,) * 6, 1e9, 3.0, "mutation")
    plot_pareto(tmp_path / "p.png", frontier=[CHOSEN, FULL], candidates=[hopeless, CHOSEN, FULL], full=FULL)
    [(_, axes)] = drawn
    low, high = axes.get_ylim()
    assert high > 89.3 and low < 88.34 and high - low < 3


def test_a_single_candidate_and_small_costs_can_be_drawn(tmp_path, drawn):
    only = Candidate((4, 4), 0.0, 0.0, "full")
    plot_pareto(tmp_path / "p.png", frontier=[only], candidates=[only], full=only, cost_label="latency (ms)")
    assert drawn[0][1].get_xlabel() == "latency (ms)"


def test_loss_curve_draws_the_loss_and_the_parts_that_were_logged(tmp_path, drawn):
    history = [{"step": s, "loss": 3 / s, "loss_full": 2 / s, "loss_random": 1 / s} for s in (1, 2, 3)]
    history += [{"step": 3, "train_runtime": 1.0, "train_loss": 2.0}, {"step": 3, "eval_f1": 80.0}]
    plot_loss_curve(tmp_path / "loss.png", history)
    lines = {line.get_label(): list(zip(line.get_xdata(), line.get_ydata())) for line in drawn[0][1].lines}
    assert lines == {
        "training loss": [(1, 3.0), (2, 1.5), (3, 1.0)],
        "full model": [(1, 2.0), (2, 1.0), (3, 2 / 3)],
        "random sub-models": [(1, 1.0), (2, 0.5), (3, 1 / 3)],
    }
    assert png_size(tmp_path / "loss.png") == (1200, 750)


def test_a_history_without_loss_is_refused(tmp_path):
    with pytest.raises(PlotError, match="logging_steps"):
        plot_loss_curve(tmp_path / "loss.png", [{"step": 1, "eval_f1": 2.0}])


def test_missing_matplotlib_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotError, match="pip install matplotlib") as error:
        plot_loss_curve(tmp_path / "loss.png", [{"step": 1, "loss": 1.0}])
    assert "\n" not in str(error.value) and isinstance(error.value, ValueError)


def test_importing_plots_loads_no_matplotlib_and_drawing_no_pyplot(tmp_path):
    code = (
        "import sys, plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plots.plot_loss_curve({str(tmp_path / 'loss.png')!r}, [dict(step=1, loss=1.0)])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    folder = plots.__file__.rsplit("/", 1)[0]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)
