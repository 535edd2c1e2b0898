"""Reading an INT8 folder: int8 weights, scales and ranges in safetensors, and everything else in a JSON recipe.

The recipe names the weights file and its checksum.  What is read here is all that serving needs; quantization.py writes it.
"""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from errors import RunError
from int8_modules import Int8Embedding, Int8Linear

RECIPE_FILE = "int8_recipe.json"
NEEDED = ("model_type", "hidden_act", "pad_token_id")  # of the configuration, before a module is built
FORMAT = 1  # raise it when the code can no longer read older folders


def has_vnni() -> bool:
    """Whether the processor adds products of bytes up in 32 bits (AVX-512 VNNI or AMX)."""
    return torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported()


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_recipe(folder: str | Path) -> dict:
    """What RECIPE_FILE of an INT8 folder says; RunError if it is none, is damaged or was made for another processor."""
    path = Path(folder, RECIPE_FILE)
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
        weights = path.with_name(Path(recipe["weights"]).name)  # in this folder, whatever the recipe says
        recipe["weights"] = weights.name
        if recipe["format"] != FORMAT:
            raise RunError(f"{folder} is an INT8 folder of format {recipe['format']}, not {FORMAT}: --tune it again.")
        if sha256(weights) != recipe["sha256"]:
            raise RunError(f"{weights} is not the file that {RECIPE_FILE} was written for: --tune again.")
        bits, *_ = recipe["recipe"]["weight_bits"], recipe["backend"], *map(recipe["config"].__getitem__, NEEDED)
    except FileNotFoundError as error:
        raise RunError(
            f"{folder} holds no INT8 model ({Path(error.filename).name} is missing): make one by --tune."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path} is damaged ({error!r}): --tune again.") from error
    if bits == 8 and not has_vnni():
        raise RunError(
            f"{folder} uses all 8 bits, for processors with AVX-512 VNNI, which this one lacks: --tune it here."
        )
    return recipe


def read_modules(folder: str | Path, recipe: dict) -> dict[str, nn.Module]:
    """The modules of an INT8 folder by their names in the model; RunError if they are not what the recipe describes."""
    try:
        config, tensors = SimpleNamespace(**recipe["config"]), defaultdict(dict)
        for name, tensor in load_file(Path(folder, recipe["weights"])).items():
            module, _, key = name.rpartition(".")
            tensors[module][key] = tensor
        shapes = weight_shapes(config)
        misfits = [name for name in shapes | tensors if not belong_together(tensors[name], shapes.get(name))]
        if misfits:
            raise KeyError(misfits[0])
        return {name: build_module(own, config) for name, own in tensors.items()}
    except (SafetensorError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise RunError(f"{folder} does not hold the INT8 model that its {RECIPE_FILE} describes: {error}") from error


def belong_together(tensors: dict[str, torch.Tensor], shape: tuple[int, ...] | None) -> bool:
    """Whether the tensors of a module have the sizes that go with a weight of this shape; never if there is none."""
    if shape is None or "weight" not in tensors:
        return False
    rows, columns = shape[:1], shape[1:]
    sizes = {"weight": shape, "weight_scale": rows, "bias": rows, "smoothing": columns}
    return all(tensor.shape == sizes.get(name, ()) for name, tensor in tensors.items())


def build_module(tensors: dict[str, torch.Tensor], config: SimpleNamespace) -> nn.Module:
    """The module that `tensors` define: a linear layer or a table in INT8, a LayerNorm or a table in float."""
    if "weight_scale" in tensors:
        return (Int8Linear if "bias" in tensors else Int8Embedding).from_tensors(tensors)
    if "bias" not in tensors:
        return nn.Embedding.from_pretrained(tensors["weight"])
    norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    norm.load_state_dict(tensors)
    return norm


def weight_shapes(config: SimpleNamespace) -> dict[str, tuple[int, ...]]:
    """The weights of a BERT or RoBERTa reader of this configuration, by module."""
    base, hidden, feed_forward = config.model_type, config.hidden_size, config.intermediate_size
    heads = hidden // config.num_attention_heads * config.num_attention_heads
    shapes = {
        f"{base}.embeddings.word_embeddings": (config.vocab_size, hidden),
        f"{base}.embeddings.position_embeddings": (config.max_position_embeddings, hidden),
        f"{base}.embeddings.token_type_embeddings": (config.type_vocab_size, hidden),
        f"{base}.embeddings.LayerNorm": (hidden,),
    }
    layer = dict.fromkeys([f"attention.self.{name}" for name in ("query", "key", "value")], (heads, hidden))
    layer |= {"attention.output.dense": (hidden, heads), "attention.output.LayerNorm": (hidden,)}
    layer |= {"intermediate.dense": (feed_forward, hidden), "output.dense": (hidden, feed_forward)}
    layer |= {"output.LayerNorm": (hidden,)}
    for index in range(config.num_hidden_layers):
        shapes |= {f"{base}.encoder.layer.{index}.{name}": shape for name, shape in layer.items()}
    return shapes | {"qa_outputs": (2, hidden)}
