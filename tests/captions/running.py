"""Small pools for the import tests, and what an import of them left behind."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cdkit.captions.config import ImportConfig
from cdkit.core.manifest import Manifest
from cdkit.core.shards import read_parts
from cdkit.execute import execute


@dataclass
class Imported:
    """The tables of an output folder and its manifest."""

    out: Path
    manifest: Manifest

    @property
    def captions(self) -> dict[str, int]:
        """Displayed caption → rows."""
        tables = list(read_parts(self.out / "captions", ["caption", "rows"]))
        pairs = [zip(table["caption"].to_pylist(), table["rows"].to_pylist(), strict=True) for table in tables]
        return {caption: rows for pair in pairs for caption, rows in pair}

    @property
    def image_rows(self) -> list[dict[str, Any]]:
        return self._rows("image_rows")

    @property
    def rejects(self) -> list[tuple[str, int, str]]:
        """(source, row, reason), in file order."""
        return [(row["source"], row["row"], row["reason"]) for row in self._rows("rejects")]

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(reason for _, _, reason in self.rejects))

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        return [row for table in read_parts(self.out / kind) for row in table.to_pylist()]


def run_import(out: Path, *captions: Path | str, workers: int = 1, **settings: Any) -> Imported:
    """Import pools and check that rows in = kept + rejected, in the manifest and in the folders."""
    config = ImportConfig(captions=[str(path) for path in captions], workers=workers, **settings)
    found = Imported(out, execute("import", config, out).manifest)
    counts = found.manifest.counts
    assert counts["in"] == counts["kept"] + sum(counts["rejected"].values())
    assert counts["rejected"] == found.reasons
    captions = found.captions
    image_rows = sum(table.num_rows for table in read_parts(out / "image_rows", ["caption_id"]))
    assert counts["kept"] == image_rows == sum(captions.values())
    assert found.manifest.details["captions"] == len(captions)
    assert not (out / "buckets").exists()
    return found


def write_parquet(path: Path, **columns: Any) -> Path:
    """A parquet file with these columns."""
    pq.write_table(pa.table(columns), path)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A jsonl file with these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def laion_rows(rows: int, start: int = 0) -> dict[str, list[Any]]:
    """Columns in LAION's layout; every third caption repeats, every seventh needs cleaning in Python."""
    texts = [
        f"Photo {n // 3 if n % 3 else n} of a {'“café” &amp; bar' if n % 7 == 0 else 'street'}"
        for n in range(start, start + rows)
    ]
    return {
        "URL": [f"https://example.com/{n}.jpg" for n in range(start, start + rows)],
        "TEXT": texts,
        "WIDTH": [300 + n % 50 for n in range(rows)],
        "HEIGHT": [200 + n % 70 for n in range(rows)],
        "NSFW": ["UNLIKELY" if n % 11 else "UNSURE" for n in range(rows)],
        "similarity": [0.3 + n % 10 / 100 for n in range(rows)],
    }


def content(out: Path) -> dict[str, bytes]:
    """The bytes of every data file of an output folder, by relative path."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("part-*")) if path.is_file()}
