"""The graphics card, for a training that must fit into its memory; torch is asked only where there may be a card."""

from __future__ import annotations

import shutil
import sys
import typing
from pathlib import Path

from cdkit.core.config import did_you_mean
from cdkit.core.errors import ConfigError
from cdkit.training.config import Fit

GIB = 1 << 30
NO_CARD = "none"
SIZES: tuple[str, ...] = typing.get_args(Fit)
# What drivers make of a card's name: one of "24 GB" has a little less, or more.
TOLERANCE = 1.06
_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd")


def card_memory() -> int | None:
    """Bytes of the graphics card that a training would use; None where there is none that computes."""
    if sys.platform != "darwin" and not any(Path(node).exists() for node in _NODES) and not shutil.which("nvidia-smi"):
        return None
    from cdkit.core.machine import choose_device
    from cdkit.training.memory import device_memory

    device = choose_device()
    memory = device_memory(device) if device.type != "cpu" else None
    return memory[1] if memory is not None else None


def fit_of(total: int) -> str:
    """The size to train for on a card of so many bytes: the largest that it has; auto beyond the largest and below
    the smallest, where what is free decides."""
    sizes = {name: int(name.removesuffix("GB")) * GIB for name in SIZES if name != "auto"}
    fitting = [name for name, size in sizes.items() if size <= total * TOLERANCE]
    return fitting[-1] if fitting and total <= max(sizes.values()) * TOLERANCE else "auto"


def parse_fit(text: str) -> str | None:
    """`12GB`, `12 gb` or `12` as a size of --fit, also one between two sizes; None for no card.

    Raises ConfigError for what is neither.
    """
    plain = text.strip().lower().replace(" ", "")
    if plain in ("", NO_CARD, "cpu", "no"):
        return None
    if plain == "auto":
        return "auto"
    number = plain.removesuffix("gb").removesuffix("g")
    if not number.replace(".", "", 1).isdecimal() or float(number) <= 0:
        known = [*SIZES, NO_CARD]
        raise ConfigError(
            f"--fit {text!r} is no size of a card{did_you_mean(text, known)}.", hint="Example: --fit 12GB"
        )
    return fit_of(int(float(number) * GIB))
