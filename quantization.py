"""Post-training quantization to INT8, and writing the folder that keeps it: one calibration, any engine, any length config.

The recipe is written last and renamed into place: a kill leaves the old model or the new one.
"""

import copy
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from calibration import channel_maxima, linear_layers, observe_ranges, smoothing_factors
from int8_folder import FORMAT, RECIPE_FILE, has_vnni, read_modules, read_recipe, sha256
from int8_modules import Int8Embedding, Int8Linear, replace_modules
from modeling_la_auto import MODEL_CLASSES
from results_qa import write_json

# The input of the second feed-forward product comes out of GELU: in MiniLM's first four layers one token in 190 is six to
# eight times as large as the median one, so that a common range leaves the others an eighth of its steps.
AFTER_GELU = r"layer\.\d+\.output\.dense$"
ALL = r""


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    `by_token` is a pattern of the names of the linear layers whose input gets its range token by token while the model
    runs; the others get the range that was observed by `calibration_method`, after smoothing with SmoothQuant's alpha.
    A pattern that matches all of them is dynamic quantization, which needs no calibration.
    """

    by_token: str = AFTER_GELU
    calibration_method: str | None = "minmax"
    smoothing: float | None = 0.5
    embeddings: bool = True
    weight_bits: int = 8

    @property
    def approach(self) -> str:
        return "dynamic" if self.by_token == ALL else "static"

    def __str__(self) -> str:
        if self.approach == "dynamic":
            return "every range by token"
        smoothed = "no smoothing" if self.smoothing is None else f"smoothing {self.smoothing:g}"
        return f"ranges by {self.calibration_method}, {smoothed}, after GELU by token"


def recipes(approach: str, method: str, embeddings: bool) -> list[Recipe]:
    """The recipes that tuning tries, in this order."""
    common = {"embeddings": embeddings, "weight_bits": 8 if has_vnni() else 7}
    dynamic = Recipe(by_token=ALL, calibration_method=None, smoothing=None, **common)
    if approach == "dynamic":
        return [dynamic]
    return [Recipe(calibration_method=method, smoothing=alpha, **common) for alpha in (0.5, 0.7)] + [dynamic]


def quantize(model: nn.Module, recipe: Recipe, batches: list[dict[str, torch.Tensor]]) -> nn.Module:
    """A copy of `model` with INT8 modules, calibrated at full length on `batches` (of any size and length).

    Every linear layer and, if the recipe says so, every embedding table is quantized; LayerNorms stay in float32.
    """
    quantized = copy.deepcopy(model).eval()
    static = [name for name in linear_layers(model) if not re.search(recipe.by_token, name)]
    ranges, factors = {}, {}
    if static:
        if recipe.smoothing is not None:
            maxima = channel_maxima(quantized, batches)
            factors = smoothing_factors(quantized, {name: maxima[name] for name in static}, recipe.smoothing)
        ranges = observe_ranges(quantized, batches, recipe.calibration_method, factors)
    modules = {
        name: Int8Linear.from_float(
            linear, ranges[name] if name in static else None, factors.get(name), recipe.weight_bits
        )
        for name, linear in linear_layers(quantized).items()
    }
    if recipe.embeddings:
        tables = {name: table for name, table in quantized.named_modules() if isinstance(table, nn.Embedding)}
        modules |= {name: Int8Embedding.from_float(table) for name, table in tables.items()}
    replace_modules(quantized, modules)
    return quantized


# ---- the folder ----------------------------------------------------------------------------------------------------


def int8_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All that defines a quantized model, by dotted names."""
    modules = {
        name: module for name, module in model.named_modules() if isinstance(module, Int8Linear | Int8Embedding)
    }
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.tensors().items()}
    floats = {name: value for name, value in model.state_dict().items() if name.rpartition(".")[0] not in modules}
    return {name: value.detach().contiguous() for name, value in (tensors | floats).items()}


def save_int8(model: nn.Module, folder: str | Path, recipe: Recipe, facts: dict) -> None:
    """Write a quantized model to `folder`; `facts` go into its recipe file too. Other weights of ours are removed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".int8_weights.tmp"
    temporary.write_bytes(save(int8_tensors(model)))  # save_file would make it the user's alone
    checksum = sha256(temporary)
    weights = folder / f"int8_weights-{checksum[:12]}.safetensors"
    temporary.replace(weights)
    made = {"format": FORMAT, "weights": weights.name, "sha256": checksum, "approach": recipe.approach}
    made |= {"recipe": asdict(recipe), "config": config_facts(model.config)}
    write_json(folder / RECIPE_FILE, made | facts)
    for old in set(folder.glob("int8_weights-*.safetensors")) - {weights}:
        old.unlink()


def config_facts(config: PretrainedConfig) -> dict:
    return {name: value for name, value in config.to_dict().items() if name not in ("dtype", "_name_or_path")}


def copy_int8(source: str | Path, target: str | Path, config: PretrainedConfig) -> None:
    """Put the INT8 model of `source` into `target`, with length configs of another `config`."""
    recipe, target = read_recipe(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    weights, temporary = target / recipe["weights"], target / ".int8_weights.tmp"
    if not weights.is_file():
        shutil.copyfile(Path(source, recipe["weights"]), temporary)
        temporary.replace(weights)
    write_json(target / RECIPE_FILE, recipe | {"config": config_facts(config)})
    config.save_pretrained(target)


def stored_config(recipe: dict) -> PretrainedConfig:
    """The model's configuration, as the recipe file keeps it."""
    return AutoConfig.for_model(**recipe["config"])


def load_int8(folder: str | Path) -> nn.Module:
    """The quantized model of an INT8 folder in PyTorch operators: what engines are built from, slow by itself."""
    recipe = read_recipe(folder)
    modules = read_modules(folder, recipe)
    model = MODEL_CLASSES[recipe["config"]["model_type"]](stored_config(recipe))
    replace_modules(model, modules)
    return model.eval()
