"""Ask a trained reader from Python.

from reader import Reader
reader = Reader.from_pretrained("output/dynamic")
print(reader("Who wrote it?", "The report was written by Ada Lovelace.", length_config=(200, 150, 120, 90, 60, 30)))

An INT8 folder is opened without transformers and datasets, which would take most of the memory and of the time.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence

from errors import RunError
from int8_backends import open_int8
from int8_folder import RECIPE_FILE
from utils_qa import Answers, AnswerSettings, extract_answers
from windows_qa import max_positions, prepare_validation_features

BATCH = 32  # windows


@dataclass(frozen=True)
class Answer:
    """An answer with its probability among the candidates and its characters [start, end) of the context."""

    text: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Reader:
    """A model with its tokenizer, answering one question at a time; `input_names` are those of the model's arguments."""

    model: torch.nn.Module
    tokenizer: Tokenizer
    input_names: tuple[str, ...]
    max_seq_length: int = 384
    doc_stride: int = 128

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs) -> "Reader":
        """Load a folder (of an INT8 model too) or hub id; keyword arguments go to the model's from_pretrained."""
        parts = (open_int8_reader if Path(folder, RECIPE_FILE).is_file() else open_float_reader)(folder, **kwargs)
        config = parts[0].config
        length = min(getattr(config, "length_config_max_length", None) or 384, max_positions(config))
        return cls(*parts, length, min(128, length // 3))

    def __call__(self, question: str, context: str, length_config: tuple[float, ...] | None = None) -> Answer:
        """The best answer at a length config in tokens or fractions; None means the model's own, or else full length.

        DataError if the question is too long for a window or the context holds no token.
        """
        best = self.answers(question, context, length_config).nbest["0"][0]
        return Answer(best["text"], best["probability"], best["start"], best["end"])

    def answers(
        self,
        question: str,
        context: str,
        length_config: tuple[float, ...] | None = None,
        settings: AnswerSettings | None = None,
    ) -> Answers:
        """The same with the n best answers, of the question "0"; a passage of many windows takes several batches."""
        example = {"id": ["0"], "question": [question], "context": [context]}
        lengths = self.max_seq_length, self.doc_stride
        features = prepare_validation_features(example, self.tokenizer, self.input_names, *lengths)
        batch, parts = self.batch(features), []
        with torch.inference_mode():
            for first in range(0, len(features["input_ids"]), BATCH):
                part = {name: rows[first : first + BATCH] for name, rows in batch.items()}
                outputs = self.model(**part, length_config=length_config)
                parts.append((outputs.start_logits.float().cpu(), outputs.end_logits.float().cpu()))
        logits = tuple(torch.cat(part).numpy() for part in zip(*parts))
        return extract_answers(example, features, logits, settings or AnswerSettings())

    def batch(self, features: dict[str, list]) -> dict[str, torch.Tensor]:
        """What the model is fed, padded to the longest window."""
        padding = {"input_ids": self.model.config.pad_token_id}
        return {
            name: pad_sequence([torch.tensor(row) for row in features[name]], True, padding.get(name, 0)).to(
                self.model.device
            )
            for name in self.input_names
        }


def open_int8_reader(folder: str | Path, **kwargs) -> tuple[torch.nn.Module, Tokenizer, tuple[str, ...]]:
    """Model, tokenizer and names of the inputs of an INT8 folder."""
    model, path = open_int8(folder, **kwargs), Path(folder, "tokenizer.json")
    try:
        return model, Tokenizer.from_str(path.read_text(encoding="utf-8")), model.input_names
    except Exception as error:  # tokenizers raises no other kind
        raise RunError(f"{path} cannot be read ({error}): copy the tokenizer of the model there.") from error


def open_float_reader(folder: str | Path, **kwargs) -> tuple[torch.nn.Module, Tokenizer, tuple[str, ...]]:
    """The same of a float folder or hub id."""
    from transformers import AutoConfig, AutoTokenizer

    from modeling_la_auto import MODEL_CLASSES

    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in MODEL_CLASSES:
        raise RunError(f"{folder} is of type {config.model_type}; supported are {' and '.join(MODEL_CLASSES)}.")
    model = MODEL_CLASSES[config.model_type].from_pretrained(folder, **kwargs).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model, tokenizer.backend_tokenizer, tuple(tokenizer.model_input_names)
