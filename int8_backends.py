"""The engines that can run an INT8 folder, by --quantization_backend."""

from pathlib import Path

from int8_engine import Int8Model
from ipex_engine import IpexModel
from native_engine import NativeModel
from pt2e_engine import Pt2eModel
from quantization import read_recipe
from results_qa import RunError

BACKENDS = {"pt2e": Pt2eModel, "ipex": IpexModel, "native": NativeModel}


def open_int8(folder: str | Path, cache_dir: str | Path | None = None, autocast=None) -> Int8Model:
    """The model of an INT8 folder on the backend that it was tuned for; RunError if there is no such backend."""
    backend = read_recipe(folder)["backend"]
    if backend not in BACKENDS:
        raise RunError(f"{folder} was tuned for the backend {backend!r}; there are {', '.join(BACKENDS)}.")
    return BACKENDS[backend](folder, cache_dir, autocast)
