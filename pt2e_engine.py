"""The PT2E backend: a quantized model compiled by Inductor, once, for every batch, length and length config.

torch.export would fix the lengths that a config keeps, and with them one graph a config.  Here they enter as the sizes
of otherwise empty inputs, which torch.export can leave open as it leaves the batch size open.  AOTInductor makes an
engine of the graph: a file of machine code and packed weights that loads in a moment and needs no compiler.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from int8_modules import Int8Linear
from length_drop import validate_length_config
from quantization import load_int8, read_recipe, stored_config
from results_qa import RunError, processor

logger = logging.getLogger(__name__)
# Freezing packs the weights for the INT8 products; the number of threads is the caller's, not the compiling process's.
INDUCTOR = {"freezing": True, "cpp.dynamic_threads": True}
ENGINE_VERSION = 1  # part of the cache key: raise it when the code here makes other engines


class _Exported(nn.Module):
    """What is exported: tensors in, tensors out; the length config as the sizes of `lengths`, none of them for full."""

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


def cxx_compiler() -> str | None:
    """The C++ compiler that Inductor would call; None if there is none."""
    return next(filter(shutil.which, [os.environ.get("CXX") or "g++", "clang++"]), None)


def require_compiler() -> None:
    if cxx_compiler() is None:
        raise RunError(
            "--int8 compiles its engine with a C++ compiler, and there is none: install one (apt-get install g++, or "
            "conda install gxx) or set CXX. An engine that was compiled before needs none."
        )


def as_sizes(length_config: tuple[int, ...] | None, tokens: int) -> list[torch.Tensor]:
    """The length config as empty tensors of these sizes, for a batch of so many tokens."""
    return [torch.empty(min(length, tokens), 0) for length in length_config or ()]


def example_inputs(names: tuple[str, ...], config, adaptive: bool) -> tuple[dict, list[torch.Tensor]]:
    """Inputs of the shapes that the export traces: no two sizes alike, so that none are taken for one another."""
    tokens = min(64, config.max_position_embeddings - 2)
    inputs = {name: torch.ones(3, tokens, dtype=torch.long) for name in names}
    layers = config.num_hidden_layers
    lengths = tuple(tokens * (layers + 1 - layer) // (layers + 2) for layer in range(layers))
    return inputs, as_sizes(lengths if adaptive else None, tokens)


def compile_engine(
    model: nn.Module, names: tuple[str, ...], path: Path, adaptive: bool, autocast: torch.dtype | None
) -> None:
    """Compile `model` for any batch and length (and, if `adaptive`, any length config) into the file `path`."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401  (registers Inductor's INT8 passes)

    require_compiler()
    inputs, lengths = example_inputs(names, model.config, adaptive)
    shapes = ({name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in names}, [{0: Dim.DYNAMIC} for _ in lengths])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise RunError(
            f"--engine_cache_dir {path.parent} cannot be written to ({error.strerror}): name another."
        ) from error
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what the compiler finds in the libraries' own code
        exported = _Exported(model, autocast).eval()
        program = torch.export.export(exported, (inputs, lengths), dynamic_shapes=shapes, strict=False)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder, "engine.pt2")
            torch._inductor.aoti_compile_and_package(program, package_path=str(temporary), inductor_configs=INDUCTOR)
            os.replace(temporary, path)


def load_engine(path: Path) -> Callable:
    """The compiled engine of a file; RunError if it is damaged."""
    try:
        return torch._inductor.aoti_load_package(str(path))
    except RuntimeError as error:
        raise RunError(f"the INT8 engine {path} cannot be loaded: delete it, and it is made again.") from error


# ---- the proof -----------------------------------------------------------------------------------------------------


def executed_products(call: Callable[[], object]) -> list[str]:
    """What oneDNN says of every matrix product that `call` executes: implementation, types and shapes, a line each."""
    sys.stdout.flush()
    kept = os.dup(1)  # oneDNN writes to the process's standard output, below Python's
    try:
        with tempfile.TemporaryFile("w+") as log:
            os.dup2(log.fileno(), 1)
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                call()
            os.dup2(kept, 1)
            log.seek(0)
            lines = log.read().splitlines()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    return [line for line in lines if re.search(r",exec,.*,(matmul|inner_product),", line)]


def integer_products(lines: list[str]) -> Counter:
    """How many of the products multiplied int8 weights, by (in features, out features)."""
    shapes = [re.search(r",\d+x(\d+):\1x(\d+)", line) for line in lines if "wei:s8" in line]
    return Counter((int(shape[1]), int(shape[2])) for shape in shapes if shape)


