"""The search stage end to end: its files, its resumption, the choice of a length config."""

import csv
import json
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from stages import LENGTHS, SEARCH, digest, failure, read, run, succeed

import frontier_qa
import run_qa
from scoring import QuestionScorer, scoring_dtype


def all_answer(monkeypatch, score):
    """Every question's score is `score(number of questions, length config)`."""
    scores = lambda self, lengths, numbers: [score(len(self), lengths)] * len(numbers)
    monkeypatch.setattr(QuestionScorer, "__call__", scores)


def untimed(rows):
    return [{name: value for name, value in row.items() if name != "latency_ms"} for row in rows]


def found(results):
    """What a search has found, but for what it has timed."""
    return results["candidates"], untimed(results["frontier"]), untimed([results["full"], results["chosen"]])


def test_a_search_leaves_results_frontier_picture_and_the_chosen_model(searched):
    results = read(searched / "search_results.json")
    assert {"candidates", "frontier", "full", "chosen", "settings", "seed", "environment"} <= results.keys()
    assert "candidates" not in read(searched / "all_results.json")
    frontier = [(row["macs"], row["score"]) for row in results["frontier"]]
    scored = [(row["macs"], row["score"]) for row in results["candidates"]]
    beaten = {b for b in scored for a in scored if a != b and a[0] <= b[0] and a[1] >= b[1]}
    assert set(frontier) == set(scored) - beaten and len(frontier) == len(set(frontier))
    with open(searched / "pareto.csv", newline="") as file:
        assert [json.loads(row["length_config"]) for row in csv.DictReader(file)] == [
            row["length_config"] for row in results["frontier"]
        ]
    assert (searched / "pareto.png").stat().st_size > 1000
    assert read(searched / "config.json")["length_config"] == results["chosen"]["length_config"]


def test_the_frontiers_rows_say_what_is_known_of_them(searched):
    results = read(searched / "search_results.json")
    full = results["full"]
    assert (results["objective"], results["strategy"], results["latency_model"]) == ("macs", "evolution", None)
    assert full["f1_drop"] == 0 and full["macs_ratio"] == 1
    for row in [*results["frontier"], results["chosen"]]:
        assert row["macs_ratio"] == pytest.approx(row["macs"] / full["macs"]) and row["latency_ms"] > 0
        assert row["f1_drop"] == pytest.approx(full["score"] - row["score"])
        low, high = row["f1_drop_interval"]
        assert (low + high) / 2 == pytest.approx(row["f1_drop"])
        # the slice is the validation questions here
        assert (row["slice_score"], row["slice_f1_drop"]) == (row["score"], row["f1_drop"])
        assert row["slice_f1_drop_interval"] == row["f1_drop_interval"]


def test_a_model_keeps_of_its_frontier_what_a_choice_needs(searched):
    names = ("length_config", "macs", "macs_ratio", "score", "f1_drop", "latency_ms")
    rows = read(searched / "search_results.json")["frontier"]
    assert read(searched / "config.json")["length_configs"] == [{name: row[name] for name in names} for row in rows]


def test_a_search_records_its_progress_and_how_many_questions_it_asked(searched):
    results = read(searched / "search_results.json")
    asked = 18 * len(results["candidates"])  # so few questions make a single look
    assert results["questions_evaluated"] == results["progress"][-1]["questions"] == asked
    assert [record["candidates"] for record in results["progress"]][-1] == len(results["candidates"])
    assert (searched / "search_progress.png").stat().st_size > 1000


def test_scores_of_a_search_are_what_evaluation_gives(searched, evaluate):
    row = min(read(searched / "search_results.json")["candidates"], key=lambda row: row["macs"])
    results = read(evaluate("--length_config", json.dumps(row["length_config"])) / "eval_results.json")
    assert (results["eval_f1"], results["eval_macs"]) == (pytest.approx(row["score"]), row["macs"])


