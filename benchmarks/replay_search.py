"""What racing and choosing would have made of a finished exhaustive search, whose every score on every question is known.

    python run_qa.py --do_search --search_protocol exhaustive --search_split validation --max_eval_samples 2000 ... --output_dir D
    python benchmarks/replay_search.py D --seeds 0 1 2

Evaluates nothing.  Racing is replayed over the same configs in the order in which they were found, each seed with another
order of the questions, and compared by the hypervolume of the true scores with the exhaustive frontier of the same configs.
Then the questions are split in halves at random, 200 times: a config is chosen on one half, and its drop measured on the
other, which is what searching on the set that one reports on flatters by.  Prints two tables, leaves replay_search.json in D.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from candidate_store import CandidateStore, load_store
from candidates import Candidate, LengthConfig, choose, hypervolume, pareto_frontier
from racing import GivenConfigs, RacingSearch
from results_qa import environment, write_json
from search_settings import SearchSettings, growing_looks

HALVES = 200
DROPS = (0.5, 1.0, 2.0, 5.0)


def read_scores(path: Path) -> tuple[list[Candidate], np.ndarray]:
    """The configs of an exhaustive search's store, the full model first, and their scores (configs, questions)."""
    with open(path, encoding="utf-8") as file:
        store = CandidateStore(path, json.loads(file.readline())["settings"], readonly=True)
    found = load_store(path, None, None)
    costs, full = {c.length_config: c.cost for c in found}, found[0].length_config
    settings = SearchSettings(len(full), full[0], looks=(len(store.known[full]),))
    known = GivenConfigs(costs.get, None, found, settings, store=store, progress=False)  # None: nothing is left to ask
    known.run()
    return found, np.array([known.by_question(c.length_config) for c in found])


class Replay(RacingSearch):
    """Racing over given candidates, in their order, `step` of them between two settlements (an iteration of the evolution)."""

    def __init__(self, found: Sequence[Candidate], *args, step: int = 60, **kwargs):
        super().__init__(*args, progress=False, **kwargs)
        self.given, self.step = found, step

    def explore(self) -> None:
        for begin in range(0, len(self.given), self.step):
            for candidate in self.given[begin : begin + self.step]:
                self.add(candidate.length_config, candidate.origin)
            self.settle(self.look_after(begin / len(self.given)))
        self.before_confirming = self.frontier(), self.questions


def replay(found: Sequence[Candidate], table: np.ndarray, confirmed: int, seed: int) -> dict:
    """Questions that racing asked and the true hypervolume of what it found, as fractions of the exhaustive search's.

    `table` (configs, questions) holds the scores of `found`, whose first member is the full model.
    """
    shuffled = np.random.default_rng(seed).permutation(table.shape[1])
    rows = {c.length_config: table[number, shuffled] for number, c in enumerate(found)}
    costs = {c.length_config: c.cost for c in found}
    full, looks = found[0], growing_looks(table.shape[1])
    settings = SearchSettings(len(full.length_config), full.length_config[0], looks=looks, confirmed=confirmed)
    race = Replay(found, costs.get, lambda config, questions: rows[config][questions], settings)
    last = race.run()
    estimated, questions = race.before_confirming
    whole = true_volume([c.length_config for c in found], rows, costs, full.cost)
    return {
        "questions": questions / table.size,
        "hypervolume": true_volume([c.length_config for c in estimated], rows, costs, full.cost) / whole,
        "questions_with_confirmation": race.questions / table.size,
        "hypervolume_confirmed": true_volume([c.length_config for c in last], rows, costs, full.cost) / whole,
        "exhaustive_hypervolume": whole / full.cost,
    }


def true_volume(configs: Sequence[LengthConfig], rows: dict, costs: dict, reference: float) -> float:
    """Hypervolume of the frontier among `configs` by their scores on all questions."""
    return hypervolume(
        (Candidate(config, costs[config], rows[config].mean(), "loaded") for config in configs), reference
    )


def flattery(found: Sequence[Candidate], table: np.ndarray, allowed: float, seed: int = 0) -> dict:
    """Mean drop of the cheapest config within `allowed` points, on the questions it was chosen by and on as many others."""
    rng, drops = np.random.default_rng(seed), {"chosen_on": [], "others": []}
    for _ in range(HALVES):
        here, there = np.array_split(rng.permutation(table.shape[1]), 2)
        scores = {c.length_config: row for c, row in zip(found, table)}
        known = [replace(c, score=float(scores[c.length_config][here].mean())) for c in found]
        chosen = scores[choose(pareto_frontier(known), known[0], max_score_drop=allowed).length_config]
        drops["chosen_on"].append(float((table[0] - chosen)[here].mean()))
        drops["others"].append(float((table[0] - chosen)[there].mean()))
    return {"allowed": allowed} | {name: statistics.fmean(values) for name, values in drops.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="output folder of the exhaustive search")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--confirmed", type=int, default=4, help="members scored on all questions (default: %(default)s)"
    )
    args = parser.parse_args()
    store = args.folder / "search_store.jsonl"
    try:
        found, table = read_scores(store)
    except (OSError, ValueError, LookupError, TypeError) as error:
        parser.error(f"{store} is no store of run_qa.py --do_search --search_protocol exhaustive: {error!r}")
    replays = [{"seed": seed} | replay(found, table, args.confirmed, seed) for seed in args.seeds]
    drops = [flattery(found, table, allowed) for allowed in DROPS]
    size = {"configs": len(found), "questions": table.shape[1], "confirmed": args.confirmed}
    write_json(
        args.folder / "replay_search.json", {"environment": environment(), **size, "replays": replays, "drops": drops}
    )
    print(
        f"{len(found)} configs, {table.shape[1]} questions, hypervolume {replays[0]['exhaustive_hypervolume']:.2f}\n"
    )
    print(
        "| seed | questions | hypervolume | questions, with the confirmed | hypervolume of these |\n|---|---|---|---|---|"
    )
    for r in replays:
        columns = ("questions", "hypervolume", "questions_with_confirmation", "hypervolume_confirmed")
        print(f"| {r['seed']} | " + " | ".join(f"{100 * r[name]:.2f} %" for name in columns) + " |")
    print("\n| allowed drop | where it was chosen | on other questions |\n|---|---|---|")
    for row in drops:
        print(f"| {row['allowed']:g} | {row['chosen_on']:.2f} | {row['others']:.2f} |")


if __name__ == "__main__":
    main()
