"""The flags about length configs: training for them, giving or choosing one, and searching."""

from dataclasses import dataclass, field
from typing import Literal

LENGTH_CONFIGS = ("length_config", "length_ratios", "length_config_from")  # flags that name one


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
        metadata={
            "help": "KL(sub||full), with which the published models were made, or KL(full||sub). With --quantization_aware "
            "sub is the quantized model and full the float one."
        },
    )
    kl_temperature: float = field(default=1.0, metadata={"help": "Softens both distributions of that KL."})
    length_config: str | None = field(
        default=None,
        metadata={
            "help": "Tokens kept after each layer in --do_eval, --do_predict and --quantization_aware: "
            '"(315, 251, ...)" or JSON.'
        },
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
            "help": "Best config of at most this many milliseconds a window, as a search in a single process has measured "
            "them."
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
            "another evolution (nsga2) or chance (150 configs if --search_max_candidates is unset)."
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
            "help": "How many members of the frontier, those that tell most of it, are scored on all questions of the slice "
            "and on the validation questions."
        },
    )
    search_max_candidates: int | None = field(default=None, metadata={"help": "Stop after this many scored configs."})

    def __post_init__(self):
        if self.search_samples is None and self.search_split == "train":
            self.search_samples = 2000
