"""The teacher as a frozen reader, and what is refused as one."""

import json
import shutil

import pytest
import torch
from stages import SIZES, failure, read
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from errors import RunError
from modeling_la_bert import LABertForQuestionAnswering
from teacher import Teacher, check_same_tokens


def run_settings(folder, **more):
    return TrainingArguments(str(folder), use_cpu=True, dataloader_pin_memory=False, **more)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LABertForQuestionAnswering(BertConfig(vocab_size=50, **SIZES))


INPUTS = {"input_ids": torch.arange(1, 13).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}


def test_it_answers_without_dropout_and_without_a_graph(model, tmp_path):
    teacher = Teacher(model.train(), list(INPUTS), run_settings(tmp_path))
    first, again = teacher(INPUTS), teacher(INPUTS | {"start_positions": torch.zeros(2, dtype=torch.long)})
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(first, again))
    stock = BertForQuestionAnswering(model.config).eval()
    stock.load_state_dict(model.state_dict())
    torch.testing.assert_close(first[0], stock(**INPUTS).start_logits, atol=1e-5, rtol=1e-4)


def test_its_weights_are_the_ones_it_was_given_and_can_be_released(model, tmp_path):
    teacher = Teacher(model, list(INPUTS), run_settings(tmp_path))
    assert teacher.model is model and not any(parameter.requires_grad for parameter in model.parameters())
    teacher.release()
    assert teacher.model is None


def test_the_fingerprint_depends_on_every_weight_and_on_the_precision(model, tmp_path):
    prints = [Teacher(model, [], run_settings(tmp_path, bf16=half)).fingerprint() for half in (False, True)]
    with torch.no_grad():
        model.qa_outputs.bias[1] += 1e-3
    prints.append(Teacher(model, [], run_settings(tmp_path)).fingerprint())
    assert len(set(prints)) == 3


# ---- tokenizers ----------------------------------------------------------------------------------------------------


def other(tokenizer, tmp_path, change):
    """The tokenizer as it is loaded from a folder after `change` of its tokenizer.json."""
    tokenizer.save_pretrained(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    change(state)
    loaded = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        **{name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
    )
    loaded.model_input_names = tokenizer.model_input_names
    return loaded


def test_a_tokenizer_that_was_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    check_same_tokens("t", tokenizer, AutoTokenizer.from_pretrained(tmp_path))


def test_another_vocabulary_is_refused(bert_tokenizer, roberta_tokenizer):
    with pytest.raises(RunError, match="--teacher_model_name_or_path t has another vocabulary"):
        check_same_tokens("t", bert_tokenizer, roberta_tokenizer)


def test_a_vocabulary_in_another_order_is_refused(bert_tokenizer, tmp_path):
    def swap(state):
        vocabulary = state["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    with pytest.raises(RunError, match="another vocabulary"):
        check_same_tokens("t", bert_tokenizer, other(bert_tokenizer, tmp_path, swap))


def test_another_do_lower_case_is_refused(bert_tokenizer, tmp_path):
    cased = other(bert_tokenizer, tmp_path, lambda state: state["normalizer"].update(lowercase=False))
    with pytest.raises(RunError, match="do_lower_case"):
        check_same_tokens("t", bert_tokenizer, cased)


def test_other_special_tokens_are_refused(bert_tokenizer, tmp_path):
    changed = other(bert_tokenizer, tmp_path, lambda state: None)
    changed.sep_token = "[MASK]"
    with pytest.raises(RunError, match="other special tokens"):
        check_same_tokens("t", bert_tokenizer, changed)


# ---- folders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(encoder, fine_tuned, squad_v1_file, tmp_path, capsys):
    """The one line with which a run with this teacher ends, before it trains."""

    def run(teacher, *flags):
        command = ("--model_name_or_path", encoder, "--train_file", squad_v1_file, "--do_train", "--max_steps", 1)
        line = failure(
            capsys, *command, "--teacher_model_name_or_path", teacher, *flags, "--output_dir", tmp_path / "out"
        )
        assert not (tmp_path / "out/model.safetensors").exists()
        return line

    return run


def test_a_bad_teacher_is_one_line_that_names_the_flag(refused, encoder, fine_tuned, tmp_path):
    flag = "--teacher_model_name_or_path"
    assert f"{flag} {tmp_path / 'none'} cannot be loaded" in refused(tmp_path / "none", "--pred_distill")
    assert "no question-answering head to learn from: fine-tune it first" in refused(encoder, "--pred_distill")
    bare = tmp_path / "bare"
    shutil.copytree(fine_tuned, bare, ignore=shutil.ignore_patterns("*token*", "vocab*", "checkpoint*"))
    assert f"{flag} {bare} has no tokenizer files" in refused(bare, "--pred_distill")
    (bare / "int8_recipe.json").write_text("{}")
    assert "name the float model" in refused(bare, "--pred_distill")
    shutil.copytree(fine_tuned, tmp_path / "short", ignore=shutil.ignore_patterns("checkpoint*"))
    config = read(tmp_path / "short/config.json")
    (tmp_path / "short/config.json").write_text(json.dumps(config | {"max_position_embeddings": 60}))
    assert "--max_seq_length 64 is more than the 60 positions" in refused(tmp_path / "short", "--pred_distill")
    (tmp_path / "short/config.json").write_text(json.dumps(config | {"model_type": "distilbert"}))
    assert "distilbert; supported are bert and roberta" in refused(tmp_path / "short", "--pred_distill")


def test_shapes_that_do_not_fit_end_the_run_in_one_line(refused, fine_tuned):
    assert "must name 3 layers" in refused(fine_tuned, "--state_loss_ratio", 1, "--teacher_layers", "1,2")
    assert "--student_layers 2" in refused(fine_tuned, "--pred_distill", "--student_layers", 2)
