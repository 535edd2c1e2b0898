"""Fake quantization: the INT8 modules of a folder with weights that are still trained in float.

A pass computes what the saved INT8 modules compute, operator for operator, because it runs their code: same bytes, scales,
zero points and sums.  Only gradients differ: rounding passes them on as if it were not there (Bengio, Leonard & Courville,
"Estimating or Propagating Gradients Through Stochastic Neurons", 2013), except where a byte is saturated.

Weight scales follow the weights, as they do when a model is quantized: training starts from the quantized model as it is,
and no weight ever leaves its range.  Activation ranges stay those of the calibration, by which the backends have fused
query, key and value.  torchao has no place for either: its PT2E quantizer mixes no static with dynamic layers and trains a
graph of one length config, its fake-quantized modules know no fixed range of the activations and no symmetric range by
token, and PyTorch's own operators take the reciprocal of a scale in single precision, which rounds some values otherwise.
"""

import torch
from torch import nn
from torch.nn import functional as F

from int8_modules import UNSIGNED, Int8Embedding, Int8Linear, quantize_rows, replace_modules


def straight_through(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded`, bit for bit (x - x is 0), with the gradient of `x`."""
    return rounded.detach() + (x - x.detach())


class FakeQuantizedLinear(Int8Linear):
    """Modifications: W and b are the float parameters of `linear`; W is rounded to `bits` anew in every pass.

    Input range and smoothing are those of `int8`.  The names in the state dict are those of a plain linear layer.
    """

    def __init__(self, linear: nn.Linear, int8: Int8Linear, bits: int):
        numbers = int8.input_scale, int8.input_zero_point, int8.smoothing
        super().__init__(int8.weight, int8.weight_scale, int8.bias, *numbers)
        self.weight, self.bias, self.weight_scale, self.bits = linear.weight, linear.bias, None, bits
        del self.smoothing
        self.register_buffer("smoothing", int8.smoothing, persistent=False)  # goes to the device of the weights

    def tensors(self) -> dict[str, torch.Tensor]:
        weight, scale = self.rows()
        return super().tensors() | {"weight": weight, "weight_scale": scale}

    def smoothed(self) -> torch.Tensor:
        return self.weight if self.smoothing is None else self.weight * self.smoothing

    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The int8 weights (out, in) of the next pass, which are those that are saved, and their scales (out)."""
        return quantize_rows(self.smoothed(), self.bits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Under autocast the product's operands would be rounded again and be no multiples of their scales any more.
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())

    def largest(self, x: torch.Tensor) -> torch.Tensor:
        return super().largest(x.detach())  # a range is no way to lower the loss

    def float_weight(self) -> torch.Tensor:
        return straight_through(self.smoothed(), self.dequantize(*self.rows()))

    def through_bytes(self, x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
        low, high = ((byte - zero_point) * scale for byte in (UNSIGNED[0] - 0.5, UNSIGNED[1] + 0.5))
        return straight_through(x.clamp(low, high), super().through_bytes(x.detach(), scale, zero_point))


class FakeQuantizedEmbedding(Int8Embedding):
    """Modifications: the table is the float parameter of `table`; the rows that are looked up are rounded."""

    def __init__(self, table: nn.Embedding):
        super().__init__(None, None)
        self.weight, self.padding_idx = table.weight, table.padding_idx

    def tensors(self) -> dict[str, torch.Tensor]:
        weight, scale = quantize_rows(self.weight)
        return {"weight": weight, "weight_scale": scale}

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = F.embedding(ids, self.weight, self.padding_idx)
        rows, scale = quantize_rows(found.flatten(0, -2))
        return straight_through(found, (rows.to(scale.dtype) * scale[:, None]).view_as(found))


def fake_quantize(model: nn.Module, int8: dict[str, nn.Module], bits: int) -> None:
    """Put fake-quantized modules over the parameters of `model` where `int8`, modules by name, has INT8 ones."""
    fakes = {}
    for name, module in int8.items():
        if isinstance(module, Int8Linear):
            fakes[name] = FakeQuantizedLinear(model.get_submodule(name), module, bits)
        elif isinstance(module, Int8Embedding):
            fakes[name] = FakeQuantizedEmbedding(model.get_submodule(name))
    replace_modules(model, fakes)
