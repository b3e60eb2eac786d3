"""Run every GPU measurement in order of worth and print each as it ends, then all of them as one JSON line."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
import time

from cdkit.core.formatting import json_text

# One file each; `measure(tiny)` yields (name, figures) pairs as they are known.
PARTS = ("embedding", "training", "index", "families")
PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch", "faiss-cpu", "duckdb", "pyarrow")


def machine() -> dict[str, object]:
    """Device and package versions that the figures belong to."""
    import torch

    cuda = torch.cuda.is_available()
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "packages": versions,
    }


def measure(parts: list[str], *, tiny: bool, seconds: float) -> dict[str, object]:
    """Figures of all parts; a part that misses a package or breaks says so and the next one runs."""
    started = time.monotonic()
    figures: dict[str, object] = {"machine": machine(), "tiny": tiny}
    print(json_text({"machine": figures["machine"]}), flush=True)
    for part in parts:
        left = seconds - (time.monotonic() - started)
        if left <= 0:
            figures[part] = {"skipped": "no time left"}
            continue
        begun = time.monotonic()
        results: dict[str, object] = {}
        try:
            for name, values in importlib.import_module(f"tests.bench.gpu.{part}").measure(tiny=tiny, seconds=left):
                results[name] = values
                print(json_text({part: {name: values}}), flush=True)
        except ImportError as error:
            results["missing"] = str(error)
        except Exception as error:  # the next part is worth as much
            results["failed"] = f"{type(error).__name__}: {error}"[:500]
        results["seconds"] = round(time.monotonic() - begun, 1)
        figures[part] = results
        print(json_text({part: results}), flush=True)
    figures["seconds"] = round(time.monotonic() - started, 1)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="the same code at tiny sizes, on the CPU too")
    parser.add_argument("--part", action="append", choices=PARTS, help="only these parts; repeatable")
    parser.add_argument("--seconds", type=float, default=480.0, help="no part starts after this long")
    arguments = parser.parse_args()
    figures = measure(arguments.part or list(PARTS), tiny=arguments.tiny, seconds=arguments.seconds)
    print(json_text(figures), flush=True)


if __name__ == "__main__":
    main()
