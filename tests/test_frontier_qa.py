"""Rows, table and files of a search's frontier, and the choice from it, against hand-computed values."""

import csv
import json
import math
from types import SimpleNamespace

import pytest

from candidates import Candidate, SearchError
from frontier_qa import (
    choose_from,
    choose_row,
    frontier_row,
    frontier_table,
    paired_drop,
    read_rows,
    write_frontier_csv,
    write_pictures,
)

FULL = Candidate((9, 9), 1000, 88.3, "full")
MEMBERS = [Candidate((n, n), 100 * n, f1, "mutation") for n, f1 in ((3, 84.0), (5, 87.3), (8, 88.2))]
FULL_ROW = frontier_row(FULL, FULL)
ROWS = [frontier_row(member, FULL) for member in MEMBERS]
# By latency the second is the dearest: an engine that likes its shapes less.
TIMED = [row | {"latency_ms": ms} for row, ms in zip(ROWS, (4.0, 9.0, 8.0))]
TIMED_FULL = FULL_ROW | {"latency_ms": 10.0}
OLD = ("length_config", "macs", "score", "origin", "parents")  # what rows had before they had drops


# ---- rows ----------------------------------------------------------------------------------------------------------


def test_the_paired_drop_of_four_questions():
    # differences 20, 0, 0, 20: mean 10, sd sqrt(400 / 3), margin 1.96 sqrt(400 / 3) / sqrt(4)
    mean, (low, high) = paired_drop([100, 50, 0, 80], [80, 50, 0, 60])
    margin = 1.96 * math.sqrt(400 / 3) / 2
    assert (mean, low, high) == (pytest.approx(10), pytest.approx(10 - margin), pytest.approx(10 + margin))


def test_pairing_makes_the_interval_of_a_constant_difference_a_point():
    assert paired_drop([90, 40, 70], [85, 35, 65]) == (5, [5, 5])


def test_one_question_has_no_interval():
    assert paired_drop([90], [80]) == (10, None)


@pytest.mark.parametrize(("full", "scores"), [([1, 2], [1]), ([1], [1, 2]), ([], []), ([[1, 2]], [[1, 2]])])
def test_scores_of_other_questions_are_not_paired(full, scores):
    with pytest.raises(ValueError, match="same questions"):
        paired_drop(full, scores)


def test_a_row_has_mean_drop_and_interval_of_both_question_sets():
    row = frontier_row(
        Candidate((5, 4), 500, 1.0, "crossover", ((6, 4), (4, 4))),
        FULL,
        scores=[80, 50, 0, 60],
        full_scores=[100, 50, 0, 80],
        slice_scores=[80, 90],
        slice_full_scores=[81, 91],
        latency_ms=12.5,
    )
    margin = 1.96 * math.sqrt(400 / 3) / 2
    assert row == {
        "length_config": [5, 4],
        "macs": 500,
        "macs_ratio": 0.5,
        "latency_ms": 12.5,
        "score": 47.5,
        "slice_score": 85,
        "f1_drop": 10,
        "f1_drop_interval": [pytest.approx(10 - margin), pytest.approx(10 + margin)],
        "slice_f1_drop": 1,
        "slice_f1_drop_interval": [1, 1],
        "origin": "crossover",
        "parents": [[6, 4], [4, 4]],
    }
    assert json.loads(json.dumps(row)) == row


def test_a_row_without_scores_by_question_has_the_candidates_own_and_no_interval():
    assert ROWS[1]["score"] == 87.3 and ROWS[1]["f1_drop"] == pytest.approx(1.0)
    unknown = ("latency_ms", "slice_score", "f1_drop_interval", "slice_f1_drop", "slice_f1_drop_interval")
    assert [ROWS[1][name] for name in unknown] == [None] * 5


def test_a_row_of_a_search_by_latency_has_the_macs_it_is_given():
    row = frontier_row(
        Candidate((5, 5), 9.0, 87.3, "full"), Candidate((9, 9), 10.0, 88.3, "full"), macs=500, full_macs=1000
    )
    assert (row["macs"], row["macs_ratio"]) == (500, 0.5)


def test_rows_of_an_older_search_get_ratio_and_drop():
    old = {"frontier": [{name: row[name] for name in OLD} for row in ROWS]}
    old["full"] = {name: FULL_ROW[name] for name in OLD}
    assert read_rows(old) == (ROWS, FULL_ROW)


# ---- table and file ------------------------------------------------------------------------------------------------


