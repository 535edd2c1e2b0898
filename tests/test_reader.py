import pytest
import torch
from conftest import passage
from stages import SIZES
from transformers import BertConfig, BertForQuestionAnswering, RobertaConfig, RobertaForQuestionAnswering

from errors import DataError, RunError
from reader import Answer, Reader


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A random reader of each architecture."""
    torch.manual_seed(0)
    roberta = "Roberta" in type(tokenizer).__name__
    config_class, model_class = (
        (RobertaConfig, RobertaForQuestionAnswering) if roberta else (BertConfig, BertForQuestionAnswering)
    )
    ids = {"pad_token_id": tokenizer.pad_token_id}
    model_class(config_class(vocab_size=len(tokenizer), **SIZES, **ids)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_an_answer_is_the_span_of_the_context_that_it_names(folder):
    reader, context = Reader.from_pretrained(folder), passage(0)  # longer than the model has positions
    answer = reader("Who founded the town?", context)
    assert isinstance(answer, Answer) and 0 < answer.score <= 1
    assert answer.text == context[answer.start : answer.end] != ""


def test_a_reader_never_asks_for_more_positions_than_the_model_has(folder):
    reader = Reader.from_pretrained(folder)
    assert reader.max_seq_length == (130 if reader.model.config.model_type == "bert" else 128)


def test_the_length_config_of_the_call_is_used(folder):
    reader, context = Reader.from_pretrained(folder), passage(1)
    full = reader("Who founded the town?", context)
    same = reader("Who founded the town?", context, length_config=(128, 128, 128))
    short = reader("Who founded the town?", context, length_config=(9, 6, 3))
    assert same.text == full.text and same.score == pytest.approx(full.score, abs=1e-5)
    assert abs(short.score - full.score) > 1e-6


def test_the_length_config_stored_in_the_model_is_the_default(folder):
    reader = Reader.from_pretrained(folder)
    expected = reader("Who founded the town?", passage(1), length_config=(9, 6, 3))
    reader.model.config.length_config, reader.model.config.length_config_max_length = [9, 6, 3], 100
    reader.model.save_pretrained(folder)
    loaded = Reader.from_pretrained(folder)
    assert loaded.max_seq_length == 100
    answer = loaded("Who founded the town?", passage(1))
    assert answer.text == expected.text and answer.score == pytest.approx(expected.score, abs=1e-5)


def test_an_empty_context_is_refused(folder):
    with pytest.raises(DataError, match="context without a token; add the passage"):
        Reader.from_pretrained(folder)("Who?", "")


def test_a_model_of_another_type_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    with pytest.raises(RunError, match="distilbert"):
        Reader.from_pretrained(tmp_path)
