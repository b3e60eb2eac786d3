"""The commands by name, in the order of the work, and an app of them that imports only what one command line needs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import typer


@dataclass(frozen=True)
class Entry:
    """A command or group: the module of `cdkit.cli` that registers it, and what `cdkit --help` says of it."""

    name: str
    module: str
    summary: str


ENTRIES = (
    Entry("run", "run", "Run a pipeline: what is done already is left alone, what is missing or stale is made."),
    Entry("pipeline", "run", "List, show, check and copy pipelines."),
    Entry("index", "index", "Build, search, look into and change caption indexes."),
    Entry("retrieve", "retrieve", "Find, download and curate images whose captions are like a prompt."),
    Entry("class-images", "class_images", "Draw a regularization set with the base model."),
    Entry("tokens", "tokens", "Count vocabulary tokens, pick rare ones, explain a word."),
    Entry("train", "train", "Teach a base model concepts from 4 to 20 photos each."),
    Entry("merge", "merge", "Merge deltas that were trained one by one, in closed form."),
    Entry("sample", "sample", "Draw images: every prompt with every seed."),
    Entry("evaluate", "evaluate", "Score samples: alignment, KID, drift, overfitting, with intervals."),
    Entry("compare", "evaluate", "Put the scores of several methods in a table, the paper's beside them."),
    Entry("report", "report", "Make the report of a run: one self-contained HTML page."),
    Entry("delta", "delta", "Look into delta files, import other tools' files, and compress."),
    Entry("export", "export", "Write a delta as files that diffusers, A1111, Forge or ComfyUI load."),
    Entry("inspect", "inspect", "Look into weights, attention and benchmarks."),
    Entry("doctor", "doctor", "Check versions, device, memory, disk and extras, and say what to install."),
)


def register(app: typer.Typer, wanted: str | None) -> None:
    """Add the command or group called `wanted` as it is, and of the others name and summary; None: all as they are.

    Importing a command imports its stage's settings; all of them together take longer than `--help` may.
    """
    modules = dict.fromkeys(entry.module for entry in ENTRIES if wanted in (None, entry.name))
    for entry in ENTRIES:
        if entry.module not in modules:
            app.command(entry.name, help=entry.summary)(_named_only)
    for module in modules:
        import_module(f"cdkit.cli.{module}").register(app)


def _named_only() -> None:
    raise AssertionError("a command that is only named was run")