def cells(table):
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()[1:]]


def test_the_table_leaves_out_what_nothing_is_known_of():
    header, first, *_ = cells(frontier_table(ROWS))
    assert header == ["length config", "MACs", "ratio", "F1", "drop"]
    assert first == ["(3, 3)", "300.0", "0.300", "84.00", "4.30"]


def test_the_table_shows_latency_slice_and_interval_and_a_dash_for_a_single_gap():
    known = ROWS[0] | {"latency_ms": 4.25, "slice_score": 85.125, "f1_drop_interval": [3.9, 4.7]}
    header, first, second = cells(frontier_table([known, ROWS[1]]))
    assert header == [
        *("length config", "MACs", "ratio", "ms a window", "F1 on the slice", "F1", "drop", "95 % of the drop")
    ]
    assert first == ["(3, 3)", "300.0", "0.300", "4.25", "85.12", "84.00", "4.30", "3.90 to 4.70"]
    assert second == ["(5, 5)", "500.0", "0.500", "-", "-", "87.30", "1.00", "-"]


def test_the_tables_lines_are_of_one_width():
    assert len({len(line) for line in frontier_table(TIMED).splitlines()[1:]}) == 1


def test_the_csv_has_the_tables_columns_and_gaps_where_nothing_is_known(tmp_path):
    known = ROWS[0] | {"latency_ms": 4.25, "slice_score": 85.1, "f1_drop_interval": [3.9, 4.7]}
    write_frontier_csv(tmp_path / "pareto.csv", [known, ROWS[1]])
    with open(tmp_path / "pareto.csv", newline="") as file:
        header, first, second = csv.reader(file)
    assert header == [
        *("length_config", "macs", "macs_ratio", "latency_ms", "slice_f1", "f1", "f1_drop"),
        *("f1_drop_low", "f1_drop_high"),
    ]
    assert first == ["[3, 3]", "300", "0.3", "4.25", "85.1", "84.0", "4.3", "3.9", "4.7"]
    assert second == ["[5, 5]", "500", "0.5", "", "", "87.3", "1.0", "", ""]


def test_the_pictures_are_the_frontier_and_where_it_was_recorded_the_progress(tmp_path):
    results = {"frontier": ROWS, "full": FULL_ROW, "chosen": None, "candidate_questions": 9, "frontier_questions": 9}
    write_pictures(tmp_path, results, [FULL, *MEMBERS])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pareto.csv", "pareto.png"]
    record = {"questions": 9, "seconds": 1.0, "hypervolume": 2.0, "candidates": 3}
    write_pictures(tmp_path, results, [FULL, *MEMBERS], [record])
    assert (tmp_path / "search_progress.png").stat().st_size > 1000


# ---- choosing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value", "objective", "chosen"),
    [
        ("max_f1_drop", 1.0, "macs", 5),
        ("max_f1_drop", 1.0, "latency", 8),  # 8 ms, where the cheaper one by MACs takes 9
        ("max_f1_drop", 5, "latency", 3),
        ("target_macs", 799, "latency", 5),
        ("target_macs_ratio", 0.8, "latency", 8),
        ("target_latency_ms", 7.9, "macs", 3),
        ("target_latency_ms", 8.0, "macs", 8),
    ],
)
def test_each_criterion_counts_the_cost_that_it_is_about(flag, value, objective, chosen):
    assert choose_row(TIMED[::-1], TIMED_FULL, flag, value, objective).row["length_config"] == [chosen, chosen]


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        (
            "max_f1_drop",
            1.0,
            "--max_f1_drop 1 chooses (5, 5): 500 MACs (0.500 of full), F1 87.30, drop 1.00; the next cheaper is (3, 3): 300"
            + " MACs (0.300 of full), F1 84.00, drop 4.30.",
        ),
        ("max_f1_drop", 5.0, "drop 4.30; nothing cheaper was found."),
        (
            "target_macs",
            500,
            "--target_macs 500 chooses (5, 5): 500 MACs (0.500 of full), F1 87.30, drop 1.00; the next better is (8, 8): 800"
            + " MACs (0.800 of full), F1 88.20, drop 0.10.",
        ),
        ("target_macs_ratio", 1.0, "drop 0.10; nothing better was found."),
    ],
)
def test_the_reason_names_the_criterion_the_choice_and_what_it_beat(flag, value, reason):
    assert choose_row(ROWS, FULL_ROW, flag, value).reason.endswith(reason)


