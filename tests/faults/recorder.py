"""What a run does to the files below a folder, effect by effect, with the folder as it stood before each of them.

Python tells of every file it opens, renames or deletes (`sys.addaudithook`), before it does so. The folder at that
moment is what a kill at that moment leaves; what libraries in C++ wrote in between shows in it as well. Files that
changed since the effect before are torn in half for the states in between. Flushes (`os.fsync`) are noted too: what
was not flushed may be gone after a power loss, in any order.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
)
# The process number in a temporary's name: the one that goes on after a kill is another process.
OWN_NUMBER = re.compile(rf"\.tmp-{os.getpid()}-")
FOLDER = "folder"


@dataclass(frozen=True)
class Effect:
    """One change that is about to happen: its kind, the paths it names, relative to the watched folder."""

    kind: str
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {' → '.join(self.paths)}"


@dataclass(frozen=True)
class Entry:
    """A file, folder or link. content: what a file holds by its hash, where a link leads; number: which one it is,
    whatever its name: an inode's number, but for one that was used again."""

    content: str
    number: int


Tree = dict[str, Entry]


@dataclass
class Watch:
    """Calls `effect` before each change below `root`, from whichever thread it comes."""

    root: Path
    effect: Callable[[Effect], None]
    guard: threading.RLock = field(default_factory=threading.RLock)
    inside: bool = False

    def event(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open":
            path, _, flags = arguments
            named = [path] if isinstance(flags, int) and flags & WRITING else []
        elif name in ("os.rename", "os.link"):
            named = [_at(arguments[0], arguments[2]), _at(arguments[1], arguments[3])]
        elif name in ("os.remove", "os.rmdir"):
            named = [_at(*arguments[:2])]
        elif name in CHANGES:
            named = [_at(arguments[1] if name == "os.symlink" else arguments[0], arguments[-1])]
        else:
            return
        if inside := self.below(named):
            self.tell(Effect(name, inside))

    def below(self, named: list[Any]) -> tuple[str, ...]:
        """The named paths that lie in the folder, relative to it."""
        texts = [os.path.abspath(os.fsdecode(path)) for path in named if isinstance(path, str | bytes | os.PathLike)]
        return tuple(os.path.relpath(text, self.root) for text in texts if text.startswith(f"{self.root}{os.sep}"))

    def tell(self, effect: Effect) -> None:
        with self.guard:
            if not self.inside:
                self.inside = True
                try:
                    self.effect(effect)
                finally:
                    self.inside = False


_WATCHES: list[Watch] = []


def _at(path: Any, folder: Any) -> Any:
    """A path that is relative to an open folder."""
    if isinstance(folder, int) and folder >= 0 and isinstance(path, str | bytes):
        with suppress(OSError):
            return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
    return path


def _hook(name: str, arguments: tuple[Any, ...]) -> None:
    for watch in _WATCHES:
        watch.event(name, arguments)


@contextmanager
def watching(root: Path, effect: Callable[[Effect], None]) -> Iterator[None]:
    """Have `effect` called before each change below `root`, and before each flush of a file or folder there."""
    if not hasattr(_hook, "added"):
        # A hook cannot be taken out again; without a watch it does nothing.
        sys.addaudithook(_hook)
        _hook.added = True  # type: ignore[attr-defined]
    watch, flush = Watch(root, effect), os.fsync

    def fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if inside := watch.below([os.readlink(f"/proc/self/fd/{number}") + "/."]):
            watch.tell(Effect("fsync", inside))
        elif os.readlink(f"/proc/self/fd/{number}") == str(root):
            watch.tell(Effect("fsync", (".",)))
        flush(descriptor)

    _WATCHES.append(watch)
    os.fsync = fsync
    try:
        yield
    finally:
        os.fsync = flush
        _WATCHES.remove(watch)


class Contents:
    """Trees of a folder, every file's content kept once."""

    def __init__(self) -> None:
        self.bytes: dict[str, bytes] = {}
        self._seen: dict[tuple[int, ...], str] = {}
        self._numbers: dict[int, int] = {}
        self._given = 0

    def keep(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.bytes.setdefault(digest, content)
        return digest

    def tree(self, root: Path) -> Tree:
        """The folder as it is now."""
        tree: Tree = {}
        waiting = [str(root)]
        while waiting:
            with suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        tree[os.path.relpath(entry.path, root)] = self._entry(entry)
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
        there = {entry.number for entry in tree.values()}
        self._numbers = {inode: number for inode, number in self._numbers.items() if number in there}
        return tree

    def _number(self, inode: int) -> int:
        if inode not in self._numbers:
            self._given += 1
            self._numbers[inode] = self._given
        return self._numbers[inode]

    def _entry(self, entry: os.DirEntry[str]) -> Entry:
        status = entry.stat(follow_symlinks=False)
        number = self._number(status.st_ino)
        if entry.is_dir(follow_symlinks=False):
            return Entry(FOLDER, number)
        if entry.is_symlink():
            return Entry(f"link {os.readlink(entry.path)}", number)
        mark = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if mark not in self._seen:
            self._seen[mark] = self.keep(Path(entry.path).read_bytes())
        return Entry(self._seen[mark], number)

    def build(self, tree: Tree, root: Path) -> None:
        """Make the folder as it was, with temporaries of a process that is no more."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        for name in sorted(tree):
            path, content = root / OWN_NUMBER.sub(".tmp-1-", name), tree[name].content
            path.parent.mkdir(parents=True, exist_ok=True)
            if content == FOLDER:
                path.mkdir(exist_ok=True)
            elif content.startswith("link "):
                path.symlink_to(content.removeprefix("link "))
            else:
                path.write_bytes(self.bytes[content])


@dataclass
class Recording:
    """A run's effects, the folder before each, and at last the folder it left."""

    contents: Contents = field(default_factory=Contents)
    effects: list[Effect] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)

    def record(self, root: Path, run: Callable[[], object]) -> None:
        def effect(effect: Effect) -> None:
            self.effects.append(effect)
            self.trees.append(self.contents.tree(root))

        with watching(root, effect):
            run()
        self.effects.append(Effect("end", ()))
        self.trees.append(self.contents.tree(root))
