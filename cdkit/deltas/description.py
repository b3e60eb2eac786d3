"""A description of a delta: what is in it, in words and numbers, for people and programs."""

from __future__ import annotations

from typing import Any

from cdkit.deltas.delta import Delta
from cdkit.deltas.low_rank import LowRank, norm


def describe(delta: Delta) -> dict[str, Any]:
    """Method, base, tokens, prompts, settings, and of every changed parameter ‖ΔW‖, shape and rank as stored.

    A layer that changes at some words alone has them as `words`.
    """
    where = [[], *(list(gate.words) for gate in delta.gated)]
    layers: list[dict[str, Any]] = [
        {
            "layer": name,
            "norm": norm(change),
            "rank": change.rank if isinstance(change, LowRank) else min(change.shape, default=0),
            "stored": "product" if isinstance(change, LowRank) else "whole",
            "shape": list(change.shape),
            **({"words": words} if words else {}),
        }
        for words, changes in zip(where, delta.all_changes, strict=True)
        for name, change in changes.items()
    ]
    return {
        "method": delta.method,
        "base": delta.base,
        "base_hash": delta.base_hash,
        "made_by": delta.made_by,
        "tokens": [
            {
                "token": token.text,
                "initializer": token.initializer,
                "rows": {name: len(rows) for name, rows in token.rows.items()},
                "norms": {name: [float(row.norm()) for row in rows] for name, rows in token.rows.items()},
            }
            for token in delta.tokens
        ],
        "prompts": list(delta.prompts),
        "settings": dict(delta.settings),
        "norm": sum(layer["norm"] ** 2 for layer in layers) ** 0.5,
        "layers": layers,
    }