def test_a_killed_search_ends_like_an_undisturbed_one(searched, dynamic, squad_v1_file, tmp_path, monkeypatch, capsys):
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH)
    command += ("--target_macs_ratio", "0.8", "--output_dir", tmp_path / "search")
    score, calls = QuestionScorer.__call__, []

    def dies_at_the_fourth(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr(QuestionScorer, "__call__", dies_at_the_fourth)
    assert run(*command) == 130
    assert "the same command continues the search" in capsys.readouterr().err
    succeed(*command)
    again, undisturbed = read(tmp_path / "search/search_results.json"), read(searched / "search_results.json")
    assert found(again) == found(undisturbed)
    assert len(calls) == len(undisturbed["candidates"]) + 1  # the interrupted one is the only one scored twice


def test_a_search_whose_process_is_killed_goes_on_from_its_store(searched, dynamic, squad_v1_file, tmp_path):
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH)
    command += ("--target_macs_ratio", "0.8", "--output_dir", tmp_path / "search")
    process = subprocess.Popen(
        [sys.executable, run_qa.__file__, *map(str, command), *LENGTHS], stderr=subprocess.DEVNULL
    )
    store, deadline = tmp_path / "search/search_store.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if store.exists() and store.read_bytes().count(b"\n") >= 4:
            break
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9 and not (tmp_path / "search/search_results.json").exists()
    succeed(*command)
    assert found(read(tmp_path / "search/search_results.json")) == found(read(searched / "search_results.json"))


def test_a_search_on_a_sample_scores_its_frontier_on_all_questions(dynamic, squad_v1_file, tmp_path):
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH, "--evo_iter", "0")
    succeed(*command, "--search_samples", "5", "--output_dir", tmp_path)
    results = read(tmp_path / "search_results.json")
    assert (results["candidate_questions"], results["frontier_questions"]) == (5, 18)


def test_the_full_model_is_on_the_final_frontier_though_the_sample_did_not_have_it_there(
    dynamic, squad_v1_file, tmp_path, monkeypatch, caplog
):
    def score(questions, lengths):  # cheaper is better on the sample, full length on all questions
        return 90.0 - sum(lengths) / 10 if questions == 5 else 20.0 + sum(lengths) / 10

    all_answer(monkeypatch, score)
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH, "--evo_iter", "0")
    succeed(*command, "--search_samples", "5", "--max_f1_drop", "1", "--output_dir", tmp_path)
    results, full = read(tmp_path / "search_results.json"), [64, 64, 64]
    assert results["frontier"][-1]["length_config"] == results["chosen"]["length_config"] == full
    assert results["frontier"][-1] == results["full"] and len(results["frontier"]) == 2
    kept = [row["length_config"] for row in read(tmp_path / "config.json")["length_configs"]]
    assert kept == [row["length_config"] for row in results["frontier"]]
    assert "[64, 64, 64]" in (tmp_path / "pareto.csv").read_text() and "(64, 64, 64)" in caplog.text


@pytest.mark.parametrize("sample", [(), ("--search_samples", "5")])
def test_the_full_model_above_search_max_macs_is_only_the_reference(
    sample, dynamic, squad_v1_file, tmp_path, monkeypatch
):
    shown = {}
    monkeypatch.setattr(frontier_qa, "plot_pareto", lambda path, **parts: shown.update(parts))
    all_answer(monkeypatch, lambda questions, lengths: sum(lengths) / 10)
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH, "--evo_iter", "0")
    succeed(*command, *sample, "--search_max_macs", 1.8e6, "--target_macs_ratio", "1", "--output_dir", tmp_path)
    results = read(tmp_path / "search_results.json")
    assert results["full"]["macs"] > 1.8e6 and results["full"]["length_config"] == [64, 64, 64]
    assert results["chosen"] == results["frontier"][-1]
    assert all(row["macs"] <= 1.8e6 for row in results["frontier"])
    assert max(point.cost for point in shown["constant_ratio"]) == results["full"]["macs"]


