"""The length-adaptive models against the stock ones, a plain re-computation, and each other under other paddings."""

import itertools
import json

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    BertConfig,
    BertForQuestionAnswering,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

import length_drop
from length_config import LengthConfigError, count_macs
from modeling_la_bert import LABertForQuestionAnswering
from modeling_la_roberta import LARobertaForQuestionAnswering

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 386,
    "initializer_range": 0.4,  # attention far from uniform, so that a wrong selection shows
}
FAMILIES = {
    "bert": (LABertForQuestionAnswering, BertForQuestionAnswering, BertConfig, 0),
    "roberta": (LARobertaForQuestionAnswering, RobertaForQuestionAnswering, RobertaConfig, 1),
}
DROP = (24, 12, 8)


@pytest.fixture(params=FAMILIES)
def family(request):
    """(length-adaptive model, stock model with the same weights, padding id)."""
    adaptive_class, stock_class, config_class, padding = FAMILIES[request.param]
    torch.manual_seed(0)
    stock = stock_class(config_class(**SIZES, pad_token_id=padding)).eval()
    adaptive = adaptive_class(config_class(**SIZES, pad_token_id=padding)).eval()
    adaptive.load_state_dict(stock.state_dict())  # strict: same keys
    return adaptive, stock, padding


def batch(lengths, padded_to, padding):
    """Random ids, the same for a row whatever it is padded to."""
    ids = torch.full((len(lengths), padded_to), padding)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 100, (length,), generator=torch.Generator().manual_seed(row))
    return {"input_ids": ids, "attention_mask": (torch.arange(padded_to) < torch.tensor(lengths)[:, None]).long()}


def logits(model, inputs, **kwargs):
    with torch.no_grad():
        outputs = model(**inputs, **kwargs)
    return torch.stack([outputs.start_logits, outputs.end_logits])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("length_config", [None, (128, 128, 128), (32, 32, 32)])
def test_full_length_equals_the_stock_model(family, implementation, length_config):
    adaptive, stock, padding = family
    adaptive.set_attn_implementation(implementation)
    stock.set_attn_implementation(implementation)
    inputs = batch((32, 20), 32, padding)
    real = inputs["attention_mask"].bool()
    difference = (logits(adaptive, inputs, length_config=length_config) - logits(stock, inputs))[:, real]
    assert difference.abs().max() <= 1e-5


def recomputed_logits(model, base, inputs, length_config):
    """One sentence at a time without padding, the paper's procedure written out with Python lists."""
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"]):
        ids = ids[mask.bool()][None]
        states = base.embeddings(input_ids=ids)[0]
        final, alive = list(states), list(range(len(states)))
        for layer, keep in zip(base.encoder.layer, length_config):
            attention = layer.attention.self
            heads, size = attention.num_attention_heads, attention.attention_head_size
            query, key, value = (
                f(states).view(-1, heads, size) for f in (attention.query, attention.key, attention.value)
            )
            weights = (torch.einsum("qhd,khd->hqk", query, key) / size**0.5).softmax(-1)
            context = torch.einsum("hqk,khd->qhd", weights, value).reshape(len(states), -1)
            states = layer.attention.output(context, states)
            received = weights.sum((0, 1)).tolist()
            ranked = sorted(range(1, len(alive)), key=lambda token: -received[token])
            kept = sorted([0, *ranked[: keep - 1]])
            states = layer.output(layer.intermediate(states[kept]), states[kept])
            alive = [alive[token] for token in kept]
            for token, state in zip(alive, states):
                final[token] = state
        rows.append(model.qa_outputs(torch.stack(final)))
    return rows


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_dropped_tokens_carry_the_last_state_they_reached(family, implementation):
    model, _, padding = family
    model.set_attn_implementation(implementation)
    inputs = batch((32, 20, 6), 32, padding)
    outputs = logits(model, inputs, length_config=DROP)
    with torch.no_grad():
        expected = recomputed_logits(model, model.base_model, inputs, DROP)
    for row, rows in enumerate(expected):
        torch.testing.assert_close(outputs[:, row, : len(rows)].T, rows, atol=2e-5, rtol=1e-4)


def test_hidden_state_lengths_follow_the_config_and_the_last_is_whole(family):
    model, _, padding = family
    outputs = model(**batch((32, 20), 32, padding), length_config=DROP, output_hidden_states=True)
    assert [state.shape[1] for state in outputs.hidden_states][1:-1] == list(DROP[:-1])
    assert outputs.start_logits.shape == (2, 32)


