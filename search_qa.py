"""The search stage: length configs scored by the reader at hand, their frontier, and the choice of one."""

import hashlib
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from arguments import Arguments
from candidate_store import CandidateStore, load_store
from candidates import Candidate, SearchError, choose, pareto_frontier, spread, write_frontier_csv
from errors import RunError
from evolution import EvolutionarySearch, SearchSettings
from int8_engine import Int8Model
from length_config import count_macs, in_unit
from loading import QuestionSet
from plots import plot_pareto
from trainer_qa import QuestionAnsweringTrainer

logger = logging.getLogger(__name__)


def fingerprint(model: PreTrainedModel) -> str:
    """Hex digest of the weights: scores of another model must not be taken for this one's."""
    if isinstance(model, Int8Model):
        return model.recipe["sha256"][:16]
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def scoring_dtype(run: TrainingArguments) -> str:
    """The flag that lowers the precision of an evaluation; the weights themselves are float32 in a search."""
    return next((flag for flag in ("bf16", "fp16") if getattr(run, flag)), "float32")


def scoring_facts(args: Arguments, model: PreTrainedModel, questions: QuestionSet) -> dict:
    """What a score depends on, besides the length config."""
    texts = json.dumps([questions.examples["id"][:], questions.examples["question"][:]])
    return {
        "weights": fingerprint(model),
        "questions": hashlib.sha256(texts.encode()).hexdigest()[:16],
        "max_seq_length": args.data.max_seq_length,
        "doc_stride": args.data.doc_stride,
        "length_unit": args.length_adaptive.length_unit,
        "dtype": model.dtype if args.quantization.int8 else scoring_dtype(args.run),
        **asdict(questions.settings),
    }


def open_store(trainer: QuestionAnsweringTrainer, name: str, facts: dict) -> CandidateStore:
    """The store in the output folder; the first process repairs or makes it, and alone writes to it."""
    with trainer.args.main_process_first(desc="store"):
        return CandidateStore(Path(trainer.args.output_dir, name), facts, readonly=trainer.args.process_index > 0)


def load_candidates(args: Arguments, num_layers: int, facts: dict) -> list[Candidate]:
    """The candidates of --load_store_file; RunError if they cannot be read or were scored with other `facts`."""
    if not args.search.load_store_file:
        return []
    try:
        return load_store(args.search.load_store_file, num_layers, args.data.max_seq_length, facts)
    except SearchError as error:
        raise RunError(f"--load_store_file {error}") from error


def f1_score(trainer: QuestionAnsweringTrainer, questions: QuestionSet, length_config: tuple[int, ...]) -> float:
    answers = questions.extractor(trainer.predict_logits(questions.features, length_config, "Search"), nbest=False)
    return questions.score(answers)["f1"]


def rescore(
    trainer: QuestionAnsweringTrainer,
    args: Arguments,
    candidates: Sequence[Candidate],
    questions: QuestionSet,
    store: CandidateStore,
) -> list[Candidate]:
    """The candidates with their F1 on `questions`; what `store` knows is not evaluated again."""
    rescored, quiet = [], trainer.args.disable_tqdm or trainer.args.process_index > 0
    for old in tqdm(candidates, desc="Re-scoring the frontier", unit="config", disable=quiet):
        score = store.known.get(old.length_config)
        new = score is None
        lengths = in_unit(args.length_adaptive.length_unit, old.length_config, args.data.max_seq_length)
        score = f1_score(trainer, questions, lengths) if new else score
        rescored.append(Candidate(old.length_config, old.cost, score, old.origin, old.parents))
        if new:
            store.append(rescored[-1])
    return rescored


def search_settings(args: Arguments, num_layers: int) -> SearchSettings:
    search = args.search
    return SearchSettings(
        num_layers=num_layers,
        max_length=args.data.max_seq_length,
        iterations=search.evo_iter,
        population_size=search.population_size,
        mutation_size=search.mutation_size,
        mutation_prob=search.mutation_prob,
        crossover_size=search.crossover_size,
        floor_ratio=search.search_floor_ratio,
        min_cost=search.search_min_macs,
        max_cost=search.search_max_macs,
        max_candidates=search.search_max_candidates,
    )


def search(trainer: QuestionAnsweringTrainer, args: Arguments, scored_on: QuestionSet, questions: QuestionSet) -> dict:
    """Search length configs by their F1 on `scored_on`, and score the frontier on the validation `questions`.

    Writes pareto.csv and pareto.png, returns what search_results.json holds.
    """
    for split, scored in ((args.search.search_split, scored_on), ("validation", questions)):
        if not scored.has_gold:
            raise SearchError(f"--do_search needs {split} questions with answers to score by.")
    config, unit = trainer.model.config, args.length_adaptive.length_unit
    progress_bar = trainer.pop_callback(ProgressCallback)  # one bar for the search, not one a candidate
    facts = scoring_facts(args, trainer.model, scored_on)
    loaded = load_candidates(args, config.num_hidden_layers, facts)  # a misfit is said before a store is made
    store = open_store(trainer, "search_store.jsonl", facts)
    evolution = EvolutionarySearch(
        cost=lambda lengths: count_macs(config, lengths, args.data.max_seq_length),
        score=lambda lengths: f1_score(trainer, scored_on, in_unit(unit, lengths, args.data.max_seq_length)),
        rng=random.Random(args.run.seed),
        settings=search_settings(args, config.num_hidden_layers),
        store=store,
        loaded=loaded,
        progress=args.run.process_index == 0 and not args.run.disable_tqdm,
    )
    frontier = evolution.run()
    full, final = evolution.full, frontier
    if scored_on is not questions:
        store = open_store(trainer, "frontier_store.jsonl", scoring_facts(args, trainer.model, questions))
        members = spread(frontier, args.search.search_rescore or len(frontier))
        logger.info(
            "re-scoring %d of the frontier's %d configs on the validation questions", len(members), len(frontier)
        )
        full, *rescored = rescore(trainer, args, [evolution.full, *members], questions, store)
        max_macs = args.search.search_max_macs  # the full model may be above it; on the sample it may have been beaten
        final = pareto_frontier([full, *rescored] if max_macs is None or full.cost <= max_macs else rescored)
    if progress_bar is not None:
        trainer.add_callback(progress_bar)
    results = search_results(args, evolution, final, full, len(scored_on.examples), len(questions.examples))
    if trainer.is_world_process_zero():
        write_pictures(args, evolution, final, full, results)
    logger.info("%s", frontier_table(final, full))
    return results


