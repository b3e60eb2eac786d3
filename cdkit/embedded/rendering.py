"""Scenes to pixels: coverage masks at three times the size, averaged with integers."""

from __future__ import annotations

import numpy as np

from cdkit.embedded.world import IMAGE_SIZE, PALETTE, SUPERSAMPLING, Scene, Thing

Plane = np.ndarray[tuple[int, int], np.dtype[np.float64]]

# No shape of radius 1 reaches further from its centre (the mug's corners, 1.16, do not).
REACH = 1.25
STRIPE_WIDTH = 0.4
CHECK_WIDTH = 0.5
STAR_POINTS = tuple(
    (radius * x, radius * y)
    for index, (x, y) in enumerate(
        (
            (0.0, -1.0),
            (0.587785, -0.809017),
            (0.951057, -0.309017),
            (0.951057, 0.309017),
            (0.587785, 0.809017),
            (0.0, 1.0),
            (-0.587785, 0.809017),
            (-0.951057, 0.309017),
            (-0.951057, -0.309017),
            (-0.587785, -0.809017),
        )
    )
    for radius in ((1.0, 0.46)[index % 2],)
)
TRIANGLE_POINTS = ((0.0, -0.95), (0.95, 0.75), (-0.95, 0.75))
NIGHT_LIGHTS = ((2, 4), (8, 26), (25, 12), (28, 29))


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene, uint8 (32, 32, 3)."""
    picture = backdrop(scene)
    parts = SUPERSAMPLING * SUPERSAMPLING
    for thing in sorted(scene.things, key=lambda thing: thing.nearer):
        rows, columns = extent(thing.y, thing.radius), extent(thing.x, thing.radius)
        first, second = coverage(thing, rows, columns)
        uncovered = picture[rows, columns] * (parts - first - second)[:, :, None]
        painted = first[:, :, None] * paint(thing, 0) + second[:, :, None] * paint(thing, 1)
        picture[rows, columns] = (uncovered + painted + parts // 2) // parts
    pixels: np.ndarray = picture.clip(0, 255).astype(np.uint8)
    return pixels


def paint(thing: Thing, part: int) -> np.ndarray:
    """The colour of a thing's first or second part, shaded, int64 (3,)."""
    part = min(part, len(thing.colours) - 1)
    colour: np.ndarray = np.clip(np.array(PALETTE[thing.colours[part]]) + thing.shades[part], 0, 255)
    return colour


def extent(centre: float, radius: float) -> slice:
    """The rows or columns of pixels that a shape of this radius can touch, whatever its tilt."""
    low, high = (centre - REACH * radius) * IMAGE_SIZE, (centre + REACH * radius) * IMAGE_SIZE
    return slice(max(0, int(low)), min(IMAGE_SIZE, int(high) + 1))


