"""One question, answered on the terminal."""

import json
import logging
import sys
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from arguments import Arguments
from errors import DataError
from evaluate_qa import cost_facts, default_length_config
from loading import answer_settings
from reader import Reader

logger = logging.getLogger(__name__)


def ask(args: Arguments, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, length_config) -> None:
    """Print the answer to --question, or JSON with the n best; where it stands and what it cost goes to the log."""
    context, run = read_passage(args.data.context), args.run
    config = length_config or default_length_config(args, model.config)
    lengths = args.data.max_seq_length, args.data.doc_stride
    reader = Reader(
        model.to(run.device).eval(), tokenizer.backend_tokenizer, tuple(tokenizer.model_input_names), *lengths
    )
    half = torch.bfloat16 if run.bf16 else torch.float16
    with torch.autocast(run.device.type, half, enabled=(run.bf16 or run.fp16) and not args.quantization.int8):
        answers = reader.answers(args.data.question, context, config, answer_settings(args.data))
    text, nbest, facts = answers.texts["0"], answers.nbest["0"], cost_facts(args, model.config, config)
    best = next((row for row in nbest if row["text"] == text), None)
    if args.data.print_json:
        print(
            json.dumps(
                {"question": args.data.question, "answer": text} | facts | {"nbest": nbest},
                indent=2,
                ensure_ascii=False,
            )
        )
    else:
        print(text)
    where = (
        f"score {best['probability']:.3f}, characters {best['start']} to {best['end']}"
        if text
        else "it is not answered there"
    )
    logger.info("%s; %.3f of the MACs of full length, at %s", where, facts["macs_ratio"], config)


def read_passage(source: str) -> str:
    """The text of a file, or of standard input for "-"; DataError if there is none to be read."""
    try:
        text = (sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--context {source} cannot be read as UTF-8 text ({error}): give a text file, or -."
        ) from error
    if not text.strip():
        raise DataError(f"--context {source} is empty: give the passage that holds the answer.")
    return text
