"""A concept as other trainers are shown it beside a regularization set: its photos, and the words of captions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cdkit.core.errors import InputError
from cdkit.core.text import MODIFIER_TOKEN, naming, one_line
from cdkit.pictures.folder import shown
from cdkit.pictures.picture import Picture
from cdkit.pictures.reading import read_pictures

# A JPEG file is decoded faster at a part of its size.
_CHECKED_SIDE = 256
TEMPLATE = "photo of a {}"
_PICTURED = r"(?:photo|photograph|picture|image|painting|drawing|rendering|close-up)s?"
_PROMPT = re.compile(rf"(?:.*?\b{_PICTURED} of )?(?:(?:an?|the|one|my) )?(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class TrainedConcept:
    """What a set stands beside. photos: of the concept; instance_word: what is new; class_word: what the set shows."""

    photos: Sequence[Picture]
    instance_word: str
    class_word: str

    @property
    def subject(self) -> str:
        """What captions of the photos call it: `ohwx dog`."""
        return f"{self.instance_word} {self.class_word}"

    def caption_of(self, photo: Picture) -> str:
        """The photo's own caption with the instance word in it, also for a modifier token, or a template with both.

        Raises InputError for a caption of its own that names neither the instance nor the class.
        """
        # Captions written for cdkit have its modifier token, which other trainers do not know.
        written = MODIFIER_TOKEN.sub(lambda _: self.instance_word, photo.caption or TEMPLATE)
        caption = naming(written, self.instance_word, self.class_word)
        if caption is None:
            raise InputError(
                f"{photo.name}: its caption names neither {self.instance_word!r} nor {self.class_word!r}.",
                hint=f"Write {{}} where the concept stands: it becomes {self.subject!r}.",
            )
        return one_line(caption)


def class_of(prompt: str) -> str:
    """What a prompt is a picture of: `dog` for "a photo of a dog"."""
    match = _PROMPT.fullmatch(one_line(prompt))
    return match[1] if match else one_line(prompt)


def trained_concept(folder: str, instance_word: str, class_word: str) -> TrainedConcept:
    """A concept by the folder of its photos.

    Raises InputError when there are none, one does not decode, or a caption does not fit: before hours of work.
    """
    source = read_pictures(folder).without_others()
    if not source.pictures:
        others = f"; these are no images: {shown(source.left_out)}" if source.left_out else ""
        raise InputError(f"{source.source} holds no photo{others}.", hint="Give the folder of the concept's photos.")
    concept = TrainedConcept(source.pictures, one_line(instance_word), one_line(class_word))
    for photo in concept.photos:
        concept.caption_of(photo)
        photo.open(_CHECKED_SIDE)
    return concept
