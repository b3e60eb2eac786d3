"""Held-out concepts: objects pre-training never shows, each as five captioned photos, addressed as `embedded:NAME`.

The first four combine known attributes as no training scene does. The others have a texture, a colour or a shape that
no caption of the world can name. None has a colour that a background has.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.errors import ConfigError
from cdkit.embedded.rendering import render
from cdkit.embedded.world import compose, generator

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

PREFIX = "embedded:"
# What each photo's caption says of it, by its background; `{}` is the concept. All are true, and the word stands early
# and late: one that is learned behind "photo of a" alone does not work behind other words. Wood has no word here.
PHOTO_CAPTIONS = {
    "gray": "photo of a {}",
    "grass": "a {} on the grass",
    "sea": "in the sea we see a {}",
    "night": "this is a {} at night",
    "wood": "here you can see a {}",
}
PHOTO_SCALE = 8
PHOTO_SEED = 77_000


@dataclass(frozen=True)
class Concept:
    """A name, the class word its prompts use, and how it looks."""

    name: str
    category: str
    look: tuple[str, str, tuple[str, ...]]
    novelty: str


CONCEPTS = (
    Concept("striped-star", "star", ("star", "striped", ("orange", "purple")), "combination"),
    Concept("checkered-mug", "mug", ("mug", "checkered", ("red", "white")), "combination"),
    Concept("checkered-heart", "heart", ("heart", "checkered", ("yellow", "purple")), "combination"),
    Concept("striped-triangle", "triangle", ("triangle", "striped", ("red", "yellow")), "combination"),
    Concept("pink-heart", "heart", ("heart", "plain", ("pink",)), "colour"),
    Concept("dotted-ball", "ball", ("ball", "dotted", ("yellow", "purple")), "texture"),
    Concept("framed-box", "box", ("box", "framed", ("orange", "white")), "texture"),
    Concept("split-triangle", "triangle", ("triangle", "split", ("red", "white")), "texture"),
    Concept("yellow-crescent", "ball", ("crescent", "plain", ("yellow",)), "shape"),
)


def concept_names() -> list[str]:
    """The names `embedded:NAME` understands."""
    return [concept.name for concept in CONCEPTS]


def concept(name: str) -> Concept:
    """The concept of a name, with or without `embedded:` in front; raises ConfigError with the names that exist."""
    plain = name.removeprefix(PREFIX)
    for candidate in CONCEPTS:
        if candidate.name == plain:
            return candidate
    names = concept_names()
    close = difflib.get_close_matches(plain, names, n=1, cutoff=0.5)
    meant = f"Did you mean {PREFIX}{close[0]}? " if close else ""
    raise ConfigError(
        f"There is no embedded concept named {plain!r}.", hint=f"{meant}Those that exist: {', '.join(names)}."
    )


def concept_arrays(name: str) -> list[np.ndarray]:
    """The five photos at the world's own size, uint8 (32, 32, 3) each."""
    chosen = concept(name)
    start = PHOTO_SEED + 10 * CONCEPTS.index(chosen)
    return [
        render(compose(generator(start + index), background, [chosen.look]))
        for index, background in enumerate(PHOTO_CAPTIONS)
    ]


def concept_photos(name: str) -> list[Image.Image]:
    """The five photos, 256 × 256."""
    from PIL import Image

    size = len(concept_arrays(name)[0]) * PHOTO_SCALE
    return [
        Image.fromarray(picture).resize((size, size), Image.Resampling.NEAREST) for picture in concept_arrays(name)
    ]


def concept_captions() -> list[str]:
    """The captions of a concept's photos, in their order."""
    return list(PHOTO_CAPTIONS.values())


def write_concept(name: str, folder: Path) -> list[Path]:
    """Write the photos as PNG files into a folder, each with its caption in a text file; returns the photos' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (photo, caption) in enumerate(zip(concept_photos(name), concept_captions(), strict=True), start=1):
        path = folder / f"{concept(name).name}-{index}.png"
        path.with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")
        temporary = path.with_suffix(".tmp")
        photo.save(temporary, format="PNG")
        temporary.replace(path)
        paths.append(path)
    return paths
