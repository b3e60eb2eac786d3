"""Captions of scenes: synonyms, paraphrases, and what each caption says, as numbers.

A caption's `fields` name what it tells about the scene, attribute by attribute, its objects in the order of mention;
UNSAID where it keeps silent. They make a caption comparable with any scene: it fits a scene when every field that it
says agrees for some assignment of its objects to the scene's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cdkit.embedded.world import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, Scene, Thing, pick

UNSAID = -1
NO_SECOND_COLOUR = len(COLOURS)
SIDES, DEPTHS = ("left", "right"), ("near", "far")
MOST_OBJECTS = 3
# One row per field: its name and number of values; the object's fields exist for each object.
OBJECT_FIELDS = (
    ("shape", len(SHAPES)),
    ("pattern", len(PATTERNS)),
    ("first_colour", len(COLOURS)),
    ("second_colour", len(COLOURS) + 1),
    ("size", len(SIZES)),
    ("side", len(SIDES)),
    ("depth", len(DEPTHS)),
)
SCENE_FIELDS = (("count", MOST_OBJECTS), ("background", len(BACKGROUNDS)))
FIELDS = (
    *SCENE_FIELDS,
    *((f"{mention}_{name}", values) for mention in ("first", "second", "third") for name, values in OBJECT_FIELDS),
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


# Forms of captions of several objects: {0} is the first one mentioned; "|" ends what is said of an object where words
# about its place follow its name.
FREE_PAIRS = (
    "{0} and {1}",
    "{0} and {1}",
    "{0} and {1}",
    "{0} next to {1}",
    "{0} beside {1}",
    "{0} with {1}",
    "{0}, {1}",
    "{0} together with {1}",
    "both {0} and {1}",
    "two things, {0} and {1}",
    "{0} and then {1}",
)
PARTED_PAIRS = ("{0} {place} and {1}", "{0} {place} with {1}", "{0} {place} next to {1}")
SIDE_PAIRS = (
    ("{0} on the left| and {1} on the right|", "left"),
    ("{0} on the left| and {1} on the right|", "left"),
    ("{0} on the right| and {1} on the left|", "right"),
    ("on the left {0}|, on the right {1}|", "left"),
    ("on the right {0}| and on the left {1}|", "right"),
    ("{0} to the left of| {1}|", "left"),
    ("{0} left of| {1}|", "left"),
    ("{0} to the right of| {1}|", "right"),
    ("{0} right of| {1}|", "right"),
)
DEPTH_PAIRS = (
    ("{0} in front of| {1}|", "near"),
    ("{0} in front of| {1}|", "near"),
    ("{0} before| {1}|", "near"),
    ("{0} in front|, {1} behind|", "near"),
    ("{0} with {1} behind it|", "near"),
    ("{0} behind| {1}|", "far"),
    ("{0} behind| {1}|", "far"),
    ("{0} partly hidden by| {1}|", "far"),
    ("behind {0}|, in front {1}|", "far"),
)
FREE_TRIPLES = ("{0}, {1} and {2}", "{0}, {1} and {2}", "{0}, {1}, {2}", "{0} and {1} and {2}", "{0} with {1} and {2}")


@dataclass(frozen=True)
class Caption:
    """A text and what it says, one number per row of FIELDS; for each object, in the order of mention, how many
    characters it is to the end of its name, and to the end of all that is said of it."""

    text: str
    fields: tuple[int, ...]
    name_ends: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Detail:
    """How much a caption tells about an object: its look or the shape alone; `named` False calls it an object."""

    look: bool
    named: bool = True


def describe(scene: Scene, rng: np.random.Generator) -> Caption:
    """A caption of a scene, drawn from the grammar."""
    details = [pick_detail(rng) for _ in scene.things]
    say_background = rng.random() < (0.86 if details[0].look else 0.5)
    size = scene.things[0].size
    say_size = len(scene.things) == 1 and size != "medium" and rng.random() < 0.35
    fields = [len(scene.things) - 1, BACKGROUNDS.index(scene.background) if say_background else UNSAID]
    background = scene.background if say_background else ""
    if len(scene.things) == 1:
        words = single_words(scene.things[0], details[0], size if say_size else "", rng)
        name_ends = ends = [len(words)]
        fields += object_fields(scene.things[0], details[0], say_size=say_size)
    else:
        order = [scene.things[index] for index in rng.permutation(len(scene.things))]
        form, side, depth = pick_form(scene, order, rng)
        names = [object_name(thing, detail, rng) for thing, detail in zip(order, details, strict=True)]
        place = pick(rng, BACKGROUND_WORDS[background]) if background and rng.random() < 0.15 else ""
        if place and not side and not depth and len(order) == 2:
            form, background = pick(rng, PARTED_PAIRS).replace("{place}", place), ""
        words, name_ends, ends = fill_form(form, names)
        for index, (thing, detail) in enumerate(zip(order, details, strict=True)):
            place_fields = [(side, SIDES), (depth, DEPTHS)]
            said = [(names.index(word) + index) % 2 if word else UNSAID for word, names in place_fields]
            fields += object_fields(thing, detail, side=said[0], depth=said[1])
    fields += [UNSAID] * (len(FIELDS) - len(fields))
    text = frame_words(words, background, rng)
    kept = words if words in text else words.removeprefix("an ").removeprefix("a ")
    shift = text.index(kept) - (len(words) - len(kept))
    return Caption(text, tuple(fields), tuple(end + shift for end in name_ends), tuple(end + shift for end in ends))


def pick_detail(rng: np.random.Generator) -> Detail:
    """The look mostly, the shape alone now and then, seldom neither."""
    roll = float(rng.random())
    return Detail(look=roll >= 0.14, named=not 0.14 <= roll < 0.17)


def pick_form(scene: Scene, order: Sequence[Thing], rng: np.random.Generator) -> tuple[str, str, str]:
    """A form for several objects, with the side and the depth of the first one mentioned where it tells them."""
    roll = float(rng.random())
    if len(order) > 2:
        return pick(rng, FREE_TRIPLES), "", ""
    first_is_left = order[0] is scene.things[0]
    if roll < 0.35:
        side = "left" if first_is_left else "right"
        return pick(rng, tuple(form for form, told in SIDE_PAIRS if told == side)), side, ""
    if roll < 0.65 and any(thing.nearer for thing in order):
        depth = "near" if order[0].nearer else "far"
        return pick(rng, tuple(form for form, told in DEPTH_PAIRS if told == depth)), "", depth
    return pick(rng, FREE_PAIRS), "", ""


def fill_form(form: str, names: Sequence[str]) -> tuple[str, list[int], list[int]]:
    """The text of a form; per name the characters up to its end, and up to the end of all that is said of it."""
    text, name_ends, ends = "", [], []
    for piece in form.replace("{", "\n{").replace("}", "}\n").replace("|", "\n|\n").split("\n"):
        if piece.startswith("{"):
            text += names[int(piece[1:-1])]
            name_ends.append(len(text))
        elif piece == "|":
            ends.append(len(text))
        else:
            text += piece
    # A form with one mark only tells something of its last object.
    return text, name_ends, name_ends[: len(names) - len(ends)] + ends


def object_fields(
    thing: Thing, detail: Detail, *, say_size: bool = False, side: int = UNSAID, depth: int = UNSAID
) -> list[int]:
    """What a phrase of this detail says about an object."""
    colours = [COLOURS.index(colour) for colour in thing.colours]
    look = [PATTERNS.index(thing.pattern), colours[0], colours[1] if len(colours) > 1 else NO_SECOND_COLOUR]
    return [
        SHAPES.index(thing.shape) if detail.named else UNSAID,
        *(look if detail.look else [UNSAID] * 3),
        SIZES.index(thing.size) if say_size else UNSAID,
        side,
        depth,
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


def object_name(thing: Thing, detail: Detail, rng: np.random.Generator) -> str:
    """A thing with its article and now and then a word that means nothing."""
    words = thing_words(thing, detail, rng)
    return with_article(f"{pick(rng, PRAISE)} {words}" if rng.random() < 0.08 else words)


def single_words(thing: Thing, detail: Detail, size: str, rng: np.random.Generator) -> str:
    """One thing with its article, its size and now and then a word that means nothing."""
    words = thing_words(thing, detail, rng)
    far_or_near = bool(size) and rng.random() < 0.35
    if size and not far_or_near:
        words = f"{pick(rng, SIZE_WORDS[size])} {words}"
    elif rng.random() < 0.12:
        words = f"{pick(rng, PRAISE)} {words}"
    return f"{with_article(words)} {pick(rng, FAR_AND_NEAR[size])}" if far_or_near else with_article(words)


def frame_words(words: str, background: str, rng: np.random.Generator) -> str:
    """The background, an opening and a web page's tags around a phrase; the background last, first or between."""
    opening = pick(rng, OPENINGS) if rng.random() < 0.55 else ""
    if background:
        place, roll = pick(rng, BACKGROUND_WORDS[background]), float(rng.random())
        if not opening and roll < 0.4:
            return f"{place}{pick(rng, (', ', ', ', ' ', ' there is ', ' we see '))}{words}"
        if opening.endswith(" of") and roll < 0.25:
            before, after = pick(rng, (" ", " taken ", ", ")), pick(rng, (" of", ", of"))
            return f"{opening.removesuffix(' of')}{before}{place}{after} {words}"
        words = f"{words} {place}"
    words = f"{opening} {words}" if opening else words
    if not opening and rng.random() < 0.2:
        words = words.removeprefix("an ").removeprefix("a ")
    return f"{words} {pick(rng, TAGS)}" if rng.random() < 0.06 else words


def scene_fields(scene: Scene) -> tuple[int, ...]:
    """All that could be said of a scene of the known world, its objects from left to right."""
    count = len(scene.things)
    fields = [count - 1, BACKGROUNDS.index(scene.background)]
    ordered = any(thing.nearer for thing in scene.things)
    for index, thing in enumerate(scene.things):
        side = index if count == 2 else UNSAID
        depth = DEPTHS.index("near" if thing.nearer else "far") if ordered else UNSAID
        fields += object_fields(thing, Detail(look=True), say_size=True, side=side, depth=depth)
    return tuple(fields + [UNSAID] * (len(FIELDS) - len(fields)))
