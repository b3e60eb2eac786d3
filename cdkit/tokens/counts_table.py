"""Token counts as they lie in a folder: token_counts/, and token_counts_2/ for a second text tower."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.datasets import FACTS_KEY, finished_facts, part_name, parts, read_parts, schema, write_shard
from cdkit.errors import InputError
from cdkit.tokens.vocabulary import Tower

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

COUNTS_FOLDER = "token_counts"
WORDS_COLUMN = "words"


@dataclass(frozen=True)
class TokenCounts:
    """Counts per tower (int64 [vocabulary size] each), rows counted, and rows there were (None: not known).

    words: how often the surface form of each of the first tower's tokens stands as a word of its own; None where that
    was not counted.
    """

    towers: tuple[Tower, ...]
    counts: tuple[np.ndarray, ...]
    words: np.ndarray | None
    sampled: int | None
    available: int | None

    def as_json(self) -> dict[str, Any]:
        """Totals per tower: what `cdkit tokens count --format json` prints, less the folder."""
        return {
            "rows": self.sampled,
            "available": self.available,
            "towers": [
                {
                    "tokenizer": tower.name,
                    "vocabulary": len(tower.vocabulary),
                    "tokens": int(counts.sum()),
                    "distinct": int((counts > 0).sum()),
                }
                for tower, counts in zip(self.towers, self.counts, strict=True)
            ],
        }


def write_counts(folder: Path, found: TokenCounts, fingerprint: str) -> None:
    """Write one table per tower, each atomically, the first tower's last."""
    import numpy as np
    import pyarrow as pa

    facts = {"sampled": found.sampled, "available": found.available}
    for (name, tower), counts in reversed(list(zip(_folders(found.towers), found.counts, strict=True))):
        ids = np.arange(len(counts), dtype=np.int32)
        table = pa.table([ids, list(tower.vocabulary.entries), counts], schema=schema("token_counts"))
        if name == COUNTS_FOLDER and found.words is not None:
            table = table.append_column(WORDS_COLUMN, pa.array(found.words))
        write_shard(folder / name / part_name(0), table, fingerprint=fingerprint, facts=facts)


def finished_counts(folder: Path, towers: Sequence[Tower], fingerprint: str) -> TokenCounts | None:
    """The counts made under `fingerprint`; None unless every tower's are there."""
    paths = [folder / name / part_name(0) for name, _ in _folders(towers)]
    done = all(finished_facts(path, fingerprint) is not None for path in paths)
    return read_counts(folder, towers) if done else None


def read_counts(folder: Path, towers: Sequence[Tower]) -> TokenCounts:
    """The counts a `token-counts` (or `tokens`) stage left in `folder`, checked against the towers' vocabularies.

    Raises InputError when there are none, when they are damaged, or when they were made with another tokenizer.
    """
    tables = [_read_tower(folder / name, tower) for name, tower in _folders(towers)]
    facts = _facts(folder / COUNTS_FOLDER)
    words = _column(tables[0], WORDS_COLUMN) if WORDS_COLUMN in tables[0].column_names else None
    counts = tuple(_column(table, "count") for table in tables)
    return TokenCounts(tuple(towers), counts, words, facts.get("sampled"), facts.get("available"))


def _folders(towers: Sequence[Tower]) -> list[tuple[str, Tower]]:
    return [(COUNTS_FOLDER if not k else f"{COUNTS_FOLDER}_{k + 1}", tower) for k, tower in enumerate(towers)]


def _column(table: pa.Table, name: str) -> np.ndarray:
    import numpy as np

    return np.asarray(table.column(name).to_numpy(), dtype=np.int64)


def _read_tower(folder: Path, tower: Tower) -> pa.Table:
    """One tower's table in the order of ids, known to be of that tower's vocabulary."""
    import pyarrow as pa

    if not parts(folder):
        raise InputError(
            f"{folder.parent} holds no counts for {tower.name} ({folder.name}/).",
            hint="Make them with cdkit tokens count and the same --tokenizer.",
        )
    table = pa.concat_tables(read_parts(folder), promote_options="default")
    fields = schema("token_counts")
    if not set(fields.names) <= set(table.column_names):
        raise InputError(f"{folder} is not a table of token counts.", hint="Make it with cdkit tokens count.")
    table = table.sort_by("token_id")
    same_ids = table.column("token_id").to_pylist() == list(range(len(tower.vocabulary)))
    if not same_ids or tuple(table.column("token").to_pylist()) != tower.vocabulary.entries:
        raise InputError(
            f"The counts in {folder} were made with another tokenizer than {tower.name}'s.",
            hint="Give the --tokenizer they were made with, or count again.",
        )
    if table.column("count").null_count or not pa.types.is_integer(table.schema.field("count").type):
        raise InputError(f"The counts in {folder} are damaged.", hint="Count again with cdkit tokens count --force.")
    return table


def _facts(folder: Path) -> dict[str, Any]:
    """How many rows the counts are of; empty for a table that cdkit did not write."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(parts(folder)[0]).metadata or {}
    return dict(json.loads(metadata.get(FACTS_KEY.encode(), b"{}")))
