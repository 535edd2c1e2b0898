"""The pictures of a search: what is drawn and where it lies, read back from the figures."""

import random

import pytest
from test_plots import png_size

from candidates import Candidate, pareto_frontier
from frontier_qa import frontier_row
from plots import PlotError
from search_plots import plot_pareto, plot_progress

pytest.importorskip("matplotlib")

FULL = Candidate((384,) * 6, 4758552960, 89.3, "full")
CHOSEN = Candidate((315, 251, 242, 159, 142, 33), 2546934528, 88.34, "mutation")


def row(candidate, **more):
    return frontier_row(candidate, FULL) | more


def some_candidates():
    rng = random.Random(0)
    points = [Candidate((i,), rng.uniform(2e9, 4.7e9), rng.uniform(80, 89), "mutation") for i in range(2, 60)]
    return [FULL, CHOSEN, *points]


def draw(tmp_path, candidates, **more):
    frontier = [row(candidate) for candidate in pareto_frontier(candidates)]
    parts = {"frontier": frontier, "candidates": candidates, "full": row(FULL), "chosen": row(CHOSEN)} | more
    plot_pareto(tmp_path / "pareto.png", **parts)
    return parts["frontier"]


def points(axes):
    """The points of every line, as a list of lists."""
    return [list(zip(line.get_xdata(), line.get_ydata())) for line in axes.lines]


def bars(axes):
    """The vertical bars as (x, low, high)."""
    [container] = axes.containers
    return [(x, low, high) for (x, low), (_, high) in container[2][0].get_segments()]


def legend(axes):
    return " ".join(text.get_text() for text in axes.get_legend().get_texts())


def test_pareto_picture_is_a_png_of_13_by_5_inches_at_150_dpi(tmp_path):
    draw(tmp_path, some_candidates())
    assert png_size(tmp_path / "pareto.png") == (1950, 750)


def test_the_left_panel_shows_every_part_at_its_place(tmp_path, drawn):
    candidates = some_candidates()
    curve = [candidates[9], candidates[8], FULL]
    draw(tmp_path, candidates, constant_ratio=curve)
    axes = drawn[0].axes[0]
    assert len(axes.collections[0].get_offsets()) == len(candidates)
    assert [(c.cost / 1e9, c.score) for c in pareto_frontier(candidates)] in points(axes)
    assert sorted((c.cost / 1e9, c.score) for c in curve) in points(axes)
    assert [(4.75855296, 89.3)] in points(axes) and [(2.546934528, 88.34)] in points(axes)
    assert axes.get_xlabel() == "MACs (billions)" and axes.get_ylabel() == "F1"
    words = ("candidates", "constant ratio", "frontier", "full", "0.535", "(315, 251")
    assert all(word in legend(axes) for word in words)


def test_the_left_panels_top_axis_is_the_fraction_of_the_full_cost(tmp_path, drawn):
    draw(tmp_path, [CHOSEN, FULL])
    [top] = drawn[0].axes[0].child_axes
    to_fraction, to_cost = top._functions
    assert to_fraction(4.75855296) == pytest.approx(1) and to_cost(0.5) == pytest.approx(4.75855296 / 2)


def test_bars_reach_over_the_interval_of_the_drop_in_both_panels(tmp_path, drawn):
    frontier = [row(CHOSEN, f1_drop_interval=[0.66, 1.36]), row(FULL)]  # of a drop of 0.96
    draw(tmp_path, [CHOSEN, FULL], frontier=frontier)
    left, right = drawn[0].axes[:2]
    assert bars(left)[0] == pytest.approx((2.546934528, 89.3 - 1.36, 89.3 - 0.66))
    assert bars(left)[1] == pytest.approx((4.75855296, 89.3, 89.3))  # an interval that is not known has no length
    assert bars(right)[0] == pytest.approx((2546934528 / 4758552960, 0.66, 1.36))


def test_without_intervals_there_are_no_bars_and_the_legend_names_none(tmp_path, drawn):
    draw(tmp_path, [CHOSEN, FULL])
    assert "bars" not in legend(drawn[0].axes[0]) + legend(drawn[0].axes[1])
    assert all(not axes.containers[0].has_yerr for axes in drawn[0].axes[:2])


