"""What a run needs before its first stage: model and questions."""

import hashlib
import logging
import random
import sys
from collections.abc import Container, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from arguments import Arguments, DataArguments
from data_qa import load_splits
from errors import RunError
from features_qa import featurize
from hold_out import split_training
from int8_backends import backend_class
from int8_backends import open_int8 as open_int8_folder
from int8_engine import Int8Model
from int8_folder import RECIPE_FILE, sha256
from modeling_la_auto import MODEL_CLASSES
from quantization import stored_config
from squad_metric import score_answers
from student import chosen_layers, keep_layers
from utils_qa import AnswerExtractor, Answers, AnswerSettings
from windows_qa import max_positions

logger = logging.getLogger(__name__)

# what the libraries raise for a folder or hub id that is missing, damaged or of another kind (RuntimeError: weights of
# another size; StrictDataclassError: a configuration with a value of another type)
LIBRARY_ERRORS = (
    *(OSError, ValueError, KeyError, RuntimeError),
    *(HFValidationError, SafetensorError, StrictDataclassError),
)


@dataclass(frozen=True)
class QuestionSet:
    """Questions, their features, and how logits become answers and scores."""

    examples: Dataset
    features: Dataset
    settings: AnswerSettings

    @cached_property
    def extractor(self) -> AnswerExtractor:
        """Turns (start, end) logits of `features` into Answers; prepared once, used for every length config."""
        return AnswerExtractor(self.examples, self.features, self.settings)

    @cached_property
    def has_gold(self) -> bool:
        """Whether the answers can be scored: some question names an answer, or in version 2 that it has none."""
        version_2 = self.settings.version_2_with_negative
        return any(gold and (version_2 or gold["text"]) for gold in self.examples["answers"])

    def score(self, answers: Answers) -> dict[str, float]:
        """EM and F1 (0-100) without prefix; nothing for questions without gold answers."""
        if not self.has_gold:
            return {}
        return score_answers(answers, self.examples, self.settings.version_2_with_negative)

    def sample(self, size: int, seed: int) -> "QuestionSet":
        """`size` of the questions, drawn without replacement by `seed`, with their features."""
        chosen = sorted(random.Random(seed).sample(range(len(self.examples)), min(size, len(self.examples))))
        examples = self.examples.select(chosen)
        ids = set(examples["id"])
        kept = [row for row, example in enumerate(self.features["example_id"]) if example in ids]
        return QuestionSet(examples, self.features.select(kept), self.settings)


# ---- loading -------------------------------------------------------------------------------------------------------


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def source_of(args: Arguments, flag: str) -> tuple[str, str]:
    """The flag that says where this part of the model comes from, and what it says."""
    flag = flag if getattr(args.model, flag) else "model_name_or_path"
    return flag, getattr(args.model, flag)


def load(args: Arguments, loader: type, flag: str, **kwargs):
    """`loader.from_pretrained` of what the flag names, or else of the model; RunError names the flag."""
    return load_from(args, loader, *source_of(args, flag), revision=args.model.model_revision, **kwargs)


def load_from(args: Arguments, loader: type, flag: str, source: str, **kwargs):
    """`loader.from_pretrained` of `source`, which the flag names; RunError says so."""
    if loader is AutoConfig and not Path(source).is_dir():
        logger.info("--%s %s: there is no such folder, so the hub is asked", flag, source)
    try:
        return loader.from_pretrained(source, cache_dir=args.model.cache_dir, token=args.model.token, **kwargs)
    except LIBRARY_ERRORS as error:
        where = "" if Path(source).is_dir() else "there is no such folder, and from the hub: "
        # a configuration's error names the field in its first line and the value in its second
        said = " ".join(str(error).split()) if isinstance(error, StrictDataclassError) else first_line(error)
        raise RunError(f"--{flag} {source} cannot be loaded: {where}{said}") from error


