"""How large a merged change is, against the changes it was made from and the weights it is added to.

Between ordinary captions and ridges of 0.01 and more, merges come to 3 to 10 times their deltas, for what two concepts
need to be told apart in one prompt. Where the captions leave directions nearly open and no ridge closes them, meeting
the words costs any amount there: the captions themselves do not show it, every other prompt does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdkit.core.errors import ConfigError
from cdkit.deltas.delta import Delta, LowRank, norm

if TYPE_CHECKING:
    import torch

# Twice what ordinary merges come to, and enough of the weights to be seen.
LARGE_GROWTH, LARGE_SHARE = 20.0, 0.2
# Where the change outweighs the weights, a prompt unlike the captions is drawn by it alone.
ABSURD_GROWTH, ABSURD_SHARE = 100.0, 1.0
_MORE = "Give more and other captions (--captions-count 1000), or a larger --ridge (0.1 is the default)."


@dataclass(frozen=True)
class ChangeSize:
    """growth: the change's norm over that of all its parts; share: over that of the weights it is added to."""

    growth: float
    share: float


def change_size(
    changes: Mapping[str, torch.Tensor | LowRank], parts: Iterable[Delta], weights: Mapping[str, torch.Tensor]
) -> ChangeSize:
    """Measure a merged change over all its matrices (Frobenius norms)."""
    merged = _total(norm(change) for change in changes.values())
    apart = _total(norm(change) for part in parts for change in part.changes.values())
    base = _total(float(weights[name].norm()) for name in changes)
    return ChangeSize(merged / apart if apart else 0.0, merged / base if base else 0.0)


def check_size(size: ChangeSize, note: Callable[[str], None]) -> None:
    """Note a change that is large; raises ConfigError for one that the base model would not survive."""
    said = (
        f"The merged change is {size.growth:.0f} times as large as its deltas' together, {size.share:.0%} of the "
        "weights: the captions leave open much of what should not change."
    )
    if size.growth > ABSURD_GROWTH and size.share > ABSURD_SHARE:
        raise ConfigError(said, hint=_MORE)
    if size.growth > LARGE_GROWTH and size.share > LARGE_SHARE:
        note(f"{said} {_MORE}")


def _total(norms: Iterable[float]) -> float:
    return math.sqrt(sum(value**2 for value in norms))
