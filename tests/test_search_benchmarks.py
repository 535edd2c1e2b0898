"""What the benchmarks make of finished searches, against tables of scores that are known in full."""

import json
import sys

import numpy as np
import pytest
from synthetic import FULL, World, small_race

from benchmarks import compare_frontiers, replay_search, search_study
from candidate_store import CandidateStore
from candidates import Candidate, hypervolume

SETTINGS = {"model": "world"}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """(Folder of an exhaustive search, the world it was made in, the search)."""
    folder, world = tmp_path_factory.mktemp("exhaustive"), World(questions=400)
    store = CandidateStore(folder / "search_store.jsonl", SETTINGS)
    search = small_race(world, store=store, looks=(400,), confirmed=None)
    search.run()
    return folder, world, search


def test_the_table_holds_every_score_whatever_the_order_of_the_questions(searched):
    folder, world, search = searched
    found, table = replay_search.read_scores(folder / "search_store.jsonl")
    assert found[0].length_config == FULL and len(found) == len(search.candidates)
    for candidate, row in zip(found, table):
        assert row == pytest.approx(world.scores(candidate.length_config))


def test_a_replay_asks_a_part_of_the_table_and_never_finds_more_than_is_in_it(searched):
    found, table = replay_search.read_scores(searched[0] / "search_store.jsonl")
    for seed in range(3):
        result = replay_search.replay(found, table, 4, seed)
        assert 0 < result["questions"] < result["questions_with_confirmation"] < 1
        assert 0.9 < result["hypervolume"] <= 1 + 1e-9 and 0 < result["hypervolume_confirmed"] <= 1 + 1e-9
    volume = hypervolume(searched[2].candidates, sum(FULL)) / sum(FULL)
    assert result["exhaustive_hypervolume"] == pytest.approx(volume)


def test_where_nothing_but_chance_tells_configs_apart_choosing_flatters_by_it():
    rng = np.random.default_rng(0)
    found = [Candidate((100 - n,), 100 - n, 0.0, "full" if not n else "initial") for n in range(50)]
    table = rng.normal(80, 20, (50, 400)) - 1.5  # of every config the same, but for the full model
    table[0] += 1.5
    drops = replay_search.flattery(found, table, 0.5)
    assert drops["chosen_on"] <= 0.5 and drops["others"] > drops["chosen_on"] + 0.5


def row(config, macs, latency_ms, score):
    return {
        "length_config": config,
        "macs": macs,
        "latency_ms": latency_ms,
        "score": score,
        "origin": "initial",
        "parents": [],
    }


@pytest.fixture
def two_searches(tmp_path):
    """Folders of two searches of a reader of 90 F1 at full length."""
    frontiers = {
        "macs": [row([3, 3], 30, 1.0, 85.0)],
        "latency": [row([2, 2], 40, 1.0, 86.0), row([4, 4], 60, 1.0, 89.5)],
    }
    for name, frontier in frontiers.items():
        (tmp_path / name).mkdir()
        results = {"full": row([8, 8], 100, 1.0, 90.0), "frontier": frontier}
        (tmp_path / name / "search_results.json").write_text(json.dumps(results))
    return [tmp_path / name for name in frontiers]


def test_frontiers_are_compared_by_latencies_of_one_run(two_searches, tmp_path, monkeypatch, capsys):
    measured = {(8, 8): 10.0, (3, 3): 6.0, (2, 2): 2.0, (4, 4): 8.0}
    monkeypatch.setattr(
        compare_frontiers, "measure", lambda flags, configs, folder, seconds: ({c: measured[c] for c in configs}, 0.1)
    )
    output = tmp_path / "frontiers.json"
    monkeypatch.setattr(sys, "argv", ["compare", "--searches", *map(str, two_searches), "--output", str(output)])
    compare_frontiers.main()
    out = capsys.readouterr().out
    # (10 - 6) * 85 / 10 = 34; (8 - 2) * 86 / 10 + (10 - 8) * 89.5 / 10 = 69.5
    assert "| macs | 34.00 | - | - | - | - | 0.600 |" in out
    assert "| latency | 69.50 | 0.800 | 0.800 | 0.800 | 0.800 | 0.200 |" in out
    assert output.with_suffix(".md").is_file() and output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(output.read_text())["frontiers"]["macs"][0]["latency_ms"] == 6.0


def test_a_study_names_the_cheapest_config_within_a_point_and_the_spread_over_the_seeds():
    full = {"macs": 100, "macs_ratio": 1.0, "latency_ms": 8.0, "f1_drop": 0.0}
    rows = [
        full | {"macs": 100 * r, "macs_ratio": r, "latency_ms": ms, "f1_drop": d}
        for r, ms, d in ((0.4, 2, 3), (0.5, 6, 0.9), (0.7, 7, 0.1))
    ]
    last = {"candidates": 80, "seconds": 100.4}
    results = {"full": full, "frontier": rows, "progress": [last], "questions_evaluated": 5000}
    facts = search_study.facts(results | {"hypervolume": {"confirmed": 50.0, "estimated": 51.0}}, within=1.0)
    assert facts["MACs ratio"] == 0.5 and facts["latency ratio"] == 0.75
    runs = {
        "tpe": [facts, facts | {"confirmed": 53.0}],
        "constant": [
            search_study.facts(results | {"frontier": [], "hypervolume": {"confirmed": 1, "estimated": 1}}, 1.0)
        ],
    }
    table = search_study.table(runs)
    assert "| tpe | 2 | 51.50 (50.00 to 53.00) | 51.00 | 80 | 5000 | 100 | 0.500 | 0.750 |" in table
    assert "| constant | 1 | 1.00 | 1.00 | 80 | 5000 | 100 | 1.000 | 1.000 |" in table
