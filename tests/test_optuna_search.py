"""Optuna's samplers: what they propose, what they hear of it, and what there is without Optuna."""

import logging
import sys

import pytest
from stages import failure, read, run, succeed
from synthetic import FULL, World, small_race

import search_qa
from candidates import Candidate, SearchError
from optuna_search import TRIALS, import_optuna

SMALL = {"questions": 200}
SEARCH = ["--do_search", "--search_split", "validation", "--population_size", "3"]


def search_by(sampler, seed=0, world=None, **changes):
    search = small_race(world or World(**SMALL), sampler, seed, **({"max_candidates": 40} | changes))
    return search.run(), search


SAMPLERS = ("tpe", "nsga2", "random")


@pytest.fixture(scope="module", params=SAMPLERS)
def sampled(request):
    return search_by(request.param)[1]


def test_every_config_is_monotone_and_within_bounds(sampled):
    lowest = sampled.settings.constant_ratio(0.35)
    assert len(sampled.candidates) == 40
    for c in sampled.candidates:
        assert list(c.length_config) == sorted(c.length_config, reverse=True)
        assert all(low <= length <= 64 for low, length in zip(lowest, c.length_config))
        assert sum(lowest) <= c.cost == sum(c.length_config)


def test_the_constant_ratio_configs_come_first_and_sampled_ones_after_them(sampled):
    assert [c.origin for c in sampled.candidates] == ["full", *["initial"] * 10, *["sampled"] * 29]
    assert [c.length_config for c in sampled.candidates[:11]] == sampled.initial


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_config_beyond_the_cost_bounds_is_scored(sampler):
    world = World(**SMALL)
    search_by(sampler, world=world, min_cost=120, max_cost=180)
    assert len(world.asked) == 40 and all(120 <= sum(config) <= 180 for config in world.asked if config != FULL)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_same_result_other_seed_other_result(sampler):
    one, same, other = (search_by(sampler, seed)[1].candidates for seed in (7, 7, 8))
    assert one == same and one != other


def test_the_sampler_hears_cost_and_score_of_every_config(sampled):
    told = {}
    for trial in sampled.study.trials:
        if trial.values:
            lengths = [trial.params[name] for name in sampled.ranges]
            told[tuple(min(lengths[: layer + 1]) for layer in range(4))] = trial.values
    assert told.keys() == {c.length_config for c in sampled.candidates}
    assert all(cost == sum(config) and 0 < score <= 100 for config, (cost, score) in told.items())
    assert not [trial for trial in sampled.study.trials if trial.state.name == "RUNNING"]


def test_the_sampler_hears_estimates_and_not_first_looks(monkeypatch):
    search, told = small_race(World(**SMALL), "random", max_candidates=10), []  # a single batch
    monkeypatch.setattr(search.study, "tell", lambda trial, values=None, state=None: told.append(values))
    monkeypatch.setattr(search, "confirm", lambda: None)
    search.run()
    estimates = {(c.cost, c.score) for c in search.candidates if c.std_error > 0}
    assert len(estimates) > 5 and estimates <= {tuple(values) for values in told if values}


def test_what_is_beyond_the_bounds_is_a_failed_trial():
    _, search = search_by("random", max_cost=160)
    failed = [trial for trial in search.study.trials if trial.state.name == "FAIL"]
    assert failed and not any(trial.values for trial in failed)


def test_a_space_of_one_config_ends_at_once():
    frontier, search = search_by("random", max_length=2)
    assert [c.length_config for c in search.candidates] == [(2, 2, 2, 2)] == [c.length_config for c in frontier]


def test_a_search_that_scores_nothing_within_max_cost_says_so():
    with pytest.raises(SearchError, match="at most cost 180; raise"):
        search_by("tpe", max_cost=180, max_candidates=1)


def test_a_loaded_candidate_is_not_asked():
    world, loaded = World(**SMALL), Candidate((63, 60, 50, 40), 1.0, 77.5, "loaded")
    _, search = search_by("tpe", world=world, loaded=[loaded], max_candidates=12)
    assert loaded.length_config not in world.asked and len(search.candidates) == 13


# ---- on the command line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_strategy_searches_on_the_command_line(sampler, dynamic, squad_v1_file, tmp_path):
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH)
    succeed(*command, "--search_strategy", sampler, "--search_max_candidates", "6", "--output_dir", tmp_path)
    results = read(tmp_path / "search_results.json")
    assert results["strategy"] == sampler and len(results["candidates"]) == 6 and results["frontier"]
    assert {row["origin"] for row in results["candidates"]} == {"full", "initial", "sampled"}


def test_150_configs_are_sampled_unless_told_otherwise(monkeypatch, dynamic, squad_v1_file, tmp_path):
    budgets = []

    def stop(search):
        budgets.append(search.total)
        raise SearchError("enough")

    monkeypatch.setattr(search_qa.RacingSearch, "run", stop)
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, "--do_search")
    command += ("--search_split", "validation", "--search_strategy", "tpe")
    for flags in [
        (),
        ("--search_max_candidates", "7"),
        ("--search_max_candidates", "3000"),
    ]:  # an evolution ends at 1,821
        assert run(*command, *flags, "--output_dir", tmp_path) == 1
    assert budgets == [150, 7, 3000] and TRIALS == 150


def test_without_optuna_one_line_says_how_to_install_it(monkeypatch, dynamic, squad_v1_file, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SearchError, match=r"pip install -r requirements\.txt"):
        import_optuna()
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH)
    message = failure(capsys, *command, "--search_strategy", "tpe", "--output_dir", tmp_path)
    assert "Optuna" in message and "pip install" in message


def test_optuna_neither_warns_nor_logs(recwarn, caplog):
    with caplog.at_level(logging.DEBUG):
        search_by("tpe", max_candidates=25)
    assert not [str(warning.message) for warning in recwarn if "Optuna" in type(warning.message).__name__]
    assert not [str(warning.message) for warning in recwarn if "Experimental" in str(warning.category)]
    assert not [record for record in caplog.records if record.name.startswith("optuna")]
