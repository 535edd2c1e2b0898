"""The search stage: length configs scored by the reader at hand, their frontier, and the choice of one."""

import logging
import random
from dataclasses import asdict
from pathlib import Path

from transformers.trainer_callback import ProgressCallback

from arguments import Arguments
from candidate_store import CandidateStore, load_store
from candidates import Candidate, LengthConfig, SearchError, most_useful
from errors import RunError
from evolution import EvolutionarySearch
from frontier_qa import budget, choose_row, frontier_row, frontier_table, write_pictures
from latency_qa import EngineLatency
from length_config import count_macs
from loading import QuestionSet
from optuna_search import OptunaSearch, make_study
from racing import GivenConfigs, RacingSearch
from scoring import QuestionScorer, scoring_facts
from search_settings import SearchSettings, growing_looks
from shared_store import SharedStore
from trainer_qa import QuestionAnsweringTrainer

logger = logging.getLogger(__name__)


def search(trainer: QuestionAnsweringTrainer, args: Arguments, scored_on: QuestionSet, questions: QuestionSet) -> dict:
    """Search length configs by their F1 on `scored_on`, and score the frontier on the validation `questions`.

    Writes pareto.csv and the pictures, returns what search_results.json holds.
    """
    for split, scored in ((args.search.search_split, scored_on), ("validation", questions)):
        if not scored.has_gold:
            raise SearchError(f"--do_search needs {split} questions with answers to score by.")
    progress_bar = trainer.pop_callback(ProgressCallback)  # one bar for the search, not one a candidate
    results, race = SearchStage(trainer, args, questions).run(scored_on)
    if progress_bar is not None:
        trainer.add_callback(progress_bar)
    if trainer.is_world_process_zero():
        write_pictures(Path(args.run.output_dir), results, race.candidates, race.history)
    logger.info("%s", frontier_table(results["frontier"]))
    return results


