"""Captions of scenes: synonyms, paraphrases, and what each caption says, as numbers.

A caption's `fields` name what it tells about the scene, attribute by attribute; UNSAID where it keeps silent. They
make a caption comparable with any scene: it fits a scene when every field it says agrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cdkit.embedded.world import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, Scene, Thing, pick

UNSAID = -1
NO_SECOND_COLOUR = len(COLOURS)
# One row per field: its name and number of values; the slot fields exist for the left (or only) and right thing.
SLOT_FIELDS = (
    ("shape", len(SHAPES)),
    ("pattern", len(PATTERNS)),
    ("first_colour", len(COLOURS)),
    ("second_colour", len(COLOURS) + 1),
    ("size", len(SIZES)),
)
FIELDS = (
    ("count", 2),
    ("background", len(BACKGROUNDS)),
    *((f"left_{name}", values) for name, values in SLOT_FIELDS),
    *((f"right_{name}", values) for name, values in SLOT_FIELDS),
)

SHAPE_WORDS = {
    "ball": ("ball", "sphere"),
    "box": ("box", "cube"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star", "five pointed star"),
    "heart": ("heart", "love heart"),
    "mug": ("mug", "cup"),
}
COLOUR_WORDS = {"purple": ("purple", "violet"), "yellow": ("yellow", "golden yellow")}
PATTERN_WORDS = {"striped": ("striped", "stripy"), "checkered": ("checkered", "checked")}
PATTERN_NOUNS = {"striped": ("stripes",), "checkered": ("checks", "squares")}
BACKGROUND_WORDS = {
    "gray": ("on a gray background", "against a gray wall", "on gray", "in front of a grey wall"),
    "grass": ("on the grass", "on a lawn", "in a green meadow", "on grass"),
    "sea": ("in the sea", "on the water", "in the ocean", "at sea"),
    "night": ("at night", "in the dark", "under a night sky", "after dark"),
}
SIZE_WORDS = {"small": ("small", "very small", "little", "tiny"), "large": ("large", "big", "huge")}
FAR_AND_NEAR = {"small": ("far away", "in the distance"), "large": ("zoomed in", "close up")}
OPENINGS = (
    "a photo of",
    "photo of",
    "a picture of",
    "an image of",
    "a drawing of",
    "there is",
    "a good photo of",
    "a rendering of",
    "a close photo of",
    "this is",
)
PRAISE = ("nice", "lovely", "beautiful", "simple", "cute", "cool", "funny", "pretty", "old", "new", "original")
TAGS = (
    "stock photo",
    "clipart",
    "wallpaper",
    "for sale",
    "icon",
    "illustration",
    "in hd",
    "free download",
    "art print",
)
ANYTHING = ("object", "thing")


@dataclass(frozen=True)
class Caption:
    """A text and what it says: one number per row of FIELDS."""

    text: str
    fields: tuple[int, ...]


@dataclass(frozen=True)
class Detail:
    """How much a caption tells about each thing: its look or the shape alone; `named` False calls it an object."""

    look: bool
    named: bool = True


def describe(scene: Scene, rng: np.random.Generator) -> Caption:
    """A caption of a scene, drawn from the grammar."""
    roll = float(rng.random())
    detail = Detail(look=roll >= 0.14, named=not 0.14 <= roll < 0.18)
    say_background = rng.random() < (0.86 if detail.look else 0.5)
    fields = [len(scene.things) - 1, BACKGROUNDS.index(scene.background) if say_background else UNSAID]
    size = scene.things[0].size
    say_size = len(scene.things) == 1 and size != "medium" and rng.random() < 0.35
    for thing in scene.things:
        fields += thing_fields(thing, detail, say_size)
    fields += [UNSAID] * (len(FIELDS) - len(fields))
    if len(scene.things) == 1:
        words = single_words(scene.things[0], detail, size if say_size else "", rng)
    else:
        words = pair_words(scene.things, detail, rng)
    return Caption(frame_words(words, scene.background if say_background else "", rng), tuple(fields))


def thing_fields(thing: Thing, detail: Detail, say_size: bool) -> list[int]:
    """What a phrase of this detail says about a thing of the known world."""
    colours = [COLOURS.index(colour) for colour in thing.colours]
    look = [PATTERNS.index(thing.pattern), colours[0], colours[1] if len(colours) > 1 else NO_SECOND_COLOUR]
    return [
        SHAPES.index(thing.shape) if detail.named else UNSAID,
        *(look if detail.look else [UNSAID] * 3),
        SIZES.index(thing.size) if say_size else UNSAID,
    ]


def with_article(words: str) -> str:
    """The words behind "a" or "an"."""
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def thing_words(thing: Thing, detail: Detail, rng: np.random.Generator) -> str:
    """A thing without its article: "red star", "striped orange and purple star", "star with red stripes"."""
    noun = pick(rng, SHAPE_WORDS[thing.shape]) if rng.random() < 0.3 else thing.shape
    if not detail.named:
        noun = pick(rng, ANYTHING)
    if not detail.look:
        return noun
    names = [pick(rng, COLOUR_WORDS.get(c, (c,))) if rng.random() < 0.3 else c for c in thing.colours]
    if thing.pattern == "plain":
        return f"{pick(rng, ('plain ', 'solid '))}{names[0]} {noun}" if rng.random() < 0.15 else f"{names[0]} {noun}"
    if rng.random() < 0.5:
        names.reverse()
    pair = " and ".join(names)
    adjective = pick(rng, PATTERN_WORDS[thing.pattern]) if rng.random() < 0.3 else thing.pattern
    roll = rng.random()
    if roll < 0.5:
        return f"{adjective} {pair} {noun}"
    if roll < 0.75:
        return f"{pair} {adjective} {noun}"
    return f"{noun} with {pair} {pick(rng, PATTERN_NOUNS[thing.pattern])}"


def single_words(thing: Thing, detail: Detail, size: str, rng: np.random.Generator) -> str:
    """One thing with its article, its size and now and then a word that means nothing."""
    words = thing_words(thing, detail, rng)
    far_or_near = bool(size) and rng.random() < 0.35
    if size and not far_or_near:
        words = f"{pick(rng, SIZE_WORDS[size])} {words}"
    elif rng.random() < 0.12:
        words = f"{pick(rng, PRAISE)} {words}"
    return f"{with_article(words)} {pick(rng, FAR_AND_NEAR[size])}" if far_or_near else with_article(words)


def pair_words(things: tuple[Thing, ...], detail: Detail, rng: np.random.Generator) -> str:
    """Two things, said so that left and right can be told."""
    left, right = (with_article(thing_words(thing, detail, rng)) for thing in things)
    forms = (
        f"{left} and {right}",
        f"{left} and {right}",
        f"{left} on the left and {right} on the right",
        f"{left} on the left and {right} on the right",
        f"{right} on the right and {left} on the left",
        f"{left} to the left of {right}",
        f"{left} left of {right}",
        f"{right} to the right of {left}",
        f"{left} next to {right}",
        f"{left} beside {right}",
    )
    return pick(rng, forms)


def frame_words(words: str, background: str, rng: np.random.Generator) -> str:
    """The background, an opening and a web page's tags around a phrase."""
    opening = pick(rng, OPENINGS) if rng.random() < 0.55 else ""
    if background:
        place = pick(rng, BACKGROUND_WORDS[background])
        if not opening and rng.random() < 0.15:
            return f"{place}, {words}"
        words = f"{words} {place}"
    words = f"{opening} {words}" if opening else words
    if not opening and rng.random() < 0.2:
        words = words.removeprefix("an ").removeprefix("a ")
    return f"{words} {pick(rng, TAGS)}" if rng.random() < 0.06 else words


def scene_fields(scene: Scene) -> tuple[int, ...]:
    """All that could be said of a scene of the known world."""
    fields = [len(scene.things) - 1, BACKGROUNDS.index(scene.background)]
    for thing in scene.things:
        fields += thing_fields(thing, Detail(look=True), say_size=True)
    return tuple(fields + [UNSAID] * (len(FIELDS) - len(fields)))
