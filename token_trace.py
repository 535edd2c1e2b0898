"""Which tokens of one question and passage each layer keeps."""

from dataclasses import dataclass

import torch

from length_drop import LengthAdaptiveLayer
from reader import Reader
from utils_qa import AnswerSettings, extract_answers
from windows_qa import context_offsets, model_inputs, tokenize_windows


@dataclass(frozen=True)
class Trace:
    """The window of a passage that holds the answer.

    `pieces` are its tokens as (text before it, text of it) so that together they read as question and passage do;
    `kept` the positions, ascending, that leave each layer; `answer` those of the answer; `score` its probability.
    """

    pieces: list[tuple[str, str]]
    passage_begins: int
    kept: list[list[int]]
    answer: list[int]
    text: str
    score: float
    batch: dict[str, torch.Tensor]


def trace(reader: Reader, question: str, context: str, length_config: tuple[float, ...]) -> Trace:
    """Answer `question` from `context` at `length_config`, and follow the tokens; the model must be a float one."""
    example = {"id": ["0"], "question": [question.lstrip()], "context": [context]}
    windows = tokenize_windows(example, reader.tokenizer, reader.max_seq_length, reader.doc_stride)
    best = None
    for number, encoding in windows:
        batch = reader.batch(model_inputs([(number, encoding)], reader.input_names))
        kept, outputs = kept_positions(reader.model, batch, length_config)
        features = {"example_id": ["0"], "offset_mapping": [context_offsets(encoding)], "length": [len(encoding)]}
        logits = (outputs.start_logits.float().cpu().numpy(), outputs.end_logits.float().cpu().numpy())
        answer = extract_answers(example, features, logits, AnswerSettings()).nbest["0"][0]
        if best is None or answer["start_logit"] + answer["end_logit"] > best[0]["start_logit"] + best[0]["end_logit"]:
            best = answer, encoding, kept, batch
    answer, encoding, kept, batch = best
    begin, end = answer["start"], answer["end"]
    spans = enumerate(context_offsets(encoding))
    inside = [index for index, (first, stop) in spans if first >= 0 and first < end and stop > begin]
    starts = encoding.sequence_ids.index(1)
    return Trace(
        pieces(encoding, question.lstrip(), context),
        starts,
        kept,
        inside,
        answer["text"],
        answer["probability"],
        batch,
    )


def kept_positions(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], length_config
) -> tuple[list[list[int]], object]:
    """Positions in a batch of one window that leave each layer, ascending, and the model's outputs."""
    layers, states = [module for module in model.modules() if isinstance(module, LengthAdaptiveLayer)], []
    hooks = [layer.register_forward_hook(lambda layer, inputs, output: states.append(output)) for layer in layers]
    try:
        with torch.inference_mode():
            outputs = model(**batch, length_config=length_config)
    finally:
        for hook in hooks:
            hook.remove()
    kept, positions = [], torch.arange(batch["input_ids"].shape[1])
    for state in states:
        if isinstance(state, tuple) and len(state) == 3:  # a layer that drops says what it keeps
            _, chosen, alive = state
            positions = positions[chosen[0].cpu() if alive is None else chosen[0][alive[0]].cpu()]
        kept.append(positions.tolist())
    return kept, outputs


def pieces(encoding, question: str, context: str) -> list[tuple[str, str]]:
    """Text before each token of a window, and its own."""
    found, last, special = [], {0: 0, 1: None}, False
    for token, sequence, (first, stop) in zip(encoding.tokens, encoding.sequence_ids, encoding.offsets):
        if sequence is None:
            found.append((" ", token))
            special = True
            continue
        text = (question, context)[sequence]
        before = text[first if last[sequence] is None else last[sequence] : first]
        found.append((" " if special else before, text[first:stop]))
        last[sequence], special = stop, False
    return found
