"""The teacher: a frozen reader beside the student, and whether the two read the same tokens."""

import hashlib
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from arguments import Arguments, RunArguments
from errors import RunError
from int8_folder import RECIPE_FILE
from loading import load_from
from modeling_la_auto import MODEL_CLASSES
from windows_qa import max_positions

FLAG = "teacher_model_name_or_path"
# capitals, accents, several scripts, punctuation, blanks: what tokenizers of one vocabulary may still treat differently
PROBE = "Was it Ada LOVELACE's café,  naïve “Zürich” (1843–52) — 東京, Москва\tor e-mail@x.org?"


class Teacher:
    """A reader that only answers: in evaluation mode, without gradients, in the precision and on the device of `run`.

    No module and no part of the student, so that neither accelerate nor DDP wraps, copies or saves it.
    """

    def __init__(self, model: PreTrainedModel, input_names: list[str], run: RunArguments):
        self.model = model.eval().requires_grad_(False).to(run.device)
        self.input_names, self.device = input_names, run.device
        self.precision = torch.bfloat16 if run.bf16 else torch.float16 if run.fp16 else torch.float32

    @torch.no_grad()
    def __call__(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Start and end logits (B, S), float32, of a batch."""
        half = self.precision if self.precision != torch.float32 else None
        with torch.autocast(self.device.type, half, enabled=half is not None):
            outputs = self.model(**{name: inputs[name] for name in self.input_names})
        return outputs["start_logits"].float(), outputs["end_logits"].float()

    def fingerprint(self) -> str:
        """A digest of the weights and of the precision: what decides on the logits of a window."""
        digest = hashlib.sha256(str(self.precision).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def release(self) -> None:
        """Give the weights' memory back; the teacher can be asked no more."""
        self.model = None


def load_teacher(args: Arguments, student_tokenizer: PreTrainedTokenizerBase) -> Teacher:
    """The teacher that the command line names; RunError if it cannot be loaded or reads other tokens than the student."""
    source = args.distillation.teacher_model_name_or_path
    if Path(source, RECIPE_FILE).is_file():
        raise RunError(f"--{FLAG} {source} holds an INT8 model: name the float model it was made from.")
    config = load_from(args, AutoConfig, FLAG, source)
    check_config(args, config)
    config.length_config = config.length_configs = None  # it teaches at full length, whatever it is used at
    tokenizer = load_from(args, AutoTokenizer, FLAG, source)
    check_same_tokens(source, student_tokenizer, tokenizer)
    facts = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    model, report = load_from(args, MODEL_CLASSES[config.model_type], FLAG, source, **facts)
    check_weights(args, report["missing_keys"])
    return Teacher(model, tokenizer.model_input_names, args.run)


def check_config(args: Arguments, config: PretrainedConfig) -> None:
    source, length = args.distillation.teacher_model_name_or_path, args.data.max_seq_length
    if config.model_type not in MODEL_CLASSES:
        supported = " and ".join(MODEL_CLASSES)
        raise RunError(f"--{FLAG} {source} is of type {config.model_type}; supported are {supported}.")
    if length > max_positions(config):
        raise RunError(
            f"--max_seq_length {length} is more than the {max_positions(config)} positions of --{FLAG} {source}."
        )


def check_weights(args: Arguments, missing: set[str]) -> None:
    """RunError if the teacher lacks weights; it may do without a head where nobody asks for its answers."""
    distillation, source = args.distillation, args.distillation.teacher_model_name_or_path
    lacking = sorted(name for name in missing if not name.startswith("qa_outputs."))
    if lacking:
        raise RunError(f"--{FLAG} {source} lacks {len(lacking)} weights of its type, like {lacking[0]}.")
    if missing and (distillation.pred_distill or distillation.length_drop_teacher != "self"):
        raise RunError(f"--{FLAG} {source} has no question-answering head to learn from: fine-tune it first.")


def check_same_tokens(source: str, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """RunError unless both cut any text into the same tokens: token by token is how student and teacher are compared."""
    flag = f"--{FLAG} {source}"
    if set(teacher.get_vocab()) <= set(teacher.all_special_tokens):
        raise RunError(
            f"{flag} has no tokenizer files, so nobody can tell whether it reads the student's tokens: add them."
        )
    remedy = "token by token they cannot be compared: take a student and a teacher that share a tokenizer."
    if student.get_vocab() != teacher.get_vocab():
        raise RunError(
            f"{flag} has another vocabulary ({len(teacher)} tokens) than the student ({len(student)}); {remedy}"
        )
    if student.special_tokens_map != teacher.special_tokens_map:
        raise RunError(f"{flag} has other special tokens than the student; {remedy}")
    if set(student.model_input_names) != set(teacher.model_input_names):
        names = ", ".join(teacher.model_input_names)
        raise RunError(f"{flag} takes {names}, the student {', '.join(student.model_input_names)}; {remedy}")
    if student(PROBE, PROBE)["input_ids"] != teacher(PROBE, PROBE)["input_ids"]:
        raise RunError(f"{flag} cuts text into other tokens than the student (do_lower_case or the like); {remedy}")
