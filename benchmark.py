"""Latency and throughput, measured so that numbers can be compared: interleaved, warmed up, medians with spread."""

import time
from collections.abc import Callable, Hashable
from functools import partial

import numpy as np
import torch

WARM_UP, REPEATS = 2, 10


def measure_latency(
    calls: dict[Hashable, Callable[[], object]], warm_up: int = WARM_UP, repeats: int = REPEATS
) -> dict[Hashable, dict[str, float]]:
    """Time each call `repeats` times in turn, so that drift of the machine hits all alike.

    Returns median, 90th and 99th percentile in milliseconds a call, by name. A call that leaves work queued on a GPU
    must synchronise itself.
    """
    times = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn >= warm_up:
                times[name].append((time.perf_counter() - started) * 1e3)
    keys = {"latency_ms_median": 50, "latency_ms_p90": 90, "latency_ms_p99": 99}
    return {
        name: {key: round(float(np.percentile(values, share)), 3) for key, share in keys.items()}
        for name, values in times.items()
    }


def _forward(
    model: torch.nn.Module, batch: dict, length_config: tuple[int, ...], autocast: torch.dtype | None
) -> None:
    with torch.inference_mode(), torch.autocast(model.device.type, autocast, enabled=autocast is not None):
        model(**batch, length_config=length_config).start_logits.sum().item()  # item() waits for a GPU


def benchmark_model(
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    length_configs: dict[Hashable, tuple[int, ...]],
    autocast: torch.dtype | None = None,
) -> dict[Hashable, dict]:
    """Latency of `model` on one padded `batch` at each named length config: one row each, milliseconds a batch."""
    model.eval()
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    batch_size, sequence_length = batch["input_ids"].shape
    common = {
        "backend": getattr(model, "backend", "eager"),
        "dtype": str(autocast or model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "threads": torch.get_num_threads(),
        "warm_up": WARM_UP,
        "repeats": REPEATS,
    }

    calls = {name: partial(_forward, model, batch, config, autocast) for name, config in length_configs.items()}
    timings = measure_latency(calls)
    for name, row in timings.items():
        row |= {"length_config": list(length_configs[name]), **common}
        row["samples_per_second"] = round(batch_size * 1e3 / row["latency_ms_median"], 2)
    return timings
