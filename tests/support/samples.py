"""Reads a finished samples folder back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from cdkit.pictures.picture import open_file
from cdkit.sampling.drawing import Sample


def read_samples(folder: Path) -> Iterator[tuple[Sample, Image.Image]]:
    """The samples with their images."""
    for row in pq.read_table(folder / "samples.parquet").to_pylist():
        yield Sample(row["prompt"], row["seed"], Path(row["path"]).name), open_file(folder / row["path"])
