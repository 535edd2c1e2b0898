"""The native backend: the INT8 folder in eager modules on the operators of native_ops.py.

Nothing is traced or compiled when a question comes: batch, lengths and length config are arguments of the call.  Padding
is taken out before the first layer and no row is computed for it; dropped tokens leave the matrix in the same way.
"""

import itertools
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from errors import RunError
from int8_engine import Int8Model, check_integer_products, executed_products
from int8_folder import has_vnni, read_modules
from int8_modules import Int8Embedding, Int8Linear
from length_config import kept_tokens
from native_ops import fused_operators_loaded, load_fused_operators, pack_linear
from results_qa import instruction_set

logger = logging.getLogger(__name__)
ops = torch.ops.quala
ROWS = 32  # which the operators take through a layer together
TOKENS = 4096  # as many go through the layers together: enough rows for all threads, where most are dropped too


class NativeLinear(nn.Module):
    """Int8Linears that read the same input, as one integer product: (N, in) floats to (N, sum of out) floats."""

    def __init__(self, *layers: Int8Linear):
        super().__init__()
        first, weight = layers[0], torch.cat([layer.weight for layer in layers])
        if any(
            (layer.input_scale, layer.input_zero_point) != (first.input_scale, first.input_zero_point)
            for layer in layers
        ):
            raise RunError(
                "query, key and value have ranges of their own, which the native backend cannot use: --tune again."
            )
        by_row = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight_scale", "bias"))
        together = Int8Linear(weight, *by_row, first.input_scale, first.input_zero_point, first.smoothing)
        self.columns = len(weight)
        # The arguments of the operators.
        self.layer, self.range = pack_linear(together), [first.input_scale or 0.0, float(first.input_zero_point)]
        self.padded_shape = 64 * self.layer[0].shape[1], 16 * self.layer[0].shape[0]

    def forward(self, x: torch.Tensor, rows: torch.Tensor | None = None, half: bool = False) -> torch.Tensor:
        return ops.linear(x, rows, self.layer, self.range, self.columns, half)


@dataclass(frozen=True)
class Packed:
    """Sequences without padding: where each begins among the rows (B + 1), and where each row stands in the batch (T)."""

    offsets: torch.Tensor
    positions: torch.Tensor

    def select(self, significance: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, "Packed"]:
        """The rows of the `kept` (B) most significant tokens of each sequence, the others, and what the former are packed as."""
        chosen, dropped, offsets = ops.select_rows(significance, self.offsets, kept)
        return chosen, dropped, Packed(offsets, self.positions[chosen])


class NativeLayer(nn.Module):
    """A layer of the encoder: packed hidden states (T, D), the same after the layer."""

    def __init__(self, parts: dict[str, nn.Module], heads: int):
        super().__init__()
        self.heads, self.attend = heads, fastest_attention()
        self.fused = NativeLinear(*(parts[f"attention.self.{name}"] for name in ("query", "key", "value")))
        self.context = NativeLinear(parts["attention.output.dense"])
        self.context_norm = parts["attention.output.LayerNorm"]
        self.up, self.down = NativeLinear(parts["intermediate.dense"]), NativeLinear(parts["output.dense"])
        self.norm = parts["output.LayerNorm"]

    def forward(
        self, hidden: torch.Tensor, packed: Packed, kept: torch.Tensor | None
    ) -> tuple[torch.Tensor, Packed, torch.Tensor | None]:
        """The states of the `kept` most significant tokens after the layer, how they are packed, and the rows dropped."""
        fused = self.fused(hidden, half=self.attend is ops.attention_bf16)
        context, significance = self.attend(fused, packed.offsets, self.heads, kept is not None)
        rows = dropped = None
        if kept is not None:
            rows, dropped, packed = packed.select(significance, kept)
        projection, norm = self.context, self.context_norm
        hidden = ops.linear_add_norm(
            context, hidden, rows, projection.layer, projection.range, [norm.weight, norm.bias], norm.eps
        )
        linears, norm = (self.up.layer, self.up.range, self.down.layer, self.down.range), self.norm
        return ops.feed_forward(hidden, *linears, [norm.weight, norm.bias], norm.eps), packed, dropped


def fastest_attention():
    """The operator whose products are the fastest on this processor."""
    if fused_operators_loaded("attention_bf16"):
        return ops.attention_bf16
    return ops.attention_int8 if has_vnni() else ops.attention


