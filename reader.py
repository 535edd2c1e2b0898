"""Ask a trained reader from Python.

from reader import Reader
reader = Reader.from_pretrained("output/dynamic")
print(reader("Who wrote it?", "The report was written by Ada Lovelace.", length_config=(200, 150, 120, 90, 60, 30)))
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from features_qa import make_collator, prepare_validation_features
from int8_backends import open_int8
from loading import max_positions
from modeling_la_auto import MODEL_CLASSES
from quantization import RECIPE_FILE
from results_qa import RunError
from utils_qa import AnswerSettings, extract_answers


@dataclass(frozen=True)
class Answer:
    """An answer with its probability among the candidates and its characters [start, end) of the context."""

    text: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Reader:
    """A model with its tokenizer, answering one question at a time."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int = 384
    doc_stride: int = 128

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs) -> "Reader":
        """Load a folder (of an INT8 model too) or hub id; keyword arguments go to the model's from_pretrained."""
        config = AutoConfig.from_pretrained(folder)
        if config.model_type not in MODEL_CLASSES:
            raise RunError(f"{folder} is of type {config.model_type}; supported are {' and '.join(MODEL_CLASSES)}.")
        if Path(folder, RECIPE_FILE).is_file():
            model = open_int8(folder, **kwargs)
        else:
            model = MODEL_CLASSES[config.model_type].from_pretrained(folder, **kwargs).eval()
        length = min(getattr(config, "length_config_max_length", None) or 384, max_positions(config))
        return cls(model, AutoTokenizer.from_pretrained(folder), length, min(128, length // 3))

    def __call__(self, question: str, context: str, length_config: tuple[int, ...] | None = None) -> Answer:
        """The best answer; `length_config` None means the one stored in the model, or else full length.

        DataError if the question is too long for a window or the context holds no token.
        """
        example = {"id": ["0"], "question": [question], "context": [context]}
        columns = prepare_validation_features(example, self.tokenizer, self.max_seq_length, self.doc_stride)
        features = Dataset.from_dict(columns)
        inputs = features.select_columns([name for name in self.tokenizer.model_input_names]).to_list()
        batch = make_collator(self.tokenizer, False, self.max_seq_length)(inputs).to(self.model.device)
        with torch.inference_mode():
            outputs = self.model(**batch, length_config=length_config)
        logits = (outputs.start_logits.float().cpu().numpy(), outputs.end_logits.float().cpu().numpy())
        answers = extract_answers(Dataset.from_dict(example), features, logits, AnswerSettings())
        best = answers.nbest["0"][0]
        return Answer(best["text"], best["probability"], best["start"], best["end"])