def test_the_picture_shows_a_samples_scores_at_their_distance_from_the_full_model(
    dynamic, squad_v1_file, tmp_path, monkeypatch
):
    shown = {}
    monkeypatch.setattr(frontier_qa, "plot_pareto", lambda path, **parts: shown.update(parts))
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH, "--evo_iter", "0")
    succeed(*command, "--search_samples", "5", "--output_dir", tmp_path)
    results = read(tmp_path / "search_results.json")
    sample_full = next(row["score"] for row in results["candidates"] if row["origin"] == "full")
    expected = [results["full"]["score"] + row["score"] - sample_full for row in results["candidates"]]
    assert results["full"]["score"] != sample_full
    assert [candidate.score for candidate in shown["candidates"]] == pytest.approx(expected)


def test_search_rescore_bounds_how_many_configs_are_scored_on_all_questions(
    dynamic, squad_v1_file, tmp_path, monkeypatch
):
    all_answer(monkeypatch, lambda questions, lengths: sum(lengths))  # all on the frontier
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH, "--evo_iter", "0")
    succeed(*command, "--search_samples", "5", "--search_rescore", "2", "--output_dir", tmp_path)
    results, full = read(tmp_path / "search_results.json"), [64, 64, 64]
    rows = map(json.loads, (tmp_path / "frontier_store.jsonl").read_text().splitlines()[1:])  # after the settings
    # beside the full model the cheapest adds most: (MACs of full - its own) x its score
    cheapest = min(results["candidates"], key=lambda row: row["macs"])["length_config"]
    assert [row["length_config"] for row in rows] == [full, cheapest] and len(results["candidates"]) > 2
    assert results["search_rescore"] == 2


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--max_f1_drop", 100.0), ("--target_macs", 1e12), ("--target_macs_ratio", 1.0), ("--target_latency_ms", 1e6)],
)
def test_each_budget_chooses_from_a_search(flag, value, searched, evaluate):
    results = read(evaluate("--length_config_from", searched, flag, value) / "eval_results.json")
    frontier = read(searched / "search_results.json")["frontier"]  # by rising MACs and F1
    assert results["eval_length_config"] == frontier[0 if flag == "--max_f1_drop" else -1]["length_config"]


def test_a_choice_is_logged_with_what_it_was_made_against(searched, evaluate, caplog):
    evaluate("--length_config_from", searched, "--max_f1_drop", 100)
    cheapest = read(searched / "search_results.json")["frontier"][0]
    assert f"--max_f1_drop 100 chooses {tuple(cheapest['length_config'])}" in caplog.text
    assert "nothing cheaper was found" in caplog.text


def test_a_choice_by_latency_from_a_search_that_measured_none_is_refused(
    searched, dynamic, squad_v1_file, tmp_path, capsys
):
    results = read(searched / "search_results.json")
    results |= {"frontier": untimed(results["frontier"]), "full": untimed([results["full"]])[0]}
    (tmp_path / "search_results.json").write_text(json.dumps(results))
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, "--do_eval")
    command += ("--length_config_from", tmp_path, "--target_latency_ms", 5, "--output_dir", tmp_path / "out")
    message = failure(capsys, *command)
    assert "--length_config_from" in message and "--target_latency_ms" in message and "search again" in message


def test_length_configs_of_another_sequence_length_are_refused(searched, dynamic, squad_v1_file, tmp_path, capsys):
    results = read(searched / "search_results.json")
    (tmp_path / "search_results.json").write_text(json.dumps(results | {"max_seq_length": 48}))
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, "--do_eval", "--max_f1_drop", 100)
    message = failure(capsys, *command, "--length_config_from", tmp_path, "--output_dir", tmp_path / "out")
    assert "--length_config_from" in message and "--max_seq_length 48, not 64" in message


