"""The IPEX backend: a quantized model as TorchScript whose INT8 products Intel Extension for PyTorch runs.

IPEX ended with release 2.8, so this backend has an environment of its own (requirements-ipex.txt).  To import it changes
PyTorch, and Neural Compressor too, for the whole process: it is imported only where an engine is made or loaded.
"""

import logging
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from compiled_engine import CompiledModel, OpenLengths
from errors import RunError
from int8_engine import captured
from int8_modules import Int8Linear, replace_modules

IPEX = "intel_extension_for_pytorch"
MISSING = (
    "--quantization_backend ipex needs Intel Extension for PyTorch ({}): in a virtual environment of its own, pip install "
    "-r requirements-ipex.txt"
)


def import_ipex() -> None:
    """Import IPEX, which adds its passes over TorchScript; RunError if it is missing or made for another PyTorch."""
    logging.disable(logging.WARNING)
    try:
        with captured(sys.__stderr__):  # it reports what it replaces in PyTorch, and missing GPUs
            import_module(IPEX)
    except (ImportError, OSError) as error:
        raise RunError(MISSING.format(error)) from error
    finally:
        logging.disable(logging.NOTSET)


class IpexLinear(Int8Linear):
    """Modifications: written with PyTorch's quantized tensors, which IPEX's passes know."""

    def __init__(self, weight, weight_scale, *args, **kwargs):
        super().__init__(weight, weight_scale, *args, **kwargs)
        self.weight = torch._make_per_channel_quantized_tensor(
            weight, weight_scale.double(), self.weight_zero_point, axis=0
        )

    def float_weight(self) -> torch.Tensor:
        return self.weight.dequantize()

    def through_bytes(self, x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
        return torch.quantize_per_tensor(x.float(), scale, zero_point, torch.quint8).dequantize()


class Positional(nn.Module):
    """The exported model with positional arguments, the only ones that a trace takes; `names` are those of the inputs."""

    def __init__(self, exported: OpenLengths, names: list[str]):
        super().__init__()
        self.exported, self.names = exported, names

    def forward(self, *tensors: torch.Tensor):
        inputs = dict(zip(self.names, tensors))
        return self.exported(inputs, list(tensors[len(inputs) :]))


class IpexModel(CompiledModel):
    """Modifications: engines are TorchScript's."""

    backend, suffix = "ipex", ".pt"

    @classmethod
    def require(cls) -> None:
        if find_spec(IPEX) is None:
            raise RunError(MISSING.format(f"no module named {IPEX}"))

    def compile(self, exported: OpenLengths, example: tuple[dict, list], path: Path) -> None:
        layers = {name: layer for name, layer in exported.model.named_modules() if isinstance(layer, Int8Linear)}
        replace_modules(
            exported.model, {name: IpexLinear.from_tensors(layer.tensors()) for name, layer in layers.items()}
        )
        inputs, lengths = example
        positional = Positional(exported, list(inputs)).eval()
        traced = torch.jit.trace(positional, (*inputs.values(), *lengths), check_trace=False)
        torch.jit.save(torch.jit.freeze(traced), path)

    def load(self, path: Path, example: tuple[dict, list]):
        import_ipex()
        script = torch.jit.load(path)

        def engine(inputs: dict, lengths: list):
            return script(*inputs.values(), *lengths)

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that this way of IPEX has no future
            for _ in range(2):  # the first call is watched, the second one fuses what was seen
                engine(*example)
        return engine
