"""What a student begins as, against the model it is made from."""

import pytest
import torch
from test_modeling import FAMILIES, SIZES, batch, logits

from errors import RunError
from student import chosen_layers, keep_layers


@pytest.fixture(params=FAMILIES)
def model(request):
    model_class, _, config_class, padding = FAMILIES[request.param]
    torch.manual_seed(0)
    return model_class(config_class(**(SIZES | {"num_hidden_layers": 6}), pad_token_id=padding)).eval()


def test_every_kth_layer_is_chosen_the_last_among_them():
    assert chosen_layers("3", 6) == [2, 4, 6] and chosen_layers("6", 6) == [1, 2, 3, 4, 5, 6]
    assert chosen_layers("1", 6) == [6]


@pytest.mark.parametrize("text", ["1,3,6", "(1, 3, 6)", "[1, 3, 6]", "1,3,6,"])
def test_layers_may_be_listed(text):
    assert chosen_layers(text, 6) == [1, 3, 6]


@pytest.mark.parametrize(("text", "said"), [("4", "cannot be thinned out"), ("0", "cannot be"), ("2,7", "layer 7")])
def test_layers_that_do_not_fit_are_refused(text, said):
    with pytest.raises(RunError, match=f"--student_layers {text}.*{said}"):
        chosen_layers(text, 6)


def test_embeddings_layers_and_head_are_copied(model):
    student, padding = keep_layers(model, [2, 4, 6]), model.config.pad_token_id
    assert student.config.num_hidden_layers == 3 and model.config.num_hidden_layers == 6
    assert type(student) is type(model)
    for mine, number in zip(student.base_model.encoder.layer, (2, 4, 6)):
        state, theirs = mine.state_dict(), model.base_model.encoder.layer[number - 1].state_dict()
        assert all(torch.equal(state[name], theirs[name]) for name in theirs)
    for part in ("embeddings",):
        mine, theirs = (getattr(m.base_model, part).state_dict() for m in (student, model))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    inputs, kept = batch((20, 32), 32, padding), [model.base_model.encoder.layer[i] for i in (1, 3, 5)]
    expected = logits(student.eval(), inputs)
    model.base_model.encoder.layer = torch.nn.ModuleList(kept)  # what the student should be
    torch.testing.assert_close(expected, logits(model, inputs))


def test_the_student_shares_no_weight_with_the_model_it_was_made_from(model):
    student, before = keep_layers(model, [3]), model.qa_outputs.weight.clone()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert torch.equal(model.qa_outputs.weight, before)
    assert not {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in model.parameters()}
