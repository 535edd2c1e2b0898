"""Training with a teacher: the step against one written out by hand, one big batch, one uninterrupted run, one process."""

import pytest
import torch
from stages import run_in_two_processes
from test_trainer_qa import SETTINGS, Stop, make_data, make_model, weights
from torch.nn import functional as F
from transformers import TrainingArguments

from distillation_arguments import DistillationArguments
from errors import RunError
from teacher import Teacher
from teaching import Teaching
from trainer_qa import DistillationTrainer, LengthDropSettings, LengthDropTrainer

EVERYTHING = {"state_loss_ratio": 1.0, "att_loss_ratio": 0.5, "relation_loss_ratio": 0.1, "pred_distill": True}
EVERYTHING |= {"distillation_weight": 0.7, "distillation_temperature": 2.0}


def make_teacher(**sizes):
    model = make_model(**sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return model


def make_trainer(folder, settings=EVERYTHING, teacher=None, model=None, length_drop=None, callbacks=None, **arguments):
    defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "no", "use_cpu": True}
    defaults |= {"disable_tqdm": True, "logging_steps": 1, "dataloader_pin_memory": False, "seed": 3}
    defaults |= {"optim": "sgd", "learning_rate": 0.1}  # as in test_trainer_qa.py
    run = TrainingArguments(str(folder), **(defaults | arguments))
    model = model or make_model()
    teacher = Teacher(teacher or make_teacher(), ["input_ids", "attention_mask"], run)
    teaching = Teaching(DistillationArguments(**settings), teacher, model)
    common = {"model": model, "args": run, "train_dataset": make_data(), "callbacks": callbacks, "teaching": teaching}
    return LengthDropTrainer(**common, length_drop=length_drop) if length_drop else DistillationTrainer(**common)


def batch_of(rows=4):
    return {name: torch.tensor(values) for name, values in make_data(rows).to_dict().items()}


def step(trainer, rows=4):
    trainer.current_gradient_accumulation_steps = 1
    return trainer.training_step(trainer.model, batch_of(rows))


