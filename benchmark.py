"""Latency and throughput, measured so that numbers can be compared: interleaved, warmed up, medians with spread."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

WARM_UP, REPEATS = 2, 10


def measure_latency(
    calls: dict[Hashable, Callable[[], object]], warm_up: int = WARM_UP, repeats: int = REPEATS, pause: float = 0.0
) -> dict[Hashable, dict[str, float]]:
    """Time each call `repeats` times in turn, so that drift of the machine hits all alike.

    Returns median, 90th and 99th percentile in milliseconds a call, by name. A call that leaves work queued on a GPU
    must synchronise itself. `pause` is what is waited before each call, in seconds: another library's threads may spin
    on for some milliseconds after its call.
    """
    times = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            time.sleep(pause)
            started = time.perf_counter()
            call()
            if turn >= warm_up:
                times[name].append((time.perf_counter() - started) * 1e3)
    keys = {"latency_ms_median": 50, "latency_ms_p90": 90, "latency_ms_p99": 99}
    return {
        name: {key: round(float(np.percentile(values, share)), 3) for key, share in keys.items()}
        for name, values in times.items()
    }


@dataclass(frozen=True)
class Contender:
    """A model at a length config, its float parts in `autocast` (its own type if None); `facts` go into its row."""

    model: torch.nn.Module
    length_config: tuple[int, ...]
    autocast: torch.dtype | None = None
    facts: dict = field(default_factory=dict)

    def outputs(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those of one forward pass."""
        device = self.model.device.type
        with torch.inference_mode(), torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            return self.model(**batch, length_config=self.length_config)

    def __call__(self, batch: dict[str, torch.Tensor]) -> None:
        """One forward pass, waited for."""
        self.outputs(batch).start_logits.sum().item()  # item() waits for a GPU

    def row(self) -> dict:
        """What the measurement is of."""
        return {
            "backend": getattr(self.model, "backend", "eager"),
            "dtype": str(self.autocast or self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "length_config": list(self.length_config),
            **self.facts,
        }


def benchmark_rows(
    contenders: Sequence[Contender],
    batch: dict[str, torch.Tensor],
    warm_up: int = WARM_UP,
    repeats: int = REPEATS,
    pause: float = 0.0,
) -> list[dict]:
    """Latency of the contenders in turn on one padded `batch`: a row each, milliseconds a batch."""
    batch_size, sequence_length = batch["input_ids"].shape
    common = {
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "threads": torch.get_num_threads(),
        "warm_up": warm_up,
        "repeats": repeats,
    }
    calls = {}
    for index, contender in enumerate(contenders):
        contender.model.eval()
        calls[index] = partial(contender, {name: tensor.to(contender.model.device) for name, tensor in batch.items()})
    timings = measure_latency(calls, warm_up, repeats, pause)
    rows = [contender.row() | common | timings[index] for index, contender in enumerate(contenders)]
    for row in rows:
        row["samples_per_second"] = round(batch_size * 1e3 / row["latency_ms_median"], 2)
    return rows
