"""The comparison with other engines, as far as it goes without them: benchmarks/."""

import argparse
import json
import sys

import numpy as np
import pytest
import torch
from stages import SIZES
from transformers import BertConfig

from benchmark import Contender
from benchmarks import compare_engines, make_peers, measures, peers
from modeling_la_auto import MODEL_CLASSES
from plots import PlotError, plot_engines
from results_qa import RunError

MADE = {"engines": ["openvino"], "length_config": [5, 3], "max_seq_length": 8, "source": None}
MADE |= {"input_names": ["input_ids", "attention_mask"]}


@pytest.fixture
def peers_folder(tmp_path):
    (tmp_path / peers.PEERS_FILE).write_text(json.dumps(MADE))
    return tmp_path


class Echo(peers.Peer):
    """A peer whose start logits are its input and whose end logits say which graph ran."""

    backend = "echo"

    def load(self, graph, shape):
        return lambda inputs: (inputs["input_ids"] * 1.0, np.full(inputs["input_ids"].shape, float(graph == "full")))


def test_groups_hold_every_window_once_and_in_order():
    groups = measures.group(10, 4)
    assert [number for numbers in groups for number in numbers] == list(range(10))
    assert [len(numbers) for numbers in groups] == [4, 4, 2]


def test_agreement_counts_only_real_tokens_and_whole_spans():
    reference = np.array([[[1.0, 3.0, -100.0], [0.0, 2.0, 1.0]], [[5.0, 1.0, -100.0], [4.0, 0.0, 0.0]]])
    logits = reference.copy()
    logits[0, 0, 2] = 50.0  # at padding: kept out of the differences
    logits[1, 1] = [0.0, 0.0, 8.0]  # another end
    found = measures.agreement([np.where(reference == -100, -100, logits)], [reference])
    assert found == {"logit_difference_max": 8.0, "logit_difference_mean": pytest.approx(12 / 10), "same_spans": 0.5}


def test_every_engine_is_compared_with_the_first_one_at_the_same_config():
    at = ("full", "config", "full", "config")
    contenders = [Contender(None, (1,), facts={"at": name}) for name in at]
    logits = {number: [np.full((2, 1, 3), float(value))] for number, value in enumerate((1, 5, 2, 8))}
    rows = measures.compared(argparse.Namespace(without_float32=False), contenders, logits)
    assert [row["logit_difference_max"] for row in rows] == [0, 0, 1, 3]


def test_batches_of_different_length_become_one_array():
    start, end = measures.joined([np.ones((2, 1, 4)), np.zeros((2, 2, 2))], 5)
    assert start.shape == end.shape == (3, 5)
    assert start[:, 2:].tolist() == [[1, 1, -100], [-100, -100, -100], [-100, -100, -100]]


def test_a_peer_runs_the_graph_of_the_length_config(peers_folder):
    peer, ids = Echo(peers_folder, 2), torch.arange(6).view(2, 3)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(peer(**inputs, length_config=(8, 8)).start_logits, ids.double())
    assert peer(**inputs, length_config=(8, 8)).end_logits.all()
    assert not peer(**inputs, length_config=(5, 3)).end_logits.any()
    with pytest.raises(RunError, match=r"made for --length_config \(5, 3\), not \(5, 4\)"):
        peer(**inputs, length_config=(5, 4))


@pytest.mark.parametrize(("text", "words"), [(None, "holds no peers"), ("{", "damaged"), ("{}", "damaged")])
def test_a_folder_without_peers_is_an_error_that_says_so(tmp_path, text, words):
    if text is not None:
        (tmp_path / peers.PEERS_FILE).write_text(text)
    with pytest.raises(RunError, match=words):
        peers.read_peers(tmp_path)


@pytest.mark.parametrize("peer", [peers.OpenVino, peers.OnnxRuntime])
def test_a_peer_that_is_not_installed_names_its_requirements(peers_folder, monkeypatch, peer):
    monkeypatch.setitem(sys.modules, peer.backend, None)
    with pytest.raises(RunError, match="pip install -r benchmarks/requirements-peers.txt"):
        peer(peers_folder, 2).load("full", None)


