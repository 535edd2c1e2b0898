"""What the engines of an INT8 folder share: its model interface, open lengths, a cache, the proof that it runs in INT8.

A graph would fix the lengths that a config keeps, and with them one graph a config.  Here they enter as the sizes of
otherwise empty inputs, which stay open as the batch size does.
"""

import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import torch
from torch import nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from int8_modules import Int8Linear
from length_config import is_fractional, validate_length_config
from quantization import load_int8, read_recipe, stored_config
from results_qa import RunError, engine_cache, folder_in_cache, instruction_set, processor

logger = logging.getLogger(__name__)
ENGINE_VERSION = 3  # part of the cache key: raise it when the code here or in a backend makes other engines


class OpenLengths(nn.Module):
    """What is compiled: tensors in, tensors out; the length config as the sizes of `lengths`, none of them for full."""

    def __init__(self, model: nn.Module, autocast: torch.dtype | None):
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, inputs: dict[str, torch.Tensor], lengths: list[torch.Tensor]):
        model_config = self.model.config
        config = tuple(length.shape[0] for length in lengths)
        config = config or (model_config.max_position_embeddings,) * model_config.num_hidden_layers
        with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
            outputs = self.model(**inputs, length_config=config)
        return outputs.start_logits.float(), outputs.end_logits.float()


def as_sizes(length_config: tuple[int, ...] | None, tokens: int) -> list[torch.Tensor]:
    """The length config as empty tensors of these sizes, for a batch of so many tokens."""
    return [torch.empty(min(length, tokens), 0) for length in length_config or ()]


def example_inputs(names: tuple[str, ...], config, adaptive: bool) -> tuple[dict, list[torch.Tensor]]:
    """Inputs of the shapes that are compiled with: no two sizes alike, so that none are taken for one another."""
    tokens = min(64, config.max_position_embeddings - 2)
    inputs = {name: torch.ones(3, tokens, dtype=torch.long) for name in names}
    layers = config.num_hidden_layers
    lengths = tuple(tokens * (layers + 1 - layer) // (layers + 2) for layer in range(layers))
    return inputs, as_sizes(lengths if adaptive else None, tokens)


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


class Int8Model(nn.Module, ABC):
    """An INT8 folder as a model with the interface of the length-adaptive classes: forward(..., length_config=None).

    No float copy of the weights is held. `autocast` is the type of what is not INT8, float32 if None. What is compiled
    is kept in `cache_dir`, which should belong to the user: it is code.
    """

    backend: str
    device = torch.device("cpu")

    def __init__(self, folder: str | Path, cache_dir: str | Path | None = None, autocast: torch.dtype | None = None):
        super().__init__()
        self.recipe = read_recipe(folder)
        self.config = stored_config(self.recipe)
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
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


class CompiledModel(Int8Model):
    """Modifications: engines, compiled when they are first needed and kept as files; only they are held in memory.

    A backend says how an engine is compiled into a file and loaded from one.
    """

    suffix: str  # of an engine's file

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._engines = {}

    @abstractmethod
    def compile(self, exported: OpenLengths, example: tuple[dict, list], path: Path) -> None:
        """Compile `exported` for any batch, length and (if `example` has lengths) length config into the file `path`."""

    @abstractmethod
    def load(
        self, path: Path, example: tuple[dict, list]
    ) -> Callable[[dict, list], tuple[torch.Tensor, torch.Tensor]]:
        """The engine of a file, ready; RuntimeError if it is damaged."""

    def engine_file(self, adaptive: bool) -> Path:
        """Where the engine is kept; the name depends on all that decides on it."""
        capabilities = processor()[0], torch.backends.cpu.get_cpu_capability(), torch.cpu._is_amx_tile_supported()
        # The length configs that a search leaves in the configuration are no part of the graph.
        config = {name: value for name, value in self.recipe["config"].items() if not name.startswith("length_config")}
        facts = [ENGINE_VERSION, self.backend, self.recipe["sha256"], config, self.input_names, torch.__version__]
        key = hashlib.sha256(json.dumps([*facts, *capabilities, self.dtype], sort_keys=True).encode()).hexdigest()
        return self.cache_dir / key[:16] / (("any_length_config" if adaptive else "full_length") + self.suffix)

    def prepare(self, length_config: tuple[int, ...] | None) -> None:
        if length_config and is_fractional(length_config):
            raise RunError(
                f"the backend {self.backend} knows length configs in tokens, not in fractions of the real length: --tune with "
                "--quantization_backend native for those."
            )
        adaptive = self.drops(length_config)
        if adaptive in self._engines:
            return
        path, example = self.engine_file(adaptive), example_inputs(self.input_names, self.config, adaptive)
        if not path.is_file():
            self._make(path, example)
        try:
            self._engines[adaptive] = self.load(path, example)
        except RuntimeError as error:
            raise RunError(f"the INT8 engine {path} cannot be loaded: delete it, and it is made again.") from error
        logger.info("INT8 engine %s, instruction set %s: %s", self.backend, instruction_set(), path)

    def _make(self, path: Path, example: tuple[dict, list]) -> None:
        """Compile an engine beside `path`, and put it there once it has run every linear layer in INT8."""
        self.require()
        logger.info("compiling the INT8 engine %s (a minute or more, once)", path)
        with folder_in_cache(path.parent) as folder, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the compilers find in the libraries' own code
            exported, made = OpenLengths(load_int8(self.folder), self.autocast).eval(), Path(folder, path.name)
            self.compile(exported, example, made)
            engine, shapes = self.load(made, example), linear_shapes(exported.model)
            implementation = check_integer_products(shapes, executed_products(lambda: engine(*example)))
            os.replace(made, path)
        logger.info("every linear layer runs in INT8: %s", implementation)

    def logits(self, inputs: dict[str, torch.Tensor], length_config: tuple[int, ...] | None):
        lengths = as_sizes(length_config, inputs["input_ids"].shape[1])
        return self._engines[length_config is not None](inputs, lengths)
