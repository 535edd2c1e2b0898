"""What the command line of run_qa.py can say: one dataclass a group of flags, with their defaults and help texts."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments

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
class LengthAdaptiveArguments:
    _argument_group_name = "length-adaptive"

    length_adaptive: bool = field(default=False, metadata={"help": "Train with LengthDrop (needs --do_train)."})
    num_sandwich: int = field(default=2, metadata={"help": "Random sub-models a step, beside full and smallest."})
    length_drop_ratio_bound: float = field(
        default=0.2, metadata={"help": "Largest fraction of the tokens that one layer drops while training."}
    )
    layer_dropout_prob: float | None = field(
        default=None, metadata={"help": "LayerDrop: probability with which a sub-model skips a layer."}
    )
    layer_dropout_bound: int | None = field(
        default=None, metadata={"help": "LayerDrop: a sub-model skips at most this many of the last layers."}
    )
    kl_direction: Literal["sub_full", "full_sub"] = field(
        default="sub_full",
        metadata={"help": "KL(sub||full), with which the published models were made, or KL(full||sub)."},
    )
    kl_temperature: float = field(default=1.0, metadata={"help": "Softens both distributions of that KL."})
    length_config: str | None = field(
        default=None,
        metadata={"help": 'Tokens kept after each layer in --do_eval and --do_predict: "(315, 251, ...)" or JSON.'},
    )
    length_ratios: str | None = field(
        default=None,
        metadata={
            "help": 'The same as fractions of the real length of each passage with its question: "(0.82, 0.65, ...)".'
        },
    )
    length_unit: Literal["tokens", "ratio"] = field(
        default="tokens",
        metadata={
            "help": "What the length configs of --length_adaptive, --do_search and --measure_rate count: tokens, which short "
            "passages hardly have too many of, or fractions of the real length (of --max_seq_length in what is printed)."
        },
    )
    length_config_from: str | None = field(
        default=None,
        metadata={
            "help": "Output folder of a search; the length config is chosen from its frontier by exactly one of "
            "--max_f1_drop, --target_macs, --target_macs_ratio, --target_latency_ms."
        },
    )
    max_f1_drop: float | None = field(
        default=None,
        metadata={
            "help": "Cheapest config at most this many F1 points below the full model: by MACs, or by latency if that was "
            "the search's objective."
        },
    )
    target_macs: float | None = field(
        default=None, metadata={"help": "Best config of at most this many multiply-accumulates, e.g. 2.5e9."}
    )
    target_macs_ratio: float | None = field(
        default=None, metadata={"help": "Best config of at most this fraction of the full model's MACs."}
    )
    target_latency_ms: float | None = field(
        default=None,
        metadata={
            "help": "Best config of at most this many milliseconds a window, as a search with --search_objective latency "
            "measured them."
        },
    )
    measure_rate: str | None = field(
        default=None,
        metadata={"help": 'Evaluate when every layer drops this fraction: "[0.1, 0.2, 0.3]" (needs --do_eval).'},
    )


@dataclass
class SearchArguments:
    _argument_group_name = "search"

    do_search: bool = field(
        default=False,
        metadata={"help": "Search length configs: lowest cost, best F1. Continues an interrupted search."},
    )
    search_strategy: Literal["evolution", "tpe", "nsga2", "random"] = field(
        default="evolution",
        metadata={
            "help": "What proposes length configs: the published evolution or, through Optuna, Bayesian optimisation (tpe), "
            "NSGA-II or chance (150 configs if --search_max_candidates is unset)."
        },
    )
    search_objective: Literal["macs", "latency"] = field(
        default="macs",
        metadata={
            "help": "What a config costs: multiply-accumulates, or milliseconds of this very engine in batches of "
            "--per_device_eval_batch_size, by a model of its layers that is fitted to measurements first."
        },
    )
    search_protocol: Literal["racing", "exhaustive"] = field(
        default="racing",
        metadata={
            "help": "Score a config on a few questions first and on more only while it may belong to the frontier, or every "
            "config on all of them, as published."
        },
    )
    search_storage: str | None = field(
        default=None,
        metadata={
            "help": "Share the search with any number of other processes: sqlite:///PATH, journal:PATH (a file on a shared "
            "disk) or the URL of a database. Start the same command, each with its own --output_dir, at any time."
        },
    )
    evo_iter: int = field(default=30, metadata={"help": "Iterations of the evolution."})
    population_size: int = field(default=20, metadata={"help": "Constant-ratio configs to start from."})
    mutation_size: int = field(default=30, metadata={"help": "Mutated configs an iteration."})
    mutation_prob: float = field(default=0.5, metadata={"help": "Probability of changing a layer in a mutation."})
    crossover_size: int = field(default=30, metadata={"help": "Crossed configs an iteration."})
    load_store_file: str | None = field(
        default=None,
        metadata={"help": "Start from the scored configs of search_results.json, search_store.jsonl or a LAT .tsv."},
    )
    search_floor_ratio: float = field(
        default=0.35,
        metadata={"help": "The cheapest config considered drops this fraction at every layer (published: 0.2)."},
    )
    search_min_macs: float | None = field(
        default=None, metadata={"help": "Lower bound of MACs, instead of that floor."}
    )
    search_max_macs: float | None = field(
        default=None, metadata={"help": "Upper bound of MACs (full model if unset)."}
    )
    search_split: Literal["train", "validation"] = field(
        default="train",
        metadata={
            "help": "Score candidates on whole articles of the training questions, those that --hold_out_samples leaves "
            "out of training, or on validation questions. The frontier is always scored on validation questions."
        },
    )
    search_samples: int | None = field(
        default=None,
        metadata={
            "help": "Score candidates on N questions: of the training split at least N, in whole articles drawn by "
            "--hold_out_seed (2000 if unset); of the validation split N drawn by --seed (all if unset)."
        },
    )
    search_rescore: int = field(
        default=12,
        metadata={
            "help": "How many members of the frontier, those that add most to it, are scored on all questions of the slice "
            "and on the validation questions."
        },
    )
    search_max_candidates: int | None = field(default=None, metadata={"help": "Stop after this many scored configs."})

    def __post_init__(self):
        if self.search_samples is None and self.search_split == "train":
            self.search_samples = 2000


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
        default=None, metadata={"help": "Folder for everything this run leaves (required)."}
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
        if not self.output_dir:  # the Trainer would choose one itself
            raise ValueError("--output_dir is required: the folder for everything this run leaves.")
        if not torch.accelerator.is_available():  # what the Trainer would do, but it refuses --bf16 if not told
            self.use_cpu, self.dataloader_pin_memory = True, False
        if self.metric_for_best_model is None and self.uses_a_metric():
            self.metric_for_best_model = "f1"  # the Trainer would take the loss, which evaluation does not compute
        try:
            super().__post_init__()
        except (OSError, TypeError) as error:  # a file that is not there, a setting that there is not
            raise ValueError(f"--accelerator_config, --fsdp_config or --deepspeed cannot be used: {error}") from error
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
    length_adaptive: LengthAdaptiveArguments
    search: SearchArguments
    quantization: QuantizationArguments
    run: RunArguments

    @property
    def trains(self) -> bool:
        """Whether weights change; with --tune, --do_train only names the examples to calibrate on."""
        return self.run.do_train and not self.quantization.tune

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
