"""What a reader is fed: questions and passages as windows of tokens, not yet padded, and the padding of a batch."""

import json
from bisect import bisect_left, bisect_right

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import BatchEncoding, DataCollatorWithPadding, PreTrainedTokenizerBase

from data_qa import DataError, cache_key


def featurize(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int,
    doc_stride: int,
    training: bool,
    num_proc: int | None = None,
    overwrite_cache: bool = False,
) -> Dataset:
    """The windows of all questions: a row a window, not padded, with its `length` in tokens.

    Training windows carry `start_positions` and `end_positions`. The others carry `example_id` and `offset_mapping`
    and are sorted by length, longest first, so that batches hardly need padding. DataError on lengths that do not fit
    and on a context without a token.
    """
    check_lengths(tokenizer, max_seq_length, doc_stride)
    lengths = {"max_seq_length": max_seq_length, "doc_stride": doc_stride}
    try:
        features = dataset.map(
            prepare_train_features if training else prepare_validation_features,
            batched=True,
            fn_kwargs={"tokenizer": tokenizer} | lengths,
            remove_columns=dataset.column_names,
            features=feature_types(tokenizer, training),
            num_proc=num_proc,
            load_from_cache_file=not overwrite_cache,
            # A tokenizer's pickle, the default key, changes with every call of the tokenizer.
            new_fingerprint=cache_key(__file__, dataset._fingerprint, tokenizer_state(tokenizer), lengths, training),
            desc=f"Tokenizing {'training' if training else 'evaluation'} questions",
        )
    except DataError as error:
        source = dataset.info.description  # data_qa leaves the file or dataset there
        raise DataError(f"{source}: {error}" if source else str(error)) from None
    return features if training else features.select(np.argsort(-np.array(features["length"]), kind="stable"))


def check_lengths(tokenizer: PreTrainedTokenizerBase, max_seq_length: int, doc_stride: int) -> None:
    if not tokenizer.is_fast or tokenizer.padding_side != "right":
        raise DataError("the tokenizer must be a fast one that pads on the right, as those of BERT and RoBERTa are.")
    if max_seq_length > tokenizer.model_max_length:
        raise DataError(
            f"--max_seq_length {max_seq_length} is over the tokenizer's {tokenizer.model_max_length}: lower it."
        )
    room = max_seq_length - tokenizer.num_special_tokens_to_add(pair=True)
    if not 0 <= doc_stride < room:
        raise DataError(
            f"--doc_stride {doc_stride} must lie between 0 and {room - 1} with --max_seq_length {max_seq_length}."
        )


