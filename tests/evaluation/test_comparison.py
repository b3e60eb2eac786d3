from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError, InputError
from cdkit.core.shards import write_shard
from cdkit.core.storage import write_json
from cdkit.evaluation.comparison import TableRow, interval_text, order_differences, paper_values, short_number
from cdkit.evaluation.config import CompareConfig
from cdkit.execute import Result, execute


def _scores(folder: Path, *, text: float, image: float, kid: float | None = None, encoder: str = "embedded") -> str:
    """A scores folder of 4 prompts × 3 images that spread a little around the given values."""
    import pyarrow as pa

    rows = []
    for prompt in range(4):
        for seed in range(3):
            shift = (prompt - 1.5) * 0.01 + (seed - 1) * 0.002
            shared = {"set": "samples", "prompt": f"prompt {prompt}", "seed": seed, "path": f"{prompt}-{seed}.png"}
            rows.append({**shared, "metric": "clip_score", "concept": None, "value": text + shift})
            rows.append({**shared, "metric": "image_alignment", "concept": "dog", "value": image + shift})
            rows.append({**shared, "set": "base", "metric": "clip_score", "concept": None, "value": 9.0})
    write_shard(folder / "scores.parquet", pa.Table.from_pylist(rows), fingerprint="x")
    metrics: dict[str, Any] = {}
    if kid is not None:
        metrics["kid"] = {"value": kid, "standard_error": 0.001, "n": 12}
    write_json(folder / "summary.json", {"metrics": metrics, "encoder": encoder})
    return str(folder)


def _compare(out: Path, **values: Any) -> Result:
    return execute("compare", parse_config(CompareConfig, values), out)


def test_a_table_like_the_papers(tmp_path: Path, out: Path) -> None:
    star = _scores(tmp_path / "star", text=0.70, image=0.80, kid=0.02)
    mug = _scores(tmp_path / "mug", text=0.80, image=0.70, kid=0.04)
    dreambooth = _scores(tmp_path / "db", text=0.90, image=0.60, kid=0.01)
    joint = _scores(tmp_path / "joint", text=0.6, image=0.5)
    result = _compare(
        out,
        single={"custom-diffusion": [star, mug], "dreambooth": dreambooth, "my-own": star},
        multi={"joint": joint},
    )
    rows = {(row["group"], row["method"]): row for row in result.manifest.details["rows"]}
    own = rows["single", "custom-diffusion"]["ours"]
    assert own["clip_score"]["value"] == pytest.approx(0.75)
    assert own["clip_score"]["n"] == 24
    assert own["clip_score"]["low"] < 0.75 < own["clip_score"]["high"]
    assert own["kid"]["value"] == pytest.approx(30)
    assert own["kid"]["high"] - own["kid"]["low"] == pytest.approx(2 * 1.96 * 2**0.5 / 2)
    assert rows["single", "dreambooth"]["paper"] == {"clip_score": 0.781, "image_alignment": 0.776, "kid": 32.53}
    assert rows["single", "my-own"]["paper"] == {}
    assert "kid" not in rows["multi", "joint"]["ours"]
    text = (out / "table.md").read_text()
    assert "| custom-diffusion | 0.750 (" in text
    assert "| 0.795 |" in text
    assert "Inception features" in text
    assert "dreambooth" in " ".join(result.manifest.details["notes"])
    with (out / "table.csv").open() as handle:
        table = {row["method"]: row for row in csv.DictReader(handle)}
    assert float(table["custom-diffusion"]["clip_score"]) == pytest.approx(0.75)
    assert table["custom-diffusion"]["paper_kid"] == "20.96"


def test_folders_may_be_joined_by_commas() -> None:
    config = parse_config(CompareConfig, {"single": {"custom-diffusion": "a,b", "other": ["c"]}})
    assert config.single == {"custom-diffusion": ["a", "b"], "other": ["c"]}
    with pytest.raises(ConfigError, match="at least one method"):
        parse_config(CompareConfig, {})


