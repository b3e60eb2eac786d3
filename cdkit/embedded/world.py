"""The small world the embedded model knows: attributes, scenes, a seeded sampler and a deterministic renderer.

A scene holds one object, two side by side or one before the other, or three, in front of a background. Rendering uses
only IEEE basic operations and integer averages, so that the same scene gives the same bytes on every machine.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

IMAGE_SIZE = 32
SUPERSAMPLING = 3

SHAPES = ("ball", "box", "triangle", "star", "heart", "mug")
COLOURS = ("red", "orange", "yellow", "blue", "purple", "white")
PATTERNS = ("plain", "striped", "checkered")
BACKGROUNDS = ("gray", "grass", "sea", "night")
SIZES = ("small", "medium", "large")

# Combinations of known attributes that pre-training never shows: they are concepts (concepts.py).
HELD_OUT_COMBINATIONS = frozenset(
    {
        ("star", "striped", ("orange", "purple")),
        ("mug", "checkered", ("red", "white")),
        ("heart", "checkered", ("yellow", "purple")),
        ("triangle", "striped", ("red", "yellow")),
    }
)

TWO_OBJECT_SHARE = 0.5
THREE_OBJECT_SHARE = 0.06
BESIDE_SHARE = 0.5
PLAIN_SHARE = 0.4
SMALL_BELOW = 0.32
LARGE_ABOVE = 0.39

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 36, 40),
    "orange": (250, 140, 24),
    "yellow": (250, 228, 50),
    "blue": (40, 76, 232),
    "purple": (142, 48, 190),
    "white": (246, 246, 242),
    "pink": (255, 112, 184),
}


@dataclass(frozen=True)
class Layout:
    """Where several objects stand, in image widths: centres from left to right, the range of radii, the largest shift
    of a centre, and which of them is painted over its neighbour."""

    centres: tuple[tuple[float, float], ...]
    radii: tuple[float, float]
    shift: tuple[float, float]
    nearer: int | None = None


BESIDE = Layout(((0.255, 0.5), (0.745, 0.5)), (0.22, 0.245), (0.01, 0.06))
RIGHT_NEARER = Layout(((0.33, 0.37), (0.67, 0.63)), (0.25, 0.28), (0.02, 0.02), nearer=1)
LEFT_NEARER = Layout(((0.33, 0.63), (0.67, 0.37)), (0.25, 0.28), (0.02, 0.02), nearer=0)
THREE = Layout(((0.26, 0.69), (0.5, 0.28), (0.74, 0.69)), (0.19, 0.205), (0.01, 0.02))


@dataclass(frozen=True)
class Thing:
    """One object: its look and place (x, y, radius in image widths); tilt is the tangent of half its angle; `nearer`
    if it is painted over its neighbour."""

    shape: str
    pattern: str
    colours: tuple[str, ...]
    x: float
    y: float
    radius: float
    tilt: float = 0.0
    shades: tuple[int, int] = (0, 0)
    nearer: bool = False

    @property
    def look(self) -> tuple[str, str, tuple[str, ...]]:
        """Shape, pattern and colours: what makes a concept."""
        return self.shape, self.pattern, self.colours

    @property
    def size(self) -> str:
        """The size word a caption may use."""
        return "small" if self.radius < SMALL_BELOW else "large" if self.radius > LARGE_ABOVE else "medium"


@dataclass(frozen=True)
class Scene:
    """A background and one to three objects from left to right; `phase` shifts the background's texture."""

    background: str
    things: tuple[Thing, ...]
    phase: int = 0
    shade: int = 0


def generator(seed: int) -> np.random.Generator:
    """The one random source of the world: PCG64, the same stream on every platform."""
    return np.random.Generator(np.random.PCG64(seed))


def pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    """One of `choices`, evenly."""
    return choices[int(rng.integers(len(choices)))]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between low and high, evenly."""
    return low + (high - low) * float(rng.random())


def sample_look(rng: np.random.Generator, plain_share: float) -> tuple[str, str, tuple[str, ...]]:
    """Shape, pattern and colours of one object; never a held-out combination."""
    while True:
        pattern = "plain" if rng.random() < plain_share else pick(rng, PATTERNS[1:])
        chosen = sorted(rng.permutation(len(COLOURS))[: 1 if pattern == "plain" else 2].tolist())
        look = pick(rng, SHAPES), pattern, tuple(COLOURS[index] for index in chosen)
        if look not in HELD_OUT_COMBINATIONS:
            return look


def place(
    rng: np.random.Generator, look: tuple[str, str, tuple[str, ...]], layout: Layout | None = None, slot: int = 0
) -> Thing:
    """Puts a look somewhere: alone near the centre, or in one of a layout's places."""
    shape, pattern, colours = look
    if layout is None:
        radius = between(rng, 0.28, 0.44)
        reach = min(0.1, 0.49 - radius)
        x, y = 0.5 + between(rng, -reach, reach), 0.5 + between(rng, -reach, reach)
    else:
        radius = between(rng, *layout.radii)
        (x, y), (across, down) = layout.centres[slot], layout.shift
        x, y = x + between(rng, -across, across), y + between(rng, -down, down)
    shades = int(rng.integers(-8, 9)), int(rng.integers(-8, 9))
    tilt = between(rng, -0.05, 0.05)
    return Thing(shape, pattern, colours, x, y, radius, tilt, shades, layout is not None and slot == layout.nearer)


def pick_layout(rng: np.random.Generator, count: int) -> Layout | None:
    """How `count` objects stand; None for one."""
    if count == 2 and rng.random() >= BESIDE_SHARE:
        return (RIGHT_NEARER, LEFT_NEARER)[int(rng.integers(2))]
    return {1: None, 2: BESIDE, 3: THREE}[count]


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene of the pre-training world."""
    roll = float(rng.random())
    count = 2 if roll < TWO_OBJECT_SHARE else 3 if roll < TWO_OBJECT_SHARE + THREE_OBJECT_SHARE else 1
    looks = [sample_look(rng, PLAIN_SHARE) for _ in range(count)]
    return compose(rng, pick(rng, BACKGROUNDS), looks)


def compose(rng: np.random.Generator, background: str, looks: list[tuple[str, str, tuple[str, ...]]]) -> Scene:
    """A scene of some looks, from left to right, placed at random."""
    layout = pick_layout(rng, len(looks))
    things = tuple(place(rng, look, layout, slot) for slot, look in enumerate(looks))
    return Scene(background, things, int(rng.integers(8)), int(rng.integers(-8, 9)))


def scene_from_seed(seed: int) -> Scene:
    """The scene of a seed, as the caption pool's URLs name it."""
    return sample_scene(generator(seed))


def contrast_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """A near miss of `scene`: sides, colours or shapes exchanged between two objects, or one attribute changed."""
    for _ in range(8):
        looks = [thing.look for thing in scene.things]
        background = scene.background
        if len(looks) > 1 and looks[0] != looks[1]:
            (shape, pattern, colours), (other_shape, other_pattern, other_colours) = looks[:2]
            looks[:2] = [
                [(other_shape, pattern, colours), (shape, other_pattern, other_colours)],
                [(shape, other_pattern, other_colours), (other_shape, pattern, colours)],
                [(shape, pattern, other_colours), (other_shape, other_pattern, colours)]
                if len(colours) == len(other_colours)
                else [looks[1], looks[0]],
            ][int(rng.integers(3))]
        elif rng.random() < 0.25:
            background = pick(rng, BACKGROUNDS)
        else:
            other = sample_look(rng, PLAIN_SHARE)
            kept = dataclasses.replace(scene.things[0], shape=other[0]).look
            looks[0] = [kept, (looks[0][0], other[1], other[2])][int(rng.integers(2))]
        changed = looks != [thing.look for thing in scene.things] or background != scene.background
        if changed and not HELD_OUT_COMBINATIONS.intersection(looks):
            return compose(rng, background, looks)
    return sample_scene(rng)
