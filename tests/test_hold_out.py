"""The slice of training articles that a search scores on, and that training leaves out."""

import json
import logging

import pytest
from datasets import Dataset
from stages import SEARCH, TRAINING, failure, read, succeed
from transformers import AutoConfig, BertConfig

import hold_out
import loading
import run_qa
from data_qa import FEATURES, load_splits
from quantization import config_facts, stored_config

SEARCH_TRAIN = [*SEARCH, "--search_split", "train"]


def questions(*articles: tuple[str, int], contexts: int = 1) -> Dataset:
    """Articles given as (title, number of questions), their questions spread over `contexts` passages."""
    answers, rows = {"text": ["Elbe"], "answer_start": [4]}, []
    for place, (title, size) in enumerate(articles):
        for number in range(size):
            texts = {"context": f"The Elbe {place} {number % contexts}.", "question": "?", "title": title}
            rows.append(texts | {"id": f"{place}-{number}", "answers": answers})
    return Dataset.from_list(rows, features=FEATURES)


MANY = [(f"article {number}", 3 + number % 5) for number in range(40)]


# ---- the draw ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 17, 60, 150])
def test_the_slice_is_of_whole_articles_and_none_more_than_needed(samples):
    examples = questions(*MANY, contexts=2)
    held, rest = hold_out.hold_out(examples, samples, 42)
    assert sorted(held["id"][:] + rest["id"][:]) == sorted(examples["id"][:])
    assert not set(held["title"][:]) & set(rest["title"][:])
    smallest = min(dict(MANY)[title] for title in set(held["title"]))
    largest = max(dict(MANY)[title] for title in set(held["title"]))
    assert samples <= len(held) < samples + largest and smallest >= 3


def test_the_slice_depends_on_the_seed_and_the_articles_not_on_the_order_of_the_questions():
    examples = questions(*MANY)
    titles = [set(hold_out.hold_out(examples, 50, seed)[0]["title"]) for seed in (42, 42, 7)]
    shuffled = set(hold_out.hold_out(examples.shuffle(seed=1), 50, 42)[0]["title"])
    assert titles[0] == titles[1] == shuffled != titles[2]


def test_a_smaller_slice_is_part_of_a_larger_one():
    examples = questions(*MANY)
    small, large = (set(hold_out.hold_out(examples, samples, 42)[0]["id"]) for samples in (30, 90))
    assert small < large


def test_a_slice_of_more_questions_than_there_are_is_all_of_them():
    held, rest = hold_out.hold_out(questions(*MANY), 10_000, 42)
    assert len(held) == sum(size for _, size in MANY) and len(rest) == 0


def test_without_titles_whole_passages_are_drawn():
    held, rest = hold_out.hold_out(questions(("", 60), contexts=12), 11, 42)
    assert len(held) == 15 and not set(held["context"][:]) & set(rest["context"][:])  # 3 passages of 5 questions


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained_on(monkeypatch):
    """The texts of the questions on whose windows each run trained."""
    seen, make = [], run_qa.make_trainer

    def spy(args, model, tokenizer, train_features, *others):
        if train_features:
            starts = [row.index(tokenizer.sep_token_id) for row in train_features["input_ids"]]
            rows = zip(train_features["input_ids"], starts)
            seen.append({tokenizer.decode(row[1:end]) for row, end in rows})
        return make(args, model, tokenizer, train_features, *others)

    monkeypatch.setattr(run_qa, "make_trainer", spy)
    return seen


def decoded(tokenizer, examples) -> set[str]:
    return {tokenizer.decode(tokenizer(text.strip(), add_special_tokens=False).input_ids) for text in examples}


def train(model, file, folder, *flags) -> dict:
    """The config.json that two steps of training leave."""
    command = (
        "--model_name_or_path",
        model,
        "--train_file",
        file,
        *TRAINING,
        "--max_steps",
        "2",
        "--save_strategy",
        "no",
    )
    succeed(*command, *flags, "--output_dir", folder)
    return read(folder / "config.json")