def test_the_chosen_model_runs_at_its_config_without_a_flag(searched, evaluate):
    chosen = read(searched / "search_results.json")["chosen"]
    results = read(evaluate(model=searched) / "eval_results.json")
    assert results["eval_length_config"] == chosen["length_config"]
    assert results["eval_f1"] == pytest.approx(chosen["score"])


def test_training_drops_what_a_search_found_for_other_weights(searched, squad_v1_file, tmp_path):
    files = ("--train_file", squad_v1_file, "--max_train_samples", "2")
    succeed("--model_name_or_path", searched, *files, "--do_train", "--max_steps", "1", "--output_dir", tmp_path / "m")
    config = read(tmp_path / "m/config.json")
    assert not config.get("length_config") and not config.get("length_configs")


def test_a_search_does_not_overwrite_another_model(dynamic, fine_tuned, squad_v1_file, tmp_path, capsys):
    shutil.copytree(fine_tuned, tmp_path / "model")
    before = digest(tmp_path / "model")
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH)
    assert "holds a model" in failure(capsys, *command, "--output_dir", tmp_path / "model")
    assert digest(tmp_path / "model") == before


def test_every_precision_of_an_evaluation_has_a_name_of_its_own():
    flags = ("bf16", "fp16")
    runs = [SimpleNamespace(**{other: other == flag for other in flags}) for flag in (None, *flags)]
    assert len({scoring_dtype(run) for run in runs}) == 3


def test_scores_of_another_precision_are_not_taken_over(searched, dynamic, squad_v1_file, tmp_path, capsys):
    (tmp_path / "search").mkdir()
    shutil.copy(searched / "search_store.jsonl", tmp_path / "search")
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH)
    command += ("--target_macs_ratio", "0.8", "--output_dir", tmp_path / "search")
    assert "its scores were made with" in failure(capsys, *command, "--bf16")


def test_scores_of_another_model_are_not_loaded(searched, fine_tuned, squad_v1_file, tmp_path, capsys):
    command = ("--model_name_or_path", fine_tuned, "--validation_file", squad_v1_file, *SEARCH)
    command += ("--load_store_file", searched / "search_store.jsonl", "--output_dir", tmp_path / "out")
    message = failure(capsys, *command)
    assert "--load_store_file" in message and "made with weights '" in message and "questions" not in message
    assert not (tmp_path / "out/search_store.jsonl").exists()


def test_the_picture_of_loaded_scores_has_the_constant_ratio_curve(
    searched, dynamic, squad_v1_file, tmp_path, monkeypatch
):
    shown = {}
    monkeypatch.setattr(frontier_qa, "plot_pareto", lambda path, **parts: shown.update(parts))
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH, "--evo_iter", "0")
    succeed(*command, "--load_store_file", searched / "search_store.jsonl", "--output_dir", tmp_path)
    stored = map(json.loads, (searched / "search_store.jsonl").read_text().splitlines()[1:])
    curve = [row["length_config"] for row in stored if row["origin"] in ("full", "initial")]
    assert len(curve) > 2 and [list(point.length_config) for point in shown["constant_ratio"]] == curve


def test_a_search_that_misses_its_target_keeps_its_results_and_says_so(dynamic, squad_v1_file, tmp_path, caplog):
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH)
    succeed(*command, "--search_samples", 5, "--target_macs", 2, "--output_dir", tmp_path / "out")
    results = read(tmp_path / "out/search_results.json")
    assert "no length config is chosen" in caplog.text and "nearest" in caplog.text
    assert results["chosen"] is None and results["frontier"] and results["candidate_questions"] == 5


def test_a_search_without_gold_answers_is_refused(dynamic, tmp_path, capsys):
    question = {"id": "a", "context": "Ada wrote it.", "question": "Who?", "answers": {"text": [], "answer_start": []}}
    (tmp_path / "questions.json").write_text(json.dumps([question]))
    command = ("--model_name_or_path", dynamic, "--validation_file", tmp_path / "questions.json", *SEARCH)
    assert "--do_search needs" in failure(capsys, *command, "--output_dir", tmp_path / "out")
