"""What INT8 means here, for every engine: the weights, scales and operators of a quantized model.

The modules compute in plain PyTorch what an engine computes with integer kernels.  They are written with the
`quantized_decomposed` operators that torch.export keeps and Inductor replaces by oneDNN's INT8 products.
"""

import torch
from torch import nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the operators)

ops = torch.ops.quantized_decomposed
UNSIGNED = (0, 255, torch.uint8)
SIGNED = (-128, 127, torch.int8)
WEIGHT_LEVELS = {8: 127, 7: 63}  # largest weight, by the bits used


def quantize_rows(weight: torch.Tensor, bits: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix as int8 rows, symmetric, and their float32 scales: row = int8 row * scale.

    With 7 bits a sum of two products with unsigned bytes fits 16 bits, which is where processors without AVX-512 VNNI
    add them up and saturate.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / WEIGHT_LEVELS[bits]
    return (weight / scale[:, None]).round().to(torch.int8), scale


def quantization_range(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of the unsigned bytes that cover [low, high] and zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-6) / 255
    return scale, round(-low / scale)


class Int8Linear(nn.Module):
    """y = x W^T + b with bytes for x and W: W by output row, x by one range or, without one, token by token.

    `smoothing` (in features) divides x before it is quantized; W was multiplied by it (Xiao et al., "SmoothQuant",
    2023, equation 3).
    """

    def __init__(self, weight, weight_scale, bias, input_scale=None, input_zero_point=0, smoothing=None):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("weight_zero_point", torch.zeros_like(weight_scale, dtype=torch.int64), persistent=False)
        self.register_buffer("bias", bias)
        self.register_buffer("shrink", None if smoothing is None else 1 / smoothing, persistent=False)
        self.input_scale, self.input_zero_point, self.smoothing = input_scale, input_zero_point, smoothing

    @classmethod
    def from_float(cls, linear: nn.Linear, input_range=None, smoothing=None, bits: int = 8) -> "Int8Linear":
        """Quantize `linear`; `input_range` is (low, high) of the smoothed input, None means token by token."""
        weight = linear.weight if smoothing is None else linear.weight * smoothing
        bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach().clone()
        scale = quantization_range(*input_range) if input_range else (None, 0)
        return cls(*quantize_rows(weight, bits), bias, *scale, smoothing)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What defines the module, by the name of the argument."""
        found = {"weight": self.weight, "weight_scale": self.weight_scale, "bias": self.bias}
        if self.smoothing is not None:
            found["smoothing"] = self.smoothing
        if self.input_scale is not None:
            found["input_scale"] = torch.tensor(self.input_scale, dtype=torch.float64)
            found["input_zero_point"] = torch.tensor(self.input_zero_point, dtype=torch.int64)
        return found

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> "Int8Linear":
        """The inverse of `tensors`."""
        numbers = {name: tensors[name].item() for name in ("input_scale", "input_zero_point") if name in tensors}
        return cls(**tensors | numbers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, weight = x if self.shrink is None else x * self.shrink, self.float_weight()
        if self.input_scale is not None:
            return nn.functional.linear(
                self.through_bytes(x, self.input_scale, self.input_zero_point), weight, self.bias
            )
        # Every token is stretched to [-1, 1], for which one fixed range serves; the product is shrunk again.
        largest = self.largest(x)
        product = nn.functional.linear(self.through_bytes(x / largest, 1 / 127, 128), weight)
        return torch.addcmul(self.bias, product, largest)

    def largest(self, x: torch.Tensor) -> torch.Tensor:
        """The largest magnitude (..., 1) of every token."""
        return x.abs().amax(-1, keepdim=True).clamp(min=1e-6)

    def float_weight(self) -> torch.Tensor:
        return self.dequantize(self.weight, self.weight_scale)

    def dequantize(self, rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return ops.dequantize_per_channel(rows, scale, self.weight_zero_point, 0, *SIGNED)

    def through_bytes(self, x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
        """`x` rounded to unsigned bytes of this scale and zero point, and back."""
        range_ = (scale, zero_point, *UNSIGNED)
        return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *range_), *range_)


class Int8Embedding(nn.Module):
    """A table of int8 rows with a scale each; only the rows that are looked up become floats."""

    def __init__(self, weight: torch.Tensor, weight_scale: torch.Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)

    @classmethod
    def from_float(cls, embedding: nn.Embedding) -> "Int8Embedding":
        return cls(*quantize_rows(embedding.weight))

    def tensors(self) -> dict[str, torch.Tensor]:
        """What defines the module, by the name of the argument."""
        return {"weight": self.weight, "weight_scale": self.weight_scale}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> "Int8Embedding":
        """The inverse of `tensors`."""
        return cls(**tensors)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids].to(self.weight_scale.dtype) * self.weight_scale[ids].unsqueeze(-1)


def replace_modules(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Put `modules` in the place of those that have their dotted names in `model`."""
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
