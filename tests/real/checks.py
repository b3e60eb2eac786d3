"""Whether what a run made is valid: counts that add up, captions that belong to their images, files others load."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file

from cdkit.core.shards import parts
from cdkit.core.text import clean_caption
from cdkit.deltas.formats.lora import DIFFUSERS_LORA_NAME
from cdkit.pictures.picture import perceptual_hash
from tests.real.real_web import RealWeb
from tests.support.regularization_sets import read_regularization_set

# Stored images are encoded again, which moves a bit or two; the concept's own photos are further away than that.
SAME_BITS = 4


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


def check_index(index: Path, rows: int) -> None:
    """Every row of the pool is in it, or rejected with a reason."""
    manifest = manifest_of(index)
    counts = manifest["counts"]
    assert counts["in"] == rows
    assert counts["kept"] + sum(counts["rejected"].values()) == rows
    listed = sum(pq.read_metadata(path).num_rows for path in parts(index / "image_rows"))
    captions = sum(pq.read_metadata(path).num_rows for path in parts(index / "captions"))
    assert listed == counts["kept"]
    assert captions == manifest["details"]["captions"]
    assert manifest["details"]["recall"]


def check_set(folder: Path, web: RealWeb, pairs: set[tuple[str, str]], own: list[Path], count: int) -> None:
    """`count` images; each under a caption of its own link, showing what that link shows, none the concept's own."""
    manifest = manifest_of(folder)
    assert manifest["details"]["accepted"] == count
    assert manifest["counts"]["in"] == count + sum(manifest["details"]["rejected"].values())
    ours = [_hash(path.read_bytes()) for path in own]
    images = read_regularization_set(folder)
    assert len(images) == count == len({image.url for image in images})
    for image in images:
        # Captions are kept as they were written, and are the same when they are the same cleaned.
        assert (image.url, clean_caption(image.caption)) in pairs
        stored = _hash(image.image)
        assert (stored ^ _hash(web.photo(str(image.url)))).bit_count() <= SAME_BITS
        assert all((stored ^ photo).bit_count() > SAME_BITS for photo in ours)
    tables = [pq.read_table(path) for path in parts(folder / "images")]
    # The layout that Hugging Face's datasets reads as pictures.
    assert all({"bytes", "path"} == {field.name for field in table.schema.field("image").type} for table in tables)


def check_delta(folder: Path) -> dict[str, torch.Tensor]:
    """Finite, and something has changed."""
    tensors = load_file(folder / "delta.safetensors")
    assert tensors
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert any(bool(tensor.any()) for tensor in tensors.values())
    return tensors


def check_images(folder: Path, number: int) -> None:
    """All there, readable, and none of one colour."""
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    assert len(rows) == number
    for row in rows:
        with Image.open(folder / row["path"]) as image:
            assert max(high - low for low, high in image.convert("RGB").getextrema()) > 16


def check_scores(folder: Path) -> dict[str, float]:
    """Every score a number; the values by name."""
    metrics = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["metrics"]
    values = {name: entry["value"] for name, entry in metrics.items()}
    assert all(math.isfinite(value) for value in values.values())
    assert {"text_alignment", "image_alignment", "kid", "drift"} <= set(values)
    return values


def check_lora(folder: Path) -> None:
    """diffusers loads the exported files, and they change what it draws."""
    from cdkit.embedded import load_pipeline

    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        drawn = pipeline(
            "a photo of a dog", num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0)
        )
        return torch.as_tensor(drawn.images)

    before = draw()
    pipeline.load_lora_weights(str(folder), weight_name=DIFFUSERS_LORA_NAME)
    after = draw()
    assert after.isfinite().all()
    assert not torch.equal(before, after)
    for path in sorted((folder / "embeddings").glob("*.safetensors")):
        pipeline.load_textual_inversion(str(path))
        assert len(pipeline.tokenizer.tokenize("a <new1> dog")) == 3


def check_page(run: Path) -> None:
    """One page that asks the network for nothing, with no step missing."""
    page = (run / "page" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//(?!127\.0\.0\.1)""", page)
    assert not re.search(r"\bnan\b", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page), re.IGNORECASE)
    assert manifest_of(run / "page")["details"]["missing"] == []
    assert (run / "page" / "README.md").read_text(encoding="utf-8").startswith("---\n")


def _hash(content: bytes) -> int:
    with Image.open(io.BytesIO(content)) as image:
        return perceptual_hash(image.convert("RGB"))