def coverage(thing: Thing, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
    """How many of each pixel's samples (0 to 9) show the thing's first and second colour, int64 (rows, columns)."""
    steps = IMAGE_SIZE * SUPERSAMPLING
    ticks = (np.arange(steps) + 0.5) / steps
    across = (ticks[None, columns.start * SUPERSAMPLING : columns.stop * SUPERSAMPLING] - thing.x) / thing.radius
    down = (ticks[rows.start * SUPERSAMPLING : rows.stop * SUPERSAMPLING, None] - thing.y) / thing.radius
    # A rotation from the tangent of half the angle needs no sine, whose last bit differs between machines.
    square = thing.tilt * thing.tilt
    cosine, sine = (1 - square) / (1 + square), 2 * thing.tilt / (1 + square)
    u, v = across * cosine + down * sine, down * cosine - across * sine
    inside = silhouette(thing.shape, u, v)
    second = inside & second_colour(thing, u, v)
    return count_samples(inside & ~second), count_samples(second)


def count_samples(mask: np.ndarray) -> np.ndarray:
    """Number of True samples per pixel."""
    height, width = mask.shape
    boxes = mask.reshape(height // SUPERSAMPLING, SUPERSAMPLING, width // SUPERSAMPLING, SUPERSAMPLING)
    counts: np.ndarray = boxes.sum(axis=(1, 3), dtype=np.int64)
    return counts


def silhouette(shape: str, u: Plane, v: Plane) -> np.ndarray:
    """Which samples lie inside a shape of radius 1 around the origin."""
    inside: np.ndarray
    if shape == "ball":
        inside = u * u + v * v <= 0.85
    elif shape == "box":
        inside = np.maximum(np.abs(u), np.abs(v)) <= 0.8
    elif shape == "triangle":
        inside = inside_polygon(TRIANGLE_POINTS, u, v)
    elif shape == "star":
        inside = inside_polygon(STAR_POINTS, u, v)
    elif shape == "heart":
        x, y = u * 1.2, 0.1 - v * 1.2
        bulge = x * x + y * y - 1
        inside = bulge * bulge * bulge - x * x * y * y * y <= 0
    elif shape == "mug":
        body = (u >= -0.85) & (u <= 0.4) & (np.abs(v) <= 0.78)
        ring = (u - 0.4) * (u - 0.4) + v * v
        inside = body | ((u > 0.4) & (ring <= 0.3) & (ring >= 0.08))
    elif shape == "crescent":
        inside = (u * u + v * v <= 0.9) & ((u - 0.5) * (u - 0.5) + v * v > 0.55)
    else:
        raise ValueError(f"no such shape: {shape}")
    return inside


def inside_polygon(points: tuple[tuple[float, float], ...], u: Plane, v: Plane) -> np.ndarray:
    """Even-odd rule."""
    inside = np.zeros(np.broadcast_shapes(u.shape, v.shape), dtype=bool)
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        if y1 != y2:
            inside ^= ((y1 > v) != (y2 > v)) & (u < (x2 - x1) / (y2 - y1) * (v - y1) + x1)
    return inside


def second_colour(thing: Thing, u: Plane, v: Plane) -> np.ndarray:
    """Which samples a thing's pattern paints in its second colour."""
    marked: np.ndarray
    if thing.pattern == "plain":
        marked = np.zeros(u.shape, dtype=bool)
    elif thing.pattern == "striped":
        marked = np.floor(v / STRIPE_WIDTH + 0.5) % 2 == 1
    elif thing.pattern == "checkered":
        marked = (np.floor(u / CHECK_WIDTH) + np.floor(v / CHECK_WIDTH)) % 2 == 1
    elif thing.pattern == "dotted":
        nearest_u, nearest_v = u - 0.64 * np.floor(u / 0.64 + 0.5), v - 0.64 * np.floor(v / 0.64 + 0.5)
        marked = nearest_u * nearest_u + nearest_v * nearest_v <= 0.05
    elif thing.pattern == "framed":
        marked = silhouette(thing.shape, u / 0.55, v / 0.55)
    elif thing.pattern == "split":
        marked = u > 0
    else:
        raise ValueError(f"no such pattern: {thing.pattern}")
    return marked


def backdrop(scene: Scene) -> np.ndarray:
    """The background's pixels, int64 (32, 32, 3)."""
    down = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE][0]
    light = (IMAGE_SIZE // 2 - down) // 2 + scene.shade
    phase = scene.phase
    if scene.background == "gray":
        colour, texture = (128, 128, 128), np.zeros_like(down)
    elif scene.background == "grass":
        colour, texture = (72, 156, 62), np.where((down + 2 * phase) % 16 < 8, 9, -9)
    elif scene.background == "sea":
        colour, texture = (16, 138, 150), np.where((down + phase) % 8 < 3, 24, 0)
    elif scene.background == "night":
        colour, texture, light = (20, 22, 48), np.zeros_like(down), light // 2
        for row, column in NIGHT_LIGHTS:
            texture[row : row + 2, (column + 2 * phase) % IMAGE_SIZE] = 60
    elif scene.background == "wood":
        colour, texture = (122, 84, 54), np.where((down + phase) % 8 == 0, -34, 0)
    else:
        raise ValueError(f"no such background: {scene.background}")
    pixels: np.ndarray = (np.array(colour) + (light + texture)[:, :, None]).clip(0, 255)
    return pixels
