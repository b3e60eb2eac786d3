"""Pictures on the page, and the section of the samples: one prompt at the same seeds, base model, tuned and merged."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.evaluation.samples import find_tokens, without_tokens
from cdkit.pictures.picture import png_texts
from cdkit.report.run_folder import StepFolder

if TYPE_CHECKING:
    from PIL import Image

SMALL = 128


@dataclass(frozen=True)
class Shown:
    """A picture on the page; pixels: so small that its pixels should stay sharp when enlarged."""

    uri: str
    width: int
    height: int
    pixels: bool


@dataclass
class PictureBox:
    """Encodes pictures up to `limit` bytes in all; `left_out` counts those that found no room."""

    limit: int
    used: int = 0
    left_out: int = 0
    unreadable: int = 0

    def file(self, path: Path, side: int) -> Shown | None:
        """The picture in a file, at most `side` pixels wide or high."""
        from cdkit.pictures.picture import open_file

        return self._opened(lambda: open_file(path), side)

    def content(self, content: bytes, side: int) -> Shown | None:
        """The picture that some bytes are."""
        from cdkit.pictures.decoding import open_bytes

        return self._opened(lambda: open_bytes(content, "a picture of a set"), side)

    def _opened(self, opening: Callable[[], Image.Image], side: int) -> Shown | None:
        try:
            return self.image(opening(), side)
        except InputError:
            self.unreadable += 1
            return None

    def image(self, image: Image.Image, side: int) -> Shown | None:
        """An RGB picture; None when there is no room left."""
        from PIL import Image

        upright = image.copy()
        pixels = max(upright.size) <= SMALL
        if max(upright.size) > side:
            upright.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        if pixels:
            upright.save(buffer, format="PNG", optimize=True)
        else:
            upright.save(buffer, format="JPEG", quality=82, optimize=True)
        content = buffer.getvalue()
        if self.used + len(content) > self.limit:
            self.left_out += 1
            return None
        self.used += len(content)
        kind = "png" if pixels else "jpeg"
        uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
        return Shown(uri, upright.width, upright.height, pixels)


PROMPTS_SHOWN = 8
SEEDS_SHOWN = 6
ROWS_SHOWN = 40
SIDE = 200
TABLE_NAME = "samples.parquet"


@dataclass(frozen=True)
class GridRow:
    """One set's images of one prompt, a place per seed; None where it has none."""

    label: str
    kind: str
    prompt: str
    images: Sequence[Shown | None]

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
class ImagesSection:
    """The grids, how many prompts there are in all, and how the images were drawn."""

    grids: Sequence[PromptGrid]
    prompts: int
    images: int
    drawn: Sequence[tuple[str, str]]

    @property
    def hero(self) -> tuple[GridRow, Sequence[int]]:
        """The images for the head of the page, and their seeds: a prompt with most concepts in it, drawn last."""
        grid = max(self.grids, key=lambda grid: max(row.concepts for row in grid.rows))
        return max(reversed(grid.rows), key=lambda row: row.concepts), grid.seeds


@dataclass(frozen=True)
class DrawnImage:
    """An image that a step drew, and for what."""

    path: Path
    prompt: str
    seed: int


def images_section(steps: Sequence[StepFolder], pictures: PictureBox) -> ImagesSection | None:
    """Grids of every prompt, those most sets share first; None when no step drew anything."""
    sets = {step.name: (step, drawn_images(step)) for step in steps}
    sets = {name: entry for name, entry in sets.items() if entry[1]}
    if not sets:
        return None
    by_prompt: dict[str, dict[tuple[str, str], list[DrawnImage]]] = {}
    for name, (step, images) in sets.items():
        tokens = [str(token) for token in step.details.get("tokens", [])]
        for image in images:
            plain = without_tokens(image.prompt, tokens)
            by_prompt.setdefault(plain, {}).setdefault((name, image.prompt), []).append(image)
    order = list(by_prompt)
    shared = sorted(order, key=lambda plain: (-_interest(by_prompt[plain]), order.index(plain)))
    grids = [_grid(plain, by_prompt[plain], sets, pictures) for plain in _fitting(shared, by_prompt)]
    drawn = [(name, _drawn_with(step)) for name, (step, _) in sets.items()]
    return ImagesSection(grids, len(by_prompt), sum(len(images) for _, images in sets.values()), drawn)


def _fitting(prompts: Sequence[str], by_prompt: dict[str, dict[tuple[str, str], list[DrawnImage]]]) -> list[str]:
    """The first prompts, fewer where many sets make every grid tall; always one."""
    chosen: list[str] = []
    rows = 0
    for plain in prompts[:PROMPTS_SHOWN]:
        rows += len(by_prompt[plain])
        if chosen and rows > ROWS_SHOWN:
            break
        chosen.append(plain)
    return chosen


def _interest(rows: dict[tuple[str, str], list[DrawnImage]]) -> int:
    """Prompts with a modifier token and in most sets come first."""
    tokens = any(find_tokens(prompt) for _, prompt in rows)
    return 2 * len({name for name, _ in rows}) + tokens


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
    rows: dict[tuple[str, str], list[DrawnImage]],
    sets: dict[str, tuple[StepFolder, list[DrawnImage]]],
    box: PictureBox,
) -> PromptGrid:
    """A row per set and wording of the prompt: a tuned model may have drawn it with its token and without."""
    counts = Counter(seed for images in rows.values() for seed in {image.seed for image in images})
    seeds = sorted(sorted(counts, key=lambda seed: (-counts[seed], seed))[:SEEDS_SHOWN])
    names = list(sets)
    grid_rows = []
    for name, prompt in sorted(rows, key=lambda row: (names.index(row[0]), len(find_tokens(row[1])))):
        by_seed = {image.seed: image for image in rows[name, prompt]}
        shown = [box.file(by_seed[seed].path, SIDE) if seed in by_seed else None for seed in seeds]
        grid_rows.append(GridRow(name, _kind(sets[name][0]), prompt, shown))
    return PromptGrid(plain, seeds, grid_rows)


def _kind(step: StepFolder) -> str:
    deltas = step.values.get("deltas") or step.details.get("tokens")
    if not deltas:
        return "base model"
    return ", ".join(str(delta) for delta in deltas) if isinstance(deltas, list) else str(deltas)


def _drawn_with(step: StepFolder) -> str:
    details = step.details
    if not details:
        return "settings not recorded yet"
    parts = [f"{details.get('scheduler')}", f"{details.get('steps')} steps", f"guidance {details.get('guidance')}"]
    return ", ".join(part for part in parts if "None" not in part)