def search_results(
    args: Arguments,
    evolution: EvolutionarySearch,
    frontier: list[Candidate],
    full: Candidate,
    scored_on: int,
    final_on: int,
) -> dict:
    """search_results.json: every candidate, the frontier (F1 on all questions), the full model, the chosen config."""
    try:
        chosen = choose(frontier, full, **budget(args)) if budget(args) else None
    except SearchError as error:  # hours of search are not thrown away for a target that it did not reach
        logger.warning("no length config is chosen: %s", error)
        chosen = None
    return {
        "settings": asdict(evolution.settings),
        "seed": args.run.seed,
        "model": args.model.model_name_or_path,
        "max_seq_length": args.data.max_seq_length,
        "length_unit": args.length_adaptive.length_unit,
        "search_split": args.search.search_split,
        "candidate_questions": scored_on,
        "frontier_questions": final_on,
        "search_rescore": args.search.search_rescore,
        "full": full.record(),
        "frontier": [candidate.record() for candidate in frontier],
        "chosen": chosen.record() if chosen else None,
        "candidates": [candidate.record() for candidate in evolution.candidates],
    }


def write_pictures(args: Arguments, evolution: EvolutionarySearch, frontier, full: Candidate, results: dict) -> None:
    folder, chosen, sampled = Path(args.run.output_dir), results["chosen"], results["candidate_questions"]
    # Other questions are easier or harder: what compares is the distance from the full model.
    shift, split = full.score - evolution.full.score, results["search_split"]
    elsewhere = split == "train" or sampled < results["frontier_questions"]
    candidates = [replace(candidate, score=candidate.score + shift) for candidate in evolution.candidates]
    write_frontier_csv(folder / "pareto.csv", frontier, full)
    plot_pareto(
        folder / "pareto.png",
        frontier=frontier,
        candidates=candidates,
        full=full,
        constant_ratio=[c for c in candidates if c.origin in ("full", "initial")],
        chosen=read_candidate(chosen) if chosen else None,
        candidates_on=f" (on {sampled} {split} questions, {shift:+.2f})" if elsewhere else "",
    )


def frontier_table(frontier: Sequence[Candidate], full: Candidate) -> str:
    """The frontier as lines of text: config, MACs, ratio, F1, points below the full model."""
    lines = ["frontier:", f"{'length config':<40} {'MACs':>10} {'ratio':>6} {'F1':>6} {'drop':>6}"]
    for c in frontier:
        ratio, drop = c.cost / full.cost, full.score - c.score
        lines.append(f"{c.length_config!s:<40} {c.cost:>10.4g} {ratio:>6.3f} {c.score:>6.2f} {drop:>6.2f}")
    return "\n".join(lines)


# ---- choosing ------------------------------------------------------------------------------------------------------


def budget(args: Arguments) -> dict[str, float]:
    """The budget on the command line as arguments of `choose`; empty if none is given."""
    adaptive = args.length_adaptive
    given = {
        "max_score_drop": adaptive.max_f1_drop,
        "target_cost": adaptive.target_macs,
        "target_cost_ratio": adaptive.target_macs_ratio,
    }
    return {name: value for name, value in given.items() if value is not None}


def read_candidate(record: dict) -> Candidate:
    return Candidate(tuple(record["length_config"]), record["macs"], record["score"], record["origin"])


def choose_from(args: Arguments) -> tuple[float, ...]:
    """The length config of a finished search's frontier that meets the budget on the command line."""
    path = Path(args.length_adaptive.length_config_from, "search_results.json")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        frontier, full = [read_candidate(row) for row in results["frontier"]], read_candidate(results["full"])
        made_for, length, unit = results["max_seq_length"], args.data.max_seq_length, results.get("length_unit")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SearchError(f"no results of a finished search there ({error}).") from None
    if made_for != length:
        raise SearchError(
            f"its length configs were made for --max_seq_length {made_for}, not {length}; give that, or search again."
        )
    chosen = choose(frontier, full, **budget(args))
    logger.info(
        "chose %s: %.3f of the full MACs, F1 %.2f against %.2f at full length",
        *(chosen.length_config, chosen.cost / full.cost, chosen.score, full.score),
    )
    return in_unit(unit, chosen.length_config, length)
