"""Shared fixtures: tokenizers made in memory, small SQuAD files, what the stages leave; nothing here needs a network."""

import os
import shutil
import tempfile

# datasets, evaluate and huggingface_hub read these when they are imported, so before any other import.
CACHE = tempfile.mkdtemp(prefix="qa-tests-")
# What is compiled is kept for all of pytest-xdist's processes, which have their parent's environment.
COMPILED = os.environ.setdefault("QUALA_TESTS_COMPILED", CACHE)
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": CACHE,
    "XDG_CACHE_HOME": COMPILED,
    "HF_DATASETS_CACHE": f"{CACHE}/datasets",
    "HF_EVALUATE_CACHE": f"{CACHE}/evaluate",
    "HF_METRICS_CACHE": f"{CACHE}/metrics",
    "TOKENIZERS_PARALLELISM": "false",
}

import json
import re
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from stages import SEARCH, SIZES, TRAINING, digest, succeed
from tokenizers import ByteLevelBPETokenizer
from transformers import BertConfig, BertModel, BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from int8_backends import BACKENDS, backend_class
from int8_engine import Int8Model

CITIES = ["Ardenville", "Brückstadt", "Calder", "Dunmoor", "Eastholm", "Fennick"]
FOUNDERS = ["Ada Lorne", "Émile Garnier", "Ruth “Red” Okafor", "Jan de Wit", "Mei-Ling Tao", "Tomás O'Neil"]
FILLER = (
    "The river brings barges to the old harbour, and the market sells bread, wool, salt and glass every week. "
    "Visitors climb the hill by a narrow path; from there they see the bridge, the mill and the fields beyond. "
)


