"""What can be seen of a concept's photos before anything is trained: number, sizes, damage, doubles, captions.

Nothing here knows what a photo shows: no detector of faces or things is at hand, and none is pretended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cdkit.core.errors import InputError
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.protocols import Progress, SilentProgress
from cdkit.pictures.folder import shown
from cdkit.pictures.picture import NEAR, names_alike, perceptual_hash
from cdkit.pictures.reading import read_pictures
from cdkit.training.config import BEST_NUMBER, FEW_PHOTOS, LEAST_PHOTOS, MANY_PHOTOS

# A folder of thousands is none of a concept's photos; what is said of the first of them is enough to see that.
MOST_LOOKED_AT = 200


@dataclass(frozen=True)
class PhotoSurvey:
    """What a source of photos holds. number: pictures in it; sizes: of those that were looked at and decode.

    damaged: why each of those does not; alike: names of photos that show nearly the same, in groups; captioned: how
    many have a caption of their own; others: files that are no pictures.
    """

    source: str
    number: int
    looked_at: int
    sizes: tuple[tuple[int, int], ...]
    damaged: tuple[str, ...]
    alike: tuple[tuple[str, ...], ...]
    captioned: int
    others: int

    @property
    def shortest(self) -> int:
        """The shorter side of the smallest photo, in pixels; 0 where none decodes."""
        return min((min(size) for size in self.sizes), default=0)

    def sentence(self) -> str:
        """`5 photos, 640 × 480 to 4032 × 3024 pixels, 2 with a caption`."""
        ordered = sorted(set(self.sizes), key=lambda size: size[0] * size[1])
        span = " to ".join(f"{width} × {height}" for width, height in dict.fromkeys(ordered[:1] + ordered[-1:]))
        sizes = f", {span} pixels" if ordered else ""
        captions = f"{self.captioned} with a caption" if self.captioned else "none with a caption"
        return f"{self.number} photo{'s' if self.number != 1 else ''}{sizes}, {captions}"

    def notes(self, side: int | None) -> list[str]:
        """What to know of the photos, in sentences. side: of the base model's pictures, where that is known."""
        lines = []
        if self.looked_at < self.number:
            lines.append(f"{self.source}: only the first {self.looked_at} of {self.number:,} photos were looked at.")
        if self.number < FEW_PHOTOS:
            lines.append(f"{self.source}: {self.number} photos are few: {BEST_NUMBER} work best.")
        if self.number > MANY_PHOTOS:
            lines.append(f"{self.source}: {self.number:,} photos are many: {BEST_NUMBER} of one subject work best.")
        lines += [f"{self.source}: {shown(names)} show nearly the same: keep one of them." for names in self.alike]
        small = self.smaller_than(side)
        if small:
            lines.append(
                f"{self.source}: {small} of {len(self.sizes)} photos are smaller than the base model's {side} pixels "
                "and will be enlarged: larger ones teach more."
            )
        if self.others:
            lines.append(f"{self.source}: {self.others} other file(s) there are no pictures, and are left out.")
        return lines

    def smaller_than(self, side: int | None) -> int:
        """How many photos have a shorter side below `side`."""
        return sum(min(size) < side for size in self.sizes) if side is not None else 0

    def check(self) -> None:
        """Raise InputError for what `cdkit train` would refuse: fewer than two photos, or one that is damaged."""
        if self.damaged:
            raise InputError(
                "\n".join(self.damaged), hint="Mend these photos or move them away: training takes no damaged one."
            )
        if self.number < LEAST_PHOTOS:
            found = "only one photo" if self.number else "no photo"
            raise InputError(f"{self.source} holds {found}.", hint=f"Give a folder of {BEST_NUMBER} photos.")

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "number": self.number,
            "looked_at": self.looked_at,
            "sizes": [list(size) for size in self.sizes],
            "damaged": list(self.damaged),
            "alike": [list(names) for names in self.alike],
            "captioned": self.captioned,
            "other_files": self.others,
        }


def survey_photos(source: str, progress: Progress | None = None) -> PhotoSurvey:
    """Look at the photos of a source, whatever `cdkit.pictures.reading` reads.

    Raises InputError when it is not there, ConfigError for an embedded concept that does not exist.
    """
    folder = read_pictures(source).without_others()
    sizes: list[tuple[int, int]] = []
    damaged: list[str] = []
    hashes: list[tuple[str, int]] = []
    first = folder.pictures[:MOST_LOOKED_AT]
    with (progress or SilentProgress()).task("looking at the photos", len(first), unit="photos") as task:
        for picture in first:
            try:
                image = picture.open()
            except InputError as error:
                damaged.append(error.message)
            else:
                sizes.append((image.width, image.height))
                hashes.append((picture.key, perceptual_hash(image)))
            task.advance()
    return PhotoSurvey(
        source,
        len(folder.pictures),
        len(first),
        tuple(sizes),
        tuple(damaged),
        tuple(tuple(names) for names in names_alike(hashes, NEAR)),
        sum(picture.caption is not None for picture in folder.pictures),
        len(folder.left_out),
    )


def class_word(source: str) -> str:
    """The class word that an embedded concept comes with; empty for photos of a folder, of which nothing is known."""
    if not source.startswith(f"{EMBEDDED}:"):
        return ""
    from cdkit.embedded.concepts import concept

    return concept(source).category
