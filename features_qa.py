"""The windows of a whole dataset, made once and kept in a cache, and the padding of a batch of them."""

import json
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

import windows_qa
from data_qa import cache_key
from errors import DataError


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
    fast = {"tokenizer": tokenizer.backend_tokenizer, "input_names": tokenizer.model_input_names}
    code = Path(windows_qa.__file__).read_bytes()
    try:
        features = dataset.map(
            windows_qa.prepare_train_features if training else windows_qa.prepare_validation_features,
            batched=True,
            fn_kwargs=fast | lengths,
            remove_columns=dataset.column_names,
            features=feature_types(tokenizer, training),
            num_proc=num_proc,
            load_from_cache_file=not overwrite_cache,
            # A tokenizer's pickle, the default key, changes with every call of the tokenizer.
            new_fingerprint=cache_key(
                *(__file__, code, dataset._fingerprint, tokenizer_state(tokenizer), lengths, training)
            ),
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