def test_different_encoders_do_not_compare(tmp_path: Path, out: Path) -> None:
    one = _scores(tmp_path / "a", text=0.7, image=0.7)
    other = _scores(tmp_path / "b", text=0.7, image=0.7, encoder="open_clip:ViT-B-32/openai")
    with pytest.raises(InputError, match="different encoders"):
        _compare(out, single={"a": one, "b": other})


def test_the_worst_and_the_change_at_the_same_prompts_and_seeds(tmp_path: Path, out: Path) -> None:
    star = _scores(tmp_path / "star-alone", text=0.7, image=0.8)
    mug = _scores(tmp_path / "mug-alone", text=0.7, image=0.7)
    merged = _scores(tmp_path / "star-merged", text=0.6, image=0.75)
    values = {"alone": [star], "merged": [merged], "pooled": [star, mug]}
    result = _compare(out, single=values, against="alone")
    rows = {row["method"]: row["ours"] for row in result.manifest.details["rows"]}
    change = rows["merged"]["image_alignment_change"]
    # Every image moved by the same, whatever they spread: the interval is of the differences.
    assert [change[key] for key in ("value", "low", "high", "n")] == pytest.approx([-0.05, -0.05, -0.05, 12])
    assert rows["merged"]["clip_score_change"]["value"] == pytest.approx(-0.1)
    assert "image_alignment_change" not in rows["alone"]
    assert "worst_image_alignment" not in rows["merged"]
    worst = rows["pooled"]["worst_image_alignment"]
    assert (worst["value"], worst["n"], worst["of"]) == (pytest.approx(0.7), 12, "mug-alone")
    text = (out / "table.md").read_text()
    assert "| image alignment, worst | change of text alignment | change of image alignment |" in text
    assert "0.700 (mug-alone)" in text
    with pytest.raises(ConfigError, match="against names 'nothing'"):
        parse_config(CompareConfig, {"single": {"a": star}, "against": "nothing"})


def _row(method: str, value: float, spread: float, group: str = "single") -> TableRow:
    estimate = {"value": value, "low": value - spread, "high": value + spread, "n": 10}
    return TableRow(group, method, {"clip_score": estimate}, paper_values(group, method))


def test_the_order_is_compared_in_plain_words() -> None:
    lines = order_differences([_row("dreambooth", 0.9, 0.01), _row("custom-diffusion", 0.8, 0.01)])
    assert lines == [
        "one concept, text alignment: dreambooth is better than custom-diffusion here (0.900 and 0.800), "
        "in the paper it is the other way round (0.781 and 0.795)."
    ]
    unsure = order_differences([_row("dreambooth", 0.81, 0.05), _row("custom-diffusion", 0.8, 0.05)])
    assert "this may be chance" in unsure[0]
    same = order_differences([_row("dreambooth", 0.7, 0.01), _row("custom-diffusion", 0.8, 0.01)])
    assert same == ["one concept, text alignment: the 2 methods stand in the paper's order."]
    assert order_differences([_row("unknown", 0.7, 0.01), _row("custom-diffusion", 0.8, 0.01)]) == []


def test_a_smaller_kid_is_better() -> None:
    rows = [
        TableRow("single", name, {"kid": {"value": value, "low": None, "high": None}}, paper_values("single", name))
        for name, value in (("dreambooth", 10.0), ("custom-diffusion", 40.0))
    ]
    assert order_differences(rows)[0].startswith("one concept, KID × 10³: dreambooth is better than custom-diffusion")


def test_a_number_that_is_shown_as_zero_has_no_sign() -> None:
    assert [short_number(value) for value in (-0.00004, -0.04, -1234.5, 0.0)] == ["0.000", "−0.040", "−1,234", "0.000"]
    assert interval_text({"value": 0.0, "low": -1e-9, "high": 1e-9}) == "0.000 (0.000–0.000)"
    assert interval_text({"value": 0.0, "low": -0.5, "high": 0.5}) == "0.000 (−0.500 to 0.500)"
