"""Report section of the samples: for each concept its photos beside one prompt at the same seeds, before and after."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cdkit.core.errors import CdkitError
from cdkit.evaluation.samples import find_tokens, without_tokens
from cdkit.pictures.picture import png_texts
from cdkit.pictures.reading import read_pictures
from cdkit.report.picture_box import PictureBox, Shown
from cdkit.report.run_folder import RunFolder, StepFolder
from cdkit.report.subjects import Subject, joined

PROMPTS_SHOWN = 8
SEEDS_SHOWN = 6
ROWS_SHOWN = 40
SIDE = 200
PHOTOS_SHOWN = 8
PHOTO_SIDE = 150
TABLE_NAME = "samples.parquet"
# What a row shows, in the order of the rows.
BEFORE, AFTER, MERGED, BARE = "before", "after", "merged", ", without the new word"
ORDER = (BEFORE, AFTER, MERGED, AFTER + BARE, MERGED + BARE)


@dataclass(frozen=True)
class GridRow:
    """One set's images of one prompt, a place per seed; None where it has none. label: what it is among the rows of
    its grid; detail: where that comes from."""

    label: str
    detail: str
    prompt: str
    images: Sequence[Shown | None]
    order: tuple[int, int]

    @property
    def is_base(self) -> bool:
        """Whether the base model drew it."""
        return self.order[0] == ORDER.index(BEFORE)

    @property
    def concepts(self) -> int:
        """How many modifier tokens the prompt has."""
        return len(find_tokens(self.prompt))


@dataclass(frozen=True)
class PromptGrid:
    """All sets' images of one prompt at the same seeds."""

    prompt: str
    seeds: Sequence[int]
    rows: Sequence[GridRow]


@dataclass(frozen=True)
class Photos:
    """A concept's photos as training was given them."""

    subject: Subject
    shown: Sequence[Shown]
    total: int
    problem: str = ""


@dataclass(frozen=True)
class ResultGroup:
    """What was drawn of some concepts together: their photos, and a grid per prompt; of none: other prompts."""

    photos: Sequence[Photos]
    grids: Sequence[PromptGrid]
    prompts: int

    @property
    def alone(self) -> Photos | None:
        """The photos of a group of one concept."""
        return self.photos[0] if len(self.photos) == 1 else None

    @property
    def anchor(self) -> str:
        """The end of its address on the page."""
        words = "-".join(photos.subject.anchor for photos in self.photos) or "other"
        return "".join(letter if letter.isalnum() else "-" for letter in words)

    @property
    def title(self) -> str:
        """`Striped star`, `Striped star and checkered heart in one picture`."""
        names = [photos.subject.name for photos in self.photos]
        if not names:
            return "Other prompts"
        title = joined(names) + (" in one picture" if len(names) > 1 else "")
        return title[:1].upper() + title[1:]


@dataclass(frozen=True)
class ImagesSection:
    """The groups, how many prompts and images there are in all, and how the images were drawn."""

    groups: Sequence[ResultGroup]
    prompts: int
    images: int
    drawn: Sequence[tuple[str, str]]

    @property
    def grids(self) -> list[PromptGrid]:
        """The grids of all groups."""
        return [grid for group in self.groups for grid in group.grids]

    @property
    def hero(self) -> tuple[GridRow, Sequence[int]] | None:
        """The images for the head of the page, and their seeds: a prompt with most concepts in it, drawn last.

        None where a concept was taught, and only the base model has drawn yet.
        """
        if not self.grids:
            return None
        grid = max(self.grids, key=lambda grid: max(row.concepts for row in grid.rows))
        row = max(reversed(grid.rows), key=lambda row: row.concepts)
        taught = any(group.photos for group in self.groups)
        return None if taught and row.is_base else (row, grid.seeds)


@dataclass(frozen=True)
class DrawnImage:
    """An image that a step drew, and for what."""

    path: Path
    prompt: str
    seed: int


Rows = dict[tuple[str, str], list[DrawnImage]]
# A prompt without its tokens, and its rows.
Asked = tuple[str, Rows]


