"""What static quantization has to know of the activations, observed on batches of training examples.

Ranges come from Intel Neural Compressor, which exports the model (PT2E), puts observers into the graph and turns what
they saw into quantization parameters.  Sizes by channel, for smoothing, come from forward hooks.
"""

import copy
import logging
import sys
import warnings
from collections.abc import Iterable
from contextlib import contextmanager

import torch
from torch import nn
from torch.export import Dim
from torch.fx import GraphModule

from errors import RunError
from int8_modules import replace_modules


class _Tensors(nn.Module):
    """What is exported: a batch in, start and end logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, torch.Tensor]):
        outputs = self.model(**inputs)
        return outputs.start_logits, outputs.end_logits


class SmoothedLinear(nn.Linear):
    """A linear layer whose input is divided, and whose weight is multiplied, by one factor a channel."""

    def __init__(self, linear: nn.Linear, factors: torch.Tensor):
        super().__init__(linear.in_features, linear.out_features)
        self.weight, self.bias = nn.Parameter(linear.weight * factors), linear.bias
        self.register_buffer("shrink", 1 / factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * self.shrink)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@torch.no_grad()
def channel_maxima(model: nn.Module, batches: Iterable[dict]) -> dict[str, torch.Tensor]:
    """The largest absolute input of every linear layer by channel (in features), over the real tokens of `batches`."""
    maxima, real = {}, None

    def observe(name):
        def hook(module, inputs):
            found = inputs[0].detach().abs()[real].amax(0)
            maxima[name] = torch.maximum(maxima[name], found) if name in maxima else found

        return hook

    hooks = [linear.register_forward_pre_hook(observe(name)) for name, linear in linear_layers(model).items()]
    try:
        for batch in batches:
            real = batch["attention_mask"].bool()
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return maxima


def smoothing_factors(model: nn.Module, maxima: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """Factors max|x_j|^alpha / max|W_j|^(1 - alpha) by channel, scaled to a geometric mean of one.

    Xiao et al., "SmoothQuant", 2023, equation 4. Layers that read the same tensor (query, key, value) share factors.
    """
    linears, factors = linear_layers(model), {}
    for name, largest in maxima.items():
        siblings = [other for other in linears if reads_same_input(name, other)]
        weights = torch.stack([linears[other].weight.detach().abs().amax(0) for other in siblings]).amax(0)
        logs = alpha * largest.clamp(min=1e-5).log() - (1 - alpha) * weights.clamp(min=1e-5).log()
        factors[name] = (logs - logs.mean()).exp()
    return factors


def reads_same_input(name: str, other: str) -> bool:
    (parent, _, child), (other_parent, _, other_child) = name.rpartition("."), other.rpartition(".")
    attention = {"query", "key", "value"}
    return name == other or (parent == other_parent and {child, other_child} <= attention)


def observe_ranges(
    model: nn.Module, batches: list[dict], method: str, smoothing: dict[str, torch.Tensor]
) -> dict[str, tuple[float, float]]:
    """(low, high) of the (smoothed) input of every linear layer, by Neural Compressor's observers."""
    inc_export, config_class, prepare, convert = neural_compressor()
    model = copy.deepcopy(model).eval()
    linears = linear_layers(model)
    replace_modules(model, {name: SmoothedLinear(linears[name], factors) for name, factors in smoothing.items()})
    # An example of one row would do for no other number of rows: torch.export takes a size of one for fixed.
    example = {name: rows.repeat(2, 1) for name, rows in batches[0].items()}
    shapes = ({name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in example},)
    with torch.no_grad(), ipex_hidden(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what torch.export finds in the libraries' own code
        graph = inc_export(_Tensors(model).eval(), (example,), dynamic_shapes=shapes)
        prepared = prepare(graph, config_class(act_algo=method))
        for batch in batches:
            prepared(batch)
        return ranges_in(convert(prepared))


@contextmanager
def ipex_hidden():
    """Hide an imported IPEX from Neural Compressor, which looks for its name and then exports no graph."""
    name = "intel_extension_for_pytorch"
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module


def neural_compressor():
    """Neural Compressor's functions; it is only needed here, and chatty from its import on."""
    logging.disable(logging.WARNING)
    try:
        from neural_compressor.torch.export import export
        from neural_compressor.torch.quantization import INT8StaticQuantConfig, convert, prepare
    except ImportError as error:
        raise RunError(
            f"static quantization needs Neural Compressor ({error}): pip install -r requirements.txt"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    logging.getLogger("neural_compressor").setLevel(logging.ERROR)
    return export, INT8StaticQuantConfig, prepare, convert


def ranges_in(graph: GraphModule) -> dict[str, tuple[float, float]]:
    """(low, high) that each linear layer's input is quantized to in a converted graph, by the layer's name."""
    ranges = {}
    for node in graph.graph.nodes:
        if node.target is not torch.ops.aten.linear.default:
            continue
        activation, weight = node.args[:2]
        while weight.op != "get_attr":  # through dequantize and quantize
            weight = weight.args[0]
        name = weight.target.removeprefix("model.").removesuffix(".weight")
        if activation.target is torch.ops.quantized_decomposed.dequantize_per_tensor.default:
            _, scale, zero_point, low, high, *_ = activation.args
            ranges[name] = ((low - zero_point) * scale, (high - zero_point) * scale)
    return ranges
