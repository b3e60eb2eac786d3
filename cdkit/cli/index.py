"""`cdkit index`: build, search, inspect and change caption indexes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import typer
from rich.console import Console

from cdkit.cli.options import FORCE, OUT, command, config_command, report_result, stage_command
from cdkit.cli.output import Output, data_console, duration, size, table
from cdkit.cli.progress import progress_for
from cdkit.config import StageConfig
from cdkit.engines import create_engine
from cdkit.errors import ConfigError
from cdkit.pipeline.spec import find
from cdkit.protocols import Context
from cdkit.stages import STAGES, Result, execute, project

app = typer.Typer(help="Build, search, look into and change caption indexes.", no_args_is_help=True)

INDEX = typer.Argument(..., help="An index folder.", show_default=False)


def result_data(result: Result) -> dict[str, Any]:
    """The JSON of a command that makes an index folder, or a part of one."""
    manifest = result.manifest
    return {
        "state": result.state,
        "out": str(result.out),
        "fingerprint": manifest.fingerprint,
        "counts": manifest.counts,
        "details": manifest.details,
        "seconds": round(result.seconds, 3),
    }


def _print_result(output: Output, result: Result) -> None:
    """Rows in, kept and rejected by reason; then what was built."""
    counts, details = result.manifest.counts, result.manifest.details
    rows = [("rows in", counts["in"]), ("kept", counts["kept"])]
    rows += [(f"rejected: {reason}", number) for reason, number in counts["rejected"].items()]
    console = data_console()
    console.print(table(["", "rows"], rows))
    if "captions" in details:
        console.print(
            f"{details['captions']:,} distinct captions in {duration(result.seconds)}: {result.out}", markup=False
        )
    if "index" in details:
        _print_index(console, details)
        output.hint(f'cdkit index search {result.out} "a photo of a dog"')


def _print_index(console: Console, details: Mapping[str, Any]) -> None:
    facts, recall, encoder = details["index"], details["recall"], details["encoder"]
    shown = [
        ("index", facts["factory"]),
        ("vectors", facts["vectors"]),
        ("size", f"{size(facts['bytes'])}, {facts['bytes_per_caption']} bytes per caption"),
        ("encoder", f"{encoder['spec']}, {encoder['dimension']} dimensions"),
        ("threshold", encoder["default_threshold"]),
        *((key.replace("_", " "), value) for key, value in recall.items() if isinstance(value, int | float | str)),
    ]
    console.print(table(["", ""], [(name, value) for name, value in shown]))


stage_command(
    app,
    "import",
    "import",
    help="Read pools of captions (Parquet, CSV, TSV, JSON lines) into an index folder; clean, filter and deduplicate.",
    examples=[
        "cdkit index import --captions my-captions.csv --caption-column text --out indexes/mine",
        "cdkit index import --captions 'laion400m/*.parquet' --pool laion400m --out indexes/laion400m",
    ],
    human=_print_result,
    data=result_data,
)
stage_command(
    app,
    "embed",
    "embed",
    help="Import pools and embed every distinct caption, in one folder.",
    examples=[
        "cdkit index embed --captions my-captions.csv --encoder embedded --out indexes/mine",
        "cdkit index embed --captions 'pool/*.parquet' --engine ray --out indexes/pool",
    ],
    human=_print_result,
    data=result_data,
)


def _with_recipe(output: Output, given: dict[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's settings under what the command line gives; its warnings are shown."""
    if further["recipe"] is None:
        return given
    from cdkit.index.recipes import read_recipe

    recipe = read_recipe(find(further["recipe"], "indexes"))
    for warning in recipe.warnings:
        output.note(f"{recipe.name}: {warning}")
    return recipe.values(given)


def _build(output: Output, config: StageConfig, further: Mapping[str, Any]) -> None:
    stage = further["stop_after"] or "index"
    config = project(config, STAGES[stage].config_class())
    result = execute(stage, config, further["out"], progress=progress_for(output), force=further["force"])
    report_result(output, result, _print_result, result_data)


config_command(
    app,
    "build",
    STAGES["index"].config_class(),
    _build,
    help="Build a caption index: import, embed and index in one folder. Run it again to go on where it stopped.",
    examples=[
        "cdkit index build --captions my-captions.csv --out indexes/mine",
        "cdkit index build --captions 'laion400m/*.parquet' --pool laion400m --encoder open_clip:ViT-L-14/openai "
        "--out indexes/laion400m",
        "cdkit index build --recipe embedded --out indexes/embedded",
    ],
    extra=[
        OUT.replace(
            name="stop_after",
            annotation=Literal["import", "embed"] | None,
            default=typer.Option(None, "--stop-after", help="Stop when this part is done."),
        ),
        OUT.replace(
            name="recipe",
            annotation=str | None,
            default=typer.Option(None, "--recipe", help="Settings for a known pool: a file, or a name in indexes/."),
        ),
        OUT,
        FORCE,
    ],
    complete=_with_recipe,
)


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
            console.print(
                table(["similarity", "images", "caption"], rows, title=answer.query if len(found) > 1 else "")
            )

    data = found[0].as_json() if len(found) == 1 else {"queries": [answer.as_json() for answer in found]}
    output.result(data, human=draw, quiet="\n".join(match.caption for answer in found for match in answer.results))
    for answer in found:
        for note in answer.notes:
            output.note(note)
        if answer.more:
            output.hint(f"More captions are at least {answer.min_similarity:.4g} similar: raise --limit.")
        elif not answer.results:
            output.hint(f"No caption is at least {answer.min_similarity:.4g} similar: lower --min-similarity.")


