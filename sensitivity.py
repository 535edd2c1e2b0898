"""Which layers quantization hurts: the answers' distributions with one layer in INT8 and the rest in float."""

import copy

import torch
from torch import nn

from distillation import kl_divergence
from int8_modules import Int8Linear, replace_modules


@torch.no_grad()
def span_logits(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    """Start and end logits of every batch, (2, B, S), without the padding."""
    found = []
    for batch in batches:
        outputs = model(**batch)
        padding = ~batch["attention_mask"].bool()
        found.append(torch.stack([outputs.start_logits, outputs.end_logits]).float().masked_fill(padding, -1e4))
    return found


def layer_sensitivity(model: nn.Module, quantized: nn.Module, batches: list[dict[str, torch.Tensor]]) -> list[dict]:
    """For each linear layer, KL(float || that layer in INT8) in nats a question and end; the most harmful first.

    `quantized` is the quantized copy of `model`. The last rows are no layers: all of them together, and, if they are
    quantized, all embedding tables.
    """
    expected = span_logits(model, batches)

    def divergence(names: list[str]) -> float:
        mixed = copy.deepcopy(model).eval()
        replace_modules(mixed, {name: quantized.get_submodule(name) for name in names})
        found = span_logits(mixed, batches)
        pairs = [(new.flatten(0, 1), old.flatten(0, 1)) for new, old in zip(found, expected)]
        weights = [len(new) for new, _ in pairs]
        sums = [kl_divergence(new, old, "full_sub").item() * weight for (new, old), weight in zip(pairs, weights)]
        return sum(sums) / sum(weights)

    linears = [name for name, module in quantized.named_modules() if isinstance(module, Int8Linear)]
    tables = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    tables = [name for name in tables if not isinstance(quantized.get_submodule(name), nn.Embedding)]
    rows = sorted(({"layer": name, "kl": divergence([name])} for name in linears), key=lambda row: -row["kl"])
    groups = {"all linear layers": linears} | ({"all embedding tables": tables} if tables else {})
    return rows + [{"layer": name, "kl": divergence(members)} for name, members in groups.items()]


def sensitivity_table(rows: list[dict]) -> str:
    """The rows as lines of text."""
    return "\n".join(f"{row['kl']:10.6f}  {row['layer']}" for row in rows)