class NativeModel(Int8Model):
    """Modifications: runs without an engine file."""

    backend = "native"

    def __init__(self, folder: str | Path, cache_dir: str | Path | None = None, autocast: torch.dtype | None = None):
        super().__init__(folder, cache_dir, autocast)
        if autocast is not None:
            raise RunError("--quantization_backend native computes what is not INT8 in float32: remove --bf16.")
        if self.config.hidden_act != "gelu":
            raise RunError(f"--quantization_backend native knows GELU, not {self.config.hidden_act}: use pt2e.")
        if load_fused_operators(self.cache_dir) and not fused_operators_loaded("linear"):
            logger.warning("the processor has no AVX-512 VNNI: INT8 layers run in PyTorch, which is slower")
        modules = read_modules(folder, self.recipe)
        base, heads = self.config.model_type, self.config.num_attention_heads
        self.embeddings = nn.ModuleDict(below(f"{base}.embeddings.", modules))
        self.head = NativeLinear(modules["qa_outputs"])
        self.layers = nn.ModuleList(
            NativeLayer(below(f"{base}.encoder.layer.{index}.", modules), heads)
            for index in range(self.config.num_hidden_layers)
        )
        self._proven = False

    def prepare(self, length_config: tuple[int, ...] | None) -> None:
        if not self._proven:
            logger.info("INT8 engine native, instruction set %s: %s", instruction_set(), self.implementation())
            self._proven = True

    def implementation(self) -> str:
        """What computes the linear layers.  That in C++ has no other products than those of bytes; PyTorch's are proven."""
        if fused_operators_loaded("linear"):
            return "products of " + ("tiles" if fused_operators_loaded("attention_bf16") else "vectors")
        example = torch.ones(1, 8, dtype=torch.long)
        inputs = {name: example for name in self.input_names}
        linears = {name: module for name, module in self.named_modules() if isinstance(module, NativeLinear)}
        products = {name: module.padded_shape for name, module in linears.items()}
        return check_integer_products(products, executed_products(lambda: self.logits(inputs, None)))

    @torch.no_grad()
    def logits(self, inputs: dict[str, torch.Tensor], length_config: tuple[int, ...] | None):
        ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
        result, lengths = torch.zeros(ids.numel(), 2), real.sum(1).tolist()
        for begin, end in micro_batches(lengths):
            chosen = slice(begin, end)
            parts = {name: tensor[chosen] for name, tensor in inputs.items()}
            self.answer(parts, real[chosen], length_config, result[begin * ids.shape[1] : end * ids.shape[1]])
        start, end = result.view(*ids.shape, 2).unbind(2)
        return start.contiguous(), end.contiguous()

    def embed(self, inputs: dict[str, torch.Tensor], real: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The embeddings (T, D) of the real tokens, whose places in the flattened batch are `rows`."""
        numbers = {"word": inputs["input_ids"], "position": torch.arange(real.shape[1]).expand_as(real)}
        numbers["token_type"] = inputs.get("token_type_ids", torch.zeros_like(inputs["input_ids"]))
        if self.config.model_type == "roberta":  # counts real tokens, from the number after that of padding
            numbers["position"] = real.cumsum(1) + self.config.pad_token_id
        tables, norm = [self.embeddings[f"{name}_embeddings"] for name in numbers], self.embeddings["LayerNorm"]
        scales = [table.weight_scale for table in tables if isinstance(table, Int8Embedding)]
        numbers = [number.flatten()[rows] for number in numbers.values()]
        return ops.embed([table.weight for table in tables], scales, numbers, [norm.weight, norm.bias], norm.eps)

    def answer(self, inputs, real, length_config, result: torch.Tensor) -> None:
        """Write the logits of a few sequences into `result` (B * S, 2); padding keeps its zeros.

        A token that is dropped answers with the output of the last layer it survived.
        """
        counts, positions = real.sum(1), real.flatten().nonzero().squeeze(1)
        if not len(positions):
            return
        packed, hidden = Packed(F.pad(counts.cumsum(0), (1, 0)), positions), self.embed(inputs, real, positions)
        left = counts = counts.tolist()
        for layer, length in zip(self.layers, length_config or itertools.repeat(real.shape[1])):
            kept = [min(kept_tokens(length, count), rows) for count, rows in zip(counts, left)]
            drops, before, places = kept != left, hidden, packed.positions
            hidden, packed, dropped = layer(hidden, packed, torch.tensor(kept) if drops else None)
            if drops:
                result[places[dropped]] = self.head(before, dropped)
            left = kept
        result[packed.positions] = self.head(hidden)


def below(prefix: str, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): module for name, module in modules.items() if name.startswith(prefix)}


def micro_batches(lengths: list[int]) -> list[tuple[int, int]]:
    """Ranges [begin, end) of sequences that have about as many tokens each, and about TOKENS at most."""
    total = max(sum(lengths), 1)
    parts = math.ceil(total / TOKENS)
    before = itertools.accumulate(lengths[:-1], initial=0)
    part = [tokens * parts // total for tokens in before]
    bounds = [index for index in range(1, len(part)) if part[index] != part[index - 1]]
    return list(itertools.pairwise([0, *bounds, len(lengths)]))
