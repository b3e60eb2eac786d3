"""Preservation: what training did to pictures of prompts that have nothing to do with the concept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError, InputError
from cdkit.evaluation.config import CompareConfig, EvaluateConfig
from cdkit.execute import Result, execute
from tests.support.pretend_run import run_stage, write_trained

PROMPTS = ["a red mug on the grass", "a blue box at night", "a mug and a box"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """of: a concept's samples; base: three unrelated prompts; after: the same, a quarter of one picture repainted."""
    folder = tmp_path_factory.mktemp("preserved")
    write_trained(folder / "delta")
    shared: dict[str, Any] = {"steps": 2, "guidance": 4.0, "device": "cpu", "seeds": 1}
    run_stage("sample", folder / "of", prompts=["a <new1> star"], deltas=[str(folder / "delta")], **shared)
    run_stage("sample", folder / "base", prompts=PROMPTS, **shared)
    shutil.copytree(folder / "base", folder / "after")
    pixels = np.asarray(Image.open(folder / "after" / "images" / "0001-0.png")).copy()
    pixels[:16, :16] = 255 - pixels[:16, :16] // 8
    # Within the tolerance, and so kept.
    pixels[20:, 20:] ^= 1
    Image.fromarray(pixels).save(folder / "after" / "images" / "0001-0.png")
    return folder


def _evaluate(out: Path, **values: Any) -> Result:
    return execute("evaluate", parse_config(EvaluateConfig, {"device": "cpu", **values}), out)


def test_what_stayed_is_counted_and_what_changed_told(folder: Path, out: Path) -> None:
    given = {name: str(folder / path) for name, path in {"samples": "of", "unrelated": "after"}.items()}
    result = _evaluate(out, **given, base_unrelated=str(folder / "base"))
    metrics = result.manifest.details["metrics"]
    assert metrics["pixels_kept"]["value"] == pytest.approx((1 + 0.75 + 1) / 3, abs=0.01)
    assert metrics["pixels_kept"]["n"] == metrics["text_change"]["n"] == 3
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    changes = {row["prompt"]: row["value"] for row in rows if row["metric"] == "text_change"}
    assert changes[PROMPTS[0]] == pytest.approx(0, abs=1e-6)
    assert changes[PROMPTS[1]] != pytest.approx(0, abs=1e-3)
    assert {row["set"] for row in rows if row["metric"] == "text_change"} == {"unrelated"}
    assert set(json.loads((out / "summary.json").read_text())["sets"]) == {"samples"}


def test_the_comparison_has_a_column_for_it(folder: Path, tmp_path: Path) -> None:
    given = {"samples": str(folder / "of"), "base_unrelated": str(folder / "base")}
    _evaluate(tmp_path / "changed", **given, unrelated=str(folder / "after"))
    _evaluate(tmp_path / "same", **given, unrelated=str(folder / "base"))
    single = {name: [str(tmp_path / name)] for name in ("changed", "same")}
    execute("compare", parse_config(CompareConfig, {"single": single}), tmp_path / "table")
    lines = (tmp_path / "table" / "table.md").read_text().splitlines()
    heads = [cell.strip() for cell in lines[0].strip("|").split("|")]
    place = heads.index("pixels kept, unrelated prompts")
    cells = {row[0].strip(): row[place] for line in lines[2:] if len(row := line.strip("|").split("|")) > place}
    assert cells["same"].split()[0] == "1.000"
    assert cells["changed"].split()[0].startswith("0.91")


def test_both_sides_and_the_same_prompts_are_needed(folder: Path, out: Path) -> None:
    with pytest.raises(ConfigError, match="mistake") as refused:
        _evaluate(out, samples=str(folder / "of"), unrelated=str(folder / "after"))
    assert "together" in refused.value.problems[0]
    with pytest.raises(InputError, match=r"lacks 3 of the 3 samples"):
        _evaluate(out, samples=str(folder / "of"), unrelated=str(folder / "after"), base_unrelated=str(folder / "of"))
    with pytest.raises(InputError, match="modifier token"):
        _evaluate(out, samples=str(folder / "of"), unrelated=str(folder / "of"), base_unrelated=str(folder / "base"))
