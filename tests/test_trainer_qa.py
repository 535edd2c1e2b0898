"""The training step against gradients written out by hand, one big batch, one uninterrupted run, one process."""

import json
import math

import pytest
import torch
from datasets import Dataset
from stages import run_in_two_processes
from transformers import BertConfig, TrainerCallback, TrainingArguments

from distillation import kl_divergence
from modeling_la_bert import LABertForQuestionAnswering
from trainer_qa import LengthDropSettings, LengthDropTrainer, QuestionAnsweringTrainer

SETTINGS = LengthDropSettings(max_length=16, num_sandwich=2, length_drop_ratio_bound=0.3, layer_dropout_prob=0.4)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_model(**overrides):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    return LABertForQuestionAnswering(BertConfig(max_position_embeddings=16, **(sizes | NO_DROPOUT | overrides)))


def make_data(rows=16):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (rows, 16), generator=generator)
    starts = torch.randint(0, 8, (rows,), generator=generator)
    columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "start_positions": starts}
    return Dataset.from_dict({name: t.tolist() for name, t in (columns | {"end_positions": starts + 3}).items()})


def make_trainer(folder, model=None, length_drop=SETTINGS, data=None, callbacks=None, **arguments):
    defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "no", "use_cpu": True}
    defaults |= {"disable_tqdm": True, "logging_steps": 1, "dataloader_pin_memory": False, "seed": 3}
    # Adam would blow up the noise in gradients that are exactly zero in theory, such as those of the key biases.
    defaults |= {"optim": "sgd", "learning_rate": 0.1}
    common = {
        "model": model or make_model(),
        "args": TrainingArguments(str(folder), **(defaults | arguments)),
        "train_dataset": data or make_data(),
        "callbacks": callbacks,
    }
    if length_drop is None:
        return QuestionAnsweringTrainer(**common)
    return LengthDropTrainer(**common, length_drop=length_drop)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_kl_divergence_equals_a_hand_computed_table():
    full, sub = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.0, 0.0]])  # full (1/4, 3/4), sub (1/2, 1/2)
    sub_full = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    full_sub = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert kl_divergence(sub, full).item() == pytest.approx(sub_full, abs=1e-6)
    assert kl_divergence(sub, full, "full_sub").item() == pytest.approx(full_sub, abs=1e-6)
    root = math.sqrt(3.0)  # at temperature 2 full becomes (1, sqrt 3) / (1 + sqrt 3)
    warm = 0.5 * math.log(0.5 * (1 + root)) + 0.5 * math.log(0.5 * (1 + root) / root)
    assert kl_divergence(sub, full, temperature=2.0).item() == pytest.approx(4 * warm, abs=1e-6)


def test_kl_divergence_is_the_loss_of_the_published_code():
    torch.manual_seed(0)
    sub, full = torch.randn(2, 5, 9)
    published = torch.nn.KLDivLoss(reduction="batchmean")(full.log_softmax(-1), sub.softmax(-1))
    torch.testing.assert_close(kl_divergence(sub, full), published)


def test_no_gradient_reaches_the_full_models_logits():
    sub, full = torch.randn(2, 3, 5).unbind()
    sub.requires_grad_(), full.requires_grad_()
    kl_divergence(sub, full).backward()
    assert sub.grad.abs().sum() > 0 and full.grad is None


def test_a_training_step_accumulates_the_sandwich_gradient(tmp_path):
    """(CE(full) + KL(smallest) + KL(random 1) + KL(random 2)) / 4, summed in one graph with torch's own losses."""
    trainer = make_trainer(tmp_path)
    trainer.current_gradient_accumulation_steps = 1
    batch = {name: torch.tensor(values) for name, values in make_data(4).to_dict().items()}
    model = trainer.model
    total = trainer.training_step(model, dict(batch))
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    reference = make_model().train()
    full = reference(**batch)
    loss = full.loss
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for submodel in trainer._submodels():
        sub = reference(**inputs, **submodel)
        for key in ("start_logits", "end_logits"):
            loss = (
                loss
                + torch.nn.functional.kl_div(
                    full[key].detach().log_softmax(-1), sub[key].softmax(-1), reduction="batchmean"
                )
                / 2
            )
    (loss / 4).backward()
    torch.testing.assert_close(total, loss.detach() / 4)
    expected = torch.cat([parameter.grad.flatten() for parameter in reference.parameters()])
    torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-4)


