from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError
from cdkit.evaluation.config import WeightChangeConfig
from cdkit.evaluation.weight_change import group_changes, group_of, parameter_changes, rate_of_change
from cdkit.execute import execute
from tests.support.tiny_pipeline import tiny_pipeline


def test_the_rate_is_the_relative_norm_of_the_change() -> None:
    base = torch.tensor([3.0, 4.0])
    assert rate_of_change(base, torch.tensor([3.0, 5.0])) == pytest.approx(0.2)
    assert rate_of_change(base, base) == 0
    assert rate_of_change(torch.zeros(2), base) is None


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", "cross-attention"),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.bias", "self-attention"),
        ("conv_in.weight", "other"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.norm2.weight", "other"),
    ],
)
def test_groups_are_the_papers(name: str, group: str) -> None:
    assert group_of(name) == group


def test_group_means_leave_out_parameters_without_a_rate() -> None:
    ones = torch.ones(4)
    changes = parameter_changes(
        [
            ("a", "cross-attention", ones, ones * 1.5),
            ("b", "cross-attention", ones, ones),
            ("c", "cross-attention", torch.zeros(4), ones),
            ("d", "other", ones, ones * 1.1),
        ]
    )
    cross, other = group_changes(changes)
    assert (cross.parameters, cross.moved, cross.values) == (2, 1, 8)
    assert cross.mean_rate == pytest.approx(0.25)
    assert cross.largest == "a"
    assert cross.largest_rate == pytest.approx(0.5)
    assert other.mean_rate == pytest.approx(0.1, abs=1e-6)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, a copy whose cross-attention moved by half and one convolution by a tenth, and a delta of the former."""
    from cdkit.deltas.base_model import base_hash, cross_attention_names
    from cdkit.deltas.delta import Delta, save_delta
    from cdkit.deltas.low_rank import LowRank

    folder = tmp_path_factory.mktemp("pipelines")
    pipeline = tiny_pipeline(folder / "base")
    mark = base_hash(pipeline)
    names = cross_attention_names(pipeline.unet)
    parameters = dict(pipeline.unet.named_parameters())
    changes: dict[str, torch.Tensor | LowRank] = {name: parameters[name].detach() * 0.5 for name in names}
    save_delta(Delta("custom-diffusion", str(folder / "base"), mark, changes), folder / "delta" / "delta.safetensors")
    with torch.no_grad():
        for name in names:
            parameters[name].mul_(1.5)
        parameters["conv_in.weight"].mul_(1.1)
    pipeline.save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned", folder / "delta"


def test_two_pipelines(pipelines: tuple[Path, Path, Path], out: Path) -> None:
    base, tuned, _ = pipelines
    result = execute("weight-change", parse_config(WeightChangeConfig, {"base": str(base), "tuned": str(tuned)}), out)
    groups = {group["group"]: group for group in result.manifest.details["groups"]}
    assert set(groups) == {"cross-attention", "self-attention", "other", "text encoder"}
    assert groups["cross-attention"]["largest_rate"] == pytest.approx(0.5, abs=1e-5)
    assert (groups["other"]["moved"], groups["other"]["largest"]) == (1, "conv_in.weight")
    assert groups["self-attention"]["moved"] == groups["text encoder"]["moved"] == 0
    with (out / "weight_change.csv").open() as handle:
        rates = {row["parameter"]: row["rate"] for row in csv.DictReader(handle)}
    assert float(rates["conv_in.weight"]) == pytest.approx(0.1, abs=1e-5)
    drawn = ElementTree.parse(out / "weight_change.svg").getroot()
    texts = ["".join(node.itertext()) for node in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "cross-attention" in texts
    assert texts.count("did not move") == 2
    assert json.loads((out / "weight_change.json").read_text())["groups"] == result.manifest.details["groups"]


def test_a_delta_on_its_base(pipelines: tuple[Path, Path, Path], out: Path) -> None:
    base, _, delta = pipelines
    result = execute("weight-change", parse_config(WeightChangeConfig, {"base": str(base), "tuned": str(delta)}), out)
    groups = {group["group"]: group for group in result.manifest.details["groups"]}
    cross = groups["cross-attention"]
    assert 0 < cross["moved"] < cross["parameters"]
    assert cross["largest_rate"] == pytest.approx(0.5, abs=1e-5)
    assert groups["other"]["moved"] == 0


def test_models_of_different_shape_are_refused(pipelines: tuple[Path, Path, Path], out: Path) -> None:
    with pytest.raises(ConfigError, match="not the same kind of model"):
        execute("weight-change", parse_config(WeightChangeConfig, {"tuned": str(pipelines[1])}), out)
    with pytest.raises(ConfigError, match="does not fit embedded"):
        execute(
            "weight-change", parse_config(WeightChangeConfig, {"tuned": str(pipelines[2])}), out, replace_other=True
        )