def check_integer_products(model: nn.Module, lines: list[str]) -> str:
    """RunError if a linear layer of `model` did not run in INT8; else the implementation that did them all."""
    executed, layers = integer_products(lines), {}
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            layers.setdefault((module.weight.shape[1], module.weight.shape[0]), []).append(name)
    for shape, names in layers.items():
        if executed[shape] < len(names):
            raise RunError(
                f"only {executed[shape]} of {len(names)} products of {shape[0]} x {shape[1]} ran in INT8, others stayed "
                f"in float, among {', '.join(names)}: this build of PyTorch cannot be used for --int8."
            )
    return ", ".join(sorted({line.split(",")[6] for line in lines if "wei:s8" in line}))


# ---- the model -----------------------------------------------------------------------------------------------------


class Pt2eModel(nn.Module):
    """An INT8 folder as a model with the interface of the length-adaptive classes: forward(..., length_config=None).

    Engines are compiled when they are first needed, and kept in `cache_dir`, which should belong to the user: an engine
    is machine code. Only they are held in memory, no float copy of the weights. `autocast` is the type of what is not
    INT8, float32 if None.
    """

    backend, device = "pt2e", torch.device("cpu")

    def __init__(self, folder: str | Path, cache_dir: str | Path | None = None, autocast: torch.dtype | None = None):
        super().__init__()
        self.recipe = read_recipe(folder)
        self.config = stored_config(self.recipe)
        self.folder, self.autocast, self._engines = Path(folder), autocast, {}
        self.cache_dir = Path(cache_dir or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "quala")).expanduser()

    @property
    def dtype(self) -> str:
        return "int8" if self.autocast is None else f"int8 and {self.autocast}".replace("torch.", "")

    def engine_file(self, adaptive: bool) -> Path:
        """Where the engine is kept; the name depends on all that decides on it."""
        capabilities = processor()[0], torch.backends.cpu.get_cpu_capability(), torch.cpu._is_amx_tile_supported()
        # The length configs that a search leaves in the configuration are no part of the graph.
        config = {name: value for name, value in self.recipe["config"].items() if not name.startswith("length_config")}
        facts = [ENGINE_VERSION, self.recipe["sha256"], config, self.input_names, torch.__version__, *capabilities]
        key = hashlib.sha256(json.dumps([*facts, self.dtype], sort_keys=True).encode()).hexdigest()
        return self.cache_dir / key[:16] / ("any_length_config.pt2" if adaptive else "full_length.pt2")

    def prepare(self, length_config: tuple[int, ...] | None) -> None:
        """Load the engine for `length_config`; compile it, and prove it, if that was never done here."""
        adaptive = self.drops(length_config)
        if adaptive in self._engines:
            return
        path = self.engine_file(adaptive)
        if not path.is_file():
            self._compile(path, adaptive)
        self._engines[adaptive] = load_engine(path)

    def _compile(self, path: Path, adaptive: bool) -> None:
        logger.info("compiling the INT8 engine %s (a minute or more, once)", path)
        model, names = load_int8(self.folder), self.input_names
        compile_engine(model, names, path, adaptive, self.autocast)
        engine, example = load_engine(path), example_inputs(names, self.config, adaptive)
        try:
            implementation = check_integer_products(model, executed_products(lambda: engine(*example)))
        except RunError:
            path.unlink()
            raise
        logger.info("every linear layer runs in INT8: %s", implementation)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.recipe["input_names"])

    def drops(self, length_config: tuple[int, ...] | None) -> bool:
        """Whether any token is dropped from sequences of the length that the model was calibrated for."""
        lengths = length_config or getattr(self.config, "length_config", None)
        return lengths is not None and min(lengths) < self.recipe["max_seq_length"]

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, length_config=None):
        """Start and end logits (B, S), float32; `length_config` None means the stored one, or else full length."""
        length_config = length_config or getattr(self.config, "length_config", None)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        defaults = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}
        inputs = {name: defaults[name](input_ids) if given[name] is None else given[name] for name in self.input_names}
        if length_config is not None:
            length_config = validate_length_config(length_config, self.config.num_hidden_layers, None)
        self.prepare(length_config)
        adaptive = self.drops(length_config)
        lengths = as_sizes(length_config if adaptive else None, input_ids.shape[1])
        start, end = self._engines[adaptive](inputs, lengths)
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)