def images_section(run: RunFolder, subjects: Sequence[Subject], pictures: PictureBox) -> ImagesSection | None:
    """Photos and grids by concept, what shows one first, then several; None when there is neither."""
    sets = {step.name: (step, drawn_images(step)) for step in run.of_stage("sample")}
    sets = {name: entry for name, entry in sets.items() if entry[1]}
    by_prompt: dict[str, Rows] = {}
    tokens = list(dict.fromkeys(token for subject in subjects for token in subject.tokens))
    tokens += [str(t) for step, _ in sets.values() for t in step.details.get("tokens", []) if t not in tokens]
    for name, (_, images) in sets.items():
        for image in images:
            plain = without_tokens(image.prompt, tokens)
            by_prompt.setdefault(plain, {}).setdefault((name, image.prompt), []).append(image)
    grouped = _grouped(by_prompt, subjects, tokens)
    chosen = _fitting(grouped)
    photos = {subject: _photos(subject, pictures) for subject in subjects}
    groups = []
    for key in [*((subject,) for subject in subjects if (subject,) not in chosen), *chosen]:
        grids = [_grid(plain, rows, run, sets, tokens, pictures) for plain, rows in chosen.get(key, [])]
        groups.append(ResultGroup([photos[subject] for subject in key], grids, len(grouped.get(key, []))))
    if not groups:
        return None
    drawn = [(name, _drawn_with(step)) for name, (step, _) in sets.items()]
    return ImagesSection(groups, len(by_prompt), sum(len(images) for _, images in sets.values()), drawn)


def _grouped(
    by_prompt: Mapping[str, Rows], subjects: Sequence[Subject], tokens: Sequence[str]
) -> dict[tuple[Subject, ...], list[Asked]]:
    """Prompts by the concepts they are about: one concept, in their order, then several, then none; those that most
    sets share first."""
    groups: defaultdict[tuple[Subject, ...], list[Asked]] = defaultdict(list)
    for plain, rows in by_prompt.items():
        for key, own in _parted(plain, rows, subjects, tokens).items():
            groups[key].append((plain, own))
    place = {subject: number for number, subject in enumerate(subjects)}
    keys = sorted(groups, key=lambda key: (not key, len(key), [place[subject] for subject in key]))
    return {key: sorted(groups[key], key=lambda asked: -_interest(asked[1])) for key in keys}


def _parted(
    plain: str, rows: Rows, subjects: Sequence[Subject], tokens: Sequence[str]
) -> dict[tuple[Subject, ...], Rows]:
    """The rows of a prompt by the concepts they are about: only tokens tell concepts of one word apart.

    A set without a token in the prompt stands beside all of them.
    """
    asking: dict[tuple[Subject, ...], set[str]] = {}
    keys: dict[tuple[str, str], tuple[Subject, ...]] = {}
    for name, prompt in rows:
        if find_tokens(prompt, tokens):
            key = tuple(subject for subject in subjects if subject.is_in(prompt, tokens))
            keys[name, prompt] = key
            asking.setdefault(key, set()).add(name)
    if not asking:
        return {tuple(subject for subject in subjects if subject.is_in(plain, tokens)): rows}
    named = set().union(*asking.values())
    return {
        key: {
            row: images
            for row, images in rows.items()
            if keys.get(row, key) == key and (row[0] in names or row[0] not in named)
        }
        for key, names in asking.items()
    }


def _fitting(grouped: Mapping[tuple[Subject, ...], Sequence[Asked]]) -> dict[tuple[Subject, ...], list[Asked]]:
    """Some prompts of every group in turn, fewer where many sets make every grid tall; always one."""
    chosen: dict[tuple[Subject, ...], list[Asked]] = {key: [] for key in grouped}
    prompts = rows = 0
    for turn in zip_longest(*grouped.values()):
        for key, asked in zip(grouped, turn, strict=True):
            if asked is None:
                continue
            prompts, rows = prompts + 1, rows + len(asked[1])
            if prompts > 1 and (prompts > max(PROMPTS_SHOWN, len(grouped)) or rows > ROWS_SHOWN):
                return {key: prompts for key, prompts in chosen.items() if prompts}
            chosen[key].append(asked)
    return chosen


