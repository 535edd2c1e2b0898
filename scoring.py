"""F1 of single questions at a length config, and what such scores depend on."""

import hashlib
import json
from collections import defaultdict
from dataclasses import asdict

import numpy as np
from transformers import PreTrainedModel, TrainingArguments

from arguments import Arguments
from int8_engine import Int8Model
from length_config import in_unit
from loading import QuestionSet
from squad_metric import question_scores
from trainer_qa import QuestionAnsweringTrainer


class QuestionScorer:
    """Scores length configs in tokens by single `questions`, numbered in an order that `seed` shuffles."""

    def __init__(self, trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet, seed: int):
        self.trainer, self.questions = trainer, questions
        self.unit, self.max_length = args.length_adaptive.length_unit, args.data.max_seq_length
        self.order = np.random.default_rng(seed).permutation(len(questions.examples))
        self.ids, self.golds = questions.examples["id"][:], questions.examples["answers"][:]
        self.windows = defaultdict(list)  # rows of the features, by id
        for row, name in enumerate(questions.features["example_id"][:]):
            self.windows[name].append(row)

    def __len__(self) -> int:
        return len(self.order)

    def __call__(self, length_config: tuple[int, ...], numbers: np.ndarray) -> list[float]:
        """F1 (0-100) of each of the questions `numbers`."""
        rows = self.order[numbers]
        part = self.part(sorted(rows.tolist()))
        lengths = in_unit(self.unit, length_config, self.max_length)
        texts = part.extractor(self.trainer.predict_logits(part.features, lengths, "Search"), nbest=False).texts
        version_2 = self.questions.settings.version_2_with_negative
        return [100 * question_scores(texts[self.ids[row]], self.golds[row]["text"], version_2)[1] for row in rows]

    def part(self, rows: list[int]) -> QuestionSet:
        """Some of the questions, their features longest first like all of them."""
        if len(rows) == len(self):
            return self.questions
        windows = sorted(window for row in rows for window in self.windows[self.ids[row]])
        examples, features = self.questions.examples.select(rows), self.questions.features.select(windows)
        return QuestionSet(examples, features, self.questions.settings)


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


def scoring_facts(args: Arguments, model: PreTrainedModel, scorer: QuestionScorer) -> dict:
    """What a score depends on, besides the length config; the questions in the order in which they are asked."""
    examples = scorer.questions.examples
    texts = json.dumps([examples["id"][:], examples["question"][:], scorer.order.tolist()])
    return {
        "weights": fingerprint(model),
        "questions": hashlib.sha256(texts.encode()).hexdigest()[:16],
        "max_seq_length": args.data.max_seq_length,
        "doc_stride": args.data.doc_stride,
        "length_unit": args.length_adaptive.length_unit,
        "dtype": model.dtype if args.quantization.int8 else scoring_dtype(args.run),
        **asdict(scorer.questions.settings),
    }
