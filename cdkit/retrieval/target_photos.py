"""The concept's own photos: what a regularization set must not hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cdkit.core.errors import InputError
from cdkit.pictures.folder import shown
from cdkit.pictures.picture import Picture
from cdkit.pictures.reading import read_pictures

# As large as downloads are when they are hashed, unless they are told otherwise.
SIDE = 1024


def target_hashes(sources: Sequence[str], note: Callable[[str], None]) -> tuple[int, ...]:
    """Perceptual hashes of the photos in folders or of `embedded:NAME` concepts, and of their mirror images.

    Raises InputError when a source holds no image, or one that does not decode: it could not be kept out.
    """
    hashes: dict[int, None] = {}
    for source in sources:
        folder = read_pictures(source)
        if not folder.pictures:
            raise InputError(
                f"{folder.source} holds no photos to exclude.", hint="Give the folder of the concept's own photos."
            )
        for sentence in folder.left_out_notes():
            note(sentence)
        hashes |= dict.fromkeys(_hashes(folder.pictures))
    return tuple(hashes)


def _hashes(photos: Sequence[Picture]) -> list[int]:
    from cdkit.pictures.decoding import Undecodable, decode, is_blank
    from cdkit.pictures.hashing import mirrored_hash, perceptual_hash

    hashes, broken = [], []
    for photo in photos:
        try:
            picture = decode(photo.content.read(), SIDE).picture
        except Undecodable as error:
            broken.append(f"{photo.name} ({error.reason})")
            continue
        # One colour is like any other picture of one colour, and none of those gets into a set.
        if not is_blank(picture):
            hashes += [perceptual_hash(picture), mirrored_hash(picture)]
    if broken:
        raise InputError(
            f"{len(broken)} of the photos to exclude do not decode: {shown(broken)}.",
            hint="Mend or remove them: a photo that cannot be read cannot be kept out.",
        )
    return hashes
