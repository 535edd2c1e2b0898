"""What the hooks catch against the stock models' own outputs, and what they leave behind."""

import pytest
import torch
from test_modeling import FAMILIES, SIZES, batch

from distillation import attention_scores, log_probabilities
from representations import attach_projection, captured, drop_projection, project


@pytest.fixture(params=FAMILIES)
def models(request):
    """(length-adaptive model, stock eager model with the same weights, padding id)."""
    adaptive_class, stock_class, config_class, padding = FAMILIES[request.param]
    torch.manual_seed(0)
    config = config_class(**SIZES, pad_token_id=padding)
    stock = stock_class._from_config(config, attn_implementation="eager").eval()
    adaptive = adaptive_class(config_class(**SIZES, pad_token_id=padding)).eval()
    adaptive.load_state_dict(stock.state_dict())
    return adaptive, stock, padding


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@torch.no_grad()
def test_caught_attention_is_that_of_the_stock_eager_model(models):
    model, stock, padding = models
    inputs = batch((32, 20), 32, padding)
    with captured(model, (), (1, 2, 3)) as found:
        model(**inputs)
    expected, real = stock(**inputs, output_attentions=True).attentions, inputs["attention_mask"].bool()
    for layer in (1, 2, 3):
        scores = attention_scores(found.heads[layer]["query"], found.heads[layer]["key"], 4)
        probabilities = log_probabilities(scores, real).exp()
        torch.testing.assert_close(
            probabilities.transpose(1, 2)[real], expected[layer - 1].transpose(1, 2)[real], atol=1e-5, rtol=1e-4
        )


@torch.no_grad()
def test_caught_hidden_states_are_the_stock_models_embeddings_first(models):
    model, stock, padding = models
    inputs = batch((32, 20), 32, padding)
    with captured(model, range(4), ()) as found:
        model(**inputs)
    expected, real = stock(**inputs, output_hidden_states=True).hidden_states, inputs["attention_mask"].bool()
    for layer, states in found.hidden.items():
        torch.testing.assert_close(states[real], expected[layer][real], atol=1e-5, rtol=1e-4)
    assert sorted(found.hidden) == [0, 1, 2, 3]


def test_only_what_is_asked_for_is_caught_and_no_hook_is_left(models):
    model, _, padding = models
    before = hooks(model)
    with captured(model, (0, 3), (2,)) as found:
        assert hooks(model) == before + 5
        model(**batch((5, 9), 9, padding))
    assert found.hidden.keys() == {0, 3} and found.heads.keys() == {2}
    assert found.heads[2].keys() == {"query", "key", "value"} and hooks(model) == before


def test_a_failing_pass_leaves_no_hook(models):
    model, _, _ = models
    with pytest.raises(ValueError), captured(model, (0,), (1,)):
        model()
    assert not hooks(model)


def test_states_of_another_width_go_through_one_learned_map_that_is_dropped_in_the_end(models):
    model, _, _ = models
    before = set(model.state_dict())
    attach_projection(model, 48)
    assert project(model, torch.zeros(2, 5, 32)).shape == (2, 5, 48)
    assert set(model.state_dict()) - before == {"hidden_projection.weight", "hidden_projection.bias"}
    drop_projection(model)
    assert set(model.state_dict()) == before
    drop_projection(model)


def test_states_of_the_same_width_are_compared_as_they_are(models):
    model, _, _ = models
    attach_projection(model, 32)
    states = torch.randn(2, 5, 32)
    assert project(model, states) is states and not hasattr(model, "hidden_projection")