def gradients(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


# ---- one step ------------------------------------------------------------------------------------------------------


def test_a_step_learns_the_weighted_sum_of_task_prediction_and_hidden_states(tmp_path):
    """0.3 CE + 0.7 T^2 KL + 1.0 the sum over embeddings and layers, in one graph with torch's own losses."""
    trainer = make_trainer(tmp_path, EVERYTHING | {"att_loss_ratio": 0.0, "relation_loss_ratio": 0.0})
    total = step(trainer)
    student, teacher, batch = make_model().train(), make_teacher().eval(), batch_of()
    ours = student(**batch, output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(**{k: batch[k] for k in ("input_ids", "attention_mask")}, output_hidden_states=True)
    warm = [
        F.kl_div((ours[key] / 2).log_softmax(-1), (theirs[key] / 2).softmax(-1), reduction="batchmean") * 4
        for key in ("start_logits", "end_logits")
    ]
    hidden = sum(F.mse_loss(a, b) for a, b in zip(ours.hidden_states, theirs.hidden_states))
    loss = 0.3 * ours.loss + 0.7 * sum(warm) / 2 + hidden
    loss.backward()
    torch.testing.assert_close(total, loss.detach())
    torch.testing.assert_close(gradients(trainer.model), gradients(student), atol=1e-6, rtol=1e-4)


def test_gradients_reach_the_student_only(tmp_path):
    trainer = make_trainer(tmp_path)
    before = weights(trainer.teaching.teacher.model)
    trainer.train()
    teacher = trainer.teaching.teacher.model
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert not teacher.training and torch.equal(weights(teacher), before)
    assert not torch.equal(weights(trainer.model), weights(make_model()))


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path):
    trainer = make_trainer(tmp_path, EVERYTHING | {"distillation_weight": 1.0}, teacher=make_model())
    parts, _ = trainer.teaching.losses(trainer.model.train(), batch_of())
    assert parts["task"] > 1 and parts.keys() == {"task", "prediction", "hidden", "attention", "relation"}
    assert all(parts[name].item() == pytest.approx(0, abs=1e-5) for name in parts if name != "task")


def test_without_a_task_loss_the_head_still_gets_a_gradient_of_zero(tmp_path):
    """Of an unused weight DDP would wait for the gradient."""
    trainer = make_trainer(tmp_path, {"state_loss_ratio": 1.0})
    step(trainer)
    assert trainer.model.qa_outputs.weight.grad.abs().sum() == 0
    assert all(parameter.grad is not None for parameter in trainer.model.parameters())


def test_every_part_is_logged_without_its_weight(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    weighted = {"task": 0.3, "prediction": 0.7, "hidden": 1.0, "attention": 0.5, "relation": 0.1}
    for row in rows:
        assert row["loss"] == pytest.approx(sum(w * row[f"loss_{name}"] for name, w in weighted.items()), abs=2e-3)
    assert len(rows) == 4 and rows[-1]["loss"] < rows[0]["loss"]


# ---- shapes --------------------------------------------------------------------------------------------------------


def test_depth_width_and_heads_may_differ(tmp_path):
    teacher = make_teacher(hidden_size=24, num_hidden_layers=6, num_attention_heads=4, intermediate_size=48)
    settings = EVERYTHING | {"att_loss_ratio": 0.0}
    trainer = make_trainer(tmp_path, settings | {"relation_heads": 8}, teacher)
    assert trainer.teaching.hidden == {0: 0, 1: 2, 2: 4, 3: 6} and trainer.teaching.relation == {3: 6}
    assert trainer.model.hidden_projection.weight.shape == (24, 16)
    before = trainer.model.hidden_projection.weight.clone()
    trainer.train()
    assert not torch.equal(trainer.model.hidden_projection.weight, before)
    trainer.save_model(tmp_path)
    assert not hasattr(trainer.model, "hidden_projection")
    assert type(trainer.model).from_pretrained(tmp_path, output_loading_info=True)[1]["unexpected_keys"] == set()


def test_partial_representations_are_the_embeddings_and_the_last_layer(tmp_path):
    settings = EVERYTHING | {"partial_reps": True}
    teaching = make_trainer(tmp_path, settings, make_teacher(num_hidden_layers=7)).teaching
    assert (teaching.hidden, teaching.attention, teaching.relation) == ({0: 0, 3: 7}, {3: 7}, {3: 7})


def test_the_teachers_layers_may_be_given(tmp_path):
    settings = EVERYTHING | {"teacher_layers": "1,3,4"}
    teaching = make_trainer(tmp_path, settings, make_teacher(num_hidden_layers=7)).teaching
    assert (teaching.hidden, teaching.attention) == ({0: 0, 1: 1, 2: 3, 3: 4}, {1: 1, 2: 3, 3: 4})


@pytest.mark.parametrize(
    ("settings", "sizes", "message"),
    [
        ({"att_loss_ratio": 1.0}, {"num_attention_heads": 4}, "2 heads and the teacher 4: use --relation_loss_ratio"),
        ({"relation_loss_ratio": 1.0, "relation_heads": 3}, {}, "--relation_heads 3 does not divide"),
        ({"relation_loss_ratio": 1.0}, {"hidden_size": 12, "num_attention_heads": 3}, "--relation_heads 3 does not"),
        ({"state_loss_ratio": 1.0}, {"num_hidden_layers": 4}, "--teacher_layers"),
    ],
)
def test_shapes_that_cannot_be_compared_are_refused(settings, sizes, message, tmp_path):
    with pytest.raises(RunError, match=message):
        make_trainer(tmp_path, settings, make_teacher(**sizes))


# ---- the same whatever way it is run -------------------------------------------------------------------------------

LESSONS = {"everything": (EVERYTHING, None)}
LESSONS["LengthDrop"] = (
    {"pred_distill": True, "distillation_weight": 0.5, "length_drop_teacher": "both"},
    LengthDropSettings(max_length=16, length_drop_ratio_bound=0.3, layer_dropout_prob=0.4, teacher="both"),
)


@pytest.fixture(params=LESSONS)
def lesson(request):
    settings, length_drop = LESSONS[request.param]
    return {"settings": settings, "length_drop": length_drop}


def test_gradient_accumulation_equals_the_same_global_batch(tmp_path, lesson):
    whole = make_trainer(tmp_path / "a", **lesson, per_device_train_batch_size=8)
    pieces = make_trainer(tmp_path / "b", **lesson, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for trainer in (whole, pieces):
        trainer.train()
    torch.testing.assert_close(weights(pieces.model), weights(whole.model), atol=2e-5, rtol=1e-4)


def test_resume_is_bit_exact_with_dropout_and_a_projection(tmp_path, lesson):
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    sizes = {"hidden_size": 24, "num_attention_heads": 2}
    common = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch"} | lesson

    def begin(folder, **more):
        torch.manual_seed(9)
        return make_trainer(
            tmp_path / folder, teacher=make_teacher(**sizes), model=make_model(**dropout), **common, **more
        )

    straight = begin("a")
    straight.train()
    begin("b", callbacks=[Stop()]).train()
    resumed = begin("b")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6 and torch.equal(weights(resumed.model), weights(straight.model))
    assert hasattr(resumed.model, "hidden_projection") == bool(lesson["settings"].get("state_loss_ratio"))


def test_in_bf16_the_teacher_answers_in_bf16_and_the_losses_are_about_those_of_float32(tmp_path, lesson):
    half, full = make_trainer(tmp_path, **lesson, bf16=True), make_trainer(tmp_path, **lesson)
    rough, exact = (trainer.teaching.targets(batch_of())[0] for trainer in (half, full))
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    losses = []
    for trainer in (half, full):
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and weights(half.model).isfinite().all()


WORKER = """
import os, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
import torch.distributed as dist
from test_teaching import LESSONS, make_teacher, make_trainer
from test_trainer_qa import weights
for name, (settings, length_drop) in LESSONS.items():
    torch.manual_seed(9)
    trainer = make_trainer(sys.argv[1], settings, make_teacher(hidden_size=24), length_drop=length_drop, max_steps=3)
    trainer.train()
    assert type(trainer.teaching.teacher.model).__name__ == "LABertForQuestionAnswering"  # not wrapped
    if trainer.is_world_process_zero():
        torch.save(weights(trainer.model), Path(sys.argv[1], name + ".pt"))
dist.barrier()
dist.destroy_process_group()
os._exit(0)
"""


def test_two_processes_equal_one_on_the_same_global_batch(tmp_path):
    """Real gloo processes under torchrun, with a projection, with sub-models, and without a task loss for the head."""
    run_in_two_processes(WORKER, tmp_path)
    for name, (settings, length_drop) in LESSONS.items():
        torch.manual_seed(9)
        alone = {"per_device_train_batch_size": 8, "max_steps": 3, "length_drop": length_drop}
        single = make_trainer(tmp_path / "single", settings, make_teacher(hidden_size=24), **alone)
        single.train()
        double = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(double, weights(single.model), atol=2e-5, rtol=1e-4)


# ---- LengthDrop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["self", "teacher", "both"])
def test_submodels_learn_from_the_full_model_the_teacher_or_both(source, tmp_path):
    """(CE(full) + KL(smallest) + KL(random 1) + KL(random 2)) / 4, the KL from one or the mean of two."""
    length_drop = LengthDropSettings(**(vars(SETTINGS) | {"teacher": source, "kl_direction": "full_sub"}))
    settings = {"pred_distill": False, "length_drop_teacher": source}
    trainer = make_trainer(tmp_path, settings, length_drop=length_drop)
    total = step(trainer)
    student, batch = make_model().train(), batch_of()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    full = student(**batch)
    with torch.no_grad():
        external = make_teacher().eval()(**inputs)
    chosen = {"self": [full], "teacher": [external], "both": [full, external]}[source]
    loss = full.loss
    for submodel in trainer._submodels():
        sub = student(**inputs, **submodel)
        for key in ("start_logits", "end_logits"):
            pairs = [(sub[key].log_softmax(-1), target[key].detach().softmax(-1)) for target in chosen]
            loss = loss + sum(F.kl_div(*pair, reduction="batchmean") for pair in pairs) / len(pairs) / 2
    (loss / 4).backward()
    torch.testing.assert_close(total, loss.detach() / 4)
    torch.testing.assert_close(gradients(trainer.model), gradients(student), atol=1e-6, rtol=1e-4)


def test_with_a_prediction_loss_the_full_pass_learns_from_the_teacher_too(tmp_path):
    settings = {"pred_distill": True, "distillation_weight": 0.4}
    trainer = make_trainer(tmp_path, settings, length_drop=SETTINGS)
    trainer.train()
    for row in (row for row in trainer.state.log_history if "loss" in row):
        expected = 0.6 * row["loss_task"] + 0.4 * row["loss_prediction"]
        assert row["loss_full"] == pytest.approx(expected, abs=2e-3)
        parts = row["loss_full"] + row["loss_smallest"] + 2 * row["loss_random"]
        assert row["loss"] == pytest.approx(parts / 4, abs=2e-3)
