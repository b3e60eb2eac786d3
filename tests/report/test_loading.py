"""The model card's lines run as they stand there, and its words are those of each tool."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cdkit.core.config import parse_config
from cdkit.core.manifest import Manifest
from cdkit.core.storage import write_json
from cdkit.deltas.delta import save_delta
from cdkit.deltas.formats.textual_inversion import spellings
from cdkit.embedded import load_pipeline
from cdkit.execute import execute
from cdkit.report.config import ReportConfig
from cdkit.report.loading import Export, best_format, diffusers_lines, tool_words
from cdkit.report.run_folder import StepFolder
from tests.cli.running import ran
from tests.support.pretend_run import run_stage, write_manifest, write_trained


def _step(**details: Any) -> StepFolder:
    return StepFolder(
        "tuned", "train", {}, Path("nowhere"), "done", Manifest("train", 1, "x", {}, {}, details=details)
    )


def _card(run: Path, stages: dict[str, dict[str, Any]]) -> str:
    write_json(run / "run.json", {"pipeline": "one", "stages": {**stages, "page": {"run": "report"}}})
    execute("report", parse_config(ReportConfig, {"run_folder": str(run)}), run / "page", force=True)
    return (run / "page" / "README.md").read_text(encoding="utf-8")


def _execute(card: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the card's Python from its folder; the pipeline that it loads."""
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert code.count("pipe(") == 1
    scope: dict[str, Any] = {}
    exec(re.sub(r"pipe\((.*)\)\.images", r"pipe(\1, num_inference_steps=1).images", code), scope)
    assert scope["image"].size == (32, 32)
    return scope["pipe"]


def _trained(run: Path, method: str = "custom-diffusion") -> dict[str, dict[str, Any]]:
    write_trained(run / "tuned")
    return {"tuned": {"run": "train", "concepts": {"star": "embedded:striped-star"}, "method": method}}


@pytest.mark.parametrize("to", ["diffusers-lora", "kohya-lora", "diffusers-pipeline", "textual-inversion"])
def test_the_cards_lines_load_what_was_exported(tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = _trained(tmp_path)
    run_stage("export", tmp_path / "made", delta=str(tmp_path / "tuned"), to=to, base="embedded")
    card = _card(tmp_path, {**stages, "made": {"run": "export", "delta": "tuned", "to": to}})
    files = re.findall(r"^\| `([^`]+)` \|", card, re.MULTILINE)
    assert "../tuned/delta.safetensors" in files
    assert any(file.startswith("../made/") for file in files)
    assert all((tmp_path / "page" / file).exists() for file in files)
    assert "cdkit export ../" not in card
    pipe = _execute(card, tmp_path / "page", monkeypatch)
    assert pipe.tokenizer.convert_tokens_to_ids("<new1>") == 49408
    changed = "lora" in to
    assert any("lora" in name for name, _ in pipe.unet.named_parameters()) is changed


def test_the_cards_command_exports_what_its_lines_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = _card(tmp_path, _trained(tmp_path))
    assert "once the last command has exported it" in card
    (commands,) = re.findall(r"```\n(cdkit .*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path / "page")
    assert ran(shlex.split(commands.splitlines()[-1])[1:]).code == 0
    pipe = _execute(card, tmp_path / "page", monkeypatch)
    assert any("lora" in name for name, _ in pipe.unet.named_parameters())


def test_a_gated_delta_is_loaded_as_a_whole_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from cdkit.deltas.delta import GatedChange
    from tests.support.made_deltas import made_delta

    plain = made_delta(load_pipeline(), tokens=("<new1>",))
    gated = replace(plain, changes={}, gated=(GatedChange(("<new1> star",), plain.changes),))
    (tmp_path / "tuned").mkdir()
    save_delta(gated, tmp_path / "tuned" / "delta.safetensors")
    write_manifest(
        tmp_path / "tuned", "train", method="custom-diffusion-gated", tokens=["<new1>"], prompts=["a <new1> star"]
    )
    stages = {"tuned": {"run": "train", "concepts": {"star": "embedded:striped-star"}}}
    run_stage("export", tmp_path / "made", delta=str(tmp_path / "tuned"), to="diffusers-pipeline", base="embedded")
    card = _card(tmp_path, {**stages, "made": {"run": "export", "delta": "tuned", "to": "diffusers-pipeline"}})
    assert "trust_remote_code=True" in card
    assert "A1111" not in card
    assert type(_execute(card, tmp_path / "page", monkeypatch)).__name__ == "GatedStableDiffusionPipeline"


def test_an_unfinished_delta_is_named_so(tmp_path: Path) -> None:
    write_trained(tmp_path / "tuned", finished=False)
    card = _card(tmp_path, {"tuned": {"run": "train", "concepts": {"star": "embedded:striped-star"}}})
    assert "The delta is not finished" in card
    assert "| `../tuned/delta.safetensors`" not in card
    assert "| `report.html`" in card


def test_words_are_told_by_what_was_exported() -> None:
    step = _step(method="custom-diffusion", tokens=[{"text": "<new1>"}])
    words = spellings(["<new1>"])
    kohya = Export("kohya-lora", "../web", Path("web"), ["loras/web.safetensors"])
    rows = {row.tool: row for row in tool_words(step, [kohya], words)}
    assert (list(rows["diffusers"].words), rows["diffusers"].place) == (["<new1>"], "../web")
    assert (list(rows["A1111 and Forge"].words), rows["A1111 and Forge"].weights) == (["new1"], "<lora:web:1>")
    assert (list(rows["ComfyUI"].words), rows["ComfyUI"].place) == (["embedding:new1"], "../web")
    # sd-scripts calls an embedding by its file's name, too.
    assert list(rows["kohya's sd-scripts"].words) == ["new1"]
    diff = {row.tool: row for row in tool_words(step, [Export("webui-diff", "w", Path("w"), [])], words)}
    assert {tool: row.place or row.needs for tool, row in diff.items()} == {
        "diffusers": "--to diffusers-lora",
        "A1111 and Forge": "w",
        "ComfyUI": "w",
        "kohya's sd-scripts": "--to kohya-lora",
    }


def test_formats_that_diffusers_loads() -> None:
    assert best_format(_step(method="custom-diffusion")) == "diffusers-lora"
    assert best_format(_step(method="textual-inversion")) == "textual-inversion"
    assert best_format(_step(method="custom-diffusion", family="FLUX.1")) == "diffusers-pipeline"


def test_a_base_model_and_a_prompt_are_text_in_the_lines() -> None:
    lora = Export("diffusers-lora", '../"odd', Path("odd"), [])
    lines = diffusers_lines(lora, "hub:owner/model", None, 'a "quoted" dog')
    assert 'from_pretrained("owner/model")' in lines
    compile(lines, "card", "exec")
