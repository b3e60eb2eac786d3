from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cdkit.cli.app import execute_command
from cdkit.core.storage import write_json
from tests.support.pretend_run import run_stage, write_manifest, write_trained


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    write_trained(folder / "tuned")
    run_stage(
        "sample",
        folder / "images",
        deltas=[str(folder / "tuned")],
        prompts=["a photo of a <new1> star"],
        seeds=2,
        steps=2,
        device="cpu",
    )
    return folder


def _json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert execute_command([*arguments, "--format", "json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_evaluate_and_compare(material: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--samples", str(material / "images"), "--concept", "star=embedded:striped-star"]
    found = _json(capsys, *arguments, "--device", "cpu", "--out", str(out))
    assert found["out"] == str(out)
    assert set(found["metrics"]["text_alignment"]) >= {"value", "low", "high", "n"}
    assert {"image_alignment", "nearest_photo", "clip_score", "delta_bytes"} <= set(found["metrics"])
    assert execute_command([*arguments, "--device", "cpu", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "text_alignment" in printed.out
    assert "up to date" in printed.err
    table = _json(capsys, "compare", "--single", f"custom-diffusion={out}", "--out", str(tmp_path / "table"))
    assert table["rows"][0]["paper"]["clip_score"] == 0.795
    assert execute_command(["compare", "--single", f"custom-diffusion={out}", "--out", str(tmp_path / "table")]) == 0
    assert "| custom-diffusion |" in capsys.readouterr().out


def test_evaluate_names_every_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "evaluate", "--out", str(tmp_path / "x"), "--resamples", "5", code=2)
    assert "--samples" in found["error"]["message"] or "samples" in found["error"]["message"]
    assert "resamples" in found["error"]["message"]
    found = _json(capsys, "evaluate", "--samples", str(tmp_path / "gone"), "--out", str(tmp_path / "x"), code=3)
    assert "does not exist" in found["error"]["message"]


def test_the_papers_preset_ends_with_partial(material: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--samples", str(material / "images"), "--preset", "paper", "--encoder", "embedded"]
    # `embedded` is given, so nothing is downloaded.
    found = _json(capsys, *arguments, "--device", "cpu", "--out", str(out), code=5)
    assert found["metrics"]["text_alignment"]["n"] == 2


def test_inspect_weights(material: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "inspect", "weights", "--tuned", str(material / "tuned"))
    groups = {group["group"]: group for group in found["groups"]}
    assert groups["cross-attention"]["mean_rate"] > groups["self-attention"]["mean_rate"] == 0
    assert execute_command(["inspect", "weights", "--tuned", str(material / "tuned"), "--out", str(out)]) == 0
    assert "cross-attention" in capsys.readouterr().out
    assert (out / "weight_change.svg").read_text().startswith("<svg")


def test_inspect_attention(material: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--delta", str(material / "tuned"), "--prompt", "a <new1> star", "--steps", "2", "--device", "cpu"]
    found = _json(capsys, "inspect", "attention", *arguments, "--out", str(out))
    assert [entry["token"] for entry in found["tokens"]] == ["a", "<new1>", "star"]
    assert (out / "attention.png").exists()


def test_inspect_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dog.txt").write_text("photo of a {}.\n")
    entry = {"instance_prompt": "photo of a <new1> dog", "class_prompt": "dog", "instance_data_dir": "pet_dog1"}
    write_json(tmp_path / "dataset.json", [entry | {"prompt_filename": "dog.txt"}])
    assert _json(capsys, "inspect", "benchmark", str(tmp_path / "dataset.json")) == {"concepts": ["pet_dog1"]}
    prompts = tmp_path / "prompts.txt"
    found = _json(capsys, "inspect", "benchmark", str(tmp_path / "dataset.json"), "pet_dog1", "--out", str(prompts))
    assert found["prompts"] == ["photo of a <new1> dog."]
    assert prompts.read_text() == "photo of a <new1> dog.\n"


def test_report(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "report", str(material), "--title", "A <star> run", "--out", str(tmp_path / "page"))
    page = Path(found["report"])
    assert page == tmp_path / "page" / "report.html"
    assert "A &lt;star&gt; run" in page.read_text()
    assert found["missing"] == []
    assert _json(capsys, "report", str(material), "--out", str(tmp_path / "page"))["report"] == str(page)


def test_report_spares_other_folders(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(tmp_path / "tuned", "train")
    found = _json(capsys, "report", str(material), "--out", str(tmp_path / "tuned"), code=7)
    assert "stage 'train'" in found["error"]["message"]
    assert (tmp_path / "tuned" / "manifest.json").exists()
    found = _json(capsys, "report", str(tmp_path / "nothing"), code=3)
    assert "holds no cdkit run" in found["error"]["message"]
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate"],
        ["compare"],
        ["report"],
        ["inspect", "weights"],
        ["inspect", "attention"],
        ["inspect", "benchmark"],
    ],
)
def test_help_has_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute_command([*command, "--help"]) == 0
    assert "Examples" in capsys.readouterr().out
