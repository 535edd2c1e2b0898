"""Quantizing and using an INT8 folder from the command line, and the engine against the modules it was compiled from."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from zipfile import ZipFile

import pytest
import torch
from stages import SEARCH, digest, failure, read, succeed
from transformers import RobertaConfig

import native_engine
import native_ops
import pt2e_engine
import quantize_qa
from compiled_engine import CompiledModel
from errors import RunError
from int8_backends import BACKENDS, open_int8
from int8_engine import check_integer_products, executed_products, integer_products, linear_shapes
from int8_folder import RECIPE_FILE, has_vnni
from modeling_la_auto import MODEL_CLASSES
from native_engine import NativeModel
from native_ops import fused_operators_loaded
from pt2e_engine import Pt2eModel
from quantization import load_int8, quantize, recipes, save_int8
from quantize_qa import within_tolerance
from reader import Reader

CONFIG = "(40, 24, 10)"


@pytest.fixture
def pt2e(backend):
    if backend is not Pt2eModel:
        pytest.skip("about what only PT2E does")


@pytest.fixture
def files(backend):
    if not issubclass(backend, CompiledModel):
        pytest.skip("about engines that are files")


@pytest.fixture(scope="session")
def cache(tmp_path_factory, backend):
    """Where all tests keep their engines: to compile one takes half a minute, and with PT2E a compiler."""
    if backend is Pt2eModel and pt2e_engine.cxx_compiler() is None:
        pytest.skip("INT8 engines need a C++ compiler: apt-get install g++")
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
def quantized(tmp_path_factory, dynamic, squad_v1_file, cache, backend):
    folder, before = tmp_path_factory.mktemp("stage") / "quantized", digest(dynamic)
    files = ("--train_file", squad_v1_file, "--validation_file", squad_v1_file)
    flags = ("--tune", "--do_train", "--do_eval", "--sensitivity", "--perf_tol", "1.0", *engine_flags(backend, cache))
    succeed("--model_name_or_path", dynamic, *files, *flags, "--output_dir", folder)
    assert digest(dynamic) == before
    return folder


def engine_flags(backend, cache):
    return ("--quantization_backend", backend.backend, "--engine_cache_dir", cache)


@pytest.fixture
def int8(quantized, dynamic, squad_v1_file, cache, backend, tmp_path):
    """Runs a stage with --int8 in a copy of the INT8 folder; returns the copy."""

    def run_stage(*flags):
        folder = tmp_path / "quantized"
        shutil.copytree(quantized, folder, dirs_exist_ok=True)
        files = ("--validation_file", squad_v1_file, *engine_flags(backend, cache))
        succeed("--model_name_or_path", dynamic, *files, "--int8", *flags, "--output_dir", folder)
        return folder

    return run_stage


def random_batch(names, rows, tokens, vocabulary):
    generator = torch.Generator().manual_seed(rows * tokens)
    lengths = torch.randint(tokens // 2, tokens + 1, (rows, 1), generator=generator)
    mask = (torch.arange(tokens) < lengths).long()
    ids = torch.randint(5, vocabulary, (rows, tokens), generator=generator) * mask
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: values[name] for name in names}


def logits(model, batch, length_config):
    with torch.no_grad():
        outputs = model(**batch, length_config=length_config)
    return torch.stack([outputs.start_logits, outputs.end_logits])


# ---- the stages ----------------------------------------------------------------------------------------------------


def test_tuning_leaves_an_int8_folder_its_trials_and_its_scores(quantized):
    names = {path.name for path in quantized.iterdir() if not path.name.startswith("int8_weights")}
    assert {RECIPE_FILE, "config.json", "tokenizer.json", "quantize_results.json", "eval_results.json"} <= names
    assert not [name for name in names if name.startswith(".")]
    results = read(quantized / "quantize_results.json")
    assert len(results["trials"]) == 1 and results["trials"][0]["within_tolerance"]
    assert len(results["sensitivity"]) == 6 * 3 + 1 + 2
    assert read(quantized / "eval_results.json")["eval_float"] == results["float"]


def test_the_card_says_that_the_weights_are_int8_and_who_loads_them(quantized):
    card = (quantized / "README.md").read_text()
    assert "The weights are INT8" in card and "AutoModelForQuestionAnswering" not in card
    assert f"{read(quantized / 'eval_results.json')['eval_f1']:.2f}"[:4] in card


def test_the_size_on_disk_is_reported(quantized):
    files = [path for path in quantized.iterdir() if path.name.startswith(("int8", "token", "config"))]
    assert read(quantized / "quantize_results.json")["size_bytes"] == sum(path.stat().st_size for path in files)


def test_one_calibration_serves_every_length_config(int8):
    full, dropped = (
        read(int8("--do_eval", *flags) / "eval_results.json") for flags in ((), ("--length_config", CONFIG))
    )
    assert full["eval_macs_ratio"] == 1.0 and dropped["eval_length_config"] == json.loads(f"[{CONFIG[1:-1]}]")
    assert full["run"]["precision"] == "int8 and float32"


def test_int8_predicts_what_it_evaluates(int8, squad_v1_file):
    folder = int8("--do_eval", "--do_predict", "--test_file", squad_v1_file, "--length_config", CONFIG)
    assert read(folder / "predict_predictions.json") == read(folder / "eval_predictions.json")


def test_int8_searches_and_leaves_an_int8_model_with_the_frontier(int8, squad_v1_file, cache, backend, tmp_path):
    folder = int8(*SEARCH)
    found = read(folder / "search_results.json")["frontier"]
    kept = read(folder / RECIPE_FILE)["config"]["length_configs"]
    assert kept and kept == [{name: row[name] for name in kept[0]} for row in found]
    budget = ("--length_config_from", folder, "--target_macs_ratio", "0.9", *engine_flags(backend, cache))
    files = ("--validation_file", squad_v1_file, "--output_dir", tmp_path / "searched")
    succeed("--model_name_or_path", folder, "--int8", "--do_eval", *budget, *files)


def test_the_benchmark_names_the_engine(int8, backend):
    rows = read(int8("--do_eval", "--benchmark", "--length_config", CONFIG) / "benchmark_results.json")["rows"]
    assert [(row["backend"], row["dtype"]) for row in rows] == [(backend.backend, "int8")] * 2


def test_the_reader_answers_from_an_int8_folder(quantized, cache):
    answer = Reader.from_pretrained(quantized, cache_dir=cache)("Where?", "In a town.", length_config=(40, 24, 10))
    assert answer.text in "In a town."


def test_the_reader_gives_the_answers_that_an_evaluation_gives(quantized, cache, squad_v1_file):
    loaded = Reader.from_pretrained(quantized, cache_dir=cache)
    reader = replace(loaded, max_seq_length=64, doc_stride=16)  # what the evaluation was made with
    paragraphs = [paragraph for article in read(squad_v1_file)["data"] for paragraph in article["paragraphs"]]
    found = {qa["id"]: reader(qa["question"], part["context"]).text for part in paragraphs for qa in part["qas"]}
    assert found == read(quantized / "eval_predictions.json")


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_the_int8_folder_of_another_model_is_refused(quantized, fine_tuned, squad_v1_file, backend, capsys):
    flags = ("--quantization_backend", backend.backend)
    flags += ("--validation_file", squad_v1_file, "--do_eval", "--int8", "--output_dir", quantized)
    assert "was made from" in failure(capsys, "--model_name_or_path", fine_tuned, *flags)


def test_an_int8_folder_is_no_float_model(quantized, squad_v1_file, tmp_path, capsys):
    flags = ("--validation_file", squad_v1_file, "--do_eval", "--output_dir", tmp_path / "new")
    assert "use it with --int8" in failure(capsys, "--model_name_or_path", quantized, *flags)


@pytest.mark.parametrize(
    "flags, message", [((), "holds an INT8 model"), (("--overwrite_output_dir",), "holds a float")]
)
def test_tuning_replaces_no_model_unasked_and_lies_beside_no_float_model(
    flags, message, quantized, dynamic, squad_v1_file, backend, tmp_path, capsys
):
    flags = (*flags, "--quantization_backend", backend.backend)
    folder = shutil.copytree(quantized, tmp_path / "taken")
    if "--overwrite_output_dir" in flags:
        (folder / "model.safetensors").write_bytes(b"")
    before = digest(folder)
    files = ("--validation_file", squad_v1_file, "--output_dir", folder)
    command = ("--model_name_or_path", dynamic, *files, "--tune", "--do_eval", "--quantization_approach", "dynamic")
    assert message in failure(capsys, *command, *flags)
    assert digest(folder) == before


@pytest.fixture
def other(backend):
    """The backend that is not under test."""
    return next(name for name in BACKENDS if name != backend.backend)


def test_a_folder_of_another_backend_is_refused(other, quantized, squad_v1_file, backend, tmp_path, capsys):
    flags = ("--validation_file", squad_v1_file, "--do_eval", "--int8", "--quantization_backend", other)
    message = failure(capsys, "--model_name_or_path", quantized, *flags, "--output_dir", tmp_path / "new")
    assert f"was tuned for --quantization_backend {backend.backend}, not {other}" in message


def test_a_folder_of_an_unknown_backend_is_refused(quantized, tmp_path):
    folder = shutil.copytree(quantized, tmp_path / "unknown")
    (folder / RECIPE_FILE).write_text(json.dumps(read(folder / RECIPE_FILE) | {"backend": "abacus"}))
    with pytest.raises(RunError, match="'abacus'; there are pt2e, ipex, native"):
        open_int8(folder)


def test_ipex_without_its_environment_names_the_pip_line(dynamic, squad_v1_file, tmp_path, capsys):
    if find_spec("intel_extension_for_pytorch"):
        pytest.skip("IPEX is installed here")
    files = ("--validation_file", squad_v1_file, "--output_dir", tmp_path / "none", "--quantization_backend", "ipex")
    flags = ("--tune", "--do_eval", "--quantization_approach", "dynamic")
    assert "pip install -r requirements-ipex.txt" in failure(capsys, "--model_name_or_path", dynamic, *files, *flags)


def test_int8_without_an_int8_folder_is_refused(dynamic, squad_v1_file, tmp_path, capsys):
    flags = ("--validation_file", squad_v1_file, "--do_eval", "--int8", "--output_dir", tmp_path / "new")
    assert "make one by --tune" in failure(capsys, "--model_name_or_path", dynamic, *flags)


def test_no_recipe_within_the_tolerance_ends_the_run_and_leaves_no_model(
    dynamic, squad_v1_file, cache, backend, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(quantize_qa, "within_tolerance", lambda *_: False)
    monkeypatch.setattr(quantize_qa, "open_int8", lambda args, folder: load_int8(folder))
    monkeypatch.setattr("torch.nn.Module.prepare", lambda *_: None, raising=False)
    files = ("--validation_file", squad_v1_file, "--output_dir", tmp_path / "none")
    flags = ("--tune", "--do_eval", "--quantization_approach", "dynamic", *engine_flags(backend, cache))
    message = failure(capsys, "--model_name_or_path", dynamic, *files, *flags)
    assert "none of the 1 recipes keeps eval_f1 within --perf_tol 0.01" in message
    assert list((tmp_path / "none").iterdir()) == []


def test_calibration_sees_the_float32_model_under_bf16(dynamic, squad_v1_file, tmp_path, capsys, monkeypatch):
    tried = []

    def remember(args, recipe, quantized, *_):
        tried.append(quantized.bert.encoder.layer[0].intermediate.dense.input_scale)
        return quantize_qa.Trial(recipe, quantized, None, None, {"eval_f1": -100.0})

    monkeypatch.setattr(quantize_qa, "try_recipe", remember)
    monkeypatch.setattr(Pt2eModel, "require", lambda: None)  # no engine is made, so no compiler is needed
    files = ("--train_file", squad_v1_file, "--validation_file", squad_v1_file)
    for precision in ((), ("--bf16",)):
        flags = ("--tune", "--do_train", "--do_eval", *precision, "--output_dir", tmp_path / f"x{len(precision)}")
        assert "none of the 3 recipes" in failure(capsys, "--model_name_or_path", dynamic, *files, *flags)
    assert tried[:3] == tried[3:] and tried[0] is not None


def test_without_a_compiler_tuning_ends_before_any_work(pt2e, dynamic, squad_v1_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pt2e_engine, "cxx_compiler", lambda: None)
    files = ("--validation_file", squad_v1_file, "--output_dir", tmp_path / "none")
    flags = ("--tune", "--do_eval", "--quantization_approach", "dynamic", "--quantization_backend", "pt2e")
    assert "apt-get install g++" in failure(capsys, "--model_name_or_path", dynamic, *files, *flags)


@pytest.mark.parametrize(
    "score, relative, tolerance, kept",
    [(79.2, True, 0.01, True), (79.1, True, 0.01, False), (79.0, False, 1.0, True), (81.0, True, 0.0, True)],
)
def test_the_tolerance_is_relative_or_in_points(score, relative, tolerance, kept):
    class Quantization:
        is_relative, perf_tol = relative, tolerance

    assert within_tolerance(Quantization, 80.0, score) is kept


# ---- the engine ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["bert", "roberta"])
def engine(request, tmp_path_factory, cache, backend):
    """(compiled model, the modules it was compiled from)."""
    if request.param == "bert":
        folder = request.getfixturevalue("quantized")
    else:
        folder, recipe = tmp_path_factory.mktemp("roberta"), recipes("dynamic", "minmax", True)[0]
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
        config = RobertaConfig(vocab_size=100, max_position_embeddings=130, initializer_range=0.2, **sizes)
        facts = {"backend": backend.backend, "max_seq_length": 64, "input_names": ["input_ids", "attention_mask"]}
        save_int8(quantize(MODEL_CLASSES["roberta"](config), recipe, []), folder, recipe, facts)
    return backend(folder, cache), load_int8(folder)


@pytest.mark.parametrize("length_config", [(40, 24, 10), (50, 50, 5), (64, 63, 62), (9, 2, 1)])
@pytest.mark.parametrize("rows, tokens", [(4, 64), (1, 64), (3, 30), (7, 9)])
def test_one_engine_serves_every_batch_length_and_config(engine, rows, tokens, length_config, monkeypatch):
    compiled, modules = engine
    for layer in getattr(compiled, "layers", []):  # native: the modules have attention in float
        monkeypatch.setattr(layer, "attend", torch.ops.quala.attention)
    batch = random_batch(compiled.input_names, rows, tokens, 90)
    expected = logits(modules, batch, length_config)
    assert (logits(compiled, batch, length_config) - expected).abs().median() < 1e-3 * expected.std()


def test_attention_on_integers_changes_little(engine, backend):
    if backend is not NativeModel or not has_vnni():
        pytest.skip("about what native does on processors with VNNI")
    compiled, modules = engine
    batch = random_batch(compiled.input_names, 4, 64, 90)
    difference, expected = logits(compiled, batch, None) - logits(modules, batch, None), logits(modules, batch, None)
    assert 0 < difference.abs().median() < 0.05 * expected.std()


def test_what_is_not_int8_may_be_bf16(files, engine):
    compiled, modules = engine
    batch, half = (
        random_batch(compiled.input_names, 4, 64, 90),
        open_int8(compiled.folder, compiled.cache_dir, torch.bfloat16),
    )
    difference = logits(half, batch, (64, 64, 64)) - logits(modules, batch, (64, 64, 64))
    assert 0 < difference.abs().median() < 0.1 * logits(modules, batch, (64, 64, 64)).std()
    assert half.dtype == "int8 and bfloat16"


def test_native_refuses_what_it_cannot_compute(engine, backend, tmp_path):
    if backend is not NativeModel:
        pytest.skip("about what only native does not do")
    folder = shutil.copytree(engine[0].folder, tmp_path / "copy")
    with pytest.raises(RunError, match="remove --bf16"):
        open_int8(folder, autocast=torch.bfloat16)
    recipe = read(folder / RECIPE_FILE)
    (folder / RECIPE_FILE).write_text(json.dumps(recipe | {"config": recipe["config"] | {"hidden_act": "relu"}}))
    with pytest.raises(RunError, match="knows GELU, not relu"):
        open_int8(folder)


def test_a_reloaded_engine_is_bit_equal(engine):
    compiled, _ = engine
    batch = random_batch(compiled.input_names, 4, 64, 90)
    again = open_int8(compiled.folder, compiled.cache_dir)
    assert torch.equal(logits(again, batch, (40, 24, 10)), logits(compiled, batch, (40, 24, 10)))


def test_every_linear_layer_executes_as_an_integer_product(engine, backend):
    if backend is NativeModel and fused_operators_loaded("linear"):
        pytest.skip("native has products of its own")
    compiled, _ = engine
    batch = random_batch(compiled.input_names, 4, 64, 90)
    compiled.prepare((40, 24, 10))
    lines = executed_products(lambda: logits(compiled, batch, (40, 24, 10)))
    assert integer_products(lines) == {(32, 64): 3, (64, 32): 3, (32, 32): 4 * 3, (32, 2): 1}


def test_without_c_the_native_engine_proves_its_products_by_the_log_of_onednn(engine, backend, monkeypatch):
    if backend is not NativeModel:
        pytest.skip("about what only native does")
    monkeypatch.setattr(native_engine, "ops", native_ops)  # the operators in PyTorch
    monkeypatch.setattr(native_engine, "fused_operators_loaded", lambda _: False)
    model = NativeModel(engine[0].folder, engine[0].cache_dir)
    assert "brg" in model.implementation()
    monkeypatch.setattr(native_engine, "executed_products", lambda call: [])
    with pytest.raises(RunError, match=r"only 0 of \d+ products of .*layers.0.context"):
        model.implementation()


def test_layers_that_stay_in_float_are_named(engine):
    _, modules = engine
    lines = executed_products(lambda: logits(modules, random_batch(["input_ids", "attention_mask"], 2, 20, 90), None))
    with pytest.raises(RunError, match=r"only 0 of \d+ products of .*layer.0.attention.self.query"):
        check_integer_products(linear_shapes(modules), lines)


def test_a_compiled_engine_needs_no_compiler_and_a_new_one_says_so(pt2e, engine, tmp_path, monkeypatch):
    compiled, _ = engine
    monkeypatch.setattr(pt2e_engine, "cxx_compiler", lambda: None)
    batch = random_batch(compiled.input_names, 2, 20, 90)
    logits(Pt2eModel(compiled.folder, compiled.cache_dir), batch, (12, 8, 4))
    with pytest.raises(RunError, match="apt-get install g"):
        logits(Pt2eModel(compiled.folder, tmp_path), batch, (12, 8, 4))


def test_nothing_of_an_engine_is_a_pickle(pt2e, cache, engine):
    compiled, _ = engine
    compiled.prepare((40, 24, 10))
    for file in cache.rglob("*.pt2"):
        assert not [name for name in ZipFile(file).namelist() if name.endswith((".pkl", ".pt", ".bin"))]


def test_a_cache_that_cannot_be_written_to_is_named(files, engine, tmp_path):
    compiled, _ = engine
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="--engine_cache_dir .* cannot be written to"):
        open_int8(compiled.folder, tmp_path / "file").prepare((40, 24, 10))


def test_a_damaged_engine_is_named(files, engine, tmp_path):
    compiled, _ = engine
    model = open_int8(compiled.folder, tmp_path)
    path = model.engine_file(adaptive=True)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK")
    with pytest.raises(RunError, match="delete it"):
        model.prepare((40, 24, 10))
