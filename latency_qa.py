"""Latency of length configs on the engine of a run, in batches as its evaluation makes them."""

import json
import logging
import random
from pathlib import Path

import torch

from arguments import Arguments
from candidates import LengthConfig
from errors import RunError
from latency_model import LatencyModel, calibrate
from length_config import in_unit
from loading import QuestionSet
from results_qa import write_json
from serving_latency import measure_configs, serving_batches
from trainer_qa import QuestionAnsweringTrainer

logger = logging.getLogger(__name__)

CALIBRATION_SECONDS = 120.0
WARM_UP, REPEATS = 1, 5  # of each config on the frontier
BATCHES = 4  # that stand for all lengths, where latency is searched by; to report it the middle one will do


class EngineLatency:
    """Milliseconds a window of the trainer's model, for length configs in tokens."""

    def __init__(self, trainer: QuestionAnsweringTrainer, args: Arguments, questions: QuestionSet):
        self.model, self.args, run = trainer.model, args, args.run
        half = torch.bfloat16 if run.bf16 else torch.float16 if run.fp16 else None
        self.autocast = None if args.quantization.int8 else half  # an engine has its own
        self.batches = serving_batches(
            trainer.processing_class,
            questions.features,
            batch_size=run.per_device_eval_batch_size,
            pad_to_max_length=args.data.pad_to_max_length,
            max_seq_length=args.data.max_seq_length,
            count=BATCHES if args.search.search_objective == "latency" else 1,
        )

    def in_unit(self, config: LengthConfig) -> tuple[float, ...]:
        return in_unit(self.args.length_adaptive.length_unit, config, self.args.data.max_seq_length)

    def measure(self, configs: list[LengthConfig]) -> dict[LengthConfig, float]:
        """Medians, the configs in turn."""
        lengths = [self.in_unit(config) for config in configs]
        how = {"autocast": self.autocast, "warm_up": WARM_UP, "repeats": REPEATS}
        rows = measure_configs(self.model, lengths, self.batches, **how)
        return {config: row["latency_ms_median"] for config, row in zip(configs, rows)}

    def fitted(self, facts: dict) -> LatencyModel:
        """The latency model in the output folder, or a new one if that was made with other `facts` or batches."""
        path = Path(self.args.run.output_dir, "latency_model.json")
        facts = facts | {"batches": [list(batch["input_ids"].shape) for batch in self.batches]}
        try:
            kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"facts": None}
            if kept["facts"] == facts:
                logger.info("latencies are those that %s was made of; delete it to measure again", path)
                return LatencyModel.from_record(kept["model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} cannot be read as a latency model ({error}): delete it to measure again."
            ) from error
        model = calibrate(
            self.model,
            self.batches,
            num_layers=self.model.config.num_hidden_layers,
            max_length=self.args.data.max_seq_length,
            rng=random.Random(self.args.run.seed),
            unit=self.args.length_adaptive.length_unit,
            autocast=self.autocast,
            seconds=CALIBRATION_SECONDS,
        )
        write_json(path, {"facts": facts, "model": model.record()})
        return model