def _interest(rows: Rows) -> int:
    """Prompts with a modifier token and in most sets come first."""
    tokens = any(find_tokens(prompt) for _, prompt in rows)
    return 2 * len({name for name, _ in rows}) + tokens


def _photos(subject: Subject, pictures: PictureBox) -> Photos:
    try:
        photos = read_pictures(subject.photos).without_others().pictures
        opened = ((number, photo.open()) for number, photo in enumerate(photos[:PHOTOS_SHOWN]))
        shown = [pictures.image(image, PHOTO_SIDE, f"photo-{subject.anchor}-{number}") for number, image in opened]
    except CdkitError as error:
        return Photos(subject, (), 0, error.message)
    return Photos(subject, [photo for photo in shown if photo is not None], len(photos))


def drawn_images(step: StepFolder) -> list[DrawnImage]:
    """The images a step drew; of an interrupted one those that are there, by their own captions."""
    import pyarrow.parquet as pq

    if (step.path / TABLE_NAME).exists():
        rows: list[dict[str, Any]] = pq.read_table(step.path / TABLE_NAME).to_pylist()
        return [DrawnImage(step.path / row["path"], str(row["prompt"]), int(row["seed"])) for row in rows]
    return [image for path in sorted((step.path / "images").glob("*.png")) if (image := _captioned(path)) is not None]


def _captioned(path: Path) -> DrawnImage | None:
    texts = png_texts(path)
    prompt, seed = texts.get("prompt", ""), texts.get("seed", "0")
    return DrawnImage(path, prompt, int(seed)) if prompt and seed.isdecimal() else None


def _grid(
    plain: str,
    rows: Rows,
    run: RunFolder,
    sets: Mapping[str, tuple[StepFolder, list[DrawnImage]]],
    tokens: Sequence[str],
    box: PictureBox,
) -> PromptGrid:
    """A row per set and wording of the prompt: a tuned model may have drawn it with its token and without."""
    counts = Counter(seed for images in rows.values() for seed in {image.seed for image in images})
    seeds = sorted(sorted(counts, key=lambda seed: (-counts[seed], seed))[:SEEDS_SHOWN])
    names = list(sets)
    kinds = {(name, prompt): row_kind(run, sets[name][0], prompt, tokens) for name, prompt in rows}
    often = Counter(kinds.values())
    grid_rows = []
    for (name, prompt), kind in kinds.items():
        by_seed = {image.seed: image for image in rows[name, prompt]}
        shown = [
            box.file(by_seed[seed].path, SIDE, f"{name} {prompt[:40]} {seed}") if seed in by_seed else None
            for seed in seeds
        ]
        # Where several rows are the same to what was asked, the steps' names tell them apart.
        label, detail = (kind, name) if often[kind] == 1 else (name, kind)
        grid_rows.append(GridRow(label, detail, prompt, shown, (ORDER.index(kind), names.index(name))))
    return PromptGrid(plain, seeds, sorted(grid_rows, key=lambda row: row.order))


def row_kind(run: RunFolder, step: StepFolder, prompt: str, tokens: Sequence[str]) -> str:
    """What a set of samples is among others: before, after or merged, and after without the new word."""
    deltas, asked = run.deltas_of(step), find_tokens(prompt, tokens)
    if not (asked or deltas or step.values.get("deltas") or step.details.get("tokens")):
        return BEFORE
    kind = MERGED if any(delta.stage == "merge" for delta in deltas) else AFTER
    return kind if asked else kind + BARE


def _drawn_with(step: StepFolder) -> str:
    details = step.details
    if not details:
        return "settings not recorded yet"
    parts = [f"{details.get('scheduler')}", f"{details.get('steps')} steps", f"guidance {details.get('guidance')}"]
    return ", ".join(part for part in parts if "None" not in part)