def test_what_is_held_out_is_neither_trained_on_nor_missing_from_the_search(
    encoder, squad_v1_file, bert_tokenizer, trained_on, tmp_path, monkeypatch
):
    train(encoder, squad_v1_file, tmp_path / "model", "--hold_out_samples", "7", "--max_train_samples", "8")
    scored, score = [], run_qa.search
    spy = lambda trainer, args, scored_on, validation: (
        scored.append(scored_on) or score(trainer, args, scored_on, validation)
    )
    monkeypatch.setattr(run_qa, "search", spy)
    files = ("--train_file", squad_v1_file, "--validation_file", squad_v1_file)
    flags = (*SEARCH_TRAIN, "--evo_iter", "0", "--search_samples", "7", "--seed", "3")
    succeed("--model_name_or_path", tmp_path / "model", *files, *flags, "--output_dir", tmp_path / "search")
    slice_ = scored[0].examples
    assert (
        len(slice_) == 9
        and len(set(slice_["title"])) == 3
        and set(scored[0].features["example_id"]) == set(slice_["id"])
    )
    everything = load_splits(data_files={"train": str(squad_v1_file)})["train"]
    left = [text for text, name in zip(everything["question"], everything["id"]) if name not in set(slice_["id"])]
    # nine questions are left, and the limit takes the first eight of them
    assert trained_on[0] == decoded(bert_tokenizer, left[:8])
    assert not trained_on[0] & decoded(bert_tokenizer, slice_["question"])


def test_holding_everything_out_is_refused(encoder, squad_v1_file, tmp_path, capsys):
    command = ("--model_name_or_path", encoder, "--train_file", squad_v1_file, *TRAINING, "--hold_out_samples", "16")
    assert "--hold_out_samples 16" in failure(capsys, *command, "--output_dir", tmp_path / "out")


def test_only_what_no_training_of_the_weights_has_seen_is_recorded(encoder, squad_v1_file, tmp_path, caplog):
    flags = ("--hold_out_samples", "4")
    first = train(encoder, squad_v1_file, tmp_path / "fine", *flags)["held_out"]
    assert (first["samples"], first["seed"], len(first["articles"])) == (4, 42, 2)
    assert "answers questions already" not in caplog.text
    assert train(tmp_path / "fine", squad_v1_file, tmp_path / "again", *flags)["held_out"] == first
    assert "answers questions already" not in caplog.text
    assert not train(tmp_path / "fine", squad_v1_file, tmp_path / "all").get("held_out")
    more = train(tmp_path / "fine", squad_v1_file, tmp_path / "more", "--hold_out_samples", "7")["held_out"]
    assert more["articles"] == first["articles"] and caplog.text.count("answers questions already") == 1
    assert not train(tmp_path / "all", squad_v1_file, tmp_path / "late", *flags).get("held_out")
    assert caplog.text.count("answers questions already") == 2


def test_a_training_is_not_continued_with_another_slice(encoder, squad_v1_file, tmp_path, capsys):
    train(encoder, squad_v1_file, tmp_path, "--save_strategy", "steps", "--save_steps", "1")
    record = read(tmp_path / "run_args.json")
    command = ("--model_name_or_path", encoder, "--train_file", squad_v1_file, *TRAINING, "--max_steps", "3")
    message = failure(capsys, *command, "--hold_out_samples", "4", "--output_dir", tmp_path)
    assert "begun with another --hold_out_samples:" in message
    for name in ("hold_out_samples", "hold_out_seed"):  # a run begun before these flags existed
        record.pop(name)
    (tmp_path / "run_args.json").write_text(json.dumps(record))
    succeed(*command, "--output_dir", tmp_path)


# ---- the search ----------------------------------------------------------------------------------------------------


def test_a_search_scores_candidates_on_training_questions_and_its_frontier_on_validation_questions(
    dynamic, squad_v1_file, squad_v2_file, evaluate, tmp_path
):
    few = read(squad_v1_file)
    few["data"] = few["data"][:2]  # of six articles
    (tmp_path / "dev.json").write_text(json.dumps(few))
    files = ("--train_file", squad_v1_file, "--validation_file", tmp_path / "dev.json")
    flags = (*SEARCH_TRAIN, "--search_samples", "10", "--evo_iter", "0")
    succeed("--model_name_or_path", dynamic, *files, *flags, "--output_dir", tmp_path / "search")
    results = read(tmp_path / "search/search_results.json")
    assert (results["search_split"], results["candidate_questions"], results["frontier_questions"]) == ("train", 12, 6)
    held, _ = hold_out.hold_out(load_splits(data_files={"train": str(squad_v1_file)})["train"], 10, 42)
    slice_ = [row | {"answers": row["answers"]} for row in held.to_list()]
    (tmp_path / "slice.json").write_text(json.dumps(slice_))
    for name, score in (
        ("slice", next(row["score"] for row in results["candidates"] if row["origin"] == "full")),
        ("dev", results["full"]["score"]),
    ):
        evaluated = evaluate("--validation_file", tmp_path / f"{name}.json", name=name)
        assert read(evaluated / "eval_results.json")["eval_f1"] == pytest.approx(score)
    assert len((tmp_path / "search/frontier_store.jsonl").read_text().splitlines()) > 2


