"""Which tokens each layer keeps, against the stock model's attention, and the page that shows it."""

import html
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from conftest import passage
from transformers import AutoModelForQuestionAnswering

from reader import Reader
from token_trace import trace

ROOT = Path(__file__).parent.parent
QUESTION, LENGTHS = "Who founded <the> town?", (40, 24, 10)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("visualize_tokens", ROOT / "scripts" / "visualize_tokens.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def found(dynamic):
    return trace(Reader.from_pretrained(dynamic), QUESTION, passage(1), LENGTHS)


def test_the_first_layer_keeps_the_tokens_that_get_most_attention_in_the_stock_model(found, dynamic):
    stock = AutoModelForQuestionAnswering.from_pretrained(dynamic, attn_implementation="eager").eval()
    with torch.inference_mode():
        attention = stock(**found.batch, output_attentions=True).attentions[0]
    significance = attention[0].sum((0, 1))
    significance[0] = torch.inf
    assert found.kept[0] == sorted(significance.topk(40).indices.tolist())


def test_every_layer_keeps_as_many_as_asked_of_those_before(found):
    assert [len(kept) for kept in found.kept] == [40, 24, 10]
    assert set(found.kept[2]) < set(found.kept[1]) < set(found.kept[0])


def test_the_answer_is_that_of_the_reader_at_the_same_config(dynamic):
    reader = Reader.from_pretrained(dynamic)
    for context in (passage(0), passage(1)):  # of several windows and of one
        found, answer = trace(reader, QUESTION, context, LENGTHS), reader(QUESTION, context, LENGTHS)
        assert found.text == answer.text
        covered = "".join(before + text for before, text in (found.pieces[n] for n in found.answer))
        assert answer.text in covered


def test_question_and_passage_can_be_read_off_the_pieces(found):
    text = "".join(before + piece for before, piece in found.pieces)
    assert text.startswith(f" [CLS] {QUESTION} [SEP] {passage(1)[:60]}") and text.endswith(" [SEP]")


def test_full_length_keeps_everything(dynamic):
    found = trace(Reader.from_pretrained(dynamic), QUESTION, passage(1), (128, 128, 128))
    assert all(kept == list(range(len(found.pieces))) for kept in found.kept)


def test_in_the_picture_the_answer_is_hatched_in_a_colour_that_is_not_its_own(script, found, tmp_path, drawn):
    script.draw(tmp_path / "tokens.png", found, {"macs": 1, "full_macs": 2, "ms": 1, "full_ms": 2})
    hatched = [bars for bars in drawn[0].axes[0].collections if bars.get_hatch()]
    assert len(hatched) == 1 + len(found.kept)
    for bars in hatched:
        assert bars.get_edgecolor()[0].tolist() != bars.get_facecolor()[0].tolist()


def test_the_page_shows_each_layer_with_what_it_keeps_and_drops(script, dynamic, tmp_path, capsys):
    context = tmp_path / "passage.txt"
    context.write_text(passage(1), encoding="utf-8")
    flags = ["--question", QUESTION, "--context", str(context), "--length_config", str(LENGTHS)]
    script.main(["--model", str(dynamic), *flags, "--output", str(tmp_path / "out" / "tokens.html")])
    page = (tmp_path / "out" / "tokens.html").read_text(encoding="utf-8")
    assert "<the>" not in page and html.escape("<the>") in page and "$" not in page
    sections = re.findall(r"<section>.*?</section>", page)
    counts = [(len(re.findall('class="kept', s)), len(re.findall('class="dropped', s))) for s in sections]
    tokens = sum(len(re.findall(f'class="{state}', sections[0])) for state in ("kept", "dropped", "gone"))
    assert counts == [(40, tokens - 40), (24, 16), (10, 14)]
    assert (tmp_path / "out" / "tokens.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "out" / "tokens.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output", "t.html"], "one of --length_config and --length_ratios"),
        (["--output", "t.html", "--length_config", "(3)", "--length_ratios", "(0.5)"], "one of --length_config"),
        (["--output", "t.txt", "--length_config", "(3)"], "must end in .html"),
    ],
)
def test_wrong_flags_are_refused(script, flags, words, capsys):
    with pytest.raises(SystemExit) as error:
        script.read_arguments(["--model", "m", "--question", "q", "--context", "c", *flags])
    assert error.value.code == 2 and words in capsys.readouterr().err


def test_what_cannot_be_read_is_one_line(script, dynamic, tmp_path):
    flags = ["--question", "q", "--context", "nowhere.txt", "--length_config", str(LENGTHS), "--output", "t.html"]
    with pytest.raises(SystemExit, match="error: --context nowhere.txt cannot be read"):
        script.main(["--model", str(dynamic), *flags])
