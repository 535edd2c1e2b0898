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


def linears(sizes: dict[str, tuple[int, int]]) -> dict[str, NativeLinear]:
    layers = {name: Int8Linear.from_float(nn.Linear(*shape), (-4.0, 4.0)) for name, shape in sizes.items()}
    return {name: NativeLinear(layer) for name, layer in layers.items()}


def main() -> None:
    args = read_arguments()
    load_fused_operators(args.engine_cache_dir)
    torch.manual_seed(0)
    rows, length, size, heads = args.batch_size, args.sequence_length, args.hidden_size, args.heads
    tokens, norm = rows * length, [torch.ones(size), torch.zeros(size)]
    x, fused, offsets = torch.randn(tokens, size), torch.randn(tokens, 3 * size), torch.arange(0, tokens + 1, length)
    separate = fused.view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    shape = {"hidden_size": size, "num_attention_heads": heads, "intermediate_size": 4 * size}
    layer = BertLayer(BertConfig(**shape, attn_implementation="sdpa")).eval()
    sizes = {"fused": (size, 3 * size), "context": (size, size), "up": (size, 4 * size), "down": (4 * size, size)}
    linear = linears(sizes)
    context, up, down = ((linear[name].layer, linear[name].range) for name in ("context", "up", "down"))
    calls = {
        "query, key, value": partial(linear["fused"], x, half=True),
        "projection, norm": partial(ops.linear_add_norm, x, x, None, *context, norm, 1e-12),
        "feed-forward, norm": partial(ops.feed_forward, x, *up, *down, norm, 1e-12),
    }
    macs = {"query, key, value": 3 * tokens * size**2, "projection, norm": tokens * size**2}
    macs["feed-forward, norm"] = 8 * tokens * size**2
    inputs = {"attention_bf16": fused.to(torch.bfloat16), "attention_int8": fused, "attention": fused}
    for name, values in inputs.items():
        for ending, scores in ((" with scores", True), ("", False)):
            calls[name + ending] = partial(getattr(ops, name), values, offsets, heads, scores)
    calls["scaled_dot_product_attention"] = partial(F.scaled_dot_product_attention, *separate)
    half = separate.to(torch.bfloat16)
    calls["scaled_dot_product_attention, bf16"] = partial(F.scaled_dot_product_attention, *half)
    calls["bert_layer"] = partial(layer, x.view(rows, length, size))
    with torch.inference_mode():
        timings = measure_latency(calls)
    print(f"{rows} sequences of {length} tokens, {torch.get_num_threads()} threads, ms a sequence")
    for name, timing in timings.items():
        median, slow = (timing[f"latency_ms_{key}"] / rows for key in ("median", "p90"))
        speed = f"{macs[name] / rows / median / 1e6:7.0f} GMAC/s" if name in macs else ""
        print(f"{name:35} {median:8.3f} {slow:8.3f} {speed}")


if __name__ == "__main__":
    main()
