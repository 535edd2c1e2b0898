"""Time and memory of a LengthDrop training step, and of one at full length beside the stock model, float32 or --bf16.

    python benchmarks/length_drop_training.py --batch_size 8 --sequence_length 384 --dropout 0.1

A LengthDrop step is the full model, the smallest sub-model and two random ones, forward and backward; the optimizer's
step is not in it.  Prints milliseconds a step (median, 90th percentile; the steps take turns in one process) and by how
much a step raises the memory of a process of its own (MiB of resident memory at its highest, or of the GPU's).
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import quiet_libraries  # noqa: F401  (before transformers)

# isort: split
import torch
from transformers import BertConfig, BertForQuestionAnswering, TrainingArguments

from benchmark import measure_latency
from modeling_la_bert import LABertForQuestionAnswering
from trainer_qa import LengthDropSettings, LengthDropTrainer

STEPS = ("stock, full length", "full length", "LengthDrop")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--sequence_length", type=int, default=384)
    parser.add_argument("--hidden_size", type=int, default=384)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dropout", type=float, default=0.1, help="of hidden states and of attention probabilities")
    parser.add_argument("--length_drop_ratio_bound", type=float, default=0.2)
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


def model_config(args: argparse.Namespace) -> BertConfig:
    return BertConfig(
        hidden_size=args.hidden_size,
        num_attention_heads=args.heads,
        num_hidden_layers=args.layers,
        intermediate_size=4 * args.hidden_size,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
    )


def make_step(args: argparse.Namespace, name: str) -> Callable[[], None]:
    """A training step without the optimizer's, on random tokens without padding; waited for."""
    torch.manual_seed(0)
    model_class = BertForQuestionAnswering if name.startswith("stock") else LABertForQuestionAnswering
    settings = LengthDropSettings(args.sequence_length, length_drop_ratio_bound=args.length_drop_ratio_bound)
    run = TrainingArguments(tempfile.gettempdir(), bf16=args.bf16, report_to="none")
    trainer = LengthDropTrainer(model=model_class(model_config(args)), args=run, length_drop=settings)
    trainer.current_gradient_accumulation_steps = 1  # what train() would set
    model = trainer.model.train()
    size, length = args.batch_size, args.sequence_length
    batch = {
        "input_ids": torch.randint(1000, 30000, (size, length)),
        "attention_mask": torch.ones(size, length).long(),
    }
    batch |= {key: torch.randint(length, (size,)) for key in ("start_positions", "end_positions")}
    batch = {key: tensor.to(model.device) for key, tensor in batch.items()}

    def step() -> None:
        model.zero_grad()
        if name == "LengthDrop":
            trainer.training_step(model, batch).item()
        else:
            with trainer.compute_loss_context_manager():
                loss = model(**batch).loss
            loss.backward()
            loss.item()

    return step


def memory_of(args: argparse.Namespace, name: str) -> float:
    """MiB by which two steps raise the highest memory of this process."""
    step, on_gpu = make_step(args, name), torch.cuda.is_available()
    before = torch.cuda.memory_allocated() / 2**20 if on_gpu else highest_resident()
    for _ in range(2):
        step()
    return (torch.cuda.max_memory_allocated() / 2**20 if on_gpu else highest_resident()) - before


def highest_resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    args = read_arguments()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        memory = {name: processes.apply(memory_of, (args, name)) for name in STEPS}
    timings = measure_latency({name: make_step(args, name) for name in STEPS}, warm_up=1, repeats=6)
    shape = f"batch {args.batch_size} x {args.sequence_length}, {'bf16' if args.bf16 else 'float32'}"
    print(f"{shape}, dropout {args.dropout}, {torch.get_num_threads()} threads, ms and MiB a step")
    for name, timing in timings.items():
        median, slow = (timing[f"latency_ms_{key}"] for key in ("median", "p90"))
        print(f"{name:20} {median:9.1f} {slow:9.1f} {memory[name]:9.0f}")


if __name__ == "__main__":
    main()
