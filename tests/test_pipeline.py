"""The stages end to end through run_qa.main, on random models of three small layers."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaModel,
)

import run_qa
import search_qa
from length_drop import count_macs
from reader import Reader

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}
LENGTHS = ["--max_seq_length", "64", "--doc_stride", "16", "--disable_tqdm"]
TRAINING = ["--do_train", "--max_steps", "4", "--learning_rate", "1e-3", "--logging_steps", "1"]
SEARCH = ["--do_search", "--evo_iter", "2", "--population_size", "3", "--mutation_size", "2", "--crossover_size", "2"]


def run(*argv: object) -> int:
    return run_qa.main([*map(str, argv), *LENGTHS])


def succeed(*argv: object) -> None:
    assert run(*argv) == 0


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def failure(capsys, *argv: object) -> str:
    """The one line with which the run ends, exit status 1."""
    capsys.readouterr()
    assert run(*argv) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run_qa.py: error")]
    assert len(lines) == 1
    return lines[0]


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


# ---- what a run leaves behind --------------------------------------------------------------------------------------


def test_training_leaves_model_results_state_and_card(fine_tuned, encoder):
    names = {path.name for path in fine_tuned.iterdir()}
    assert names >= {
        *(
            "all_results.json",
            "train_results.json",
            "eval_results.json",
            "trainer_state.json",
            "loss.png",
            "README.md",
        ),
        *(
            "eval_predictions.json",
            "eval_nbest_predictions.json",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        ),
    }
    results = read(fine_tuned / "all_results.json")
    assert {"train_loss", "eval_f1", "eval_exact_match", "eval_macs", "environment"} <= results.keys()
    for stage in ("train", "eval"):
        environment = read(fine_tuned / f"{stage}_results.json")["environment"]
        assert environment["torch"] == torch.__version__ and environment["threads"] and "git_commit" in environment
    assert read(fine_tuned / "trainer_state.json")["global_step"] == 4


def test_the_card_says_base_model_data_scores_and_how_to_load(fine_tuned, encoder, squad_v1_file):
    card = (fine_tuned / "README.md").read_text(encoding="utf-8")
    f1 = read(fine_tuned / "eval_results.json")["eval_f1"]
    assert str(encoder) in card and str(squad_v1_file) in card and str(f1) in card
    assert f'Reader.from_pretrained("{fine_tuned}")' in card and "64 tokens" in card


def test_the_card_of_a_search_lists_its_frontier(searched):
    card = (searched / "README.md").read_text(encoding="utf-8")
    assert all(str(tuple(row["length_config"])) in card for row in read(searched / "search_results.json")["frontier"])


def test_predictions_answer_every_question_from_its_context(fine_tuned, squad_v1_file):
    predictions, nbest = read(fine_tuned / "eval_predictions.json"), read(fine_tuned / "eval_nbest_predictions.json")
    contexts = {}
    for article in read(squad_v1_file)["data"]:
        for paragraph in article["paragraphs"]:
            contexts |= {qa["id"]: paragraph["context"] for qa in paragraph["qas"]}
    assert predictions.keys() == nbest.keys() == contexts.keys() and len(contexts) == 18
    assert all(predictions[name] in contexts[name] and predictions[name] for name in contexts)
    assert all(rows[0]["text"] == predictions[name] for name, rows in nbest.items())


def test_length_drop_logs_its_loss_parts(dynamic):
    record = read(dynamic / "trainer_state.json")["log_history"][0]
    assert {"loss", "loss_full", "loss_smallest", "loss_random"} <= record.keys()
    assert read(dynamic / "config.json")["length_config_max_length"] == 64


def test_nothing_is_taken_from_a_checkpoint_in_the_input_folder(dynamic, fine_tuned):
    assert (fine_tuned / "checkpoint-4").is_dir()  # the input of the LengthDrop run
    assert read(dynamic / "trainer_state.json")["log_history"][0]["step"] == 1


def test_predictions_at_full_length_are_those_of_the_stock_model(dynamic, evaluate, squad_v1_file):
    """One forward of the stock class a question that fits one window, greedy over all spans."""
    predictions = read(evaluate("--max_answer_length", "64", "--n_best_size", "64") / "eval_predictions.json")
    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(dynamic), AutoTokenizer.from_pretrained(dynamic)
    checked = 0
    for article in read(squad_v1_file)["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                text = (qa["question"].lstrip(), paragraph["context"])
                batch = tokenizer(*text, return_tensors="pt", return_offsets_mapping=True)
                offsets = batch.pop("offset_mapping")[0].tolist()
                if len(offsets) > 64:
                    continue
                with torch.no_grad():
                    output = model.eval()(**batch)
                scores = (output.start_logits[0][:, None] + output.end_logits[0]).triu().numpy()
                inside = np.array([sequence == 1 for sequence in batch.sequence_ids(0)])
                scores[~(inside[:, None] & inside & np.triu(np.ones_like(scores, dtype=bool)))] = -np.inf
                start, end = np.unravel_index(scores.argmax(), scores.shape)
                assert predictions[qa["id"]] == paragraph["context"][offsets[start][0] : offsets[end][1]]
                checked += 1
    assert checked >= 3


def test_padding_and_batch_size_do_not_change_predictions(evaluate):
    config = ("--length_config", "(50, 30, 20)")
    reference = read(evaluate(*config) / "eval_nbest_predictions.json")
    variants = {
        "padded": ["--pad_to_max_length"],
        "single": ["--per_device_eval_batch_size", "1"],
        "large": ["--per_device_eval_batch_size", "64", "--eval_accumulation_steps", "1"],
    }
    for name, flags in variants.items():
        nbest = read(evaluate(*config, *flags, name=name) / "eval_nbest_predictions.json")
        for question, rows in reference.items():
            assert nbest[question][0]["text"] == rows[0]["text"]
            assert nbest[question][0]["start_logit"] == pytest.approx(rows[0]["start_logit"], abs=1e-4)


def test_a_length_config_is_evaluated_and_reported_with_its_cost(evaluate, dynamic):
    results = read(evaluate("--length_config", "[50, 30, 20]") / "eval_results.json")
    config = AutoModelForQuestionAnswering.from_pretrained(dynamic).config
    macs = count_macs(config, (50, 30, 20), 64)
    assert results["eval_length_config"] == [50, 30, 20] and results["eval_macs"] == macs
    assert results["eval_macs_ratio"] == pytest.approx(macs / count_macs(config, None, 64), abs=1e-4)


def test_accuracy_only_leaves_no_timing(evaluate):
    results = read(evaluate("--accuracy_only") / "eval_results.json")
    assert {"eval_f1", "eval_macs"} <= results.keys()
    assert not [name for name in results if "runtime" in name or "per_second" in name or "latency" in name]


def test_benchmark_leaves_latencies_even_of_a_batch_larger_than_the_data(evaluate):
    folder = evaluate("--benchmark", "--length_config", "(9,8,7)", "--per_device_eval_batch_size", "200")
    benchmark, results = read(folder / "benchmark_results.json"), read(folder / "eval_results.json")
    assert [row["length_config"] for row in benchmark["rows"]] == [[9, 8, 7], [64, 64, 64]]
    assert benchmark["environment"] and all(row["latency_ms_median"] > 0 for row in benchmark["rows"])
    assert results["eval_latency_ms"] > 0 and results["eval_speedup"] > 0


def test_max_eval_samples_takes_the_first_questions(evaluate):
    folder = evaluate("--max_eval_samples", "4")
    assert read(folder / "eval_results.json")["eval_samples"] == 4
    assert list(read(folder / "eval_predictions.json")) == ["year-0", "founder-0", "castle-0", "year-1"]


def test_measured_rates_are_the_constant_ratio_configs(evaluate, caplog):
    rows = read(evaluate("--measure_rate", "[0.0, 0.25]", "--accuracy_only") / "measure_rate_results.json")["rows"]
    assert [row["length_config"] for row in rows] == [[64, 64, 64], [48, 36, 27]]
    assert rows[0]["macs_ratio"] == 1 > rows[1]["macs_ratio"] and all("eval_f1" in row for row in rows)
    assert "eval_runtime" not in rows[0]
    assert "(48, 36, 27)" in caplog.text


# ---- search --------------------------------------------------------------------------------------------------------


def test_a_search_leaves_results_frontier_picture_and_the_chosen_model(searched):
    results = read(searched / "search_results.json")
    assert {"candidates", "frontier", "full", "chosen", "settings", "seed", "environment"} <= results.keys()
    assert "candidates" not in read(searched / "all_results.json")
    frontier = [(row["macs"], row["score"]) for row in results["frontier"]]
    scored = [(row["macs"], row["score"]) for row in results["candidates"]]
    beaten = {b for b in scored for a in scored if a != b and a[0] <= b[0] and a[1] >= b[1]}
    assert set(frontier) == set(scored) - beaten and len(frontier) == len(set(frontier))
    with open(searched / "pareto.csv", newline="") as file:
        assert [json.loads(row["length_config"]) for row in csv.DictReader(file)] == [
            row["length_config"] for row in results["frontier"]
        ]
    assert (searched / "pareto.png").stat().st_size > 1000
    assert read(searched / "config.json")["length_config"] == results["chosen"]["length_config"]


def test_scores_of_a_search_are_what_evaluation_gives(searched, evaluate):
    row = min(read(searched / "search_results.json")["candidates"], key=lambda row: row["macs"])
    results = read(evaluate("--length_config", json.dumps(row["length_config"])) / "eval_results.json")
    assert (results["eval_f1"], results["eval_macs"]) == (pytest.approx(row["score"]), row["macs"])


def test_a_killed_search_ends_like_an_undisturbed_one(searched, dynamic, squad_v1_file, tmp_path, monkeypatch, capsys):
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH)
    command += ("--target_macs_ratio", "0.8", "--output_dir", tmp_path / "search")
    score, calls = search_qa.f1_score, []

    def dies_at_the_fourth(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr(search_qa, "f1_score", dies_at_the_fourth)
    assert run(*command) == 130
    assert "the same command continues the search" in capsys.readouterr().err
    succeed(*command)
    again, undisturbed = read(tmp_path / "search/search_results.json"), read(searched / "search_results.json")
    assert again["candidates"] == undisturbed["candidates"] and again["frontier"] == undisturbed["frontier"]
    assert len(calls) == len(undisturbed["candidates"]) + 1  # the interrupted one is the only one scored twice


def test_a_search_on_a_sample_scores_its_frontier_on_all_questions(dynamic, squad_v1_file, tmp_path):
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH, "--evo_iter", "0")
    succeed(*command, "--search_samples", "5", "--output_dir", tmp_path)
    results = read(tmp_path / "search_results.json")
    assert (results["candidate_questions"], results["frontier_questions"]) == (5, 18)


@pytest.mark.parametrize(
    ("flag", "value"), [("--max_f1_drop", 100.0), ("--target_macs", 1e12), ("--target_macs_ratio", 1.0)]
)
def test_each_budget_chooses_from_a_search(flag, value, searched, evaluate):
    results = read(evaluate("--length_config_from", searched, flag, value) / "eval_results.json")
    frontier = read(searched / "search_results.json")["frontier"]  # by rising MACs and F1
    assert results["eval_length_config"] == frontier[0 if flag == "--max_f1_drop" else -1]["length_config"]


def test_the_chosen_model_runs_at_its_config_without_a_flag(searched, evaluate):
    chosen = read(searched / "search_results.json")["chosen"]
    results = read(evaluate(model=searched) / "eval_results.json")
    assert results["eval_length_config"] == chosen["length_config"]
    assert results["eval_f1"] == pytest.approx(chosen["score"])


def test_training_drops_what_a_search_found_for_other_weights(searched, squad_v1_file, tmp_path):
    files = ("--train_file", squad_v1_file, "--max_train_samples", "2")
    succeed("--model_name_or_path", searched, *files, "--do_train", "--max_steps", "1", "--output_dir", tmp_path / "m")
    config = read(tmp_path / "m/config.json")
    assert not config.get("length_config") and not config.get("length_configs")


# ---- predictions ---------------------------------------------------------------------------------------------------


def test_questions_without_answers_are_answered_and_not_scored(dynamic, tmp_path):
    questions = [{"id": "a", "context": "Ada wrote it in Calder.", "question": "Who wrote it?"}]
    questions.append({"id": "b", "context": "It was founded in 1801.", "question": "When?"})
    (tmp_path / "test.json").write_text(json.dumps(questions))
    files = ("--test_file", tmp_path / "test.json", "--max_predict_samples", "1")
    succeed("--model_name_or_path", dynamic, *files, "--do_predict", "--output_dir", tmp_path / "out")
    assert list(read(tmp_path / "out/predict_predictions.json")) == ["a"]
    assert (tmp_path / "out/predict_nbest_predictions.json").is_file()
    assert not [name for name in read(tmp_path / "out/predict_results.json") if "f1" in name or "exact" in name]
    answer = Reader.from_pretrained(dynamic)("Who wrote it?", "Ada wrote it in Calder.")
    assert answer.text == read(tmp_path / "out/predict_predictions.json")["a"]


def test_version_2_leaves_null_odds_and_its_threshold_decides(dynamic, squad_v2_file, tmp_path):
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v2_file, "--do_eval")
    command += ("--version_2_with_negative",)
    for name, threshold in (("never", -1e9), ("always", 1e9)):
        succeed(*command, "--null_score_diff_threshold", threshold, "--output_dir", tmp_path / name)
    never, always = (read(tmp_path / name / "eval_predictions.json") for name in ("never", "always"))
    assert not any(never.values()) and all(always.values())
    assert read(tmp_path / "never/eval_null_odds.json").keys() == never.keys()
    results = read(tmp_path / "never/eval_results.json")
    assert results["eval_exact"] == results["eval_f1"] == pytest.approx(25)  # 6 of 24 have no answer


# ---- training in a folder that is not empty ------------------------------------------------------------------------


@pytest.fixture
def train(encoder, squad_v1_file, tmp_path):
    """Trains into one folder with more flags; returns the exit status."""
    command = ("--model_name_or_path", encoder, "--train_file", squad_v1_file, "--do_train", "--learning_rate", "1e-3")
    return lambda *flags: run(*command, "--logging_steps", 1, *flags, "--output_dir", tmp_path / "out")


def test_evaluation_after_training_in_groups_by_length_is_that_of_a_run_of_its_own(train, squad_v1_file, tmp_path):
    """The Trainer's own sampler would shuffle the evaluation windows and give each question another's answer."""
    evaluation = ("--validation_file", squad_v1_file, "--do_eval", "--per_device_eval_batch_size", 2)
    assert train("--max_steps", 2, "--train_sampling_strategy", "group_by_length", *evaluation) == 0
    succeed("--model_name_or_path", tmp_path / "out", *evaluation, "--output_dir", tmp_path / "again")
    predictions = [read(tmp_path / name / "eval_predictions.json") for name in ("out", "again")]
    assert predictions[0] == predictions[1]


def test_an_interrupted_training_continues_to_the_same_weights(train, tmp_path, caplog):
    assert train("--num_train_epochs", 1) == 0
    whole = read(tmp_path / "out/trainer_state.json")
    weights = digest(tmp_path / "out")["model.safetensors"]
    shutil.rmtree(tmp_path / "out")
    assert train("--num_train_epochs", 1, "--save_steps", 5) == 0
    for path in tmp_path.glob("out/*"):  # as a kill after step 10 leaves it
        if path.name not in ("run_args.json", "checkpoint-5", "checkpoint-10"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert train("--num_train_epochs", 1, "--save_steps", 5) == 0
    assert "continuing from" in caplog.text
    assert digest(tmp_path / "out")["model.safetensors"] == weights
    losses = [
        [row["loss"] for row in state["log_history"] if "loss" in row]
        for state in (whole, read(tmp_path / "out/trainer_state.json"))
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("flag", "amount", "more"), [("--max_steps", 2, 4), ("--num_train_epochs", 1, 2)])
def test_a_finished_training_is_left_alone_unless_more_is_asked_for(flag, amount, more, train, tmp_path, caplog):
    few = ("--max_train_samples", 6)
    assert train(*few, flag, amount) == 0
    before, steps = digest(tmp_path / "out"), read(tmp_path / "out/trainer_state.json")["global_step"]
    assert train(*few, flag, amount) == 0
    after = digest(tmp_path / "out")
    assert "complete already" in caplog.text
    assert all(after[name] == before[name] for name in ("model.safetensors", "train_results.json"))
    assert train(*few, flag, more) == 0
    state = read(tmp_path / "out/trainer_state.json")
    assert [row["step"] for row in state["log_history"] if "loss" in row] == list(range(1, 2 * steps + 1))


def test_other_settings_in_the_same_folder_are_refused_by_name(train, tmp_path, capsys):
    assert train("--max_steps", 1) == 0
    before = digest(tmp_path / "out")
    capsys.readouterr()
    assert train("--max_steps", 2, "--seed", 7, "--max_train_samples", 3) == 1
    message = capsys.readouterr().err
    assert "--seed" in message and "--max_train_samples" in message and "--overwrite_output_dir" in message
    assert "--learning_rate" not in message and digest(tmp_path / "out") == before


def test_overwriting_starts_anew_and_keeps_the_files_of_others(train, tmp_path):
    assert train("--max_steps", 2) == 0
    (tmp_path / "out/notes.txt").write_text("mine")
    assert train("--max_steps", 1, "--seed", 7, "--overwrite_output_dir") == 0
    assert read(tmp_path / "out/trainer_state.json")["global_step"] == 1
    assert not (tmp_path / "out/checkpoint-2").exists() and (tmp_path / "out/notes.txt").read_text() == "mine"


def test_overwriting_loses_nothing_when_the_data_turns_out_unusable(train, tmp_path, capsys):
    assert train("--max_steps", 1) == 0
    before = digest(tmp_path / "out")
    (tmp_path / "broken.json").write_text("{")
    assert train("--max_steps", 1, "--overwrite_output_dir", "--train_file", tmp_path / "broken.json") == 1
    assert "broken.json" in capsys.readouterr().err and digest(tmp_path / "out") == before


def test_a_folder_of_other_files_and_one_without_checkpoints_are_refused(train, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    assert train("--max_steps", 1) == 1
    assert "holds other files" in capsys.readouterr().err
    (tmp_path / "out/notes.txt").unlink()
    assert train("--max_steps", 1, "--save_strategy", "no") == 0
    assert train("--max_steps", 1, "--save_strategy", "no") == 1
    assert "without a checkpoint" in capsys.readouterr().err


def test_training_shorter_than_the_logging_interval_has_no_loss_curve(train, tmp_path, caplog):
    assert train("--max_steps", 1, "--logging_steps", 50) == 0
    assert not (tmp_path / "out/loss.png").exists() and "no loss.png" in caplog.text


def test_ctrl_c_in_training_says_how_to_go_on(train, tmp_path, monkeypatch, capsys):
    assert train("--max_steps", 1) == 0
    monkeypatch.setattr(run_qa.QuestionAnsweringTrainer, "train", interrupt)
    capsys.readouterr()
    assert train("--max_steps", 2) == 130
    assert "interrupted; the same command continues from" in capsys.readouterr().err


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


# ---- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_bad_model_is_one_line(dynamic, squad_v1_file, tmp_path, capsys):
    def refused(model, *flags):
        stage = ("--do_eval", "--validation_file", squad_v1_file, "--output_dir", tmp_path / "out")
        return failure(capsys, "--model_name_or_path", model, *stage, *flags)

    assert "no such folder" in refused(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "distilbert"}')
    assert "distilbert" in refused(tmp_path / "other")
    for name, damage in {"cut": lambda data: data[:1000], "headless": lambda data: b"\0" * 9}.items():
        shutil.copytree(dynamic, tmp_path / name)
        weights = tmp_path / name / "model.safetensors"
        weights.write_bytes(damage(weights.read_bytes()))
        assert str(tmp_path / name) in refused(tmp_path / name)
    shutil.copytree(dynamic, tmp_path / "wide")
    config = read(tmp_path / "wide/config.json")
    (tmp_path / "wide/config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    assert str(tmp_path / "wide") in refused(tmp_path / "wide")
    assert "--max_seq_length 384" in failure_at_384(capsys, dynamic, squad_v1_file, tmp_path)
    assert "huggingface" in refused("someone/some-model")  # HF_HUB_OFFLINE=1


def failure_at_384(capsys, model, file, tmp_path) -> str:
    command = ["--model_name_or_path", str(model), "--validation_file", str(file), "--do_eval"]
    assert run_qa.main([*command, "--output_dir", str(tmp_path / "out")]) == 1
    return capsys.readouterr().err.strip()


def test_a_bad_length_config_is_one_line_that_names_the_flag(dynamic, searched, squad_v1_file, tmp_path, capsys):
    def refused(*flags):
        stage = ("--do_eval", "--validation_file", squad_v1_file, "--output_dir", tmp_path / "out")
        return failure(capsys, "--model_name_or_path", dynamic, *stage, *flags)

    message = refused("--length_config", "(60, 50)")
    assert "--length_config" in message and "3 layers" in message
    source = ("--length_config_from", dynamic)
    assert "no results of a finished search" in refused(*source, "--max_f1_drop", 1)
    message = refused("--length_config_from", searched, "--target_macs", 2)
    assert "--length_config_from" in message and "nearest" in message
    results = read(searched / "search_results.json")
    for row in [results["full"], *results["frontier"]]:
        row["length_config"] = row["length_config"][:2]
    (tmp_path / "search_results.json").write_text(json.dumps(results))
    assert "3 layers" in refused("--length_config_from", tmp_path, "--max_f1_drop", 100)


def test_bad_data_is_one_line(dynamic, tmp_path, capsys, squad_v1_file):
    def refused(*flags):
        stage = ("--do_eval", "--output_dir", tmp_path / "out")
        return failure(capsys, "--model_name_or_path", dynamic, *stage, *flags)

    (tmp_path / "bad.json").write_text('[{"id": "1", "question": "q"}]')
    assert "bad.json: record 1" in refused("--validation_file", tmp_path / "bad.json")
    assert "no such file" in refused("--validation_file", tmp_path / "missing.json")
    assert "is a file" in refused("--dataset_name", squad_v1_file)
    (tmp_path / "data").mkdir()
    shutil.copy(squad_v1_file, tmp_path / "data/train.json")
    message = refused("--dataset_name", tmp_path / "data")
    assert "no validation split" in message and "--validation_file" in message
    assert "--dataset_name squad" in refused("--dataset_name", "squad")  # HF_HUB_OFFLINE=1


def test_an_output_folder_that_cannot_be_written_to_is_one_line(dynamic, squad_v1_file, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, "--do_eval")
    assert "cannot be written" in failure(capsys, *command, "--output_dir", tmp_path / "file/out")


def test_a_search_does_not_overwrite_another_model(dynamic, fine_tuned, squad_v1_file, tmp_path, capsys):
    shutil.copytree(fine_tuned, tmp_path / "model")
    before = digest(tmp_path / "model")
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH)
    assert "holds a model" in failure(capsys, *command, "--output_dir", tmp_path / "model")
    assert digest(tmp_path / "model") == before


def test_a_search_that_misses_its_target_keeps_its_results_and_says_so(dynamic, squad_v1_file, tmp_path, caplog):
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, *SEARCH)
    succeed(*command, "--search_samples", 5, "--target_macs", 2, "--output_dir", tmp_path / "out")
    results = read(tmp_path / "out/search_results.json")
    assert "no length config is chosen" in caplog.text and "nearest" in caplog.text
    assert results["chosen"] is None and results["frontier"] and results["candidate_questions"] == 5


def test_a_search_without_gold_answers_is_refused(dynamic, tmp_path, capsys):
    question = {"id": "a", "context": "Ada wrote it.", "question": "Who?", "answers": {"text": [], "answer_start": []}}
    (tmp_path / "questions.json").write_text(json.dumps([question]))
    command = ("--model_name_or_path", dynamic, "--validation_file", tmp_path / "questions.json", *SEARCH)
    assert "--do_search needs" in failure(capsys, *command, "--output_dir", tmp_path / "out")


def test_a_programming_error_keeps_its_traceback(dynamic, squad_v1_file, tmp_path, monkeypatch):
    def broken(*args):
        raise ValueError("a bug")

    monkeypatch.setattr(run_qa, "evaluate", broken)
    with pytest.raises(ValueError, match="a bug"):
        run(
            *("--model_name_or_path", dynamic, "--validation_file", squad_v1_file),
            *("--do_eval", "--output_dir", tmp_path / "out"),
        )


# ---- RoBERTa -------------------------------------------------------------------------------------------------------


def test_roberta_goes_through_the_same_stages(roberta_tokenizer, squad_v1_file, tmp_path):
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(roberta_tokenizer), pad_token_id=roberta_tokenizer.pad_token_id, **SIZES)
    RobertaModel(config).save_pretrained(tmp_path / "encoder")
    roberta_tokenizer.save_pretrained(tmp_path / "encoder")
    files = ("--train_file", squad_v1_file, "--validation_file", squad_v1_file)
    model, search = tmp_path / "model", tmp_path / "search"
    succeed(
        "--model_name_or_path",
        tmp_path / "encoder",
        *files,
        *TRAINING,
        "--length_adaptive",
        "--do_eval",
        "--output_dir",
        model,
    )
    succeed("--model_name_or_path", model, *files[2:], *SEARCH, "--evo_iter", "1", "--output_dir", search)
    chosen = ("--length_config_from", search, "--target_macs_ratio", "1.0")
    succeed("--model_name_or_path", model, *files[2:], "--do_eval", *chosen, "--output_dir", tmp_path / "evaluation")
    assert read(tmp_path / "evaluation/eval_results.json")["eval_f1"] >= 0
