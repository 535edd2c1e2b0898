"""What the stages leave behind, end to end through run_qa.main."""

import json

import numpy as np
import pytest
import torch
from stages import SEARCH, SIZES, TRAINING, read, succeed
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, RobertaConfig, RobertaModel

from length_config import count_macs
from reader import Reader

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


def test_results_say_what_was_evaluated_and_how(fine_tuned, encoder, squad_v1_file):
    made = read(fine_tuned / "eval_results.json")["run"]
    assert made["model_name_or_path"] == str(encoder) and made["validation_file"] == str(squad_v1_file)
    assert (made["max_seq_length"], made["doc_stride"], made["precision"], made["processes"]) == (64, 16, "float32", 1)


def test_the_card_says_whether_length_drop_trained_the_weights(fine_tuned, dynamic, searched):
    cards = [(folder / "README.md").read_text(encoding="utf-8") for folder in (fine_tuned, dynamic, searched)]
    assert "no LengthDrop" in cards[0] and "with LengthDrop" in cards[1] and "the base model's own" in cards[2]


def test_the_card_of_a_search_lists_its_frontier(searched):
    card = (searched / "README.md").read_text(encoding="utf-8")
    assert str(read(searched / "search_results.json")["full"]["score"]) in card
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
