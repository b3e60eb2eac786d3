"""Measures of a picture by its pixels alone: how sharp it is, how much of it is one colour, how much of it is text.

All are taken of the picture shrunk to a longer side of 512 pixels, so that they mean the same for every size.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 512
# Of 255 levels, per channel: how far a pixel may be from the commonest colour to be of it.
SAME_COLOUR = 12
CELL = 16
# A cell of text: ink and paper at least so far apart, nearly every pixel close to one of them, both there, and the
# strokes so fine that rows cross from one to the other several times.
INK_CONTRAST, INK_SHARE, LEAST_INK, ROW_CROSSINGS = 70.0, 0.8, 0.06, 3.0


def sharpness(picture: Image.Image) -> float:
    """The variance of the Laplacian over the grey levels (Pech-Pacheco et al. 2000); below about 50 it is blurred."""
    grey = _grey(picture)
    if min(grey.shape) < 3:
        return 0.0
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return float(laplacian.var())


def flat_share(picture: Image.Image) -> float:
    """The share of the picture, 0 to 1, that has its commonest colour."""
    pixels = np.asarray(_shrunk(picture.convert("RGB")), dtype=np.int16).reshape(-1, 3)
    bins = (pixels >> 4) @ np.array([256, 16, 1], dtype=np.int16)
    commonest = pixels[bins == np.bincount(bins).argmax()].mean(axis=0)
    return float((np.abs(pixels - commonest).max(axis=1) <= SAME_COLOUR).mean())


def text_share(picture: Image.Image) -> float:
    """The share of the picture's cells, 0 to 1, that look like lines of text: two tones in fine strokes.

    Small print shows in cells of the picture as it is measured, headlines in those of one half as large.
    """
    return max(_share_of_text_cells(_grey(picture, side)) for side in (SIDE, SIDE // 2))


def _share_of_text_cells(grey: np.ndarray) -> float:
    rows, columns = grey.shape[0] // CELL, grey.shape[1] // CELL
    if not rows or not columns:
        return 0.0
    cells = grey[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL).swapaxes(1, 2)
    levels = np.sort(cells.reshape(rows, columns, -1), axis=-1)
    dark, bright = levels[..., CELL], levels[..., -CELL]
    contrast = bright - dark
    near_dark = cells < (dark + contrast / 4)[..., None, None]
    near_bright = cells > (bright - contrast / 4)[..., None, None]
    dark_part, bright_part = near_dark.mean(axis=(2, 3)), near_bright.mean(axis=(2, 3))
    above = cells > ((dark + bright) / 2)[..., None, None]
    crossings = (above[..., 1:] != above[..., :-1]).sum(axis=3).mean(axis=2)
    text = (contrast >= INK_CONTRAST) & (dark_part + bright_part >= INK_SHARE)
    text &= (np.minimum(dark_part, bright_part) >= LEAST_INK) & (crossings >= ROW_CROSSINGS)
    return float(text.mean())


def _grey(picture: Image.Image, side: int = SIDE) -> np.ndarray:
    return np.asarray(_shrunk(picture.convert("L"), side), dtype=np.float32)


def _shrunk(picture: Image.Image, side: int = SIDE) -> Image.Image:
    longer = max(picture.size)
    if longer <= side:
        return picture
    size = (max(1, round(picture.width * side / longer)), max(1, round(picture.height * side / longer)))
    return picture.resize(size, Image.Resampling.BOX)
