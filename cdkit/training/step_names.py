"""Names of what a training leaves at a step, as step-000100 and step-000100.png, in the order of their numbers."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"step-([0-9]+)")


def step_name(step: int) -> str:
    """Six digits, more from a million steps on: names sort by their letters only below that."""
    return f"step-{step:06d}"


def newest_first(folder: Path, suffix: str = "") -> list[tuple[int, Path]]:
    """What a folder holds of steps, with their numbers; anything else in it, such as somebody's copy, is left out."""
    named = ((_NAME.fullmatch(path.name.removesuffix(suffix)), path) for path in folder.glob(f"step-*{suffix}"))
    return sorted(((int(match[1]), path) for match, path in named if match), reverse=True)