@pytest.mark.parametrize("shape", [(3, 6), (1, 12), (2, 17)])
@pytest.mark.parametrize("lengths", [None, (14, 9), (5, 2)])
def test_what_is_traced_once_equals_the_reader_at_any_batch_and_length(lengths, shape):
    torch.manual_seed(0)
    sizes = SIZES | {"num_hidden_layers": 2, "vocab_size": 50}
    model = MODEL_CLASSES["bert"](BertConfig(**sizes)).eval()
    example = tuple(torch.ones(3, 8, dtype=torch.long) for _ in range(3))
    ids, mask, types = torch.randint(5, 50, shape), torch.ones(shape, dtype=torch.long), torch.zeros(shape).long()
    mask[-1, shape[1] - 2 :] = 0
    with torch.no_grad():
        traced = torch.jit.trace(make_peers.FixedLengths(model, lengths), example, check_trace=False)
        start, end = traced(ids, mask, types)
        expected = model(input_ids=ids, attention_mask=mask, token_type_ids=types, length_config=lengths)
    real = mask.bool()
    assert torch.allclose(start[real], expected.start_logits[real], atol=1e-5)
    assert torch.allclose(end[real], expected.end_logits[real], atol=1e-5)


COMPARE = ["--model", "m", "--validation_file", "f", "--length_config", "(2, 1)", "--output", "o.json"]
MAKE = ["--model", "m", "--train_file", "f", "--length_config", "(2, 1)", "--output_dir", "o"]


@pytest.mark.parametrize(
    ("script", "given", "words"),
    [
        (compare_engines, [*COMPARE, "--batch_sizes", "32", "0"], "--batch_sizes must be at least 1"),
        (compare_engines, [*COMPARE, "--max_questions", "0"], "--max_questions must be at least 1"),
        (compare_engines, [*COMPARE, "--output", "o.txt"], "must end in .json"),
        (compare_engines, [*COMPARE, "--modes", "speed"], "invalid choice"),
        (compare_engines, [*COMPARE, "--without_float32"], "leaves nothing to measure"),
        (make_peers, [*MAKE, "--num_calibration_samples", "0"], "--num_calibration_samples must be at least 1"),
        (make_peers, [*MAKE, "--engines", "tvm"], "invalid choice"),
    ],
)
def test_a_wrong_flag_is_named(script, given, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.read_arguments(given)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_peers_of_other_weights_are_refused(peers_folder, dynamic, squad_v1_file):
    given = ["--model", dynamic, "--validation_file", squad_v1_file, "--length_config", "(40, 20, 10)"]
    given += ["--output", peers_folder / "o.json", "--peers", peers_folder]
    with pytest.raises(RunError, match="was not made from the weights"):
        compare_engines.open_models(compare_engines.read_arguments([*map(str, given)]), "bert")


def test_a_comparison_leaves_json_table_and_picture(dynamic, squad_v1_file, tmp_path, capsys):
    output = tmp_path / "results" / "engines.json"
    given = [
        "--model",
        dynamic,
        "--validation_file",
        squad_v1_file,
        "--length_config",
        "(40, 20, 10)",
        "--max_questions",
        5,
    ]
    given += ["--max_seq_length", 64, "--doc_stride", 16, "--batch_sizes", 2, 3, "--passes", 1, "--repeats", 1]
    compare_engines.compare(compare_engines.read_arguments([*map(str, given), "--output", str(output)]))
    results = json.loads(output.read_text())
    rows = results["throughput"]
    assert [(row["engine"], row["at"], row["batch_size"]) for row in rows] == [
        ("float32 reader", at, size) for size in (2, 3) for at in ("full", "config")
    ]
    assert all(row["same_spans"] == 1 and row["logit_difference_max"] == 0 and row["questions"] == 5 for row in rows)
    assert results["settings"]["model"] == dynamic.name and str(dynamic.parent) not in output.read_text()
    assert results["latency"][0]["sequence_length"] == 64 and results["environment"]["cpu"]
    assert output.with_suffix(".md").read_text().count("| float32 reader |") == 8
    assert output.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_without_the_float32_reader_nothing_is_compared_with_it(dynamic, squad_v1_file, tmp_path, capsys):
    output = tmp_path / "engines.json"
    given = ["--model", dynamic, "--validation_file", squad_v1_file, "--length_config", "(40, 20, 10)", "--bf16"]
    given += ["--max_seq_length", 64, "--doc_stride", 16, "--passes", 1, "--modes", "throughput", "--without_float32"]
    compare_engines.compare(compare_engines.read_arguments([*map(str, given), "--output", str(output)]))
    rows = json.loads(output.read_text())["throughput"]
    assert [(row["engine"], row["at"]) for row in rows] == [("bf16 reader", "full"), ("bf16 reader", "config")]
    assert all("same_spans" not in row and "f1" in row for row in rows)


def test_the_picture_needs_an_engine_at_full_length(tmp_path):
    row = {"engine": "a", "macs": 1, "full_macs": 2, "ms_a_window": 3.0}
    with pytest.raises(PlotError, match="full length"):
        plot_engines(tmp_path / "engines.png", [row], 1e9)
