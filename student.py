"""What a student begins as: some layers of another model, or random weights."""

import copy

from transformers import PretrainedConfig, PreTrainedModel

from distillation import map_layers
from distillation_arguments import parse_layers
from errors import RunError


def chosen_layers(text: str, depth: int) -> list[int]:
    """The layers, counted from 1, that --student_layers means of so many: "3" is every k-th, "2,4,6" these.

    RunError if a number does not divide the depth, or a layer is not there.
    """
    if not text.strip().isdigit():
        layers = parse_layers(text)
        if max(layers) > depth:
            raise RunError(f"--student_layers {text} names layer {max(layers)}, but the model has {depth}.")
        return layers
    if int(text) < 1 or depth % int(text):
        raise RunError(
            f"--student_layers {text}: the model's {depth} layers cannot be thinned out evenly to {text}; list them, like "
            '--student_layers "1,3,6".'
        )
    return list(map_layers(int(text), depth).values())


def keep_layers(model: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """A model of its own with copies of the embeddings, of these `layers`, counted from 1, and of the head."""
    config: PretrainedConfig = copy.deepcopy(model.config)
    config.num_hidden_layers = len(layers)
    student = type(model)(config)
    student.base_model.embeddings.load_state_dict(model.base_model.embeddings.state_dict())
    for target, layer in zip(student.base_model.encoder.layer, layers):
        target.load_state_dict(model.base_model.encoder.layer[layer - 1].state_dict())
    student.qa_outputs.load_state_dict(model.qa_outputs.state_dict())
    return student
