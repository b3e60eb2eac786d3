"""Deltas whose paths hold the ", " that once stood between several of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import DELTA_NAME, save_delta
from cdkit.evaluation.samples import delta_paths, read_sample_set
from tests.cli.running import ran
from tests.support.made_deltas import made_delta
from tests.support.tiny_pipeline import tiny_pipeline

NAMES = ("dog, brown", "cat", "a, b, c")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and three deltas."""
    folder = tmp_path_factory.mktemp("names, with commas")
    pipeline = tiny_pipeline(folder / "base")
    pipeline = load_base_model(str(folder / "base"), device=torch.device("cpu"))
    for number, name in enumerate(NAMES, 1):
        save_delta(made_delta(pipeline, seed=number, tokens=(f"<new{number}>",)), folder / name / DELTA_NAME)
    return folder


@pytest.mark.parametrize("names", [NAMES[:1], NAMES[:2], NAMES, NAMES[1:2], ()])
def test_samples_know_the_deltas_they_were_drawn_with(material: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    deltas = [word for name in names for word in ("--delta", material / name)]
    words = ["--prompt", "a cat, a dog", "--seeds", 1, "--steps", 1, "--base", material / "base", *deltas]
    done = ran(["sample", *words, "--out", tmp_path / "samples, first"])
    assert done.code == 0, done.err
    found = read_sample_set(tmp_path / "samples, first")
    assert found.samples[0].prompt == "a cat, a dog"
    if names:
        sizes = [(material / name / DELTA_NAME).stat().st_size for name in names]
        assert found.facts["delta_bytes"] == sum(sizes)
    else:
        assert "delta_bytes" not in found.facts
    # Without its manifest the table alone tells.
    (tmp_path / "samples, first" / "manifest.json").unlink()
    expected = tuple(f"<new{NAMES.index(name) + 1}>" for name in names)
    assert read_sample_set(tmp_path / "samples, first").tokens == expected


def test_former_tables_are_read(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(material)
    for names in (NAMES, NAMES[::-1], NAMES[:1], ("cat", "gone", "a, b, c")):
        assert delta_paths(", ".join(names)) == list(names)
    assert delta_paths("gone, brown, cat") == ["gone", "brown", "cat"]
    assert delta_paths(None) == delta_paths(float("nan")) == delta_paths([]) == []
    assert delta_paths("x" * 5000 + ", cat") == ["x" * 5000, "cat"]
    done = ran(
        ["sample", "--prompt", "a cat", "--seeds", 1, "--steps", 1, "--base", "base", "--out", tmp_path / "out"]
    )
    assert done.code == 0, done.err
    table = pq.read_table(tmp_path / "out" / "samples.parquet").drop_columns(["delta"])
    joined = pa.array([", ".join(NAMES[:2])], pa.string())
    pq.write_table(table.append_column("delta", joined), tmp_path / "out" / "samples.parquet")
    assert read_sample_set(tmp_path / "out").tokens == ("<new1>", "<new2>")