class SearchStage:
    """What one run of the search needs beside its candidates: costs, scores, and where they are kept."""

    def __init__(self, trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet):
        self.trainer, self.args, self.questions, self.config = trainer, args, questions, trainer.model.config
        self.quiet = args.run.process_index > 0 or args.run.disable_tqdm
        # Processes that evaluate together would be measured against each other.
        self.latency = EngineLatency(trainer, args, questions) if args.run.world_size == 1 else None
        self.latency_model = None

    def run(self, scored_on: QuestionSet) -> tuple[dict, RacingSearch]:
        """What search_results.json holds, and the search."""
        search, score = self.args.search, QuestionScorer(self.trainer, self.args, scored_on, self.args.run.seed)
        facts = scoring_facts(self.args, self.trainer.model, score)
        loaded = self.load_candidates(facts)  # a misfit is said before a store is made
        store = self.open_store("search_store.jsonl", facts)
        if search.search_objective == "latency":
            self.latency_model = self.latency.fitted(
                {name: facts[name] for name in ("weights", "length_unit", "dtype")}
            )
        race = final = self.make_search(score, store, loaded)
        frontier = most_useful(race.run(), race.full, search.search_rescore)
        if scored_on is not self.questions:
            final = self.on_validation(frontier, race.settings)
            frontier = final.run()
        return self.results(race, final, frontier), race

    # ---- costs -----------------------------------------------------------------------------------------------------

    def macs(self, config: LengthConfig) -> int:
        return count_macs(self.config, config, self.args.data.max_seq_length)

    def cost(self, config: LengthConfig) -> float:
        """What the search minimises: MACs, or milliseconds a window."""
        return self.latency_model(self.latency.in_unit(config)) if self.latency_model else self.macs(config)

    # ---- stores ----------------------------------------------------------------------------------------------------

    def open_store(self, name: str, facts: dict) -> CandidateStore | SharedStore:
        """The shared store, or a file in the output folder, which the first process makes or repairs and alone writes."""
        run = self.args.run
        if self.args.search.search_storage:
            return SharedStore(self.args.search.search_storage, facts)
        with run.main_process_first(desc="store"):
            return CandidateStore(Path(run.output_dir, name), facts, readonly=run.process_index > 0)

    def load_candidates(self, facts: dict) -> list[Candidate]:
        """The candidates of --load_store_file; RunError if they cannot be read or were scored with other `facts`."""
        path = self.args.search.load_store_file
        try:
            layers, length = self.config.num_hidden_layers, self.args.data.max_seq_length
            return load_store(path, layers, length, facts) if path else []
        except SearchError as error:
            raise RunError(f"--load_store_file {error}") from error

    # ---- searches --------------------------------------------------------------------------------------------------

    def settings(self, questions: int) -> SearchSettings:
        search = self.args.search
        return SearchSettings(
            num_layers=self.config.num_hidden_layers,
            max_length=self.args.data.max_seq_length,
            iterations=search.evo_iter,
            population_size=search.population_size,
            mutation_size=search.mutation_size,
            mutation_prob=search.mutation_prob,
            crossover_size=search.crossover_size,
            floor_ratio=search.search_floor_ratio,
            min_cost=search.search_min_macs,
            max_cost=search.search_max_macs,
            max_candidates=search.search_max_candidates,
            looks=growing_looks(questions) if search.search_protocol == "racing" else (questions,),
            confirmed=search.search_rescore,
        )

    def make_search(self, score: QuestionScorer, store, loaded: list[Candidate]) -> RacingSearch:
        """The search by --search_strategy; every worker of a shared one draws other length configs."""
        strategy, seed, worker = self.args.search.search_strategy, self.args.run.seed, store.worker
        settings, common = self.settings(len(score)), {"store": store, "loaded": loaded, "progress": not self.quiet}
        if strategy == "evolution":
            rng = random.Random(f"{seed}-{worker}" if worker else seed)
            return EvolutionarySearch(self.cost, score, rng, settings, **common)
        shared = (store.storage, store.name) if self.args.search.search_storage else ()
        study = make_study(strategy, seed + worker, settings.population_size, *shared)
        return OptunaSearch(self.cost, score, study, settings, **common)

    def on_validation(self, frontier: list[Candidate], settings: SearchSettings) -> RacingSearch:
        """The full model and the frontier, to be scored on all validation questions."""
        logger.info("scoring %d length configs of the frontier on the validation questions", len(frontier))
        score = QuestionScorer(self.trainer, self.args, self.questions, self.args.run.seed)
        store = self.open_store("frontier_store.jsonl", scoring_facts(self.args, self.trainer.model, score))
        common = {"store": store, "progress": not self.quiet}
        return GivenConfigs(self.cost, score, frontier, settings.all_at_once(len(score)), **common)

    # ---- results ---------------------------------------------------------------------------------------------------

    def results(self, race: RacingSearch, final: RacingSearch, frontier: list[Candidate]) -> dict:
        """search_results.json: every candidate, the frontier, the full model, and the choice among them."""
        args, configs = self.args, [candidate.length_config for candidate in (*frontier, race.full)]
        latencies = self.latency.measure(list(dict.fromkeys(configs))) if self.latency else {}
        *rows, full = [self.row(race, final, config, latencies.get(config)) for config in configs]
        return {
            "settings": asdict(race.settings),
            "seed": args.run.seed,
            "model": args.model.model_name_or_path,
            "max_seq_length": args.data.max_seq_length,
            "length_unit": args.length_adaptive.length_unit,
            "objective": args.search.search_objective,
            "strategy": args.search.search_strategy,
            "search_split": args.search.search_split,
            "candidate_questions": race.settings.looks[-1],
            "frontier_questions": final.settings.looks[-1],
            "questions_evaluated": race.questions,
            "search_rescore": args.search.search_rescore,
            "latency_model": self.latency_model and self.latency_model.record(),
            "full": full,
            "frontier": rows,
            "chosen": self.chosen(rows, full),
            "hypervolume": {"confirmed": race.hypervolume(race.settings.looks[-1]), "estimated": race.hypervolume()},
            "progress": race.history,
            "candidates": [self.record(candidate) for candidate in race.candidates],
        }

    def record(self, candidate: Candidate) -> dict:
        """A candidate with its MACs, whatever the search has minimised."""
        record = candidate.record()
        latency = {"latency_ms": record["cost"]} if self.latency_model else {}
        return record | {"macs": self.macs(candidate.length_config)} | latency

    def row(self, race: RacingSearch, final: RacingSearch, config: LengthConfig, latency_ms: float | None) -> dict:
        on_slice = {"slice_scores": race.by_question(config), "slice_full_scores": race.by_question(race.full_config)}
        return frontier_row(
            final.candidate(config),
            final.full,
            scores=final.by_question(config),
            full_scores=final.by_question(final.full_config),
            latency_ms=latency_ms,
            macs=self.macs(config),
            full_macs=self.macs(race.full_config),
            **on_slice,
        )

    def chosen(self, rows: list[dict], full: dict) -> dict | None:
        """The row that the budget on the command line chooses; None without a budget, or if nothing meets it."""
        if not budget(self.args):
            return None
        try:
            choice = choose_row(rows, full, *budget(self.args), self.args.search.search_objective)
        except SearchError as error:  # hours of search are not thrown away for a target that it did not reach
            logger.warning("no length config is chosen: %s", error)
            return None
        logger.info("%s", choice.reason)
        return choice.row
