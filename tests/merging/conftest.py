from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cdkit.deltas.text_features import encode_ids, text_towers, token_ids
from tests.support.small_index import grammar_captions
from tests.support.tiny_pipeline import tiny_pipeline
from tests.support.tiny_xl_pipeline import tiny_xl_pipeline


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved tiny base models, of one text tower and of two."""
    folder = tmp_path_factory.mktemp("bases")
    tiny_pipeline(folder / "one")
    tiny_xl_pipeline(folder / "two")
    return {name: folder / name for name in ("one", "two")}


@pytest.fixture(params=["one", "two"])
def base(request: pytest.FixtureRequest, bases: dict[str, Path]) -> Path:
    return bases[request.param]


@pytest.fixture(scope="session")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 captions as a pool file."""
    path = tmp_path_factory.mktemp("pool") / "captions.parquet"
    pq.write_table(pa.table({"caption": grammar_captions(120)}), path)
    return path


def loaded(folder: Path) -> Any:
    from cdkit.deltas.base_model import load_base_model

    return load_base_model(str(folder), device=torch.device("cpu"))


def hidden_features(pipeline: Any, prompt: str) -> torch.Tensor:
    """Features of a prompt as the pipeline pads it, (context, width)."""
    towers = text_towers(pipeline)
    with torch.no_grad():
        return encode_ids(towers, token_ids(towers, [prompt])).hidden[0]
