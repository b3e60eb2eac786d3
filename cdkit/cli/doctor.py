"""`cdkit doctor`: whether this machine can do the work, and what to install where it cannot."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console

import cdkit
from cdkit.cli.options import command
from cdkit.cli.output import Output, table
from cdkit.core.errors import InputError, pip_install
from cdkit.core.fingerprints import cache_folder
from cdkit.core.formatting import size_text
from cdkit.core.machine import choose_device, cpu_count
from cdkit.core.startup import import_vision
from cdkit.index.faiss_index import LEAST_FAISS, is_too_old

PACKAGES = [
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "diffusers",
    "accelerate",
    "safetensors",
    "faiss-cpu",
    "pyarrow",
    "duckdb",
    "img2dataset",
    "fsspec",
    "pydantic",
    "typer",
    "rich",
]
# Each extra's distribution: a folder of that name in the working directory would pass for the module.
EXTRAS = {
    "ray": "ray",
    "tensorboard": "tensorboard",
    "peft": "peft",
    "datasets": "datasets",
    "serve": "uvicorn",
    "c2pa": "c2pa-python",
    "docs": "zensical",
    "test": "pytest",
}
LOW_MEMORY = 4e9
LOW_DISK = 5e9


@dataclass(frozen=True)
class Check:
    """One finding: ok, a note, or a failure with what to do."""

    name: str
    state: Literal["ok", "note", "failed"]
    found: str
    advice: str = ""


def register(app: typer.Typer) -> None:
    """Add `doctor`."""
    command(
        app,
        "doctor",
        help="Check versions, device, memory, disk and extras, and say what to install.",
        examples=["cdkit doctor", "cdkit doctor --format json | jq .checks"],
    )(_doctor)


def _doctor(output: Output) -> None:
    checks = [check for group in (_python, _packages, _torch, _open_clip, _machine, _extras) for check in group()]
    failed = [check for check in checks if check.state == "failed"]

    def draw(console: Console) -> None:
        mark = {"ok": "ok", "note": "note", "failed": "FAILED"}
        console.print(
            table(["", "check", "found"], [(mark[check.state], check.name, check.found) for check in checks])
        )
        for check in checks:
            if check.advice:
                console.print(f"{check.name}: {check.advice}", markup=False)

    body = {"cdkit": cdkit.__version__, "ok": not failed, "checks": [asdict(check) for check in checks]}
    output.result(body, human=draw, quiet="ok" if not failed else "failed")
    if failed:
        # stdout already holds the one result; the exit code says the rest.
        raise typer.Exit(InputError.exit_code)


def _python() -> list[Check]:
    version = platform.python_version()
    supported = (3, 11) <= sys.version_info[:2] < (3, 13)
    advice = "" if supported else "cdkit needs Python 3.11 or 3.12: img2dataset does not run on later ones."
    return [Check("python", "ok" if supported else "failed", version, advice)]


def _packages() -> list[Check]:
    checks = []
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
            old = package == "faiss-cpu" and is_too_old(version)
            advice = f"pip install '{package}>={LEAST_FAISS}'" if old else ""
            checks.append(Check(package, "failed" if old else "ok", version, advice))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(package, "failed", "missing", f"pip install {package}"))
    return checks


def _torch() -> list[Check]:
    def look() -> Check:
        import torch

        kind = choose_device().type
        if kind == "cuda":
            names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
            free, total = torch.cuda.mem_get_info()
            return Check("device", "ok", f"{', '.join(names)}: {size_text(free)} of {size_text(total)} free")
        if kind == "mps":
            return Check("device", "ok", "Apple GPU (mps)")
        return Check(
            "device",
            "note",
            f"CPU, {torch.get_num_threads()} threads",
            "Enough for the embedded model; training Stable Diffusion wants a CUDA GPU.",
        )

    return [_guarded("device", look, "pip install torch torchvision")]


def _open_clip() -> list[Check]:
    """The CPU-only torch wheel and the ordinary torchvision wheel do not fit each other; open_clip imports both."""

    def look() -> Check:
        import_vision()
        import torchvision

        return Check("torch and torchvision fit", "ok", f"torchvision {torchvision.__version__}")

    advice = (
        "torch and torchvision come from different builds (a CPU-only torch with the ordinary torchvision, for "
        "instance), so open_clip cannot be imported. Install both from one place: "
        "pip install --force-reinstall torch torchvision"
    )
    return [_guarded("torch and torchvision fit", look, advice)]


def _guarded(name: str, look: Callable[[], Check], advice: str) -> Check:
    # A broken binary package can fail in any way at import: that is the finding.
    try:
        return look()
    except Exception as error:
        return Check(
            name, "failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", advice
        )


def _machine() -> list[Check]:
    import psutil

    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(Path.cwd())
    low_memory, low_disk = memory.available < LOW_MEMORY, disk.free < LOW_DISK
    cache = cache_folder()
    parent = next(folder for folder in (cache, *cache.parents) if folder.exists())
    writable = os.access(parent, os.W_OK)
    return [
        Check("cores", "ok", str(cpu_count())),
        Check(
            "memory",
            "note" if low_memory else "ok",
            f"{size_text(memory.available)} of {size_text(memory.total)} free",
            "Little memory is free: use fewer --workers." if low_memory else "",
        ),
        Check(
            "disk here",
            "note" if low_disk else "ok",
            f"{size_text(disk.free)} of {size_text(disk.total)} free",
            "Little disk is free: see cdkit index plan for what an index needs." if low_disk else "",
        ),
        Check(
            "cache",
            "ok" if writable else "note",
            str(cache),
            "" if writable else "The cache is not writable: files are hashed again each time. Set CDKIT_CACHE.",
        ),
    ]


def _extras() -> list[Check]:
    checks = []
    for extra, package in EXTRAS.items():
        try:
            checks.append(Check(f"extra {extra}", "ok", f"installed, {package} {importlib.metadata.version(package)}"))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(f"extra {extra}", "note", "not installed", pip_install(extra)))
    return checks
