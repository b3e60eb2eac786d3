"""How each campaign ended: a line of numbers for each, gathered in the file that $CDKIT_FAULT_COUNTS names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

VARIABLE = "CDKIT_FAULT_COUNTS"
HEADINGS = ("injected", "survived", "refused")


def count(what: str, outcomes: Mapping[str, int], **further: object) -> None:
    """Print, and keep where the variable says so, how many of a kind of fault or input ended how.

    Of the outcomes `refused` stands for itself; all others are ways to survive.
    """
    injected = sum(outcomes.values())
    refused = outcomes.get("refused", 0)
    line = {"what": what, "injected": injected, "survived": injected - refused, "refused": refused}
    text = json.dumps({**line, **further, **({"outcomes": dict(outcomes)} if len(outcomes) > 2 else {})})
    print(text, flush=True)
    if place := os.environ.get(VARIABLE):
        with open(place, "a", encoding="utf-8") as handle:
            handle.write(f"{text}\n")


def read_counts(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(lines: Iterable[Mapping[str, object]]) -> str:
    """All counts as a Markdown table, those of one name in one row."""
    rows: dict[str, list[int]] = {}
    for line in lines:
        row = rows.setdefault(str(line["what"]), [0] * len(HEADINGS))
        for place, heading in enumerate(HEADINGS):
            row[place] += int(str(line[heading]))
    drawn = [f"| what | {' | '.join(HEADINGS)} |", f"|---|{'---|' * len(HEADINGS)}"]
    return "\n".join([*drawn, *(f"| {what} | {' | '.join(f'{n:,}' for n in row)} |" for what, row in rows.items())])
