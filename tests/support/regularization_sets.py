"""Whole regularization sets, as tests compare them."""

from __future__ import annotations

from pathlib import Path

from cdkit.pictures.regularization_set import RegularizationImage, iterate_regularization_set


def read_regularization_set(folder: Path) -> list[RegularizationImage]:
    return list(iterate_regularization_set(folder))