def load_model(args: Arguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The length-adaptive model in float32 and its tokenizer; RunError if the folder or the type does not fit."""
    if args.quantization.int8:
        return load_int8_model(args)
    if args.quantization.tune:
        backend_class(args.tuned_backend).require()
    if Path(args.model.model_name_or_path, RECIPE_FILE).is_file():
        raise RunError(
            f"--model_name_or_path {args.model.model_name_or_path} holds an INT8 model: use it with --int8, or name the "
            "float model it was made from."
        )
    config = load(args, AutoConfig, "config_name")
    check_config(args, config)
    adapt_config(args, config)
    tokenizer = load(args, AutoTokenizer, "tokenizer_name")
    check_tokenizer(args, tokenizer, config)
    return build_model(args, config), tokenizer


def build_model(args: Arguments, config: PretrainedConfig) -> PreTrainedModel:
    """The model with its own weights or, where it is trained, what the command line makes of them."""
    model_class = MODEL_CLASSES[config.model_type]
    if args.trains and args.distillation.from_scratch:
        model = model_class(config)
        model.has_new_head = True
        return model
    facts = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    model, report = load(args, model_class, "model_name_or_path", **facts)
    check_weights(args, report["missing_keys"])
    if args.trains and args.distillation.student_layers:
        layers = chosen_layers(args.distillation.student_layers, config.num_hidden_layers)
        logger.info("the student is made of the layers %s of %s", layers, args.model.model_name_or_path)
        model = keep_layers(model, layers)
    model.has_new_head = bool(report["missing_keys"])
    return model


def load_int8_model(args: Arguments) -> tuple[Int8Model, PreTrainedTokenizerBase]:
    """The model of an INT8 folder and the tokenizer; RunError if it was made from another model."""
    folder, source = int8_folder(args), args.model.model_name_or_path
    model = open_int8(args, folder)
    made_from = model.recipe.get("source", {})
    if folder != Path(source) and not holds_the_weights(source, made_from):
        raise RunError(
            f"the INT8 model in --output_dir {folder} was made from {made_from.get('model_name_or_path')}, not from the "
            f"weights that --model_name_or_path {source} holds now: --tune again, or name the INT8 folder as the model."
        )
    check_config(args, model.config)
    tokenizer = load(args, AutoTokenizer, "tokenizer_name")
    check_tokenizer(args, tokenizer, model.config)
    if list(tokenizer.model_input_names) != list(model.input_names):
        raise RunError(f"the tokenizer gives {tokenizer.model_input_names}, the INT8 model takes {model.input_names}.")
    return model, tokenizer


def open_int8(args: Arguments, folder: Path) -> Int8Model:
    """The model of an INT8 folder, its float parts in the precision that the command line asks for."""
    autocast = torch.bfloat16 if args.run.bf16 else None
    quantization = args.quantization
    model = open_int8_folder(folder, quantization.engine_cache_dir, autocast, quantization.quantization_backend)
    model.config = stored_config(model.recipe)  # one that can be saved, and that a Trainer understands
    return model


def int8_folder(args: Arguments) -> Path:
    """The folder that --int8 means: the model's if it is one of an INT8 model, or else the output folder."""
    model, output = args.model.model_name_or_path, args.run.output_dir
    for folder in (model, output):
        if folder and Path(folder, RECIPE_FILE).is_file():
            return Path(folder)
    also = f", nor does --output_dir {output}" if output else ""
    raise RunError(f"--int8: --model_name_or_path {model} holds no INT8 model{also}: make one by --tune.")


def holds_the_weights(source: str, made_from: dict) -> bool:
    """Whether `source` holds the weights that an INT8 model was `made_from`, as its recipe says."""
    checksum = weights_checksum(source)
    same_name = source == made_from.get("model_name_or_path")
    return checksum == made_from.get("sha256") and (checksum is not None or same_name)


def weights_checksum(source: str) -> str | None:
    """SHA-256 of the weights files of a local folder; None for a model of the hub."""
    files = [path for pattern in ("*.safetensors", "pytorch_model*.bin") for path in Path(source).glob(pattern)]
    return hashlib.sha256("".join(map(sha256, sorted(files))).encode()).hexdigest() if files else None


def check_config(args: Arguments, config: PretrainedConfig) -> None:
    (flag, source), length = source_of(args, "config_name"), args.data.max_seq_length
    if config.model_type not in MODEL_CLASSES:
        supported = " and ".join(MODEL_CLASSES)
        raise RunError(f"--{flag} {source} is of type {config.model_type}; supported are {supported}.")
    if length > max_positions(config):
        raise RunError(f"--max_seq_length {length} is more than the {max_positions(config)} positions of {source}.")


def check_tokenizer(args: Arguments, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """RunError if the tokenizer knows no words (what a folder without tokenizer files gives) or more than the model."""
    flag, source = source_of(args, "tokenizer_name")
    remedy = "name the model's own tokenizer by --tokenizer_name."
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise RunError(f"--{flag} {source} has no tokenizer files: {remedy}")
    if len(tokenizer) > config.vocab_size:
        raise RunError(
            f"--{flag} {source} has a tokenizer of {len(tokenizer)} tokens, but the model knows {config.vocab_size}: "
            + remedy
        )


def adapt_config(args: Arguments, config: PretrainedConfig) -> None:
    """What the command line changes in the model's configuration before the model is built."""
    if args.trains:
        if getattr(config, "length_config", None):
            logger.info(
                "training starts at full length; the model's length_config %s is dropped", config.length_config
            )
        config.length_config = config.length_configs = None  # found for the weights that training changes
    if args.model.attention_dropout is not None:
        config.attention_probs_dropout_prob = args.model.attention_dropout
    if args.model.hidden_dropout is not None:
        config.hidden_dropout_prob = args.model.hidden_dropout


def check_weights(args: Arguments, missing: set[str]) -> None:
    """RunError if the encoder's weights are missing; a missing question-answering head is what training begins with."""
    lacking = sorted(name for name in missing if not name.startswith("qa_outputs."))
    source = args.model.model_name_or_path
    if lacking:
        raise RunError(f"--model_name_or_path {source} lacks {len(lacking)} weights of its type, like {lacking[0]}.")
    if missing and args.trains:
        logger.info("%s has no question-answering head yet: training starts with a new one", source)
    elif missing:
        logger.warning("%s has no question-answering head: its answers mean nothing before --do_train", source)


def load_data(
    args: Arguments, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> tuple[Dataset | None, dict[str, QuestionSet]]:
    """Training features (None if no stage needs them) and the question sets the stages need: "validation", "test" and
    "search", which scores the candidates of a search. What training holds out is recorded in `model`."""
    data, run = args.data, args.run
    wanted = {
        "train": args.trains or args.calibrates or args.searches_training,
        "validation": run.do_eval or args.search.do_search,
        "test": run.do_predict,
    }
    files = {split: getattr(data, f"{split}_file") for split in wanted if wanted[split]}
    if data.dataset_name and all(files.values()):
        logger.warning("--dataset_name %s is not used: every stage has a file of its own", data.dataset_name)
    with run.main_process_first(desc="preprocessing"):
        splits = load_splits(
            dataset_name=None if all(files.values()) else data.dataset_name,
            dataset_config_name=data.dataset_config_name,
            data_files={split: file for split, file in files.items() if file},
            cache_dir=args.model.cache_dir,
            token=args.model.token,
            overwrite_cache=data.overwrite_cache,
        )
        check_splits(args, files, splits)
        questions = {split: splits[split] for split in files if split != "train"}
        if wanted["train"]:
            questions |= split_training(args, model, splits["train"])
        sets = {name: question_set(data, name, examples, tokenizer) for name, examples in questions.items()}
    if args.search.do_search and not args.searches_training:
        size, validation = args.search.search_samples, sets["validation"]
        sets["search"] = validation.sample(size, run.seed) if size else validation
    train = sets.pop("train", None)
    return train and train.features, sets


def check_splits(args: Arguments, wanted: Iterable[str], splits: Container[str]) -> None:
    for split in wanted:
        if split not in splits:
            way_out = " or --search_split validation" if split == "train" and not args.run.do_train else ""
            raise RunError(
                f"--dataset_name {args.data.dataset_name} has no {split} split: give --{split}_file{way_out}."
            )


def question_set(
    data: DataArguments, split: str, examples: Dataset, tokenizer: PreTrainedTokenizerBase
) -> QuestionSet:
    """The first questions of a split, as many as --max_..._samples allows, with their features."""
    limits = {"train": data.max_train_samples, "validation": data.max_eval_samples, "test": data.max_predict_samples}
    examples = examples.select(range(min(limits.get(split) or sys.maxsize, len(examples))))
    features = featurize(
        examples,
        tokenizer,
        max_seq_length=data.max_seq_length,
        doc_stride=data.doc_stride,
        training=split == "train",
        num_proc=data.preprocessing_num_workers,
        overwrite_cache=data.overwrite_cache,
    )
    return QuestionSet(examples, features, answer_settings(data))


def answer_settings(data: DataArguments) -> AnswerSettings:
    return AnswerSettings(**{item.name: getattr(data, item.name) for item in fields(AnswerSettings)})
