"""Where the time of a layer of the native INT8 engine goes: its operators on random input, in turn, in one process.

    python benchmarks/native_operators.py --batch_size 8 --sequence_length 384

Prints milliseconds a sequence (median, 90th percentile) and, for the products, how many multiply-accumulates a second.
"scaled_dot_product_attention" is PyTorch's own attention without scores, for comparison; "bert_layer" a float32 layer.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import quiet_libraries  # noqa: F401  (before transformers)

# isort: split
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from benchmark import measure_latency
from int8_modules import Int8Linear
from native_engine import NativeLinear
from native_ops import load_fused_operators

ops = torch.ops.quala


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--sequence_length", type=int, default=384)
    parser.add_argument("--hidden_size", type=int, default=384)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--engine_cache_dir", type=Path, default=Path("~/.cache/quala").expanduser())
    return parser.parse_args()


def products(sizes: dict[str, tuple[int, int]], tokens: int) -> tuple[dict, dict]:
    """Calls of INT8 products by name, and their multiply-accumulates."""
    calls, macs = {}, {}
    for name, (inputs, outputs) in sizes.items():
        linear = NativeLinear(Int8Linear.from_float(nn.Linear(inputs, outputs), (-4.0, 4.0)))
        values = torch.randint(0, 256, (tokens, inputs), dtype=torch.uint8)
        calls[name], macs[name] = partial(linear, values, torch.empty(0, 1)), tokens * inputs * outputs
    return calls, macs


def main() -> None:
    args = read_arguments()
    load_fused_operators(args.engine_cache_dir)
    torch.manual_seed(0)
    rows, length, size, heads = args.batch_size, args.sequence_length, args.hidden_size, args.heads
    x, wide = torch.randn(rows * length, size), torch.randn(rows * length, 4 * size)
    fused, offsets = torch.randn(rows * length, 3 * size), torch.arange(0, rows * length + 1, length)
    separate = fused.view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    weight = torch.ones(size)
    shape = {"hidden_size": size, "num_attention_heads": heads, "intermediate_size": 4 * size}
    layer = BertLayer(BertConfig(**shape, attn_implementation="sdpa")).eval()
    sizes = {
        "query_key_value": (size, 3 * size),
        "context": (size, size),
        "up": (size, 4 * size),
        "down": (4 * size, size),
    }
    calls, macs = products(sizes, rows * length)
    calls |= {
        "attention_int8 with scores": partial(ops.attention_int8, fused, offsets, heads, True),
        "attention_int8": partial(ops.attention_int8, fused, offsets, heads, False),
        "attention with scores": partial(ops.attention, fused, offsets, heads, True),
        "attention": partial(ops.attention, fused, offsets, heads, False),
        "quantize": partial(ops.quantize, x, weight, 0.02, 128),
        "add_norm_quantize": partial(ops.add_norm_quantize, x, x, weight, weight, 1e-12, weight, 0.02, 128),
        "gelu_quantize by token": partial(ops.gelu_quantize, wide, None, 0.0, 0),
        "scaled_dot_product_attention": partial(F.scaled_dot_product_attention, *separate),
        "bert_layer": partial(layer, x.view(rows, length, size)),
    }
    with torch.inference_mode():
        timings = measure_latency(calls)
    print(f"{rows} sequences of {length} tokens, {torch.get_num_threads()} threads, ms a sequence")
    for name, timing in timings.items():
        median, slow = (timing[f"latency_ms_{key}"] / rows for key in ("median", "p90"))
        speed = f"{macs[name] / rows / median / 1e6:7.0f} GMAC/s" if name in macs else ""
        print(f"{name:30} {median:8.3f} {slow:8.3f} {speed}")


if __name__ == "__main__":
    main()
