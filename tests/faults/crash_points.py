"""The folders that a kill or a power loss may leave, made from a recorded run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from tests.faults.recorder import FOLDER, Effect, Entry, Recording, Tree


@dataclass(frozen=True)
class Point:
    """One folder to go on from. label: what had just been done, or was half done."""

    label: str
    tree: Tree

    @property
    def mark(self) -> str:
        """What tells folders apart; inodes do not."""
        return json.dumps(sorted((name, entry.content) for name, entry in self.tree.items()))


def kill_points(recording: Recording) -> Iterator[Point]:
    """Before every effect, and between two of them with each file written in between cut short or still empty."""
    before = recording.trees[0]
    for effect, tree in zip(recording.effects, recording.trees, strict=True):
        for name, entry in tree.items():
            if entry.content.startswith((FOLDER, "link ")) or before.get(name) == entry:
                continue
            if _moved(before, entry):
                continue
            content = recording.contents.bytes[entry.content]
            kept = recording.contents.bytes.get(before[name].content, b"") if name in before else b""
            start = len(kept) if content.startswith(kept) else 0
            for what, size in (("empty", start), ("half", (start + len(content)) // 2)):
                torn = replace(entry, content=recording.contents.keep(content[:size]))
                yield Point(f"{name} written {what} before {effect}", {**tree, name: torn})
        yield Point(f"before {effect}", tree)
        before = tree


def _moved(before: Tree, entry: Entry) -> bool:
    """Whether a file only has another name than it had."""
    return any(entry == other for other in before.values())


@dataclass
class Disk:
    """What is on the disk for sure: each file's content at its last flush, each folder's names at its last flush."""

    contents: dict[int, str] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)

    def flush(self, tree: Tree, effect: Effect) -> None:
        name = effect.paths[0]
        if name != "." and name in tree and tree[name].content != FOLDER:
            self.contents[tree[name].number] = tree[name].content
        elif name == "." or name in tree:
            self._flush_names(tree, "" if name == "." else name)

    def _flush_names(self, tree: Tree, folder: str) -> None:
        number = tree[folder].number if folder else ROOT
        before, now = self.names.get(number, {}), children(tree, folder)
        self.names[number] = now
        # A renaming from one folder to another is on the disk as a whole.
        moved = {*before.values()} - {*now.values()}
        for name, entry in tree.items() if moved else ():
            if entry.number in moved:
                parent, _, last = name.rpartition("/")
                self.names.setdefault(tree[parent].number if parent else ROOT, {})[last] = entry.number
        for other, names in self.names.items():
            gone = {name for name, entry in names.items() if entry in now.values()} if other != number else set()
            self.names[other] = {name: entry for name, entry in names.items() if name not in gone}


def children(tree: Tree, folder: str) -> dict[str, int]:
    """Names in a folder and the inodes they lead to."""
    start = f"{folder}/" if folder else ""
    return {
        name[len(start) :]: entry.number
        for name, entry in tree.items()
        if name.startswith(start) and "/" not in name[len(start) :]
    }


ROOT = -1


def power_loss_points(recording: Recording) -> Iterator[Point]:
    """Folders after a power loss at every effect: what was not flushed is gone, or there out of order."""
    disk, known = Disk(), dict[int, str]()
    start = recording.trees[0]
    for name, entry in start.items():
        disk.contents[entry.number] = entry.content
        if entry.content == FOLDER:
            disk.names[entry.number] = children(start, name)
    disk.names[ROOT] = children(start, "")
    empty = recording.contents.keep(b"")
    for effect, tree in zip(recording.effects, recording.trees, strict=True):
        known.update({entry.number: entry.content for entry in tree.values()})
        now = {ROOT: children(tree, "")}
        now |= {entry.number: children(tree, name) for name, entry in tree.items() if entry.content == FOLDER}
        flushed = {number: disk.contents.get(number, _lost(content, empty)) for number, content in known.items()}
        old = {folder: disk.names.get(folder, {}) for folder in now}
        yield Point(f"contents lost before {effect}", assemble(now, flushed))
        yield Point(f"names lost before {effect}", assemble(old, known))
        yield Point(f"names and contents lost before {effect}", assemble(old, flushed))
        paths = {entry.number: name for name, entry in tree.items()}
        for what, names in _out_of_order(old, now, paths):
            yield Point(f"{what} before {effect}", assemble(names, known))
        if effect.kind == "fsync":
            disk.flush(tree, effect)


Names = dict[int, dict[str, int]]


def _out_of_order(old: Names, now: Names, paths: Mapping[int, str]) -> Iterator[tuple[str, Names]]:
    """Some of the changes of names that were not flushed: one folder's, all but one folder's, a single one."""
    changed = [folder for folder in now if now[folder] != old[folder]]
    for folder in changed if len(changed) > 1 else ():
        path = paths.get(folder, ".")
        yield f"only {path} changed", _renamed({**old, folder: now[folder]}, old, now)
        yield f"all but {path} changed", _renamed({**now, folder: old[folder]}, old, now)
    for folder in changed:
        names = {name for name in {*now[folder], *old[folder]} if now[folder].get(name) != old[folder].get(name)}
        for name in sorted(names) if len(names) > 1 else ():
            single = {key: number for key, number in old[folder].items() if key != name}
            single |= {name: now[folder][name]} if name in now[folder] else {}
            yield f"only {paths.get(folder, '.')}/{name} changed", _renamed({**old, folder: single}, old, now)


def _renamed(mixed: Names, old: Names, now: Names) -> Names:
    """A file that was renamed has one of its names: file systems lose either the whole of a renaming or nothing."""
    there = {number for names in mixed.values() for number in names.values()}
    kept = {number for names in now.values() for number in names.values()} - there
    for folder, names in old.items():
        back = {name: number for name, number in names.items() if number in kept}
        if back:
            mixed = {**mixed, folder: {**mixed[folder], **back}}
    return mixed


def _lost(content: str, empty: str) -> str:
    return content if content == FOLDER or content.startswith("link ") else empty


def assemble(names: Mapping[int, Mapping[str, int]], contents: Mapping[int, str]) -> Tree:
    """The tree that folders' names and files' contents make up."""
    tree: Tree = {}
    waiting = [("", ROOT)]
    while waiting:
        path, folder = waiting.pop()
        for name, number in names.get(folder, {}).items():
            place = f"{path}/{name}" if path else name
            tree[place] = Entry(contents[number], number)
            if contents[number] == FOLDER:
                waiting.append((place, number))
    return tree


def distinct(points: Iterator[Point], wanted: Callable[[int], bool] = lambda number: True) -> tuple[int, list[Point]]:
    """How many points there are, and those wanted among the ones that differ."""
    marks: dict[str, Point] = {}
    tried = 0
    for point in points:
        tried += 1
        marks.setdefault(point.mark, point)
    return tried, [point for number, point in enumerate(marks.values()) if wanted(number)]
