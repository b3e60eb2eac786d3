"""`cdkit preference`: a page on which people choose between two methods' pictures, and what their answers say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from cdkit.cli.options import command
from cdkit.cli.output import Output, table
from cdkit.core.errors import ConfigError, OutputError, writing
from cdkit.core.formatting import command_line, size_text
from cdkit.core.storage import Folder, flush_names, write_json, write_text

if TYPE_CHECKING:
    from cdkit.evaluation.preference import Scored

PAGE = "page"


class PageUnlessNamed(TyperGroup):
    """`cdkit preference RUN …` is `cdkit preference page RUN …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [PAGE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Ask people which method's pictures they prefer, and count their answers.",
    no_args_is_help=True,
    cls=PageUnlessNamed,
)


def register(root: typer.Typer) -> None:
    """Add the `preference` group."""
    root.add_typer(app, name="preference")


@command(
    app,
    PAGE,
    help="Make a page of blinded pairs of two methods' samples, for people to choose from; it needs no server.",
    examples=[
        "cdkit preference page runs/paper-table --methods custom-diffusion dreambooth --out study",
        "cdkit preference page runs/paper-table --methods joint merged --pairs 24 --out study",
    ],
)
def _page(
    output: Output,
    run: Path = typer.Argument(..., metavar="RUN", help="A run's folder, with samples of each.", show_default=False),
    *,
    methods: list[str] = typer.Option(
        ..., "--methods", help="Two methods or more: of its compare step, or steps that drew.", show_default=False
    ),
    out: Path = typer.Option(..., "--out", help="The folder to make.", show_default=False),
    pairs: int = typer.Option(60, "--pairs", min=1, help="Pairs of each two methods, at most."),
    checks: int = typer.Option(3, "--checks", min=0, help="Further pairs that show whether their text is read."),
    seed: int = typer.Option(0, "--seed", help="Of the choice, the order, and the sides."),
    force: bool = typer.Option(False, "--force", help="Replace another study in the folder."),
) -> None:
    from cdkit.evaluation.preference import KEY_NAME, PAGE_NAME, read_key
    from cdkit.report.preference_study import StudySettings, build_study
    from cdkit.report.run_folder import read_run

    page, key = build_study(read_run(run), methods, StudySettings(pairs, checks, seed))
    folder = Folder(out)
    held = folder.entries()
    is_study = (out / KEY_NAME).exists() and set(held) <= {KEY_NAME, PAGE_NAME}
    if held and not is_study:
        raise OutputError(f"{out} holds something else ({', '.join(held[:3])}).", hint="Choose another --out.")
    if is_study and not force and read_key(out / KEY_NAME).study != key.study:
        hint = "Choose another --out, or add --force: answers to it can then not be counted any more."
        raise OutputError(f"{out} holds another study.", hint=hint)
    with writing(out), folder.lock():
        folder.remove_temporaries()
        # The key first, on the disk: a page without one would be answered in vain.
        write_json(out / KEY_NAME, key.model_dump())
        flush_names(out, below=False)
        write_text(out / PAGE_NAME, page)
    size = len(page.encode())
    places = {"page": str(out / PAGE_NAME), "key": str(out / KEY_NAME)}
    said = f"{len(key.pairs)} pairs, {checks} of them checks, {size_text(size)}: {out / PAGE_NAME}"
    data = {"study": key.study, "pairs": len(key.pairs), "bytes": size, **places}
    output.result(data, human=lambda console: console.print(said, markup=False), quiet=out / PAGE_NAME)
    output.hint(f"Send the page to people, and keep {out / KEY_NAME} back: it tells which picture is whose. Then:")
    output.hint(command_line("cdkit", "preference", "score", "answers.json", "--key", out / KEY_NAME))


@command(
    app,
    "score",
    help="Turn raters' answers into win rates with intervals, and say how far raters agree.",
    examples=[
        "cdkit preference score answers-*.json --key study/key.json",
        "cdkit preference score ada.json bob.json --key study/key.json --format json",
    ],
)
def _score(
    output: Output,
    files: list[Path] = typer.Argument(..., metavar="FILE…", help="Answers, a file per rater.", show_default=False),
    *,
    key: Path | None = typer.Option(None, "--key", help="The study's key.json [default: beside the first file]."),
    keep_inattentive: bool = typer.Option(
        False, "--keep-inattentive", help="Count raters who failed an attention check too."
    ),
    resamples: int = typer.Option(1000, "--resamples", min=1, help="Bootstrap draws for the intervals."),
    seed: int = typer.Option(0, "--seed", help="Of the bootstrap."),
) -> None:
    from cdkit.evaluation.preference import KEY_NAME, read_answers, read_key, score

    place = key or files[0].parent / KEY_NAME
    if key is None and not place.exists():
        hint = "Name the key that was written with the page: --key DIR/key.json"
        raise ConfigError(f"There is no {place}.", hint=hint)
    scored = score(
        read_key(place),
        [read_answers(path) for path in files],
        keep_inattentive=keep_inattentive,
        resamples=resamples,
        seed=seed,
    )
    data = {
        "duels": [duel.as_json() for duel in scored.duels],
        "raters": list(scored.raters),
        "left_out": dict(scored.left_out),
        "unanswered": dict(scored.unanswered),
    }
    output.result(data, human=lambda console: _draw(console, scored), quiet=_lines(scored))
    for rater, reason in scored.left_out.items():
        output.note(f"Left out: {rater} {reason}.")
    for rater, number in scored.unanswered.items():
        if number:
            output.note(f"{rater} left {number} pairs unanswered; the others count.")


def _lines(scored: Scored) -> str:
    return "\n".join(f"{duel.question} {duel.method} {duel.other} {duel.estimate.value:.4f}" for duel in scored.duels)


def _draw(console: Console, scored: Scored) -> None:
    def interval(low: float | None, high: float | None) -> str:
        return "" if low is None or high is None else f"{low:.0%} to {high:.0%}"

    rows: Sequence[Sequence[object]] = [
        (
            duel.question,
            f"{duel.method} over {duel.other}",
            f"{duel.estimate.value:.0%}",
            interval(duel.estimate.low, duel.estimate.high),
            f"{duel.ties:.0%}",
            duel.estimate.n,
            "" if duel.alpha is None else f"{duel.alpha:.2f}",
        )
        for duel in scored.duels
    ]
    headings = ["question", "wins", "share", "95 % interval", "no difference", "answers", "agreement (α)"]
    console.print(table(headings, rows, title=f"{len(scored.raters)} raters"))
