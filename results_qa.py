"""Result files that are whole or absent, and what goes into them about the machine and the code that made them."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


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


def environment() -> dict:
    """What numbers were made with: versions, git commit, processor, threads."""
    name, flags = processor()
    sets = {"amx": "amx_tile", "avx512_vnni": "avx512_vnni", "avx512": "avx512f", "avx2": "avx2"}
    packages = ("torch", "transformers", "datasets", "accelerate", "numpy")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        **git_state(Path(__file__).parent),
        "platform": platform.platform(),
        "cpu": name,
        "instruction_set": next((set_name for set_name, flag in sets.items() if flag in flags), "other"),
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


def git_state(folder: Path) -> dict:
    """Commit of the checkout in `folder` and whether tracked files differ from it; None outside git or without it."""
    try:
        run = {"cwd": folder, "stderr": subprocess.DEVNULL, "text": True, "timeout": 10}
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], **run).strip()
        changes = subprocess.check_output(["git", "status", "--porcelain", "--untracked-files=no"], **run)
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": bool(changes.strip())}
