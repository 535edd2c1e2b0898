"""What benchmark.py measures, on a clock that the calls themselves move."""

from types import SimpleNamespace

import pytest
import torch

import benchmark
from scripts import benchmark_table


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    return now


def test_calls_take_turns_and_the_warm_up_does_not_count(clock):
    order = []

    def call(name, seconds):
        order.append(name)
        clock[0] += seconds.pop(0)

    slow, fast = [9.0, 0.1, 0.2, 0.3], [9.0, 0.01, 0.01, 0.04]
    calls = {"slow": lambda: call("slow", slow), "fast": lambda: call("fast", fast)}
    timings = benchmark.measure_latency(calls, warm_up=1, repeats=3)
    assert order == ["slow", "fast"] * 4
    assert timings["slow"]["latency_ms_median"] == pytest.approx(200)
    assert timings["fast"]["latency_ms_median"] == pytest.approx(10)
    assert timings["slow"]["latency_ms_p90"] == pytest.approx(280)  # 200 + 0.8 * 100, linear between the ranks
    assert timings["fast"]["latency_ms_p99"] == pytest.approx(39.4)


def test_contenders_are_timed_in_turn_and_say_what_they_are(clock):
    class Model(torch.nn.Module):
        device, dtype, backend = torch.device("cpu"), torch.float32, "eager"

        def __init__(self, seconds):
            super().__init__()
            self.seconds, self.seen = seconds, []

        def forward(self, input_ids, length_config):
            clock[0] += self.seconds
            self.seen.append(length_config)
            return SimpleNamespace(start_logits=torch.zeros(1))

    slow, fast = Model(0.2), Model(0.1)
    contenders = [
        benchmark.Contender(slow, (5, 5), facts={"macs": 7}),
        benchmark.Contender(fast, (4, 2), torch.bfloat16),
    ]
    rows = benchmark.benchmark_rows(contenders, {"input_ids": torch.zeros(8, 5)})
    assert [row["latency_ms_median"] for row in rows] == [pytest.approx(200), pytest.approx(100)]
    assert [row["samples_per_second"] for row in rows] == [pytest.approx(40), pytest.approx(80)]
    assert [(row["dtype"], row["length_config"], row["sequence_length"]) for row in rows] == [
        ("float32", [5, 5], 5),
        ("bfloat16", [4, 2], 5),
    ]
    assert rows[0]["macs"] == 7 and set(fast.seen) == {(4, 2)}


def test_the_table_compares_every_row_with_bert_base_on_the_same_batch():
    common = {"backend": "eager", "dtype": "float32", "length_config": [8, 8], "macs": 1e9, "size_bytes": 2**20}
    common |= {"eval_f1": None, "eval_exact_match": None, "samples_per_second": 1.0}
    rows = [
        common
        | {"model": model, "batch_size": batch, "sequence_length": 8}
        | dict.fromkeys(("latency_ms_median", "latency_ms_p90", "latency_ms_p99"), milliseconds)
        for model, batch, milliseconds in [
            ("BERT", 1, 30.0),
            ("reader", 1, 10.0),
            ("BERT", 32, 80.0),
            ("reader", 32, 20.0),
        ]
    ]
    lines = benchmark_table.table(rows).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["1.00x", "3.00x", "1.00x", "4.00x"]