command(
    app,
    "search",
    help="Find captions similar to a text; similarities are recomputed, never quantised estimates.",
    examples=[
        'cdkit index search indexes/embedded "a photo of a star"',
        'cdkit index search indexes/mine "a photo of a dog" --min-similarity 0.85 --limit 100 --format json',
    ],
)(_search)


def _info(output: Output, index: Path = INDEX) -> None:
    from dataclasses import asdict

    from cdkit.index.opening import settled_manifest

    manifest = settled_manifest(index)

    def draw(console: Console) -> None:
        counts = manifest.counts
        console.print(f"{manifest.details['captions']:,} captions of {counts['kept']:,} rows ({counts['in']:,} read)")
        _print_index(console, manifest.details)

    output.result(asdict(manifest), human=draw, quiet=manifest.fingerprint)


command(
    app,
    "info",
    help="Show what an index holds: counts, encoder, size and its measured recall. JSON is the manifest.",
    examples=["cdkit index info indexes/embedded", "cdkit index info indexes/mine --format json | jq .details.recall"],
)(_info)


def _plan(
    output: Output,
    rows: int = typer.Option(..., "--rows", help="Captions to index."),
    dim: int = typer.Option(..., "--dim", help="Dimension of the encoder: 512 for ViT-B, 768 for ViT-L."),
    bytes_per_caption: int = typer.Option(64, "--bytes-per-caption", help="Bytes of one compressed embedding."),
) -> None:
    from cdkit.index.estimates import plan_index

    found = plan_index(rows, dim, bytes_per_caption)

    def draw(console: Console) -> None:
        headings = [
            "",
            "factory",
            "bytes/caption",
            "disk",
            "build RAM",
            "serve RAM",
            "points",
            "train",
            "add",
            "query",
        ]
        lines = [
            (
                "→" if choice.chosen else "",
                choice.factory,
                choice.bytes_per_caption.value,
                size(choice.disk.value),
                size(choice.build_memory.value),
                size(choice.serve_memory.value),
                int(choice.training_points.value),
                duration(choice.train_seconds.value),
                duration(choice.add_seconds.value),
                f"{1000 * choice.query_seconds.value:.3g} ms",
            )
            for choice in found.choices
        ]
        console.print(table(headings, lines))
        console.print(
            "Every figure of the table is estimated, the times from rates measured on this machine just now:"
        )
        for name in ("multiplications", "added", "scanned", "exact", "written"):
            rate = getattr(found.rates, name)
            console.print(f"  {name}: {rate.value:,.4g} {rate.unit} ({rate.basis}, {found.rates.threads} threads)")
        console.print("→ is what cdkit index build would make. Embedding the captions comes on top.")

    output.result(found.as_json(), human=draw, quiet=next(choice.factory for choice in found.choices if choice.chosen))


command(
    app,
    "plan",
    help="Say what an index would cost before it is built: disk, memory, time.",
    examples=[
        "cdkit index plan --rows 400000000 --dim 768",
        "cdkit index plan --rows 1000000 --dim 512 --format json",
    ],
)(_plan)


def _changed(output: Output, index: Path, facts: Mapping[str, Any]) -> None:
    words = ", ".join(
        f"{value:,} {key.replace('_', ' ')}" for key, value in facts.items() if not isinstance(value, bool)
    )
    output.result({"index": str(index), **facts}, human=lambda console: console.print(words), quiet=index)


def _add(output: Output, config: StageConfig, further: Mapping[str, Any]) -> None:
    from dataclasses import asdict

    from cdkit.captions.import_captions import ImportConfig
    from cdkit.index.addition import add_captions

    assert isinstance(config, ImportConfig)
    context = Context(create_engine(config.engine, config.workers), progress_for(output))
    _changed(output, further["index"], asdict(add_captions(further["index"], config, context)))


config_command(
    app,
    "add",
    STAGES["import"].config_class(),
    _add,
    help="Add captions to an index without building it anew; what was removed stays removed.",
    examples=["cdkit index add indexes/mine --captions more.parquet"],
    extra=[OUT.replace(name="index", annotation=Path, default=INDEX)],
)


def _remove(
    output: Output,
    index: Path = INDEX,
    captions_file: Path | None = typer.Option(None, "--captions-file", help="Captions to remove, one a line."),
    urls_file: Path | None = typer.Option(None, "--urls-file", help="Image URLs to remove, one a line."),
) -> None:
    from dataclasses import asdict

    from cdkit.index.removal import read_lines, remove

    if captions_file is None and urls_file is None:
        raise ConfigError("There is nothing to remove.", hint="Give --captions-file FILE or --urls-file FILE.")
    captions = read_lines(captions_file) if captions_file else []
    urls = read_lines(urls_file) if urls_file else []
    _changed(output, index, asdict(remove(index, captions=captions, urls=urls)))
    output.hint(f"They are out of every search now; cdkit index compact {index} takes them out of the files.")


command(
    app,
    "remove",
    help="Take captions or URLs out of every later search, for takedown requests.",
    examples=["cdkit index remove indexes/mine --urls-file takedown.txt"],
)(_remove)


def _compact(output: Output, index: Path = INDEX) -> None:
    from dataclasses import asdict

    from cdkit.index.compaction import compact

    _changed(output, index, asdict(compact(index, progress=progress_for(output))))


command(
    app,
    "compact",
    help="Rewrite an index's files without what was removed.",
    examples=["cdkit index compact indexes/mine"],
)(_compact)
