"""`cdkit index add`, `remove` and `compact`: change an index that is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from cdkit.cli.index_search import INDEX
from cdkit.cli.options import OUT, command, config_command
from cdkit.cli.output import Output, progress_for
from cdkit.core.config import StageConfig
from cdkit.core.errors import ConfigError
from cdkit.core.formatting import command_line
from cdkit.core.protocols import Context
from cdkit.core.threads import threads
from cdkit.engines import create_engine
from cdkit.stages import STAGES


def register(app: typer.Typer) -> None:
    """Add `add`, `remove` and `compact`."""
    config_command(
        app,
        "add",
        STAGES["import"].config_class(),
        _add,
        help="Add captions to an index without building it anew; what was removed stays removed.",
        examples=[
            "cdkit index add indexes/mine --captions more.parquet",
            "cdkit index add indexes/mine --captions 'crawl/*.csv' --caption-column text --url-column link",
        ],
        extra=[OUT.replace(name="index", annotation=Path, default=INDEX)],
    )
    command(
        app,
        "remove",
        help="Take captions or URLs out of every later search, for takedown requests.",
        examples=[
            "cdkit index remove indexes/mine --urls-file takedown.txt",
            "cdkit index remove indexes/mine --captions-file captions.txt",
        ],
    )(_remove)
    command(
        app,
        "compact",
        help="Rewrite an index's files without what was removed.",
        examples=["cdkit index compact indexes/mine", "cdkit index compact indexes/mine --format json"],
    )(_compact)


def _changed(output: Output, index: Path, facts: Mapping[str, Any]) -> None:
    words = ", ".join(
        f"{value:,} {key.replace('_', ' ')}" for key, value in facts.items() if not isinstance(value, bool)
    )
    output.result({"index": str(index), **facts}, human=lambda console: console.print(words), quiet=index)


def _add(output: Output, config: StageConfig, further: Mapping[str, Any]) -> None:
    from cdkit.captions.config import ImportConfig
    from cdkit.index.changes.add import add_captions
    from cdkit.inputs import resolve_inputs

    assert isinstance(config, ImportConfig)
    context = Context(create_engine(config.engine, config.worker_count()), progress_for(output))
    with threads(config.thread_count()):
        _changed(
            output, further["index"], asdict(add_captions(further["index"], config, resolve_inputs(config), context))
        )


def _remove(
    output: Output,
    index: Path = INDEX,
    captions_file: Path | None = typer.Option(None, "--captions-file", help="Captions to remove, one a line."),
    urls_file: Path | None = typer.Option(None, "--urls-file", help="Image URLs to remove, one a line."),
) -> None:
    from cdkit.index.changes.remove import read_lines, remove

    if captions_file is None and urls_file is None:
        raise ConfigError("There is nothing to remove.", hint="Give --captions-file FILE or --urls-file FILE.")
    captions = read_lines(captions_file) if captions_file else []
    urls = read_lines(urls_file) if urls_file else []
    _changed(output, index, asdict(remove(index, captions=captions, urls=urls)))
    output.hint("They are out of every search now; to take them out of the files as well:")
    output.hint(command_line("cdkit", "index", "compact", index))


def _compact(output: Output, index: Path = INDEX) -> None:
    from cdkit.index.changes.compact import compact

    _changed(output, index, asdict(compact(index, progress=progress_for(output))))
