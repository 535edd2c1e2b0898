"""The peers of our INT8 engines: graphs of OpenVINO and ONNX Runtime with the interface of our models.

A folder from make_peers.py holds peers.json and two graphs an engine: at full length, and with the tokens dropped of one
length config, which is fixed in the graph.  Batch and sequence length are open.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from errors import RunError

PEERS_FILE = "peers.json"
Run = Callable[[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]


def require(module: str):
    """The imported module; RunError that names the remedy if it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise RunError(
            f"the peers need {module.partition('.')[0]} ({error}): in an environment of their own, pip install -r "
            "benchmarks/requirements-peers.txt"
        ) from error


class Peer(ABC):
    """A peer as a model: forward(**inputs, length_config) to start and end logits (B, S), float32.

    `threads` is how many it may use. RunError for a length config that it has no graph of.
    """

    backend: str
    static = False  # whether a graph is loaded anew for every shape
    device, dtype = torch.device("cpu"), "int8"

    def __init__(self, folder: str | Path, threads: int):
        self.made, self.folder, self.threads = read_peers(folder), Path(folder), threads
        self.load = cache(self.load)

    def eval(self) -> "Peer":
        return self

    def graph(self, length_config: tuple[int, ...] | None) -> str:
        """The graph for a length config: "full" or "config"."""
        if length_config is None or min(length_config) >= self.made["max_seq_length"]:
            return "full"
        if list(length_config) == self.made["length_config"]:
            return "config"
        made_for = tuple(self.made["length_config"])
        raise RunError(f"the peers in {self.folder} were made for --length_config {made_for}, not {length_config}.")

    @abstractmethod
    def load(self, graph: str, shape: tuple[int, int] | None) -> Run:
        """The graph, ready to run on batches (B, S) of this shape, or of any."""

    def __call__(self, *, length_config: tuple[int, ...] | None = None, **inputs: torch.Tensor):
        shape = tuple(inputs["input_ids"].shape) if self.static else None
        run = self.load(self.graph(length_config), shape)
        start, end = run({name: inputs[name].numpy() for name in self.made["input_names"]})
        return QuestionAnsweringModelOutput(start_logits=torch.from_numpy(start), end_logits=torch.from_numpy(end))


class OpenVino(Peer):
    """Modifications: OpenVINO's CPU plugin with its latency hint."""

    backend = "openvino"

    def load(self, graph: str, shape: tuple[int, int] | None) -> Run:
        core = require("openvino").Core()
        model = core.read_model(self.folder / f"openvino_{graph}.xml")
        if shape is not None:
            model.reshape({port.any_name: list(shape) for port in model.inputs})
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self.threads}
        compiled = core.compile_model(model, "CPU", options)
        return lambda inputs: tuple(compiled(inputs, share_inputs=True).values())


class StaticOpenVino(OpenVino):
    """Modifications: compiled anew for every shape of a batch."""

    backend, static = "openvino, static shapes", True


class OnnxRuntime(Peer):
    """Modifications: ONNX Runtime's CPU provider; its threads stop spinning after a run, so that others have the cores."""

    backend = "onnxruntime"

    def load(self, graph: str, shape: tuple[int, int] | None) -> Run:
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        file = str(self.folder / f"onnxruntime_{graph}.onnx")
        session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, inputs)


PEERS = {"openvino": (OpenVino, StaticOpenVino), "onnxruntime": (OnnxRuntime,)}


def read_peers(folder: str | Path) -> dict:
    """What peers.json says; RunError if there is none or it is damaged."""
    path = Path(folder, PEERS_FILE)
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        _ = [made[name] for name in ("engines", "length_config", "max_seq_length", "input_names", "source")]
    except FileNotFoundError:
        raise RunError(f"{folder} holds no peers: make them by benchmarks/make_peers.py.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error!r}): make the peers again.") from error
    return made
