"""Make the INT8 peers of a reader: OpenVINO (NNCF) and ONNX Runtime, each at full length and with one length config.

    python benchmarks/make_peers.py --model output/dynamic --train_file train-v1.1.json \\
        --length_config "(315, 251, 242, 159, 142, 33)" --output_dir output/peers

The environment is that of benchmarks/requirements-peers.txt.  OpenVINO's graphs are quantized after training by NNCF (its
preset for transformers, with SmoothQuant and bias correction) on the training windows that --tune draws; ONNX Runtime's
with ranges by token ("dynamic"), or with ranges observed on those windows ("static").
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import quiet_libraries  # noqa: F401  (before transformers)

# isort: split
import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from benchmarks.peers import PEERS_FILE, require
from data_qa import load_splits
from features_qa import featurize
from length_config import parse_length_config
from loading import weights_checksum
from modeling_la_auto import MODEL_CLASSES
from quantize_qa import calibration_rows
from results_qa import environment, write_json

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class FixedLengths(nn.Module):
    """What is traced: a reader at one length config (None: full length), for batches of any size and length."""

    def __init__(self, model: nn.Module, length_config: tuple[int, ...] | None):
        super().__init__()
        self.model, self.length_config = model, length_config

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        """Start and end logits (B, S) of inputs (B, S)."""
        tokens = torch.as_tensor(input_ids.shape[1])  # open: in a trace, sizes are tensors
        lengths = self.length_config and tuple(torch.clamp(tokens, max=length) for length in self.length_config)
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        # One row of the mask for all queries: the library's (B, 1, S, S) would be computed and read for nothing.
        mask = (1 - attention_mask.float())[:, None, None] * torch.finfo(torch.float32).min
        outputs = self.model(input_ids=input_ids, attention_mask=mask, length_config=lengths, **types)
        return outputs.start_logits, outputs.end_logits


def read_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the float reader")
    parser.add_argument("--train_file", required=True, help="questions to calibrate on")
    parser.add_argument("--length_config", required=True, help='the config beside full length: "(315, 251, ...)"')
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the graphs and peers.json")
    parser.add_argument("--engines", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    parser.add_argument("--onnxruntime_quantization", choices=("dynamic", "static"), default="dynamic")
    parser.add_argument("--num_calibration_samples", type=int, default=128)
    parser.add_argument("--max_seq_length", type=int, default=384)
    parser.add_argument("--doc_stride", type=int, default=128)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    if args.num_calibration_samples < 1:
        parser.error("--num_calibration_samples must be at least 1.")
    return args


def calibration_inputs(args: argparse.Namespace, tokenizer, names: list[str]) -> list[dict[str, np.ndarray]]:
    """The windows that --tune calibrates on, one by one, as (1, S) arrays by name."""
    examples = load_splits(data_files={"train": args.train_file})["train"]
    lengths = {"max_seq_length": args.max_seq_length, "doc_stride": args.doc_stride}
    features = featurize(examples, tokenizer, training=True, **lengths)
    rows = calibration_rows(features, names, args.num_calibration_samples, args.seed)
    return [{name: np.array([row[name]], dtype=np.int64) for name in names} for row in rows]


def make_openvino(args, graph: FixedLengths, example: dict[str, torch.Tensor], calibration: list, path: Path) -> None:
    """Write the graph as `path`.xml and .bin."""
    openvino, nncf = require("openvino"), require("nncf")
    model = openvino.convert_model(graph, example_input=tuple(example.values()))
    for name, port in zip(example, model.inputs):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    settings = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": len(calibration)}
    openvino.save_model(nncf.quantize(model, nncf.Dataset(calibration), **settings), f"{path}.xml")


def make_onnxruntime(args, graph: FixedLengths, example: dict[str, torch.Tensor], calibration: list, path: Path):
    """Write the graph as `path`.onnx."""
    require("onnx")
    quantization = require("onnxruntime.quantization")
    names = {"input_names": list(example), "output_names": ["start_logits", "end_logits"]}
    sizes = {name: {0: "batch", 1: "tokens"} for name in [*example, "start_logits", "end_logits"]}
    weights = {"per_channel": True, "weight_type": quantization.QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder:
        exported, prepared = Path(folder, "exported.onnx"), Path(folder, "prepared.onnx")
        # The exporter by tracing: the graphs of the newer one run a fifth slower here.
        torch.onnx.export(graph, tuple(example.values()), exported, dynamo=False, dynamic_axes=sizes, **names)
        quantization.quant_pre_process(exported, prepared, skip_symbolic_shape=True)
        if args.onnxruntime_quantization == "dynamic":
            quantization.quantize_dynamic(prepared, f"{path}.onnx", **weights)
        else:
            reader = calibration_reader(quantization, calibration)
            linear = {"op_types_to_quantize": ["MatMul"], "extra_options": {"MatMulConstBOnly": True}}
            quantization.quantize_static(prepared, f"{path}.onnx", reader, **weights, **linear)


def calibration_reader(quantization, calibration: list):
    """The calibration inputs as ONNX Runtime asks for them: one a call, None at the end."""

    class Reader(quantization.CalibrationDataReader):
        rows = iter(calibration)

        def get_next(self):
            return next(self.rows, None)

    return Reader()


MAKERS = {"openvino": make_openvino, "onnxruntime": make_onnxruntime}


def make(args: argparse.Namespace) -> None:
    """Write every graph, and peers.json when all are there."""
    config, tokenizer = AutoConfig.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
    chosen = parse_length_config(args.length_config, config.num_hidden_layers, args.max_seq_length)
    for engine in args.engines:
        require(engine)
    model = MODEL_CLASSES[config.model_type].from_pretrained(args.model, dtype=torch.float32).eval()
    names = [name for name in INPUTS if name in tokenizer.model_input_names]
    calibration = calibration_inputs(args, tokenizer, names)
    example = {name: torch.ones(3, 64, dtype=torch.long) for name in names}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for engine in args.engines:
        for at, lengths in (("full", None), ("config", chosen)):
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what tracing finds in the libraries' own code
                path = args.output_dir / f"{engine}_{at}"
                MAKERS[engine](args, FixedLengths(model, lengths).eval(), example, calibration, path)
    facts = {"engines": args.engines, "length_config": list(chosen), "max_seq_length": args.max_seq_length}
    facts |= {"input_names": names, "source": weights_checksum(args.model)}
    facts |= {"onnxruntime_quantization": args.onnxruntime_quantization, "num_calibration_samples": len(calibration)}
    write_json(args.output_dir / PEERS_FILE, facts | {"seed": args.seed, "environment": environment()})


def main() -> None:
    try:
        make(read_arguments())
    except (OSError, ValueError) as error:  # RunError, DataError and LengthConfigError are of these
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
