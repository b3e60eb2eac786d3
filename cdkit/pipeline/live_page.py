"""A run's live.html: stages, time left, loss and newest samples on one page that loads itself anew until the end."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from urllib.parse import quote

from cdkit.core.errors import CdkitError
from cdkit.core.formatting import duration_text
from cdkit.core.storage import write_text
from cdkit.pipeline.plan import report_page
from cdkit.pipeline.watch import RunStatus, StageStatus
from cdkit.training.live_page import LIVE_NAME, chart, document, figure
from cdkit.training.metrics import METRICS_NAME, read_metrics

SECONDS_BETWEEN_PAGES = 3.0
MOST_SHEETS = 4
# A larger sheet is linked to: the page is read anew every few seconds.
MOST_BYTES = 2 << 20
_WORDS = {"waiting": "", "cached": "up to date", "partial": "done, with less than asked for"}
# What the curve and the sheets show better.
_SHOWN_ELSEWHERE = re.compile(r"step \d+ of \d+: loss|Samples of step")
# The seconds of the stage in progress go on between two writings; a run that was killed writes nothing any more.
_CLOCK = """<script>
const began = Date.now();
for (const cell of document.querySelectorAll("[data-seconds]"))
  setInterval(() => {
    const seconds = Math.round(+cell.dataset.seconds + (Date.now() - began) / 1000);
    const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
    const short = minutes ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
    cell.textContent = hours ? `${hours} h ${minutes % 60} min` : short;
  }, 1000);
const written = document.querySelector("[data-written]");
const minutes = Math.floor((began / 1000 - written.dataset.written) / 60);
if (minutes >= 2) written.textContent += ` Nothing new for ${minutes} min.`;
</script>"""


class RunPage:
    """Writes the page of one run into its folder, now and then; one that cannot be written ends no run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LIVE_NAME
        self._written = -SECONDS_BETWEEN_PAGES
        self._sheets: dict[tuple[Path, int], str] = {}

    def update(self, status: RunStatus, forced: bool) -> None:
        """Write the page where something must be seen, or enough time has passed."""
        now = time.monotonic()
        if forced or now - self._written >= SECONDS_BETWEEN_PAGES:
            self._written = now
            with suppress(OSError):
                write_text(self.path, self.page(status))

    def page(self, status: RunStatus) -> str:
        """The page as HTML."""
        title = f"{status.place() or status.pipeline}: {headline(status)}"
        body = [f"<h1>{escape(status.pipeline)}</h1>", f"<p>{escape(title)}</p>", _bar(status), _problem(status)]
        body += [_report(status)]
        body += [_table(status), _losses(status), *self._samples(status), _notes(status)]
        now = time.time()
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        said = f"{escape(str(status.folder))}, as it was at {written}."
        body.append(f'<p class="quiet" data-written="{now:.0f}">{said}</p>')
        return document(
            title, "\n".join(filter(None, [*body, "" if status.ended else _CLOCK])), again=not status.ended
        )

    def _samples(self, status: RunStatus) -> list[str]:
        """The newest sheets of samples, of trainings and of what was drawn after them."""
        found = []
        for stage in status.stages:
            if stage.state == "waiting":
                continue
            out = stage.planned.out
            for path in (*sorted((out / "samples").glob("step-*.png")), out / "grid.png"):
                with suppress(OSError):
                    found.append((path.stat().st_mtime_ns, stage.name, path))
        newest = sorted(found, reverse=True)[:MOST_SHEETS]
        self._sheets = {(path, made): self._source(path, made) for made, _, path in newest}
        figures = [
            figure(self._sheets[path, made], str(path.relative_to(status.folder)), _caption(name, path))
            for made, name, path in newest
        ]
        return ["<h2>Newest samples</h2>", *figures] if figures else []

    def _source(self, path: Path, made: int) -> str:
        """The picture itself, so that the page is one file; a link to one that is very large, or gone."""
        if (path, made) in self._sheets:
            return self._sheets[path, made]
        with suppress(OSError):
            content = path.read_bytes()
            if len(content) <= MOST_BYTES:
                return f"data:image/png;base64,{base64.b64encode(content).decode()}"
        return path.relative_to(self.path.parent).as_posix()


def headline(status: RunStatus) -> str:
    """How the run stands, in a few words: `about 3 min left`, `done in 4 min 5 s`, `failed`."""
    current = status.current
    if not status.ended:
        return ", ".join(filter(None, ("running", status.left.text())))
    if status.problem:
        return "interrupted" if current is not None and status.stages[current].state == "interrupted" else "failed"
    return f"done in {duration_text(status.seconds)}"


def _bar(status: RunStatus) -> str:
    over = sum(stage.state in ("cached", "done", "partial") for stage in status.stages)
    return f'<progress max="{len(status.stages)}" value="{over}">{over} of {len(status.stages)}</progress>'


def _problem(status: RunStatus) -> str:
    if not status.problem:
        return ""
    hint = f"\n{escape(status.hint)}" if status.hint else ""
    return f'<div class="problem" role="alert">{escape(status.problem)}{hint}</div>'


def _report(status: RunStatus) -> str:
    page = report_page([stage.planned for stage in status.stages])
    if page is None or not status.ended or status.problem:
        return ""
    return f'<p><a href="{quote(page.relative_to(status.folder).as_posix())}">The report</a></p>'


def _table(status: RunStatus) -> str:
    rows = "".join(_row(place, stage) for place, stage in enumerate(status.stages, start=1))
    return f'<h2>Stages</h2>\n<div class="scroll"><table>{rows}</table></div>'


def _row(place: int, stage: StageStatus) -> str:
    state = _WORDS.get(stage.state, stage.state)
    if stage.state == "running" and stage.doing:
        state = stage.doing
    seconds = duration_text(stage.seconds) if stage.seconds is not None and stage.state != "cached" else ""
    since = f' data-seconds="{stage.seconds:.0f}"' if stage.state == "running" and stage.seconds is not None else ""
    return (
        f'<tr class="{stage.state}"><td class="number">{place}</td><th scope="row">{escape(stage.name)}</th>'
        f'<td class="kind">{escape(stage.planned.step.stage)}</td><td class="state">{escape(state)}</td>'
        f'<td class="number"{since}>{seconds}</td></tr>'
    )


def _losses(status: RunStatus) -> str:
    """The curve of the training in progress, else of the last one that there is."""
    trained = [stage for stage in status.stages if stage.planned.step.stage == "train" and stage.state != "waiting"]
    for stage in reversed(trained):
        with suppress(CdkitError):
            rows = read_metrics(stage.planned.out / METRICS_NAME)
            if rows:
                return f"<h2>Loss of {escape(stage.name)}, step {rows[-1]['step']}</h2>\n{chart(rows)}"
    return ""


def _caption(name: str, path: Path) -> str:
    step = re.fullmatch(r"step-0*(\d+)", path.stem)
    return f"{name}, step {step[1]}" if step else name


def _notes(status: RunStatus) -> str:
    parts: list[str] = []
    for stage in status.stages:
        said: Sequence[str] = [note for note in stage.notes if not _SHOWN_ELSEWHERE.match(note)]
        if said:
            lines = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(said))
            parts.append(f"<p>{escape(stage.name)}</p><ul>{lines}</ul>")
    return f"<h2>What was said</h2>\n{''.join(parts)}" if parts else ""
