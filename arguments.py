"""What the command line of run_qa.py can say: one dataclass a group of flags, with their defaults and help texts."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments

from distillation_arguments import DistillationArguments
from length_arguments import LengthAdaptiveArguments, SearchArguments

METRIC_SCHEDULERS = ("reduce_lr_on_plateau", "greedy")  # learning rates that follow a metric of the evaluation


@dataclass
class ModelArguments:
    _argument_group_name = "model"

    model_name_or_path: str = field(
        metadata={
            "help": "Folder or hub id of a BERT or RoBERTa encoder or question-answering model. Never written to."
        }
    )
    config_name: str | None = field(default=None, metadata={"help": "Configuration, if not the model's own."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if not the model's own."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for what is downloaded from the hub."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the hub."})
    token: str | None = field(default=None, metadata={"help": "Access token of the hub (default: `hf auth login`'s)."})
    attention_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Dropout of attention probabilities while training, instead of the configuration's. On a CPU, 0 "
            "makes a step cheaper."
        },
    )
    hidden_dropout: float | None = field(
        default=None,
        metadata={"help": "Dropout of hidden states while training, instead of the configuration's."},
    )


@dataclass
class DataArguments:
    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id (squad and squad_v2 are understood) or a local folder."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that dataset."})
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Questions to train on, and on a slice of which --do_search scores its candidates: SQuAD JSON, flat "
            "JSON, JSON lines (.json, .jsonl) or CSV."
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Questions that --do_eval and the frontier of --do_search are scored on."}
    )
    test_file: str | None = field(default=None, metadata={"help": "Questions that --do_predict answers."})
    question: str | None = field(
        default=None,
        metadata={
            "help": "With --do_predict: answer this one question on the passage --context, print the answer, and leave "
            "nothing on the disk."
        },
    )
    context: str | None = field(
        default=None,
        metadata={"help": "Text file with the passage that --question asks about; - reads standard input."},
    )
    print_json: bool = field(
        default=False,
        metadata={
            "help": "With --question: print JSON, with the --n_best_size best answers and the length config's cost."
        },
    )
    overwrite_cache: bool = field(default=False, metadata={"help": "Read and tokenize the data anew."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that tokenize."})
    max_seq_length: int = field(
        default=384,
        metadata={"help": "Tokens of question and passage together; longer passages are split in windows."},
    )
    doc_stride: int = field(default=128, metadata={"help": "Tokens that neighbouring windows share."})
    pad_to_max_length: bool = field(
        default=False,
        metadata={
            "help": "Pad each batch to --max_seq_length, not to its longest member. Same answers, but slower. Training "
            "losses depend on it a little, as in the stock models: their softmax runs over the padding too."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use the first N training questions only (of those not held out)."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first N validation questions only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Answer the first N test questions only."})
    hold_out_samples: int = field(
        default=0,
        metadata={
            "help": "Train without whole articles of at least N questions (of whole passages if there are no titles): "
            "those that --do_search scores on if its --search_samples is N or less. The model's config.json names them."
        },
    )
    hold_out_seed: int = field(
        default=42,
        metadata={"help": "Draws these articles, in training and in the search (--seed may differ between the two)."},
    )
    version_2_with_negative: bool = field(default=False, metadata={"help": "SQuAD v2: some have no answer."})
    null_score_diff_threshold: float = field(
        default=0.0,
        metadata={"help": "With v2: answer nothing if null score - best span score (logits) exceeds this."},
    )
    n_best_size: int = field(
        default=20, metadata={"help": "Answers kept a question; also starts and ends considered."}
    )
    max_answer_length: int = field(default=30, metadata={"help": "Longest answer, in tokens."})


@dataclass
class QuantizationArguments:
    _argument_group_name = "quantization"

    tune: bool = field(
        default=False,
        metadata={
            "help": "Quantize the model to INT8 with the first recipe that keeps the metric within the tolerance (needs "
            "--do_eval; calibrates on the training split that --do_train names, and trains nothing)."
        },
    )
    quantization_approach: Literal["static", "dynamic", "PostTrainingStatic", "PostTrainingDynamic"] = field(
        default="static",
        metadata={
            "help": "static: calibrated ranges of the activations; dynamic: ranges by token, found while the model runs."
        },
    )
    quantization_backend: Literal["pt2e", "ipex", "native"] | None = field(
        default=None,
        metadata={
            "help": "What runs the INT8 model: eager modules (native, what --tune takes if unset), PyTorch's compiler (pt2e, "
            "what it takes with --bf16) or Intel Extension for PyTorch (ipex, in an environment of its own: "
            "requirements-ipex.txt). With --int8 the one that the folder was tuned for."
        },
    )
    num_calibration_samples: int = field(
        default=128, metadata={"help": "Training windows, drawn by --seed, on which static ranges are observed."}
    )
    calibration_method: Literal["minmax", "kl"] = field(
        default="minmax", metadata={"help": "Neural Compressor's estimator of the ranges: extremes or a histogram."}
    )
    quantize_embeddings: bool = field(
        default=True, metadata={"help": "Embedding tables in int8 too, with a scale a row."}
    )
    metric_name: str = field(
        default="eval_f1", metadata={"help": "What tuning keeps: eval_f1 or eval_exact_match (v2: eval_exact)."}
    )
    is_relative: bool = field(
        default=True, metadata={"help": "--perf_tol is a fraction of the float model's metric, not points of it."}
    )
    perf_tol: float = field(
        default=0.01, metadata={"help": "How much of the metric the INT8 model may lose: 0.01 is one hundredth."}
    )
    int8: bool = field(
        default=False,
        metadata={
            "help": "Evaluate, search or predict with the INT8 model of --output_dir, or of --model_name_or_path if that "
            "is the folder of one. With --bf16 what is not INT8 is computed in bf16."
        },
    )
    quantization_aware: str | None = field(
        default=None,
        metadata={
            "help": "INT8 folder that --tune made of the model: train (needs --do_train) with the rounding of its recipe, and "
            "its ranges, to predict what the float model does, and leave an INT8 folder. At full length, at --length_config "
            "or, with --length_adaptive, at LengthDrop's sub-models. Without dropout, unless --hidden_dropout or "
            "--attention_dropout is given."
        },
    )
    sensitivity: bool = field(
        default=False,
        metadata={
            "help": "With --tune: also report how much each layer alone changes the answers when it is quantized."
        },
    )
    engine_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for what is compiled, INT8 engines and the fused attention, ~/.cache/quala if unset (machine "
            "code: nobody else should write there)."
        },
    )

    def __post_init__(self):
        self.quantization_approach = self.quantization_approach.removeprefix("PostTraining").lower()


@dataclass
class RunArguments(TrainingArguments):
    _argument_group_name = "training and evaluation (transformers.TrainingArguments)"

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for everything this run leaves (required, but for a --question)."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Start anew in a folder that holds earlier results: its checkpoints and scores are replaced."
        },
    )
    accuracy_only: bool = field(default=False, metadata={"help": "With --do_eval: no timing, just EM, F1 and MACs."})
    benchmark: bool = field(
        default=False,
        metadata={
            "help": "With --do_eval: also measure the model's latency at the length config and at full length, side by "
            "side, on batches padded to --max_seq_length."
        },
    )
    logging_steps: float = field(default=50, metadata={"help": "Log the loss every N steps (below 1: a fraction)."})

    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})

    def __post_init__(self):
        folder = self.output_dir
        if not torch.accelerator.is_available():  # what the Trainer would do, but it refuses --bf16 if not told
            self.use_cpu, self.dataloader_pin_memory = True, False
        if self.metric_for_best_model is None and self.uses_a_metric():
            self.metric_for_best_model = "f1"  # the Trainer would take the loss, which evaluation does not compute
        try:
            super().__post_init__()
        except (OSError, TypeError) as error:  # a file that is not there, a setting that there is not
            raise ValueError(f"--accelerator_config, --fsdp_config or --deepspeed cannot be used: {error}") from error
        self.output_dir = folder  # the Trainer would choose one itself
        if self.lr_scheduler_type in METRIC_SCHEDULERS and self.greater_is_better:
            self.lr_scheduler_kwargs = _with_mode_max(self.lr_scheduler_kwargs)

    def uses_a_metric(self) -> bool:
        """Whether training decides something by a metric of the validation questions."""
        return (
            self.load_best_model_at_end or self.save_strategy == "best" or self.lr_scheduler_type in METRIC_SCHEDULERS
        )


def _with_mode_max(kwargs: object) -> object:
    """The schedulers' own default would lower the learning rate whenever the score rises."""
    return {"mode": "max"} | (kwargs or {}) if isinstance(kwargs, dict | None) else kwargs


@dataclass(frozen=True)
class Arguments:
    """Everything the command line says."""

    model: ModelArguments
    data: DataArguments
    distillation: DistillationArguments
    length_adaptive: LengthAdaptiveArguments
    search: SearchArguments
    quantization: QuantizationArguments
    run: RunArguments

    @property
    def trains(self) -> bool:
        """Whether weights change; with --tune, --do_train only names the examples to calibrate on."""
        return self.run.do_train and not self.quantization.tune

    @property
    def is_taught(self) -> bool:
        """Whether a teacher helps in training."""
        return self.trains and bool(self.distillation.teacher_model_name_or_path)

    @property
    def searches_training(self) -> bool:
        """Whether the candidates of a search are scored on training questions."""
        return self.search.do_search and self.search.search_split == "train"

    @property
    def tuned_backend(self) -> str:
        """The backend that --tune makes its folder for."""
        return self.quantization.quantization_backend or ("pt2e" if self.run.bf16 else "native")

    @property
    def calibrates(self) -> bool:
        return self.quantization.tune and self.quantization.quantization_approach == "static"
