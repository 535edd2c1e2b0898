"""The INT8-aware finish: its training step, and the folder that the stage leaves."""

import copy
import json
import shutil

import pytest
import torch
from stages import digest, failure, read, run, run_in_two_processes, succeed
from test_fake_quantization import extremes
from test_trainer_qa import SETTINGS, WORKER, Stop, make_data, make_model, weights
from transformers import AutoModelForQuestionAnswering, TrainingArguments

import native_engine
import quantization
from distillation import kl_divergence
from fake_quantization import fake_quantize
from finish_qa import QuantizationAwareTrainer
from int8_folder import RECIPE_FILE
from modeling_la_bert import LABertForQuestionAnswering
from quantization import Recipe, load_int8, quantize, recipes
from reader import Reader
from trainer_qa import LengthDropSettings

FULL, CONFIG = (16, 16, 16), (12, 8, 5)
STATIC, DYNAMIC = Recipe(by_token="none", smoothing=None), recipes("dynamic", "minmax", True)[0]


@pytest.fixture(autouse=True, scope="module")
def quick_calibration_and_operators():
    """No export and no compiler, which take long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "observe_ranges", extremes)
        patch.setattr(native_engine, "load_fused_operators", lambda _: False)
        yield


def make_batch(rows=4):
    return {name: torch.tensor(values) for name, values in make_data(rows).to_dict().items()}


def uneven_model():
    """Its quantization hurts: of every normed vector one channel is a hundredth, and its weights a hundred times as large."""
    model = make_model(initializer_range=0.2)
    readers = ("query.weight", "key.weight", "value.weight", "intermediate.dense.weight", "qa_outputs.weight")
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name:
            parameter.data[5] /= 100
        elif name.endswith(readers):
            parameter.data[:, 5] *= 100
    return model


def make_trainer(folder, model=None, length_config=FULL, length_drop=None, recipe=DYNAMIC, leave=None, **arguments):
    callbacks = arguments.pop("callbacks", None)
    target = model or make_model()
    fakes, batch = copy.deepcopy(target), make_batch(16)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    fake_quantize(fakes, dict(quantize(target, recipe, [inputs]).named_modules()), recipe.weight_bits)
    defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "no", "use_cpu": True, "seed": 3}
    defaults |= {"disable_tqdm": True, "logging_steps": 1, "dataloader_pin_memory": False}
    defaults |= {"optim": "sgd", "learning_rate": 0.05}
    return QuantizationAwareTrainer(
        model=fakes,
        args=TrainingArguments(str(folder), **(defaults | arguments)),
        train_dataset=make_data(),
        callbacks=callbacks,
        target=target,
        length_config=length_config,
        length_drop=length_drop or LengthDropSettings(max_length=16, kl_direction="full_sub"),
        leave=leave or (lambda *_: None),
    )


# ---- the training step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length_config", [FULL, CONFIG, None])
def test_a_step_accumulates_the_gradient_of_every_passs_divergence_from_the_float_model(tmp_path, length_config):
    trainer = make_trainer(tmp_path, length_config=length_config, length_drop=SETTINGS)
    trainer.current_gradient_accumulation_steps = 1
    reference, batch = copy.deepcopy(trainer.model).train(), make_batch()
    total = trainer.training_step(trainer.model, dict(batch))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        full = make_model().eval()(**inputs)
    passes = [{"length_config": length_config}]
    if length_config is None:
        passes = [{"length_config": FULL}, *trainer._submodels()]
    loss = 0
    for lengths in passes:
        sub = reference(**inputs, **lengths)
        for key in ("start_logits", "end_logits"):
            divergence = torch.nn.KLDivLoss(reduction="batchmean")(full[key].log_softmax(-1), sub[key].softmax(-1))
            loss = loss + divergence / 2 / len(passes)
    loss.backward()
    torch.testing.assert_close(total, loss.detach())
    pairs = zip(trainer.model.parameters(), reference.parameters())
    assert all(torch.allclose(one.grad, other.grad, atol=1e-6, rtol=1e-4) for one, other in pairs)


def test_the_float_model_is_frozen_and_in_eval_mode(tmp_path):
    model = make_model(hidden_dropout_prob=0.3)
    trainer, before = make_trainer(tmp_path, model), weights(model).clone()
    trainer.train()
    assert torch.equal(weights(trainer.target), before) and not trainer.target.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in trainer.target.parameters())
    assert not torch.equal(weights(trainer.model), before)


def test_gold_answers_do_not_matter(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.current_gradient_accumulation_steps = 1
    batch = make_batch()
    losses = [
        trainer.training_step(trainer.model, batch | {"start_positions": starts, "end_positions": starts + 2})
        for starts in (torch.zeros(4, dtype=torch.long), torch.arange(4))
    ]
    assert torch.equal(*losses)


@pytest.mark.parametrize("recipe", [STATIC, DYNAMIC], ids=str)
def test_some_steps_win_back_what_quantization_has_lost(tmp_path, recipe):
    trainer = make_trainer(
        tmp_path, uneven_model(), recipe=recipe, max_steps=40, optim="adamw_torch", learning_rate=1e-3
    )
    batch = make_batch(16)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def divergence():
        with torch.no_grad():
            found, wanted = trainer.model.eval()(**inputs), trainer.target(**inputs)
        return sum(kl_divergence(found[key], wanted[key], "full_sub").item() for key in ("start_logits", "end_logits"))

    before = divergence()
    trainer.train()
    assert before > 0.02 and divergence() < before / 3


def test_resume_is_bit_exact(tmp_path):
    common = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "length_config": None}
    straight = make_trainer(tmp_path / "a", **common)
    straight.train()
    stopped = make_trainer(tmp_path / "b", callbacks=[Stop()], **common)
    stopped.train()
    resumed = make_trainer(tmp_path / "b", **common)
    resumed.train(resume_from_checkpoint=True)
    assert stopped.state.global_step == 3 and resumed.state.global_step == 6
    assert torch.equal(weights(resumed.model), weights(straight.model))


def test_a_checkpoint_is_a_float_model_that_plain_transformers_load(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    loaded, report = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "checkpoint-2", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(weights(loaded), weights(trainer.model))


def test_gradient_accumulation_equals_the_same_global_batch(tmp_path):
    whole = make_trainer(tmp_path / "a", length_config=None, per_device_train_batch_size=8, max_steps=1)
    pieces = make_trainer(
        tmp_path / "b", length_config=None, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=1
    )
    for trainer in (whole, pieces):
        trainer.train()
    torch.testing.assert_close(weights(pieces.model), weights(whole.model), atol=1e-6, rtol=1e-4)


def test_two_processes_equal_one_on_the_same_global_batch_and_reduce_once_a_step(tmp_path):
    script = WORKER.replace(
        "test_trainer_qa import make_data, make_trainer, weights, SETTINGS", "test_finish_qa import *"
    )
    run_in_two_processes(script.replace("max_steps=3", "max_steps=1, length_config=None"), tmp_path)
    single = make_trainer(tmp_path / "one", length_config=None, per_device_train_batch_size=8, max_steps=1)
    single.train()
    double = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.testing.assert_close(double, weights(single.model), atol=1e-6, rtol=1e-4)
    assert read(tmp_path / "reductions.json") == [0]


def test_bf16_is_for_the_student_alone_and_its_weights_stay_in_float32(tmp_path):
    trainer, in_bf16 = make_trainer(tmp_path, bf16=True, max_steps=2), {}
    for name, model in (("student", trainer.model), ("target", trainer.target)):
        record = lambda *_, name=name: in_bf16.update({name: torch.is_autocast_enabled("cpu")})
        model.bert.encoder.layer[1].register_forward_pre_hook(record)
    trainer.train()
    assert in_bf16 == {"student": True, "target": False}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert trainer.state.log_history[0]["loss"] > 0


def test_training_ends_with_the_int8_model_and_leaves_no_float_one(tmp_path):
    left = []
    trainer = make_trainer(tmp_path, leave=lambda model, steps: left.append((model, steps)), max_steps=2)
    trainer.train()
    trainer.save_model()
    assert left == [(trainer.model, 2)] and not list(tmp_path.glob("*.safetensors"))


# ---- the stage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8_folder(tmp_path_factory, fine_tuned, squad_v1_file):
    folder = tmp_path_factory.mktemp("stage") / "int8"
    flags = ("--tune", "--do_eval", "--quantization_approach", "dynamic", "--perf_tol", "1.0")
    files = ("--validation_file", squad_v1_file, "--quantization_backend", "native")
    succeed("--model_name_or_path", fine_tuned, *files, *flags, "--output_dir", folder)
    return folder


@pytest.fixture
def finish(fine_tuned, int8_folder, squad_v1_file, tmp_path):
    """Runs the stage with more flags; returns the exit status."""
    command = ("--model_name_or_path", fine_tuned, "--train_file", squad_v1_file, "--do_train", "--max_steps", 4)
    command += ("--quantization_aware", int8_folder, "--learning_rate", "1e-3", "--logging_steps", 1)
    return lambda *flags: run(*command, *flags, "--output_dir", tmp_path / "finished")


def test_the_finish_leaves_an_int8_folder_that_the_engine_runs(
    finish, fine_tuned, int8_folder, squad_v1_file, tmp_path
):
    before = digest(fine_tuned), digest(int8_folder)
    evaluation = ("--do_eval", "--validation_file", squad_v1_file, "--length_config", "(40, 24, 10)")
    assert finish(*evaluation, "--save_steps", 2) == 0
    folder = tmp_path / "finished"
    assert (digest(fine_tuned), digest(int8_folder)) == before
    assert not list(folder.glob("model*.safetensors")) and len(list(folder.glob("int8_weights-*"))) == 1
    recipe, source = read(folder / RECIPE_FILE), read(int8_folder / RECIPE_FILE)
    same = ("format", "approach", "recipe", "backend", "max_seq_length", "input_names", "source")
    assert {name: recipe[name] for name in same} == {name: source[name] for name in same}
    assert recipe["sha256"] != source["sha256"]
    finished = recipe["finished"]
    assert (finished["from"], finished["sha256"], finished["steps"]) == (str(int8_folder), source["sha256"], 4)
    assert finished["length_config"] == [40, 24, 10] and finished["settings"]["learning_rate"] == 1e-3
    card = (folder / "README.md").read_text()
    assert "quantization-aware training" in card and "The weights are INT8" in card
    # The float weights of the last checkpoint, rounded, are what was saved.
    last = LABertForQuestionAnswering.from_pretrained(folder / "checkpoint-4")
    int8 = load_int8(folder)
    fake_quantize(last, dict(load_int8(int8_folder).named_modules()), recipe["recipe"]["weight_bits"])
    ids = torch.randint(5, 60, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(last.eval()(input_ids=ids).start_logits, int8(input_ids=ids).start_logits)
    # What the stage evaluated is what a command of its own does, whichever folder it names.
    again = ("--int8", *evaluation, "--output_dir", tmp_path / "again")
    succeed("--model_name_or_path", folder, *again)
    assert read(tmp_path / "again/eval_predictions.json") == read(folder / "eval_predictions.json")
    assert read(folder / "eval_results.json")["run"]["precision"] == "int8 and float32"
    assert Reader.from_pretrained(folder)("Where?", "In a town.").text in "In a town."


def test_an_interrupted_finish_continues_to_the_same_int8_model(finish, tmp_path):
    assert finish("--length_adaptive", "--save_steps", 2) == 0
    folder = tmp_path / "finished"
    whole = read(folder / RECIPE_FILE)["sha256"]
    for path in folder.iterdir():
        if path.name not in ("run_args.json", "checkpoint-2"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert finish("--length_adaptive", "--save_steps", 2) == 0
    assert read(folder / RECIPE_FILE)["sha256"] == whole
    results = digest(folder)["train_results.json"]
    assert finish("--length_adaptive", "--save_steps", 2) == 0  # complete: the same once more
    assert read(folder / RECIPE_FILE)["sha256"] == whole and digest(folder)["train_results.json"] == results


def test_dropout_is_off_unless_it_is_asked_for(finish, tmp_path):
    losses = []
    for flags in ((), ("--hidden_dropout", 0.5)):
        assert finish("--save_strategy", "no", "--overwrite_output_dir", *flags) == 0
        losses.append(read(tmp_path / "finished/trainer_state.json")["log_history"][0]["loss"])
    assert losses[1] > 3 * losses[0]


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_another_length_config_does_not_continue_a_finish(finish, tmp_path, capsys):
    assert finish("--length_config", "(40, 24, 10)") == 0
    assert finish("--length_config", "(40, 24, 9)") == 1
    assert "begun with another --length_config" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["float", "other weights", "missing", "other backend", "other length", "fractions"])
def test_a_folder_that_does_not_fit_is_refused_in_one_line(
    broken, fine_tuned, dynamic, int8_folder, squad_v1_file, tmp_path, capsys
):
    folder, model, flags = shutil.copytree(int8_folder, tmp_path / "int8"), fine_tuned, ()
    recipe = read(folder / RECIPE_FILE)
    if broken == "float":
        folder, message = dynamic, "holds no INT8 model"
    elif broken == "missing":
        folder, message = tmp_path / "nowhere", "holds no INT8 model"
    elif broken == "other weights":
        model, message = dynamic, f"was made from {fine_tuned}, not from the weights that"
    elif broken == "other backend":
        flags, message = ("--quantization_backend", "pt2e"), "was tuned for --quantization_backend native, not pt2e"
    elif broken == "other length":
        recipe["max_seq_length"], message = 96, "was made for --max_seq_length 96, not 64"
    else:
        recipe["backend"], message = "pt2e", "in tokens, not in fractions"
        flags = ("--length_ratios", "(0.9, 0.8, 0.7)")
    if broken in ("other length", "fractions"):
        (folder / RECIPE_FILE).write_text(json.dumps(recipe))
    command = ("--model_name_or_path", model, "--train_file", squad_v1_file, "--do_train", *flags)
    found = failure(capsys, *command, "--quantization_aware", folder, "--output_dir", tmp_path / "out")
    assert message in found and str(folder) in found
    assert not list((tmp_path / "out").iterdir())


def test_nothing_is_left_beside_a_float_model(finish, tmp_path, capsys):
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished/model.safetensors").write_bytes(b"")
    assert finish("--overwrite_output_dir") == 1
    assert "holds a float model" in capsys.readouterr().err


def test_native_in_bf16_is_evaluated_in_a_command_of_its_own(finish, squad_v1_file, capsys):
    assert finish("--bf16", "--do_eval", "--validation_file", squad_v1_file) == 1
    assert "evaluate in the next command" in capsys.readouterr().err