def test_feed_forward_sees_only_kept_tokens_and_attention_those_before_it(family, monkeypatch):
    monkeypatch.setattr(length_drop, "fused_operators_loaded", lambda *_: False)  # its product calls no hooks
    model, _, padding = family
    seen = {"attention": [], "feed_forward": []}
    for layer in model.base_model.encoder.layer:
        layer.attention.self.query.register_forward_hook(lambda m, x, y: seen["attention"].append(x[0].shape[1]))
        layer.intermediate.register_forward_hook(lambda m, x, y: seen["feed_forward"].append(x[0].shape[1]))
    logits(model, batch((32, 20), 32, padding), length_config=DROP)
    assert seen == {"attention": [32, *DROP[:-1]], "feed_forward": list(DROP)}


@pytest.mark.parametrize("length_config", [None, (48, 30, 12), (40, 20, 9)])
def test_padding_never_changes_a_prediction(family, length_config):
    model, _, padding = family
    lengths = (50, 20, 7)
    reference = logits(model, batch(lengths, 50, padding), length_config=length_config)
    for padded_to in (64, 128, 384):
        outputs = logits(model, batch(lengths, padded_to, padding), length_config=length_config)
        for row, length in enumerate(lengths):
            assert (outputs - torch.nn.functional.pad(reference, (0, padded_to - 50)))[
                :, row, :length
            ].abs().max() <= 1e-4


def test_a_batch_shorter_than_the_config_keeps_all_its_tokens(family):
    model, stock, padding = family
    inputs = batch((10, 6), 10, padding)
    real = inputs["attention_mask"].bool()
    assert (logits(model, inputs, length_config=(64, 32, 10)) - logits(stock, inputs))[:, real].abs().max() <= 1e-5


def test_layer_config_equals_a_stock_model_without_those_layers(family):
    model, stock, padding = family
    stock.base_model.encoder.layer = torch.nn.ModuleList(
        [stock.base_model.encoder.layer[0], stock.base_model.encoder.layer[2]]
    )
    inputs = batch((16,), 16, padding)
    assert (logits(model, inputs, layer_config=(0, 2)) - logits(stock, inputs)).abs().max() <= 1e-5


def test_nothing_is_remembered_between_calls(family):
    model, _, padding = family
    inputs = batch((32, 20), 32, padding)
    before = logits(model, inputs)
    assert not torch.equal(logits(model, inputs, length_config=DROP), before)
    assert torch.equal(logits(model, inputs), before)


def test_checkpoints_load_in_both_directions(family, tmp_path):
    model, stock, padding = family
    inputs = batch((32, 20), 32, padding)
    model.config.length_config, model.config.length_config_max_length = list(DROP), 32
    model.save_pretrained(tmp_path / "adaptive")
    stock.save_pretrained(tmp_path / "stock")
    as_stock = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "adaptive")
    assert type(as_stock) is type(stock)
    torch.testing.assert_close(logits(as_stock.eval(), inputs), logits(stock, inputs))
    as_adaptive = type(model).from_pretrained(tmp_path / "stock").eval()
    assert torch.equal(logits(as_adaptive, inputs, length_config=DROP), logits(model, inputs, length_config=DROP))


def test_a_saved_folder_remembers_its_length_config_and_uses_it(family, tmp_path):
    model, _, padding = family
    inputs = batch((32, 20), 32, padding)
    expected = logits(model, inputs, length_config=DROP)
    model.config.length_config, model.config.length_config_max_length = list(DROP), 32
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path).eval()
    assert reloaded.config.length_config_max_length == 32
    assert torch.equal(logits(reloaded, inputs), expected)


def test_a_bad_stored_length_config_is_refused_on_load_and_on_save(family, tmp_path):
    model, _, _ = family
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings |= {"length_config": [8, 16, 4], "length_config_max_length": 32}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(LengthConfigError, match="increase"):
        type(model).from_pretrained(tmp_path)
    model.config.length_config, model.config.length_config_max_length = [8, 8], 32
    with pytest.raises(LengthConfigError, match="3 layers"):
        model.save_pretrained(tmp_path / "again")