def test_the_reason_has_latency_and_interval_where_they_are_known():
    rows = [row | {"f1_drop_interval": [row["f1_drop"] - 0.3, row["f1_drop"] + 0.3]} for row in TIMED]
    reason = choose_row(rows, TIMED_FULL, "target_latency_ms", 8.5).reason
    assert "800 MACs (0.800 of full), 8.00 ms a window, F1 88.20, drop 0.10 (95 %: -0.20 to 0.40); nothing" in reason


def test_configs_without_a_measured_latency_are_left_out_and_counted():
    choice = choose_row([TIMED[0], TIMED[1], ROWS[2]], TIMED_FULL, "target_latency_ms", 9.5)
    assert choice.row == TIMED[1] and "1 configs without a measured latency" in choice.reason


@pytest.mark.parametrize(("rows", "full"), [(ROWS, FULL_ROW), (ROWS, TIMED_FULL), (TIMED, FULL_ROW)])
@pytest.mark.parametrize(("flag", "objective"), [("target_latency_ms", "macs"), ("max_f1_drop", "latency")])
def test_a_choice_by_latency_needs_a_search_that_measured_it(rows, full, flag, objective):
    with pytest.raises(SearchError, match="search again, in a single process") as error:
        choose_row(rows, full, flag, 9.5, objective)
    assert f"--{flag}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flag", "value", "nearest"),
    [
        ("target_latency_ms", 3.0, "at most 3 ms a window (0.300 of the full model's); the nearest is (3, 3)"),
        ("target_macs", 100, "at most 100 MACs (0.100 of the full model's); the nearest is (3, 3)"),
        ("target_macs_ratio", 0.1, "at most 100 MACs (0.100 of the full model's); the nearest is (3, 3)"),
        ("max_f1_drop", 0.05, "within 0.05 of the full model's 88.30; the nearest is (8, 8)"),
    ],
)
def test_an_impossible_target_is_one_line_that_names_the_nearest(flag, value, nearest):
    with pytest.raises(SearchError) as error:
        choose_row(TIMED, TIMED_FULL, flag, value)
    assert nearest in str(error.value) and "\n" not in str(error.value)


def asks(folder, **given):
    budgets = dict.fromkeys(("max_f1_drop", "target_macs", "target_macs_ratio", "target_latency_ms"))
    adaptive = SimpleNamespace(length_config_from=folder, **budgets | given)
    return SimpleNamespace(length_adaptive=adaptive, data=SimpleNamespace(max_seq_length=9))


def leave(folder, **results):
    results = {"frontier": TIMED, "full": TIMED_FULL, "max_seq_length": 9} | results
    (folder / "search_results.json").write_text(json.dumps(results))


def test_a_folders_search_is_chosen_from_by_its_own_objective(tmp_path):
    leave(tmp_path)
    assert choose_from(asks(tmp_path, max_f1_drop=1.0))[0] == (5, 5)
    leave(tmp_path, objective="latency")
    lengths, reason = choose_from(asks(tmp_path, max_f1_drop=1.0))
    assert lengths == (8, 8) and reason.startswith("--max_f1_drop 1 chooses (8, 8)")


def test_a_folder_of_an_older_search_is_chosen_from(tmp_path):
    old = [{name: row[name] for name in OLD} for row in (*ROWS, FULL_ROW)]
    leave(tmp_path, frontier=old[:-1], full=old[-1], length_unit="ratio")
    assert choose_from(asks(tmp_path, target_macs_ratio=0.5))[0] == (5 / 9, 5 / 9)
    with pytest.raises(SearchError, match="--target_latency_ms .* did not measure: search again"):
        choose_from(asks(tmp_path, target_latency_ms=5.0))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"frontier": [1], "full": {}}', json.dumps({"frontier": [], "full": FULL_ROW})]
)
def test_what_is_no_finished_search_is_refused(text, tmp_path):
    (tmp_path / "search_results.json").write_text(text)
    with pytest.raises(SearchError, match="no results of a finished search") as error:
        choose_from(asks(tmp_path, max_f1_drop=1.0))
    assert "\n" not in str(error.value)


def test_a_full_model_without_macs_is_no_finished_search(tmp_path):
    leave(tmp_path, full=FULL_ROW | {"macs": 0})
    with pytest.raises(SearchError, match="no results of a finished search"):
        choose_from(asks(tmp_path, max_f1_drop=1.0))
