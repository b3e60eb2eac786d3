"""The indexes that are served, by name; what another process adds or removes is seen with the next request."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cdkit.captions.pools import safety
from cdkit.core.errors import ConfigError, InputError
from cdkit.core.formatting import without_userinfo
from cdkit.core.manifest import MANIFEST_NAME
from cdkit.core.protocols import TextEncoder
from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.urls import spellings, unescaped
from cdkit.index.caption_index import CaptionIndex, open_index
from cdkit.index.changes.transaction import COMMIT_NAME, PENDING_NAME
from cdkit.index.records import GroupMemory, Records
from cdkit.index.search import Match
from cdkit.serving.shared_encoder import SharedEncoder

Answer = TypeVar("Answer")
# Changes that may fall into one answer before it is given up.
TRIES = 4
# Rows of captions and images that an index keeps decoded; reading them is most of a search's work.
MEMORY_BYTES = 512 << 20
# What public recipes ask for means the first index here.
PUBLIC_NAMES = "laion"


def _stamp(folder: Path) -> tuple[Any, ...]:
    """What differs after every change of an index, and while one is half done."""
    try:
        facts = os.stat(folder / MANIFEST_NAME)
    except OSError:
        return ()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, (folder / PENDING_NAME / COMMIT_NAME).exists()


@dataclass
class ServedIndex:
    """One index folder, opened. blocked: URLs that never come out, as parse_url writes them, and md5 of files."""

    folder: Path
    encoder: SharedEncoder
    blocked: frozenset[str] = frozenset()
    _opened: CaptionIndex | None = None
    _stamp: tuple[Any, ...] = ()
    _opening: threading.Lock = field(default_factory=threading.Lock)

    def current(self) -> CaptionIndex:
        """The index as it stands now; raises InputError when the folder holds no index of this encoder any more."""
        return self._state()[0]

    def _state(self) -> tuple[CaptionIndex, tuple[Any, ...]]:
        with self._opening:
            stamp = _stamp(self.folder)
            if self._opened is None or stamp != self._stamp:
                opened = open_index(self.folder, self.encoder)
                # Rows remembered of an earlier state must not come back.
                records = Records(self.folder, GroupMemory(MEMORY_BYTES))
                self._opened, self._stamp = replace(opened, records=records), stamp
            return self._opened, self._stamp

    def ask(self, question: Callable[[CaptionIndex], Answer]) -> Answer:
        """The answer to a question, asked again when the index changed meanwhile: no answer mixes two states."""
        for _ in range(TRIES):
            opened, before = self._state()
            try:
                answer = question(opened)
            except (InputError, OSError, LookupError):
                if _stamp(self.folder) == before:
                    raise
                continue
            if _stamp(self.folder) == before:
                return answer
        raise InputError(f"{self.folder} is being changed all the time.", hint="Ask again in a moment.")

    def visible(self, match: Match) -> Match | None:
        """A caption with the image rows that may be shown; None when every one it has is unsafe or blocked."""
        rows = [shown for row in match.rows if (shown := self.visible_row(row)) is not None]
        return replace(match, rows=rows) if rows or not match.rows else None

    def visible_row(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """An image row without a password in its URL; None when it is unsafe or blocked."""
        if safety(row.get("nsfw"), row.get("punsafe")) == "unsafe":
            return None
        url = row.get("url")
        if self.blocked and not self.blocked.isdisjoint([*_forms(url), str(row.get("md5") or "").strip().lower()]):
            return None
        return {**row, "url": without_userinfo(unescaped(url))} if url else dict(row)


def _forms(url: str | None) -> list[str]:
    """However a URL is spelt: a list may have it as it stood in a page, or as browsers ask for it."""
    try:
        return [form.text for form in spellings(url)] if url else []
    except FetchFailure:
        return []


@dataclass(frozen=True)
class Catalogue:
    """Indexes by the names they are asked for; the first is what a request without a name means."""

    indexes: Mapping[str, ServedIndex]

    def named(self, name: str | None) -> tuple[str, ServedIndex]:
        """The index that a request means, under its name here; raises ConfigError for a name that means none.

        A single index answers to every name, and the first one to the names of LAION's own that recipes hold.
        """
        first = next(iter(self.indexes))
        if name is not None and name in self.indexes:
            return name, self.indexes[name]
        if not name or len(self.indexes) == 1 or name.lower().startswith(PUBLIC_NAMES):
            return first, self.indexes[first]
        raise ConfigError(f"There is no index {name!r} here.", hint=f"There are: {', '.join(self.indexes)}.")

    def captions(self) -> dict[str, int]:
        """How many captions each index holds now."""
        return {name: int(served.current().manifest.details["captions"]) for name, served in self.indexes.items()}


def open_catalogue(
    folders: Sequence[Path],
    names: Mapping[str, Path],
    *,
    blocked: frozenset[str] = frozenset(),
    encoder: TextEncoder | str | None = None,
) -> Catalogue:
    """Open indexes: each of `folders` under its folder's name, and those of `names`; equal encoders are loaded once.

    Raises ConfigError when there is none, or two would have one name, InputError for a folder that is no index.
    """
    named = [(folder.resolve().name, folder) for folder in folders] + list(names.items())
    twice = sorted({name for name, _ in named if [other for other, _ in named].count(name) > 1})
    if twice or not named:
        problem = f"Two indexes would be called {twice[0]!r}." if twice else "There is no index to serve."
        raise ConfigError(problem, hint="Name them: --name NAME=INDEX.")
    encoders: dict[str, SharedEncoder] = {}
    served: dict[Path, ServedIndex] = {}
    for _, folder in named:
        place = folder.resolve()
        if place not in served:
            served[place] = _serve(folder, encoders, blocked, encoder)
    return Catalogue({name: served[folder.resolve()] for name, folder in named})


def _serve(
    folder: Path,
    encoders: dict[str, SharedEncoder],
    blocked: frozenset[str],
    encoder: TextEncoder | str | None,
) -> ServedIndex:
    from cdkit.index.caption_index import settled_manifest

    weights = str(settled_manifest(folder).details["encoder"]["weights"])
    if weights not in encoders:
        encoders[weights] = SharedEncoder(open_index(folder, encoder).encoder)
    served = ServedIndex(folder, encoders[weights], blocked)
    served.current()
    return served