def test_a_config_given_to_forward_is_validated(family):
    model, _, padding = family
    with pytest.raises(LengthConfigError, match="increase"):
        model(**batch((8,), 8, padding), length_config=(4, 8, 2))


def test_gradient_checkpointing_gives_the_same_gradients(family):
    model, _, padding = family
    inputs = batch((32, 20), 32, padding) | {
        "start_positions": torch.tensor([3, 4]),
        "end_positions": torch.tensor([5, 6]),
    }
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    gradients = []
    for checkpointing in (False, True):
        model.train()
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**inputs, length_config=DROP).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 20
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)


def test_bfloat16_stays_near_float32(family):
    model, _, padding = family
    inputs = batch((32, 20), 32, padding)
    expected = logits(model, inputs, length_config=(64, 64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = logits(model, inputs, length_config=(64, 64, 64)).float()
        dropped = logits(model, inputs, length_config=DROP)
    assert torch.isfinite(dropped).all()
    assert (outputs - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_training_in_bfloat16_has_gradients_as_near_to_float32_as_the_stock_model(family):
    model, stock, padding = family
    positions = {"start_positions": torch.tensor([3, 4]), "end_positions": torch.tensor([5, 6])}

    def gradient(reader, in_bf16):
        reader.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            reader(**batch((32, 20), 32, padding), **positions).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in reader.parameters()])

    for reader in (model, stock):
        for module in reader.train().modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    expected = gradient(stock, in_bf16=False)
    error, stock_error = ((gradient(reader, in_bf16=True) - expected).norm() for reader in (model, stock))
    assert error < 1.5 * stock_error < expected.norm()


def test_torch_compile_and_export_with_a_fixed_config_give_the_same_logits(family):
    model, _, padding = family
    inputs = batch((32, 20), 32, padding)
    real, expected = inputs["attention_mask"].bool(), logits(model, inputs, length_config=DROP)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = logits(compiled, inputs, length_config=DROP)
    torch.testing.assert_close(found[:, real], expected[:, real], atol=1e-5, rtol=1e-4)
    exported = torch.export.export(model, (), {**inputs, "length_config": DROP}, strict=False)
    outputs = exported.module()(**inputs, length_config=DROP)
    found = torch.stack([outputs.start_logits, outputs.end_logits])
    torch.testing.assert_close(found[:, real], expected[:, real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length_config", [None, DROP, (32, 12, 12)])
def test_count_macs_agrees_with_torchprofile(family, length_config):
    torchprofile = pytest.importorskip("torchprofile")
    model, _, _ = family
    model.set_attn_implementation("eager")  # torchprofile cannot see into fused attention
    ids = torch.full((1, 32), 5)
    with torch.no_grad():
        traced = torchprofile.profile_macs(_Positional(model, length_config), (ids, torch.ones_like(ids)))
    before = [32, *(length_config or (32,) * 3)]
    # Products it counts and the published convention does not: scaling the scores of 4 heads or, where tokens are
    # dropped, the queries, with the votes (of the tokens that are no padding) for them; and (RoBERTa) counting
    # positions. And two the convention has: the mask, which today's models no longer multiply by, and output
    # projection and LayerNorm of the tokens that are dropped before them.
    steps, width = list(itertools.pairwise(before)), model.config.hidden_size
    scaling = sum(length * width if after < length else 4 * length**2 for length, after in steps)
    votes = sum(4 * length**2 + length for length, after in steps if after < length)
    dropped = sum((length - after) * (width**2 + width) for length, after in steps)
    positions = 32 if model.config.model_type == "roberta" else 0
    published = count_macs(model.config, length_config, sequence_length=32)
    assert traced == published + scaling + votes + positions - 32 - dropped


class _Positional(torch.nn.Module):
    def __init__(self, model, length_config):
        super().__init__()
        self.model, self.length_config = model, length_config

    def forward(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask, length_config=self.length_config).start_logits


def test_no_transformers_class_is_replaced():
    from transformers.models.bert import modeling_bert

    assert modeling_bert.BertForQuestionAnswering is BertForQuestionAnswering
    assert "length" not in modeling_bert.BertEncoder.forward.__code__.co_varnames


def test_attention_that_hides_the_padding_mask_is_refused(family):
    model, _, _ = family
    with pytest.raises(ValueError, match="flex_attention|Flex Attention"):
        type(model)._from_config(type(model.config)(**SIZES), attn_implementation="flex_attention")
