"""The README.md of a saved model: what it is made of, what it scores, and how to load it."""

import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

TEMPLATE = """---
{header}
---

# {name}

A length-adaptive question-answering reader made with QuaLA: one set of weights that runs at any compute budget, because
tokens are dropped layer by layer and restored at the end.

- Base model: {base_model}
- Data: {data}
- Sequence length: {max_seq_length} tokens, stride {doc_stride}

## Use

```python
from reader import Reader
reader = Reader.from_pretrained("{folder}")
print(reader("Who wrote it?", "The report was written by Ada Lovelace."{keyword}))
```

The weights are those of a plain {model_type} model: `AutoModelForQuestionAnswering.from_pretrained` loads them too, but
always runs at full length and ignores `length_config`.

## Results

{results}

## Length configurations

{configs}
"""


def write_model_card(folder: Path, *, base_model: str, data: str, max_seq_length: int, doc_stride: int) -> None:
    """Write README.md from config.json and the result files in `folder`."""
    config = read(folder / "config.json")
    scores = {name: value for name, value in read(folder / "eval_results.json").items() if is_score(name, value)}
    configs = config.get("length_configs") or []
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
            data=data,
            max_seq_length=max_seq_length,
            doc_stride=doc_stride,
            model_type=config["model_type"],
            keyword=f", length_config={tuple(configs[0]['length_config'])}" if configs else "",
            results=table(("metric", "value"), scores.items()) if scores else "Not evaluated in this run.",
            configs=config_table(config)
            if configs
            else "Any: give `length_config=` in the call, or search with --do_search.",
        )
    ).save(folder / "README.md")


def is_score(name: str, value: object) -> bool:
    return isinstance(value, (int, float)) and ("f1" in name or "exact" in name or "macs" in name)


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
