"""Result files that are whole or absent, and what goes into them about the machine and the code that made them."""

import json
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from errors import RunError

if TYPE_CHECKING:  # to import the flags is to import the Trainer
    from arguments import Arguments


def write_json(path: str | Path, data: object) -> None:
    """Write `data` as UTF-8 JSON, whole or not at all: a reader or a kill never meets half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False, default=plain) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def plain(value: object) -> object:
    """Paths as text; arrays, tensors and their scalars as lists and numbers."""
    return str(value) if isinstance(value, Path) else value.tolist()


def write_results(args: "Arguments", stage: str, results: dict) -> None:
    """Write {stage}_results.json with its environment, and gather all stages' results in all_results.json."""
    folder = Path(args.run.output_dir)
    write_json(folder / f"{stage}_results.json", results | how_made(args))
    gathered = {}
    for name in ("train", "eval", "search", "predict"):
        if (folder / f"{name}_results.json").is_file():
            gathered |= json.loads((folder / f"{name}_results.json").read_text(encoding="utf-8"))
    gathered.pop("candidates", None)  # hundreds of configs; they stay in search_results.json
    write_json(folder / "all_results.json", gathered)


def how_made(args: "Arguments") -> dict[str, dict]:
    """What a result was made with: the settings that decide on it, and the environment."""
    data, run = args.data, args.run
    files = {f"{split}_file": getattr(data, f"{split}_file") for split in ("train", "validation", "test")}
    precision = next(
        (name for name in ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval") if getattr(run, name)), "float32"
    )
    quantization = args.quantization
    in_int8 = quantization.int8 or quantization.tune or quantization.quantization_aware
    run_settings = {
        "model_name_or_path": args.model.model_name_or_path,
        **{name: value for name, value in ({"dataset_name": data.dataset_name} | files).items() if value},
        **({"teacher_model_name_or_path": args.distillation.teacher_model_name_or_path} if args.is_taught else {}),
        "max_seq_length": data.max_seq_length,
        "doc_stride": data.doc_stride,
        "per_device_eval_batch_size": run.per_device_eval_batch_size,
        "pad_to_max_length": data.pad_to_max_length,
        "precision": f"int8 and {precision}" if in_int8 else precision,
        "processes": run.world_size,
    }
    return {"run": run_settings, "environment": environment()}


def environment() -> dict:
    """What numbers were made with: versions, git commit, processor, threads."""
    packages = ("torch", "transformers", "datasets", "accelerate", "numpy")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        **git_state(Path(__file__).parent),
        "platform": platform.platform(),
        "cpu": processor()[0],
        "instruction_set": instruction_set(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor() -> tuple[str, set[str]]:
    """Model name and instruction-set flags of the first processor; no flags where Linux does not list them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.is_file() else []
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return entries.get("model name") or platform.processor() or platform.machine(), set(
        entries.get("flags", "").split()
    )


def instruction_set() -> str:
    """The processor's most capable set of vector instructions."""
    flags = processor()[1]
    sets = {"amx": "amx_tile", "avx512_vnni": "avx512_vnni", "avx512": "avx512f", "avx2": "avx2"}
    return next((name for name, flag in sets.items() if flag in flags), "other")


def cxx_compiler() -> str | None:
    """The C++ compiler, the one that Inductor would call; None if there is none."""
    return next(filter(shutil.which, [os.environ.get("CXX") or "g++", "clang++"]), None)


def engine_cache(folder: str | Path | None) -> Path:
    """Where what is compiled is kept: `folder` (--engine_cache_dir) or, if it is None, the user's own cache."""
    return Path(folder or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "quala")).expanduser()


def folder_in_cache(cache_dir: Path) -> tempfile.TemporaryDirectory:
    """A temporary folder where what is compiled is kept; RunError if nothing can be written there."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=cache_dir)
    except OSError as error:
        raise RunError(
            f"--engine_cache_dir {cache_dir} cannot be written to ({error.strerror}): name another."
        ) from error


def git_state(folder: Path) -> dict:
    """Commit of the checkout in `folder` and whether tracked files differ from it; None outside git or without it."""
    try:
        run = {"cwd": folder, "stderr": subprocess.DEVNULL, "text": True, "timeout": 10}
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], **run).strip()
        changes = subprocess.check_output(["git", "status", "--porcelain", "--untracked-files=no"], **run)
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": bool(changes.strip())}