def test_the_right_panel_shows_drops_beside_the_published_ones(tmp_path, drawn):
    draw(tmp_path, [CHOSEN, FULL])
    axes = drawn[0].axes[1]
    drops = [pytest.approx((0.535233, 0.96), abs=1e-6), (1.0, 0.0)]
    assert any(line == drops for line in points(axes) if len(line) == 2)
    singles = [line[0] for line in points(axes) if len(line) == 1]
    for published in [(0.5231, 1.52), (0.5357, 1.17), (1, 0), (0.5352, 0.96)]:  # LA, QuaLA, full length, chosen
        assert any(point == pytest.approx(published, abs=1e-4) for point in singles)
    assert axes.yaxis_inverted()  # up is better, as on the left
    assert "LA-MiniLM float32 (269, 253" in legend(axes) and "QuaLA-MiniLM INT8 (315, 251" in legend(axes)


def test_configs_that_lose_much_are_counted_in_the_right_panel_not_drawn(tmp_path, drawn):
    poor = [Candidate((i,), i * 1e8, 60.0 + i, "mutation") for i in range(10, 13)]
    draw(tmp_path, [*poor, CHOSEN, FULL])
    axes = drawn[0].axes[1]
    assert "3 that lose more not shown" in legend(axes)
    assert max(drop for line in points(axes) for _, drop in line) == pytest.approx(1.52)


def test_a_frontier_without_anything_near_full_length_can_be_drawn(tmp_path, drawn):
    poor = Candidate((3,) * 6, 1e9, 50.0, "mutation")
    draw(tmp_path, [poor, FULL], frontier=[row(poor)], chosen=row(poor))
    assert "1 that lose more not shown" in legend(drawn[0].axes[1]) and "chosen" not in legend(drawn[0].axes[1])


def test_with_latency_as_cost_the_left_panel_has_milliseconds(tmp_path, drawn):
    timed = [row(CHOSEN, latency_ms=16.3), row(FULL, latency_ms=24.6)]
    candidates = [Candidate((9,), 20.0, 88.0, "mutation")]
    draw(tmp_path, candidates, frontier=timed, full=timed[1], chosen=timed[0], cost="latency_ms")
    left, right = drawn[0].axes[:2]
    assert [(16.3, 88.34), (24.6, 89.3)] in points(left) and [(24.6, 89.3)] in points(left)
    assert left.get_xlabel() == "latency (ms a window)" and "MACs" in right.get_xlabel()
    assert list(map(tuple, left.collections[0].get_offsets())) == [(20.0, 88.0)]


def test_far_worse_candidates_do_not_squeeze_the_frontier(tmp_path, drawn):
    hopeless = Candidate((2,) * 6, 1e9, 3.0, "mutation")
    draw(tmp_path, [hopeless, CHOSEN, FULL], frontier=[row(CHOSEN), row(FULL)])
    low, high = drawn[0].axes[0].get_ylim()
    assert high > 89.3 and low < 88.34 and high - low < 3


def test_a_single_candidate_of_few_macs_can_be_drawn(tmp_path, drawn):
    only = Candidate((4, 4), 90, 0.0, "full")
    plot_pareto(tmp_path / "p.png", frontier=[row(only)], candidates=[only], full=row(only))
    assert drawn[0].axes[0].get_xlabel() == "MACs"


RECORDS = [
    {"questions": 1000, "seconds": 60.0, "hypervolume": 2.0, "candidates": 10},
    {"questions": 5000, "seconds": 150.0, "hypervolume": 3.5, "candidates": 1234},
]


def test_progress_is_drawn_against_questions_and_minutes(tmp_path, drawn):
    plot_progress(tmp_path / "progress.png", RECORDS)
    questions, minutes = drawn[0].axes
    assert points(questions) == [[(1000, 2.0), (5000, 3.5)]] and points(minutes) == [[(1.0, 2.0), (2.5, 3.5)]]
    assert questions.get_xlabel() == "questions evaluated" and minutes.get_xlabel() == "minutes"
    assert "1,234 length configs" in legend(questions)
    assert png_size(tmp_path / "progress.png") == (1950, 750)


def test_progress_without_times_has_one_panel(tmp_path, drawn):
    plot_progress(tmp_path / "progress.png", [record | {"seconds": None} for record in RECORDS])
    [axes] = drawn[0].axes
    assert points(axes) == [[(1000, 2.0), (5000, 3.5)]]


def test_progress_without_records_is_refused(tmp_path):
    with pytest.raises(PlotError, match="no records"):
        plot_progress(tmp_path / "progress.png", [])
