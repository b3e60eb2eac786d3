"""`cdkit index search|info|add|remove|compact`: what is done with an index that is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from cdkit.cli.options import OUT, command, config_command
from cdkit.cli.output import Output, table
from cdkit.cli.progress import TerminalProgress
from cdkit.core.config import StageConfig
from cdkit.core.errors import ConfigError
from cdkit.core.formatting import command_line, size_text
from cdkit.core.protocols import Context
from cdkit.core.threads import threads
from cdkit.engines import create_engine
from cdkit.index.search import ENCODE_LIMIT, LIMIT, search
from cdkit.inputs import local_copy, resolve_inputs
from cdkit.stages import STAGES

INDEX = typer.Argument(..., help="An index folder.", show_default=False)
READ = typer.Argument(..., help="An index: a folder, or hub:USER/NAME.", show_default=False)


def register_use(app: typer.Typer) -> None:
    """Add the commands for an index that is built."""
    command(
        app,
        "search",
        help="Find captions similar to a text; similarities are recomputed, never quantised estimates.",
        examples=[
            'cdkit index search indexes/embedded "a photo of a star"',
            'cdkit index search indexes/mine "a photo of a dog" --min-similarity 0.85 --limit 100 --format json',
        ],
    )(_search)
    command(
        app,
        "info",
        help="Show what an index holds: counts, encoder, size and its measured recall. JSON is the manifest.",
        examples=[
            "cdkit index info indexes/embedded",
            "cdkit index info indexes/mine --format json | jq .details.recall",
        ],
    )(_info)
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


def print_index(console: Console, details: Mapping[str, Any]) -> None:
    """Draw what the details of an index manifest say: factory, size, encoder, measured recall."""
    facts, recall, encoder = details["index"], details["recall"], details["encoder"]
    removed = details.get("removed", {"captions": 0, "rows": 0})
    shown = [
        *((f"removed {name.replace('rows', 'image rows')}", number) for name, number in removed.items() if number),
        ("index", facts["factory"]),
        ("vectors", facts["vectors"]),
        ("size", f"{size_text(facts['bytes'])}, {facts['bytes_per_caption']} bytes per caption"),
        ("encoder", f"{encoder['spec']}, {encoder['dimension']} dimensions"),
        ("threshold", encoder["default_threshold"]),
        *(
            (key.replace("_", " "), value)
            for key, value in recall.items()
            if isinstance(value, int | float | str) and key != "threshold"
        ),
    ]
    console.print(table(["", ""], [(name, value) for name, value in shown]))


def _search(
    output: Output,
    index: Path = READ,
    text: list[str] = typer.Argument(..., help="What the captions should be like."),
    min_similarity: float | None = typer.Option(
        None, "--min-similarity", help="[default: the encoder's own threshold]"
    ),
    limit: int = typer.Option(LIMIT, "--limit", help="Captions per query."),
    encode_limit: int = typer.Option(ENCODE_LIMIT, "--encode-limit", help="Most captions to encode again per query."),
    encoder: str | None = typer.Option(None, "--encoder", help="[default: the one that built the index]"),
) -> None:
    folder = Path(local_copy("index", str(index)))
    answers = search(
        folder, text, min_similarity=min_similarity, limit=limit, encode_limit=encode_limit, encoder=encoder
    )

    def draw(console: Console) -> None:
        for answer in answers:
            rows = [(f"{match.similarity:.4f}", len(match.rows), match.caption) for match in answer.results]
            title = answer.query if len(answers) > 1 else ""
            console.print(table(["similarity", "images", "caption"], rows, title=title))

    data = answers[0].as_json() if len(answers) == 1 else {"queries": [answer.as_json() for answer in answers]}
    output.result(data, human=draw, quiet="\n".join(match.caption for answer in answers for match in answer.results))
    for note in dict.fromkeys(note for answer in answers for note in answer.notes):
        output.note(note)
    for answer in answers:
        if answer.more:
            output.hint(f"More captions are at least {answer.min_similarity:.4g} similar: raise --limit.")
        elif not answer.results:
            output.hint(f"No caption is at least {answer.min_similarity:.4g} similar: lower --min-similarity.")


def _info(output: Output, index: Path = READ) -> None:
    from cdkit.index.caption_index import outdated_note, settled_manifest
    from cdkit.index.recall import recall_warnings

    index = Path(local_copy("index", str(index)))
    manifest = settled_manifest(index)

    def draw(console: Console) -> None:
        counts = manifest.counts
        console.print(f"{manifest.details['captions']:,} captions of {counts['kept']:,} rows ({counts['in']:,} read)")
        print_index(console, manifest.details)

    output.result(asdict(manifest), human=draw, quiet=manifest.fingerprint)
    for warning in recall_warnings(manifest.details["recall"]):
        output.note(warning)
    if note := outdated_note(index, manifest):
        output.note(note)


def _changed(output: Output, index: Path, facts: Mapping[str, Any]) -> None:
    words = ", ".join(
        f"{value:,} {key.replace('_', ' ')}" for key, value in facts.items() if not isinstance(value, bool)
    )
    output.result({"index": str(index), **facts}, human=lambda console: console.print(words), quiet=index)


def _add(output: Output, config: StageConfig, further: Mapping[str, Any]) -> None:
    from cdkit.captions.config import ImportConfig
    from cdkit.index.changes.add import add_captions

    assert isinstance(config, ImportConfig)
    context = Context(create_engine(config.engine, config.worker_count()), TerminalProgress(output))
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

    _changed(output, index, asdict(compact(index, progress=TerminalProgress(output))))