def test_submodels_are_the_smallest_and_random_ones_within_the_bound():
    import random

    smallest, *others = SETTINGS.draw_submodels(random.Random(0), 3)
    assert smallest == {"length_config": (12, 9, 7), "layer_config": None}
    assert len(others) == 2
    for submodel in others:
        assert submodel["layer_config"] and set(submodel["layer_config"]) <= {0, 1, 2}
        assert all(low <= length for low, length in zip((12, 9, 7), submodel["length_config"]))


def test_layer_dropout_bound_shortens_the_smallest_submodel():
    import random

    settings = LengthDropSettings(max_length=16, layer_dropout_bound=1, length_drop_ratio_bound=0.5)
    smallest = settings.draw_submodels(random.Random(0), 3)[0]
    assert smallest == {"length_config": (8, 4, 4), "layer_config": (0, 1)}


@pytest.mark.parametrize("length_drop", [None, SETTINGS])
def test_gradient_accumulation_equals_the_same_global_batch(tmp_path, length_drop):
    whole = make_trainer(tmp_path / "a", length_drop=length_drop, per_device_train_batch_size=8)
    pieces = make_trainer(
        tmp_path / "b", length_drop=length_drop, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    for trainer in (whole, pieces):
        trainer.train()
    torch.testing.assert_close(weights(pieces.model), weights(whole.model), atol=2e-5, rtol=1e-4)
    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (whole, pieces)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


def test_resume_is_bit_exact(tmp_path):
    """Dropout on, so that the generators' states count as well."""
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    common = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    straight = make_trainer(tmp_path / "a", make_model(**dropout), **common)
    straight.train()
    stopped = make_trainer(tmp_path / "b", make_model(**dropout), callbacks=[Stop()], **common)
    stopped.train()
    assert stopped.state.global_step == 3
    resumed = make_trainer(tmp_path / "b", make_model(**dropout), **common)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert torch.equal(weights(resumed.model), weights(straight.model))


def test_loss_parts_are_logged_and_their_mean_is_the_loss(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 4
    for row in rows:
        parts = row["loss_full"] + row["loss_smallest"] + 2 * row["loss_random"]
        assert row["loss"] == pytest.approx(parts / 4, abs=2e-3)


def test_length_drop_training_lowers_the_submodels_divergence(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=60, length_drop=LengthDropSettings(max_length=16))
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert rows[-1]["loss_full"] < rows[0]["loss_full"]


def test_submodels_depend_on_seed_and_step_only(tmp_path):
    first, again, other = (make_trainer(tmp_path, seed=seed) for seed in (1, 1, 2))
    torch.rand(5)  # the global generator must not matter
    assert first._submodels() == again._submodels() != other._submodels()
    again.state.global_step = 1
    assert first._submodels() != again._submodels()


WORKER = """
import json, os, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from test_trainer_qa import make_data, make_trainer, weights, SETTINGS
import torch.distributed as dist
trainer = make_trainer(sys.argv[1], per_device_train_batch_size=4, max_steps=3, logging_steps=3)
reductions = []
if dist.is_initialized():
    def count(state, bucket):
        reductions.append(trainer.state.global_step)
        dist.all_reduce(bucket.buffer().div_(2))
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done
    training_step = trainer.training_step
    def hooked(model, *args, **kwargs):
        if not reductions and not hasattr(model, "counted"):
            model.register_comm_hook(None, count)
            model.counted = True
        return training_step(model, *args, **kwargs)
    trainer.training_step = hooked
trainer.train()
if trainer.is_world_process_zero():
    torch.save(weights(trainer.model), Path(sys.argv[1], "weights.pt"))
    Path(sys.argv[1], "reductions.json").write_text(json.dumps(reductions))
    Path(sys.argv[1], "log.json").write_text(json.dumps(trainer.state.log_history[0]))
if dist.is_initialized():
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # the results are written; what gloo's threads do while the interpreter goes down is not under test
"""


def test_two_processes_equal_one_on_the_same_global_batch_and_reduce_once_a_step(tmp_path):
    """Real gloo processes under torchrun; a communication hook counts the gradient reductions."""
    run_in_two_processes(WORKER, tmp_path)
    single = make_trainer(tmp_path / "single", per_device_train_batch_size=8, max_steps=3, logging_steps=3)
    single.train()
    double = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.testing.assert_close(double, weights(single.model), atol=2e-5, rtol=1e-4)
    assert json.loads((tmp_path / "reductions.json").read_text()) == [0, 1, 2]
    log, expected = json.loads((tmp_path / "log.json").read_text()), single.state.log_history[0]
    for part in ("loss_full", "loss_smallest", "loss_random"):
        assert log[part] == pytest.approx(expected[part], abs=2e-3)
