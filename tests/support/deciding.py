"""Decisions made as the review page makes them: about the pictures of a set, by their keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from cdkit.core.shards import parts
from cdkit.retrieval.decisions import Decision, Decisions


def pictures_of(out: Path) -> dict[str, Decision]:
    """Every picture of a set, as one about to be decided."""
    columns = ["key", "sha256", "phash", "url", "caption"]
    rows = [row for path in parts(out / "images") for row in pq.read_table(path, columns=columns).to_pylist()]
    return {row["key"]: Decision(step=0, action="reject", decided="", **row) for row in rows}


def rejecting(out: Path, keys: Sequence[str], path: Path) -> Decisions:
    """Reject pictures of a set, and write the log."""
    pictures = pictures_of(out)
    decisions = Decisions().decide("reject", [pictures[key] for key in keys], "2026-11-27T05:00:00+00:00")
    decisions.write(path)
    return decisions