def search_warnings(caplog, *flags) -> list[str]:
    caplog.clear()
    succeed(*SEARCH_TRAIN, "--evo_iter", "0", "--population_size", "0", *flags)
    return [record.getMessage() for record in caplog.records if "flatters" in record.getMessage()]


def test_a_search_warns_of_questions_that_the_model_may_have_been_trained_on(encoder, squad_v1_file, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    train(encoder, squad_v1_file, tmp_path / "out4", "--hold_out_samples", "4")
    train(encoder, squad_v1_file, tmp_path / "all")
    files = ("--train_file", squad_v1_file, "--validation_file", squad_v1_file)

    def search(model, name, *flags):
        return search_warnings(
            caplog, "--model_name_or_path", tmp_path / model, *files, *flags, "--output_dir", tmp_path / name
        )

    (line,) = search("all", "a", "--search_samples", "4")
    assert "names no held-out articles" in line and "validation" in line and "--hold_out_samples" in line
    assert search("out4", "b", "--search_samples", "4") == search("out4", "c", "--search_samples", "2") == []
    (line,) = search("out4", "d", "--search_samples", "9")
    assert "only --hold_out_samples 4 --hold_out_seed 42" in line
    assert len(search("out4", "e", "--search_samples", "4", "--hold_out_seed", "1")) == 1
    assert search("all", "f", "--search_split", "validation") == []
    # the model that a search leaves still says what it has not seen
    assert read(tmp_path / "b/config.json")["held_out"] == read(tmp_path / "out4/config.json")["held_out"]


@pytest.mark.parametrize("text", ["yes", {"articles": None}, {"articles": 3}, ["Elbe"]])
def test_a_record_that_is_none_counts_for_nothing(text, caplog):
    config = BertConfig()
    config.held_out = text
    hold_out.warn_if_seen(config, questions(("Elbe", 2)))
    assert "flatters" in caplog.text


def test_an_int8_folder_keeps_the_record(tmp_path):
    config = BertConfig()
    config.held_out = {"samples": 4, "seed": 42, "articles": ["0123456789ab"]}
    recipe = json.loads(json.dumps({"config": config_facts(config)}))
    stored_config(recipe).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).held_out == config.held_out


def test_only_the_slice_is_tokenized_for_a_search(dynamic, squad_v1_file, tmp_path, monkeypatch):
    sizes, featurize = [], loading.featurize
    spy = lambda examples, *args, **kwargs: (
        sizes.append((len(examples), kwargs["training"])) or featurize(examples, *args, **kwargs)
    )
    monkeypatch.setattr(loading, "featurize", spy)
    files = ("--train_file", squad_v1_file, "--validation_file", squad_v1_file)
    flags = (*SEARCH_TRAIN, "--evo_iter", "0", "--population_size", "0", "--search_samples", "4")
    succeed("--model_name_or_path", dynamic, *files, *flags, "--output_dir", tmp_path)
    assert sorted(sizes) == [(6, False), (18, False)]


def test_a_dataset_without_a_training_split_is_refused(dynamic, squad_v1_file, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dev.json").write_bytes(squad_v1_file.read_bytes())
    command = ("--model_name_or_path", dynamic, "--dataset_name", tmp_path / "data", *SEARCH_TRAIN)
    message = failure(capsys, *command, "--output_dir", tmp_path / "out")
    assert "no train split" in message and "--train_file" in message and "--search_split validation" in message
    assert not any((tmp_path / "out").iterdir())


def test_training_questions_without_answers_cannot_score_a_search(dynamic, squad_v1_file, tmp_path, capsys):
    question = {"id": "a", "context": "Ada wrote it.", "question": "Who?", "answers": {"text": [], "answer_start": []}}
    (tmp_path / "train.json").write_text(json.dumps([question]))
    files = ("--train_file", tmp_path / "train.json", "--validation_file", squad_v1_file)
    message = failure(capsys, "--model_name_or_path", dynamic, *files, *SEARCH_TRAIN, "--output_dir", tmp_path / "out")
    assert "--do_search needs train" in message
