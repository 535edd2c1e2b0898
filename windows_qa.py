"""Questions and passages as windows of tokens, for training, evaluation and serving alike; needs `tokenizers` alone."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from tokenizers import Encoding, Tokenizer

from errors import DataError

# What a model may be fed, by the name of its argument: the attribute of an encoding.
INPUTS = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}


def max_positions(config) -> int:
    """The longest sequence, in tokens, that the model has positions for."""
    return config.max_position_embeddings - (config.pad_token_id + 1 if config.model_type == "roberta" else 0)


def tokenize_windows(
    examples: dict[str, list], tokenizer: Tokenizer, max_seq_length: int, doc_stride: int
) -> list[tuple[int, Encoding]]:
    """Windows `[CLS] question [SEP] passage [SEP]`, a long passage in several, each with its example's number.

    Neighbouring windows share `doc_stride` passage tokens. Example: with max_seq_length 12, a question of 3 tokens and
    3 special ones, 6 places are left; a passage of tokens 0..9 and doc_stride 2 then gives the windows 0..5 and 4..9.
    DataError on a question too long for that and on a context without a token.
    """
    questions = [question.lstrip() for question in examples["question"]]  # some begin with lots of blanks
    check_questions(examples["id"], questions, tokenizer, max_seq_length, doc_stride)
    tokenizer.enable_truncation(max_seq_length, stride=doc_stride, strategy="only_second")
    found = tokenizer.encode_batch(list(zip(questions, examples["context"])))
    windows = [(number, window) for number, first in enumerate(found) for window in (first, *first.overflowing)]
    for number, window in windows:
        if 1 not in window.sequence_ids:  # blanks, zero-width characters: it depends on the tokenizer
            name = examples["id"][number]
            raise DataError(
                f"question {name!r} has a context without a token; add the passage or remove the question."
            )
    return windows


def check_questions(
    ids: list[str], questions: list[str], tokenizer: Tokenizer, max_seq_length: int, doc_stride: int
) -> None:
    """DataError if a question leaves its passage no more than `doc_stride` tokens of a window."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    room = max_seq_length - tokenizer.num_special_tokens_to_add(True)
    for name, tokens in zip(ids, tokenizer.encode_batch(questions, add_special_tokens=False)):
        if len(tokens) + doc_stride >= room:
            raise DataError(
                f"question {name!r} has {len(tokens)} tokens, which leaves its passage {max(room - len(tokens), 0)} "
                f"of --max_seq_length {max_seq_length}, not more than --doc_stride {doc_stride}: raise "
                "--max_seq_length, lower --doc_stride or shorten the question."
            )


def context_tokens(window: Encoding) -> tuple[int, int]:
    """First passage token of a window, and the one after its last."""
    sequence_ids = window.sequence_ids
    first = sequence_ids.index(1)
    return first, first + sequence_ids.count(1)


def model_inputs(windows: list[tuple[int, Encoding]], input_names: Iterable[str]) -> dict[str, list[list[int]]]:
    """What the model is fed, a row a window, and the windows' lengths in tokens."""
    inputs = {name: [getattr(window, INPUTS[name]) for _, window in windows] for name in input_names}
    return inputs | {"length": [len(window) for _, window in windows]}


def prepare_train_features(
    examples: dict[str, list], tokenizer: Tokenizer, input_names: Iterable[str], max_seq_length: int, doc_stride: int
) -> dict[str, list]:
    """Windows with `start_positions` and `end_positions`: the answer's first and last token.

    Both are 0, the position of [CLS], in a window that does not hold the whole first answer, or of a question without one.
    """
    windows = tokenize_windows(examples, tokenizer, max_seq_length, doc_stride)
    positions = []
    for number, window in windows:
        answers, span = examples["answers"][number], None
        if answers["text"]:
            start = answers["answer_start"][0]
            span = answer_tokens(window, start, start + len(answers["text"][0]))
        positions.append(span or (0, 0))
    starts, ends = map(list, zip(*positions))
    return model_inputs(windows, input_names) | {"start_positions": starts, "end_positions": ends}


def answer_tokens(window: Encoding, start: int, end: int) -> tuple[int, int] | None:
    """First and last token of the context's characters [start, end); None if they are not all in the window."""
    first, stop = context_tokens(window)
    starts, ends = zip(*window.offsets[first:stop])
    if start < starts[0] or end > ends[-1]:
        return None
    span = first + bisect_right(ends, start), first + bisect_left(starts, end) - 1
    return span if span[0] <= span[1] else None


def prepare_validation_features(
    examples: dict[str, list], tokenizer: Tokenizer, input_names: Iterable[str], max_seq_length: int, doc_stride: int
) -> dict[str, list]:
    """Windows with `example_id` and `offset_mapping`: each token's characters [start, end) in the context.

    Tokens outside the context, on which no answer may start or end, have (-1, -1).
    """
    windows = tokenize_windows(examples, tokenizer, max_seq_length, doc_stride)
    names = [examples["id"][number] for number, _ in windows]
    offsets = [context_offsets(window) for _, window in windows]
    return model_inputs(windows, input_names) | {"example_id": names, "offset_mapping": offsets}


def context_offsets(window: Encoding) -> list[tuple[int, int]]:
    (first, stop), outside = context_tokens(window), (-1, -1)
    return [outside] * first + window.offsets[first:stop] + [outside] * (len(window) - stop)