def pytest_addoption(parser):
    text = "what runs the INT8 models of the tests (ipex: in its own environment, see scripts/test_ipex.sh)"
    parser.addoption("--quantization_backend", action="append", choices=list(BACKENDS), help=text)


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        names = metafunc.config.getoption("--quantization_backend") or ["pt2e", "native"]
        metafunc.parametrize("backend", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def backend(request) -> type[Int8Model]:
    """The class of the INT8 models under test."""
    return backend_class(request.param)


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


def passage(number: int) -> str:
    """About 40 tokens, or about 250 for every third passage, which makes several windows of 64 tokens."""
    city, founder, year = CITIES[number], FOUNDERS[number], 1801 + 17 * number
    begin = f"{city} is a town of {3 + number},{number}00 people. It was founded in {year} by {founder}. "
    end = f"The 🏰 castle of {city} stands on Kestrel Hill, {40 + number}\u00a0metres above the river."
    return begin + FILLER * (5 if number % 3 == 0 else 0) + end


def question(number: int, kind: str, text: str, answer: str) -> dict:
    """One question of raw SQuAD; the second gold answer is the first without its last word, if it has several."""
    start = passage(number).index(answer)
    golds = [answer] + ([answer.rsplit(" ", 1)[0]] if " " in answer else [])
    answers = [{"text": gold, "answer_start": start} for gold in golds]
    return {"id": f"{kind}-{number}", "question": text, "answers": answers}


def articles(with_unanswerable: bool) -> list[dict]:
    data = []
    for number, city in enumerate(CITIES):
        qas = [
            question(number, "year", f"  When was {city} founded?", f"{1801 + 17 * number}"),
            question(number, "founder", f"Who founded the town of {city}?", FOUNDERS[number]),
            question(number, "castle", f"Where does the castle of {city} stand?", "Kestrel Hill"),
        ]
        if with_unanswerable:
            plausible = [{"text": city, "answer_start": 0}]
            none = {"id": f"mayor-{number}", "question": f"Who is the mayor of {city}?", "answers": []}
            qas = [qa | {"is_impossible": False} for qa in qas]
            qas.append(none | {"is_impossible": True, "plausible_answers": plausible})
        data.append({"title": city, "paragraphs": [{"context": passage(number), "qas": qas}]})
    return data


@pytest.fixture(scope="session")
def squad_v1_file(tmp_path_factory) -> Path:
    """Raw SQuAD v1.1 JSON: 18 questions on 6 passages, two of which need several windows of 64 tokens."""
    path = tmp_path_factory.mktemp("squad") / "questions-v1.1.json"
    path.write_text(json.dumps({"version": "1.1", "data": articles(False)}, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def squad_v2_file(tmp_path_factory) -> Path:
    """Raw SQuAD v2.0 JSON: the same and 6 questions without an answer, with plausible answers."""
    path = tmp_path_factory.mktemp("squad") / "questions-v2.0.json"
    path.write_text(json.dumps({"version": "v2.0", "data": articles(True)}), encoding="utf-8")
    return path


def corpus() -> list[str]:
    texts = [passage(number) for number in range(len(CITIES))]
    return texts + [qa["question"] for article in articles(True) for qa in article["paragraphs"][0]["qas"]]


@pytest.fixture(scope="session")
def bert_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-casing WordPiece: words of the passages that begin with a to s whole, the others spelled in pieces."""
    words = sorted(set(re.findall(r"\w+|[^\w\s]", " ".join(corpus()).lower())))
    letters = sorted(set("".join(words)) | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    whole = [word for word in words if len(word) > 1 and word < "t"]
    vocabulary = [*special, *letters, *(f"##{letter}" for letter in letters), *whole]
    return BertTokenizer({token: index for index, token in enumerate(vocabulary)}, model_max_length=512)


@pytest.fixture(scope="session")
def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the passages; characters beyond ASCII take several tokens."""
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(corpus(), vocab_size=500, special_tokens=special, show_progress=False)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return RobertaTokenizer(model["vocab"], merges, model_max_length=512)


@pytest.fixture(params=["bert", "roberta"])
def tokenizer(request) -> PreTrainedTokenizerFast:
    """Each of the two tokenizers in turn."""
    return request.getfixturevalue(f"{request.param}_tokenizer")


# ---- pictures ------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The figures that were saved, to look into."""
    figures, save = [], Figure.savefig

    def remember(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


# ---- the folders that the stages leave -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def encoder(tmp_path_factory, bert_tokenizer) -> Path:
    """A random BERT encoder without a question-answering head; beside it lies a checkpoint of something else."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(bert_tokenizer), **SIZES)).save_pretrained(folder)
    bert_tokenizer.save_pretrained(folder)
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "trainer_state.json").write_text("not to be read")
    return folder


@pytest.fixture(scope="session")
def fine_tuned(tmp_path_factory, encoder, squad_v1_file) -> Path:
    folder, before = tmp_path_factory.mktemp("stage") / "fine", digest(encoder)
    files = ("--train_file", squad_v1_file, "--validation_file", squad_v1_file)
    succeed("--model_name_or_path", encoder, *files, *TRAINING, "--do_eval", "--output_dir", folder)
    assert digest(encoder) == before
    return folder


@pytest.fixture(scope="session")
def dynamic(tmp_path_factory, fine_tuned, squad_v1_file) -> Path:
    folder, before = tmp_path_factory.mktemp("stage") / "dynamic", digest(fine_tuned)
    drop = ("--length_adaptive", "--layer_dropout_prob", "0.2")
    files = ("--train_file", squad_v1_file)
    succeed("--model_name_or_path", fine_tuned, *files, *TRAINING, *drop, "--output_dir", folder)
    assert digest(fine_tuned) == before
    return folder


@pytest.fixture(scope="session")
def searched(tmp_path_factory, dynamic, squad_v1_file) -> Path:
    folder, before = tmp_path_factory.mktemp("stage") / "search", digest(dynamic)
    files = ("--validation_file", squad_v1_file)
    budget = ("--target_macs_ratio", "0.8")
    succeed("--model_name_or_path", dynamic, *files, *SEARCH, *budget, "--output_dir", folder)
    assert digest(dynamic) == before
    return folder


@pytest.fixture
def evaluate(dynamic, squad_v1_file, tmp_path):
    """Evaluates the dynamic model with more flags; returns the output folder."""

    def run_evaluation(*flags, name="evaluation", model=dynamic) -> Path:
        folder = tmp_path / name
        files = ("--validation_file", squad_v1_file)
        succeed("--model_name_or_path", model, *files, "--do_eval", *flags, "--output_dir", folder)
        return folder

    return run_evaluation
