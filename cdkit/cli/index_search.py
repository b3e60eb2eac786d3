"""`cdkit index search` and `cdkit index info`: ask an index, and look into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from cdkit.cli.options import command
from cdkit.cli.output import Output, size, table

INDEX = typer.Argument(..., help="An index folder.", show_default=False)


def register(app: typer.Typer) -> None:
    """Add `search` and `info`."""
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


def print_index(console: Console, details: Mapping[str, Any]) -> None:
    """Draw what the details of an index manifest say: factory, size, encoder, measured recall."""
    facts, recall, encoder = details["index"], details["recall"], details["encoder"]
    removed = details.get("removed", {"captions": 0, "rows": 0})
    shown = [
        *((f"removed {name.replace('rows', 'image rows')}", number) for name, number in removed.items() if number),
        ("index", facts["factory"]),
        ("vectors", facts["vectors"]),
        ("size", f"{size(facts['bytes'])}, {facts['bytes_per_caption']} bytes per caption"),
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
    index: Path = INDEX,
    text: list[str] = typer.Argument(..., help="What the captions should be like."),
    min_similarity: float | None = typer.Option(
        None, "--min-similarity", help="[default: the encoder's own threshold]"
    ),
    limit: int = typer.Option(20, "--limit", help="Captions per query."),
    encode_limit: int = typer.Option(4096, "--encode-limit", help="Most captions to encode again per query."),
    encoder: str | None = typer.Option(None, "--encoder", help="[default: the one that built the index]"),
) -> None:
    from cdkit.index.search import search

    options = {"min_similarity": min_similarity, "limit": limit, "encode_limit": encode_limit}
    found = search(index, text, encoder=encoder, **options)  # type: ignore[arg-type]

    def draw(console: Console) -> None:
        for answer in found:
            rows = [(f"{match.similarity:.4f}", len(match.rows), match.caption) for match in answer.results]
            title = answer.query if len(found) > 1 else ""
            console.print(table(["similarity", "images", "caption"], rows, title=title))

    data = found[0].as_json() if len(found) == 1 else {"queries": [answer.as_json() for answer in found]}
    output.result(data, human=draw, quiet="\n".join(match.caption for answer in found for match in answer.results))
    for note in dict.fromkeys(note for answer in found for note in answer.notes):
        output.note(note)
    for answer in found:
        if answer.more:
            output.hint(f"More captions are at least {answer.min_similarity:.4g} similar: raise --limit.")
        elif not answer.results:
            output.hint(f"No caption is at least {answer.min_similarity:.4g} similar: lower --min-similarity.")


def _info(output: Output, index: Path = INDEX) -> None:
    from cdkit.index.caption_index import outdated_note, settled_manifest
    from cdkit.index.recall import recall_warnings

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
