"""The README.md of a saved model: what it is made of, what it scores, and how to load it."""

import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from int8_folder import RECIPE_FILE

TEMPLATE = """---
{header}
---

# {name}

A question-answering reader made with QuaLA: one set of weights that runs at any length config, where tokens are dropped
layer by layer and restored at the end.

- Base model: {base_model}
- Training: {training}
- Sequence length: {max_seq_length} tokens, stride {doc_stride}

## Use

```python
from reader import Reader
reader = Reader.from_pretrained("{folder}")
print(reader("Who wrote it?", "The report was written by Ada Lovelace."{keyword}))
```

{loading}

## Results

{results}

## Length configurations

{configs}
"""

FLOAT = (
    "The weights are those of a plain {model_type} model: `AutoModelForQuestionAnswering.from_pretrained` loads them too,\n"
    "but always runs at full length and ignores `length_config`."
)
INT8 = (
    "The weights are INT8 (`int8_recipe.json` says how): `run_qa.py --int8` and this `Reader` load them, plain transformers\n"
    "does not. The engine is compiled when it is first needed, by default with a C++ compiler."
)


def write_model_card(folder: Path, *, base_model: str, training: str, max_seq_length: int, doc_stride: int) -> None:
    """Write README.md from config.json and the result files in `folder`; `training` says on what and how, in words."""
    config = read(folder / "config.json")
    scores = {name: value for name, value in read(folder / "eval_results.json").items() if is_score(name, value)}
    searched = read(folder / "search_results.json").get("full")
    if searched and not scores:
        scores = {"F1 at full length": searched["score"]}
    configs = config.get("length_configs") or []
    example = config.get("length_config") or (configs[len(configs) // 2]["length_config"] if configs else None)
    header = ModelCardData(
        tags=["question-answering", "length-adaptive"],
        base_model=base_model if not Path(base_model).exists() else None,
        pipeline_tag="question-answering",
        library_name="transformers",
    )
    ModelCard(
        TEMPLATE.format(
            header=header.to_yaml(),
            name=folder.resolve().name,
            folder=folder,
            base_model=base_model,
            training=training,
            max_seq_length=max_seq_length,
            doc_stride=doc_stride,
            loading=(INT8 if (folder / RECIPE_FILE).is_file() else FLOAT).format(model_type=config["model_type"]),
            keyword=f", length_config={tuple(example)}" if example else "",
            results=table(("metric", "value"), scores.items()) if scores else "Not evaluated in this run.",
            configs=config_table(config)
            if configs
            else "Any: give `length_config=` in the call, or search with --do_search.",
        )
    ).save(folder / "README.md")


def is_score(name: str, value: object) -> bool:
    """Whether a result belongs on the card: EM and F1, and the length config and MACs they were reached with."""
    return name == "eval_length_config" or (
        isinstance(value, (int, float)) and ("f1" in name or "exact" in name or "macs" in name)
    )


def config_table(config: dict) -> str:
    rows = [
        (tuple(row["length_config"]), f"{row['macs']:.4g}", f"{row['score']:.2f}") for row in config["length_configs"]
    ]
    default = config.get("length_config")
    return (
        table(("length config", "MACs", "F1"), rows) + f"\n\nDefault: {tuple(default) if default else 'full length'}."
    )


def table(header: tuple, rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
