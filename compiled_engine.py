"""What the compiled engines of an INT8 folder share: open lengths and a cache of files.

A graph would fix the lengths that a config keeps, and with them one graph a config.  Here they enter as the sizes of
otherwise empty inputs, which stay open as the batch size does.
"""

import hashlib
import json
import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from errors import RunError
from int8_engine import Int8Model, check_integer_products, executed_products, linear_shapes
from length_config import is_fractional
from quantization import load_int8
from results_qa import folder_in_cache, instruction_set, processor

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
