"""Decisions by hand: which pictures of a set somebody rejected, as a log in which nothing is ever overwritten.

`cdkit review` writes them, `cdkit retrieve --decisions` reads them: a picture that was rejected, and what looks like
it, does not come back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cdkit.core.errors import InputError
from cdkit.core.shards import write_shard
from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.urls import spellings

if TYPE_CHECKING:
    import pyarrow as pa

BY_HAND = "rejected by hand"
DECISIONS_NAME = "decisions.parquet"
_PHASH = re.compile(r"[0-9a-fA-F]{1,16}")
Action = Literal["reject", "restore"]


@dataclass(frozen=True)
class Decision:
    """One picture decided at one time. step: counts what was done, several pictures at once being one step.

    undoes: the step this one takes back. sha256: of the original file, phash: its 64-bit perceptual hash, both in
    hex; key: in the set it was decided in; decided: UTC, ISO 8601.
    """

    step: int
    action: Action
    key: str
    sha256: str
    phash: str
    url: str | None
    caption: str
    decided: str
    undoes: int | None = None

    @property
    def picture(self) -> str:
        """What tells pictures apart, also in another set."""
        return self.sha256 or self.url or self.key


@dataclass(frozen=True)
class Decisions:
    """A log of decisions, oldest first; what was said last of a picture holds."""

    log: tuple[Decision, ...] = ()

    @cached_property
    def rejected(self) -> dict[str, Decision]:
        """The pictures that are rejected now, by what tells them apart."""
        last = {decision.picture: decision for decision in self.log}
        return {picture: decision for picture, decision in last.items() if decision.action == "reject"}

    @cached_property
    def hashes(self) -> frozenset[str]:
        return frozenset(decision.sha256 for decision in self.rejected.values() if decision.sha256)

    @cached_property
    def perceptual(self) -> tuple[int, ...]:
        return tuple(int(decision.phash, 16) for decision in self.rejected.values() if decision.phash)

    @cached_property
    def urls(self) -> frozenset[str]:
        return frozenset(form for decision in self.rejected.values() for form in _forms(decision.url))

    def refuse(self, url: str | None) -> bool:
        """Whether the picture at a URL, however it is spelt, was rejected: it need not be fetched again."""
        return bool(self.urls) and not self.urls.isdisjoint(_forms(url))

    @property
    def steps(self) -> int:
        """How many steps there are; the next one has this number."""
        return max((decision.step for decision in self.log), default=-1) + 1

    def decide(self, action: Action, pictures: Iterable[Decision], decided: str) -> Decisions:
        """The log with one further step: pictures rejected or restored. Those that are so already are left out."""
        changed = [
            replace(picture, step=self.steps, action=action, decided=decided, undoes=None)
            for picture in pictures
            if (picture.picture in self.rejected) != (action == "reject")
        ]
        return Decisions((*self.log, *changed))

    def undo(self, decided: str) -> Decisions:
        """The log with the last step that still holds taken back; the same log where there is none."""
        undone = {decision.undoes for decision in self.log}
        open_steps = [entry.step for entry in self.log if entry.undoes is None and entry.step not in undone]
        if not open_steps:
            return self
        last = max(open_steps)
        opposite: Mapping[Action, Action] = {"reject": "restore", "restore": "reject"}
        taken_back = [
            replace(entry, step=self.steps, action=opposite[entry.action], decided=decided, undoes=last)
            for entry in self.log
            if entry.step == last
        ]
        return Decisions((*self.log, *taken_back))

    def write(self, path: Path) -> None:
        """Write the log, whole or not at all."""
        import pyarrow as pa

        table = pa.Table.from_pylist([asdict(decision) for decision in self.log], schema=_columns())
        write_shard(path, table, fingerprint="decisions")


@cache
def _columns() -> pa.Schema:
    import pyarrow as pa

    numbers = [("step", pa.int64()), ("undoes", pa.int64())]
    return pa.schema(
        numbers + [(entry.name, pa.string()) for entry in fields(Decision) if entry.name not in dict(numbers)]
    )


def _forms(url: str | None) -> list[str]:
    try:
        return [form.text for form in spellings(url)] if url else []
    except FetchFailure:
        return []


def read_decisions(path: Path) -> Decisions:
    """Read a log; raises InputError when there is none, or the file is something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, hint = _columns(), "Give the decisions.parquet that cdkit review wrote."
    if not path.is_file():
        raise InputError(f"There are no decisions at {path}.", hint=hint)
    try:
        table = pq.ParquetFile(path).read(columns=columns.names).cast(columns)
        decisions = [Decision(**row) for row in table.to_pylist()]
        for decision in decisions:
            _check(decision)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no decisions: {error}", hint=hint) from error
    if any(decision.action not in ("reject", "restore") for decision in decisions):
        raise InputError(f"{path} holds actions that are neither reject nor restore.", hint=hint)
    return Decisions(tuple(decisions))


def _check(decision: Decision) -> None:
    """Raise ValueError for values that no review writes."""
    if decision.step is None or decision.step < 0:
        raise ValueError(f"step {decision.step}")
    if not _PHASH.fullmatch(decision.phash or "0"):
        raise ValueError(f"perceptual hash {decision.phash[:40]!r}")
    if not (decision.sha256 or decision.url or decision.key):
        raise ValueError("a decision about no picture")


def read_all_decisions(paths: Sequence[str]) -> Decisions:
    """Several logs as one: a picture is rejected when any of them rejects it."""
    logs = [read_decisions(Path(path)) for path in paths]
    return Decisions(tuple(decision for log in logs for decision in log.rejected.values()))
