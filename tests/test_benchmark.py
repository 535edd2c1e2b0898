"""What benchmark.py measures, on a clock that the calls themselves move."""

import pytest

import benchmark


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
