"""`cdkit retrieve` and `cdkit dataset`: find a concept's regularization set, and write one as other tools read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from cdkit.cli.options import stage_command
from cdkit.cli.output import Output, data_console, table
from cdkit.core.columns import displayed
from cdkit.core.formatting import duration_text
from cdkit.execute import Result

PHOTOS_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add `retrieve` and `dataset`."""
    stage_command(
        app,
        "retrieve",
        "retrieve",
        help="Find, download and curate images whose captions are like a prompt; ends with 5 when there are fewer.",
        examples=[
            'cdkit retrieve indexes/embedded "a photo of a star" --images embedded --out sets/star',
            'cdkit retrieve indexes/laion400m "a photo of a dog" --match photos/dog --exclude-like photos/dog '
            "--per-host 5 --also-write kohya --out sets/dog",
            'cdkit retrieve indexes/mine "a photo of a mug" --fill generated --base models/sd-v1-5 --out sets/mug',
        ],
        human=_human,
        data=lambda result: {
            **{name: result.manifest.details[name] for name in ("asked", "accepted", "tried", "rejected")},
            "out": str(result.out),
        },
    )
    stage_command(
        app,
        "dataset",
        "dataset",
        help="Write a regularization set as other trainers and tools read it, beside a concept's photos.",
        examples=[
            "cdkit dataset sets/dog --to kohya --photos photos/dog --out layouts/dog",
            'cdkit dataset sets/dog --to ai-toolkit --to simpletuner --photos photos/dog --instance-word "sks" '
            '--class-word "dog" --out layouts/dog',
            "cdkit dataset sets/dog --to webdataset --out layouts/dog",
        ],
        human=_written,
        data=lambda result: {
            "images": result.manifest.details["images"],
            "written": {name: str(result.out / name) for name in result.manifest.details["written"]},
            "layouts": result.manifest.details["layouts"],
            "out": str(result.out),
        },
    )


def _written(output: Output, result: Result) -> None:
    details = result.manifest.details
    names = ", ".join(str(result.out / name) for name in details["written"])
    data_console().print(f"{details['images']:,} images: {names}", markup=False)
    print_layouts(details["layouts"])


def print_layouts(layouts: Mapping[str, Mapping[str, Any]]) -> None:
    """What trainers' layouts show in an epoch, where their configuration lies and how it is used."""
    for name, layout in layouts.items():
        shown = f"an epoch shows photos {layout['photos_shown']:,} times, the set's images {layout['images_shown']:,}"
        data_console().print(f"{name}: {shown}: {layout['config']}\n  {layout['use']}", markup=False)


def _matched_rows(matched: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, str, str]]:
    rows = []
    for entry in matched[:PHOTOS_SHOWN]:
        similarity = f"{entry['nearest_similarity']:.2f}" if entry["images"] else ""
        rows.append((entry["photo"], len(entry["images"]), displayed(entry.get("nearest", "")), similarity))
    if len(matched) > PHOTOS_SHOWN:
        left = matched[PHOTOS_SHOWN:]
        rows.append((f"{len(left)} more", sum(len(entry["images"]) for entry in left), "", ""))
    return rows


def _human(output: Output, result: Result) -> None:
    from cdkit.retrieval.funnel import left_out

    details = result.manifest.details
    console = data_console()
    rows = [(entry["step"], entry["count"]) for entry in details["funnel"]]
    rows += [(f"left out: {reason}", number) for reason, number in details["rejected"].items()]
    rows += [(f"filtered: {reason}", number) for reason, number in left_out(details.get("filtered") or {}).items()]
    console.print(table(["", "images"], rows))
    if "matched" in details:
        console.print(table(["photo", "images", "nearest caption", ""], _matched_rows(details["matched"])))
    console.print(
        f"{details['accepted']:,} of {details['asked']:,} images in {duration_text(result.seconds)}, with captions of "
        f"similarity {details['threshold']:g} or more: {result.out}",
        markup=False,
    )
    print_layouts(details.get("layouts") or {})
    output.hint(f"Look at {result.out / 'contact_sheet.png'}")
