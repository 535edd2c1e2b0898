"""The engines that can run an INT8 folder, by --quantization_backend."""

from importlib import import_module
from pathlib import Path

import torch

from errors import RunError
from int8_engine import Int8Model
from int8_folder import read_recipe

# Module and class; what compiles engines imports a lot that what serves them does not.
BACKENDS = {
    "pt2e": ("pt2e_engine", "Pt2eModel"),
    "ipex": ("ipex_engine", "IpexModel"),
    "native": ("native_engine", "NativeModel"),
}


def backend_class(name: str) -> type[Int8Model]:
    module, model = BACKENDS[name]
    return getattr(import_module(module), model)


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
    return backend_class(made_for)(folder, cache_dir, autocast)
