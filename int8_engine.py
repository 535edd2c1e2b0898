"""What all engines of an INT8 folder share: the interface of a model, and the proof that it runs in INT8."""

import os
import re
import sys
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import torch
from torch import nn

from errors import RunError
from int8_folder import read_recipe
from int8_modules import Int8Linear
from length_config import check_stored_length_config, is_fractional, validate_length_config
from results_qa import engine_cache

# ---- the proof -----------------------------------------------------------------------------------------------------


@contextmanager
def captured(stream: TextIO) -> Iterator[list[str]]:
    """The lines that libraries write to the file below Python's `stream`, known when the context ends."""
    stream.flush()
    descriptor, lines = stream.fileno(), []
    kept = os.dup(descriptor)
    with tempfile.TemporaryFile("w+") as log:
        os.dup2(log.fileno(), descriptor)
        try:
            yield lines
        finally:
            stream.flush()
            os.dup2(kept, descriptor)
            os.close(kept)
            log.seek(0)
            lines += log.read().splitlines()


def executed_products(call: Callable[[], object]) -> list[str]:
    """What oneDNN says of every matrix product that `call` executes: implementation, types and shapes, a line each."""
    verbose = torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON)
    with captured(sys.__stdout__) as lines, verbose:
        call()
    return [line for line in lines if re.search(r",exec,.*,(matmul|inner_product),", line)]


def integer_products(lines: list[str]) -> Counter:
    """How many of the products multiplied int8 weights, by (in features, out features)."""
    shapes = [re.search(r",\d+x(\d+):\1x(\d+)", line) for line in lines if "wei:s8" in line]
    return Counter((int(shape[1]), int(shape[2])) for shape in shapes if shape)


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(in features, out features) of the quantized linear layers of `model`, by name."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Int8Linear)}
    return {name: (layer.weight.shape[1], layer.weight.shape[0]) for name, layer in layers.items()}


def check_integer_products(products: dict[str, tuple[int, int]], lines: list[str]) -> str:
    """RunError if a product, given by name and (in, out), did not run in INT8; else what implementation did them all."""
    executed, layers = integer_products(lines), {}
    for name, shape in products.items():
        layers.setdefault(shape, []).append(name)
    for shape, names in layers.items():
        if executed[shape] < len(names):
            raise RunError(
                f"only {executed[shape]} of {len(names)} products of {shape[0]} x {shape[1]} ran in INT8, others stayed "
                f"in float, among {', '.join(names)}: this build of PyTorch cannot be used for --int8."
            )
    return ", ".join(sorted({line.split(",")[6] for line in lines if "wei:s8" in line}))


# ---- the model -----------------------------------------------------------------------------------------------------


class SpanLogits(dict):
    """Start and end logits (B, S) as items, which a Trainer reads, and as attributes, like transformers' outputs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class Int8Model(nn.Module, ABC):
    """An INT8 folder as a model with the interface of the length-adaptive classes: forward(..., length_config=None).

    No float copy of the weights is held. `autocast` is the type of what is not INT8, float32 if None. What is compiled
    is kept in `cache_dir`, which should belong to the user: it is code. `config` has what the recipe says, as attributes.
    """

    backend: str
    device = torch.device("cpu")

    def __init__(self, folder: str | Path, cache_dir: str | Path | None = None, autocast: torch.dtype | None = None):
        super().__init__()
        self.recipe = read_recipe(folder)
        self.config = SimpleNamespace(**self.recipe["config"])
        check_stored_length_config(self.config)
        self.folder, self.autocast = Path(folder), autocast
        self.cache_dir = engine_cache(cache_dir)

    @classmethod
    def require(cls) -> None:
        """RunError if folders cannot be made ready on this machine."""

    @abstractmethod
    def prepare(self, length_config: tuple[int, ...] | None) -> None:
        """Make ready for `length_config`, and prove once that every linear layer runs in INT8."""

    @abstractmethod
    def logits(self, inputs: dict[str, torch.Tensor], length_config: tuple[int, ...] | None):
        """Start and end logits (B, S) of complete inputs; `length_config` None means full length."""

    @property
    def dtype(self) -> str:
        return "int8" if self.autocast is None else f"int8 and {self.autocast}".replace("torch.", "")

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.recipe["input_names"])

    def drops(self, length_config: tuple[int, ...] | None) -> bool:
        """Whether any token is dropped from sequences of the length that the model was calibrated for."""
        lengths = length_config or getattr(self.config, "length_config", None)
        return lengths is not None and min(lengths) < (1 if is_fractional(lengths) else self.recipe["max_seq_length"])

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, length_config=None):
        """Start and end logits (B, S), float32; `length_config` None means the stored one, or else full length."""
        length_config = length_config or getattr(self.config, "length_config", None)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        defaults = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}
        inputs = {name: defaults[name](input_ids) if given[name] is None else given[name] for name in self.input_names}
        if length_config is not None:
            length_config = validate_length_config(length_config, self.config.num_hidden_layers, None)
        self.prepare(length_config)
        start, end = self.logits(inputs, length_config if self.drops(length_config) else None)
        return SpanLogits(start_logits=start, end_logits=end)