def feature_types(tokenizer: PreTrainedTokenizerBase, training: bool) -> Features:
    types = {name: List(Value("int32" if name == "input_ids" else "int8")) for name in tokenizer.model_input_names}
    if training:
        types |= {"start_positions": Value("int32"), "end_positions": Value("int32")}
    else:
        types |= {"example_id": Value("string"), "offset_mapping": List(List(Value("int32"), length=2))}
    return Features(types | {"length": Value("int32")})


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> tuple:
    """All of a tokenizer that decides on the features, without what its last call left behind."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    return type(tokenizer).__name__, tokenizer.model_input_names, tokenizer.special_tokens_map, json.dumps(backend)


def tokenize_windows(
    examples: dict[str, list], tokenizer: PreTrainedTokenizerBase, max_seq_length: int, doc_stride: int
) -> BatchEncoding:
    """Question and passage as `[CLS] question [SEP] passage [SEP]`, a long passage in several windows.

    Neighbouring windows share `doc_stride` passage tokens. Example: with max_seq_length 12, a question of 3 tokens and
    3 special ones, 6 places are left; a passage of tokens 0..9 and doc_stride 2 then gives the windows 0..5 and 4..9.
    """
    questions = [question.lstrip() for question in examples["question"]]  # some begin with lots of blanks
    room = max_seq_length - tokenizer.num_special_tokens_to_add(pair=True)
    for name, tokens in zip(examples["id"], tokenizer(questions, add_special_tokens=False)["input_ids"]):
        if len(tokens) + doc_stride >= room:
            raise DataError(
                f"question {name!r} has {len(tokens)} tokens, which leaves its passage {max(room - len(tokens), 0)} "
                f"of --max_seq_length {max_seq_length}, not more than --doc_stride {doc_stride}: raise "
                "--max_seq_length, lower --doc_stride or shorten the question."
            )
    windows = tokenizer(
        questions,
        examples["context"],
        truncation="only_second",
        max_length=max_seq_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    for row, sample in enumerate(windows["overflow_to_sample_mapping"]):
        if 1 not in windows.sequence_ids(row):  # blanks, zero-width characters: it depends on the tokenizer
            name = examples["id"][sample]
            raise DataError(
                f"question {name!r} has a context without a token; add the passage or remove the question."
            )
    return windows


def context_tokens(windows: BatchEncoding, row: int) -> tuple[int, int]:
    """First passage token of a window, and the one after its last."""
    sequence_ids = windows.sequence_ids(row)
    first = sequence_ids.index(1)
    return first, first + sequence_ids.count(1)


def prepare_train_features(
    examples: dict[str, list], tokenizer: PreTrainedTokenizerBase, max_seq_length: int, doc_stride: int
) -> dict[str, list]:
    """Windows with `start_positions` and `end_positions`: the answer's first and last token.

    Both are the [CLS] position in a window that does not hold the whole first answer, or of a question without one.
    """
    windows = tokenize_windows(examples, tokenizer, max_seq_length, doc_stride)
    positions = []
    for row, sample in enumerate(windows["overflow_to_sample_mapping"]):
        answers, span = examples["answers"][sample], None
        if answers["text"]:
            start = answers["answer_start"][0]
            span = answer_tokens(windows, row, start, start + len(answers["text"][0]))
        cls_index = windows["input_ids"][row].index(tokenizer.cls_token_id)
        positions.append(span or (cls_index, cls_index))
    features = {name: windows[name] for name in tokenizer.model_input_names}
    features["start_positions"], features["end_positions"] = map(list, zip(*positions))
    return features | {"length": [len(ids) for ids in windows["input_ids"]]}


def answer_tokens(windows: BatchEncoding, row: int, start: int, end: int) -> tuple[int, int] | None:
    """First and last token of the context's characters [start, end); None if they are not all in the window."""
    first, stop = context_tokens(windows, row)
    starts, ends = zip(*windows["offset_mapping"][row][first:stop])
    if start < starts[0] or end > ends[-1]:
        return None
    span = first + bisect_right(ends, start), first + bisect_left(starts, end) - 1
    return span if span[0] <= span[1] else None


def prepare_validation_features(
    examples: dict[str, list], tokenizer: PreTrainedTokenizerBase, max_seq_length: int, doc_stride: int
) -> dict[str, list]:
    """Windows with `example_id` and `offset_mapping`: each token's characters [start, end) in the context.

    Tokens outside the context, on which no answer may start or end, have (-1, -1).
    """
    windows = tokenize_windows(examples, tokenizer, max_seq_length, doc_stride)
    features = {name: windows[name] for name in tokenizer.model_input_names}
    features["example_id"] = [examples["id"][sample] for sample in windows["overflow_to_sample_mapping"]]
    features["offset_mapping"] = []
    for row, offsets in enumerate(windows["offset_mapping"]):
        first, stop = context_tokens(windows, row)
        outside = (-1, -1)
        features["offset_mapping"].append([outside] * first + offsets[first:stop] + [outside] * (len(offsets) - stop))
    return features | {"length": [len(ids) for ids in windows["input_ids"]]}


def make_collator(
    tokenizer: PreTrainedTokenizerBase, pad_to_max_length: bool, max_seq_length: int
) -> DataCollatorWithPadding:
    """Pads a batch of features to `max_seq_length` or to its longest member (to a multiple of 8, for the kernels)."""
    return DataCollatorWithPadding(
        tokenizer,
        padding="max_length" if pad_to_max_length else "longest",
        max_length=max_seq_length,
        pad_to_multiple_of=8 if max_seq_length % 8 == 0 else None,  # never beyond the model's positions
    )
