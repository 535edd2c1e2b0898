"""Whole articles of the training questions: training leaves them out, the search scores its candidates on them."""

import hashlib
import logging
from collections import Counter

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel

from arguments import Arguments
from errors import RunError

logger = logging.getLogger(__name__)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def article_names(examples: Dataset) -> list[str]:
    """The article of every question: its title, or its passage where there is no title."""
    return [title or context for title, context in zip(examples["title"][:], examples["context"][:])]


def article_digests(examples: Dataset) -> set[str]:
    """The articles of the questions, as config.json keeps them."""
    return {digest(name) for name in article_names(examples)}


def hold_out(examples: Dataset, samples: int, seed: int) -> tuple[Dataset, Dataset]:
    """Whole articles with at least `samples` questions together (all there are if fewer), and the other questions.

    The articles come in an order that `seed` and their names alone decide: the same ones whatever the order of the
    questions, and those of fewer `samples` are among those of more.
    """
    names = article_names(examples)
    sizes, chosen, size = Counter(names), set(), 0
    for name in sorted(sizes, key=lambda name: (digest(f"{seed} {name}"), name)):
        if size >= samples:
            break
        chosen.add(name)
        size += sizes[name]
    rows = {wanted: [row for row, name in enumerate(names) if (name in chosen) == wanted] for wanted in (True, False)}
    return examples.select(rows[True]), examples.select(rows[False])


def split_training(args: Arguments, model: PreTrainedModel, examples: Dataset) -> dict[str, Dataset]:
    """What the stages take of the training questions: "train" without --hold_out_samples, "search" for the candidates.

    `model` gets the record of what its training leaves out; a search on what it may have been trained on is warned of.
    """
    data, chosen = args.data, {}
    if args.trains:
        held, rest = hold_out(examples, data.hold_out_samples, data.hold_out_seed)
        if not len(rest):
            raise RunError(
                f"--hold_out_samples {data.hold_out_samples} leaves none of the {len(examples)} questions to train on: "
                "lower it."
            )
        record(args, model, held)
        chosen["train"] = rest if len(held) else examples
    elif args.calibrates:
        chosen["train"] = examples
    if args.searches_training:
        chosen["search"], _ = hold_out(examples, args.search.search_samples, data.hold_out_seed)
        if args.run.process_index == 0:
            warn_if_seen(model.config, chosen["search"])
    return chosen


# ---- what a model has seen -----------------------------------------------------------------------------------------


def recorded_articles(config: PretrainedConfig) -> set[str]:
    """The articles that no training of the weights has seen, as far as the configuration says."""
    held_out = getattr(config, "held_out", None)
    articles = held_out.get("articles") if isinstance(held_out, dict) else None
    return set(map(str, articles)) if isinstance(articles, list) else set()


def record(args: Arguments, model: PreTrainedModel, held: Dataset) -> None:
    """Keep in `config.held_out` which articles of `held` neither this training nor an earlier one of the model sees."""
    articles = article_digests(held)
    unseen = articles if model.has_new_head else articles & recorded_articles(model.config)
    if unseen < articles and args.run.process_index == 0:
        logger.warning(
            "--model_name_or_path %s answers questions already and does not say that it was trained without the "
            "articles that --hold_out_samples %d leaves out: a search will warn of it. Train it with the same flag too.",
            *(args.model.model_name_or_path, args.data.hold_out_samples),
        )
    if unseen:
        made = {"samples": args.data.hold_out_samples, "seed": args.data.hold_out_seed}
        model.config.held_out = made | {"articles": sorted(unseen)}
    elif getattr(model.config, "held_out", None):
        model.config.held_out = None  # they are trained on now


def warn_if_seen(config: PretrainedConfig, examples: Dataset) -> None:
    """One line if the configuration does not say that training left out all of these questions."""
    known = recorded_articles(config)
    if article_digests(examples) <= known:
        return
    said = "its config.json names no held-out articles"
    if known:
        said = "it left out only --hold_out_samples {samples} --hold_out_seed {seed}".format_map(
            {"samples": "?", "seed": "?"} | config.held_out
        )
    logger.warning(
        "the model may have been trained on the %d training questions that score the candidates (%s): F1 on them "
        "flatters, go by the F1 on validation questions. Training with --hold_out_samples %d would leave them out.",
        *(len(examples), said, len(examples)),
    )
