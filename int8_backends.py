"""The engines that can run an INT8 folder, by --quantization_backend."""

from pathlib import Path

import torch

from int8_engine import Int8Model
from ipex_engine import IpexModel
from native_engine import NativeModel
from pt2e_engine import Pt2eModel
from quantization import read_recipe
from results_qa import RunError

BACKENDS = {"pt2e": Pt2eModel, "ipex": IpexModel, "native": NativeModel}


def open_int8(
    folder: str | Path,
    cache_dir: str | Path | None = None,
    autocast: torch.dtype | None = None,
    backend: str | None = None,
) -> Int8Model:
    """The model of an INT8 folder on the backend that it was tuned for; RunError if that is not `backend`."""
    made_for = read_recipe(folder)["backend"]
    if made_for not in BACKENDS:
        raise RunError(f"{folder} was tuned for the backend {made_for!r}; there are {', '.join(BACKENDS)}.")
    if backend not in (None, made_for):
        raise RunError(
            f"{folder} was tuned for --quantization_backend {made_for}, not {backend}: name {made_for}, or --tune a folder "
            "for the other."
        )
    return BACKENDS[made_for](folder, cache_dir, autocast)
