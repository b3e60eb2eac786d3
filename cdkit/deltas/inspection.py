"""What a delta holds, as plain values."""

from __future__ import annotations

from typing import Any

from cdkit.deltas.delta import Delta, LowRank, norm


def describe(delta: Delta) -> dict[str, Any]:
    """Method, base, tokens, prompts, settings, and of every changed parameter ‖ΔW‖, shape and rank as stored."""
    norms = {name: norm(change) for name, change in delta.changes.items()}
    layers = [
        {
            "layer": name,
            "norm": norms[name],
            "rank": change.rank if isinstance(change, LowRank) else min(change.shape, default=0),
            "stored": "product" if isinstance(change, LowRank) else "whole",
            "shape": list(change.shape),
        }
        for name, change in delta.changes.items()
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
        "norm": sum(norm**2 for norm in norms.values()) ** 0.5,
        "layers": layers,
    }
