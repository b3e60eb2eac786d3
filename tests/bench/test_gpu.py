"""The GPU benchmark runs wherever there is no GPU too, at tiny sizes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench.gpu.__main__ import measure


def figures(part: str) -> dict[str, Any]:
    """What a part measured at tiny sizes; it must miss and break nothing."""
    measured: dict[str, Any] = measure([part], tiny=True, seconds=300)[part]  # type: ignore[assignment]
    assert "missing" not in measured
    assert "failed" not in measured
    return measured


def test_embedding() -> None:
    measured = figures("embedding")
    assert measured["end_to_end"]["captions"] == 1000
    assert 12 < measured["end_to_end"]["mean_tokens"] < 18
    assert measured["end_to_end"]["processes"] >= 1
    assert measured["agreement"]["holds"]
    assert all("failed" not in values for values in measured.values() if isinstance(values, dict))


def test_training() -> None:
    measured = figures("training")
    assert {"sd15", "sd15_pass", "sd15_usual", "sdxl", "sdxl_pass", "fit_8GB"} <= measured.keys()
    assert not [name for name in measured if name.endswith(("_failed", "_skipped"))]
    assert measured["sd15_pass"]["tflop_per_step"] > 0
    losses = measured["precision"]["mean_loss"]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)
    assert any("--fit 8GB: batches of 4" in note for note in measured["fit_8GB"]["notes"])


def test_families() -> None:
    measured = figures("families")
    for pipeline in ("StableDiffusion3Pipeline", "FluxPipeline"):
        assert 0 < measured[pipeline]["trained"] < measured[pipeline]["parameters"]
        assert measured[pipeline]["seconds_per_step"] > 0
