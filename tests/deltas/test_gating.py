"""Gated changes: they act where their words stand, and every other prompt stays the base's bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError, InputError
from cdkit.core.shards import read_tensors, write_tensors
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import Delta, load_delta, save_delta
from cdkit.deltas.description import describe
from cdkit.deltas.formats import gated_pipeline
from cdkit.deltas.formats.gated_pipeline import Gate
from cdkit.deltas.gating import GatedChange
from cdkit.execute import Result, execute
from cdkit.stages import STAGES
from tests.support.made_deltas import made_delta
from tests.support.tiny_pipeline import tiny_pipeline
from tests.support.tiny_xl_pipeline import tiny_xl_pipeline

CPU = torch.device("cpu")
PLAIN, OWN = "photo of a cat", "photo of a <new1> cat"


def _execute(stage: str, out: Path, **values: Any) -> Result:
    return execute(stage, parse_config(STAGES[stage].config_class(), values), out)


def gated_delta(pipeline: Any, *, token: str = "<new1>", category: str = "cat", seed: int = 0) -> Delta:
    """A made delta whose changes act at its words alone."""
    made = made_delta(pipeline, seed=seed, tokens=(token,), category=category, size=2.0)
    gate = GatedChange((f"{token} {category}",), made.changes)
    values = {"method": "custom-diffusion-gated", "base": "", "base_hash": made.base_hash, "tokens": made.tokens}
    return Delta(prompts=(f"photo of a {token} {category}",), gated=(gate,), **values)


def _saved(delta: Delta, folder: Path) -> Path:
    folder.mkdir()
    save_delta(delta, folder / "delta.safetensors")
    return folder


@pytest.fixture(scope="module", params=["sd", "xl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gated") / request.param
    (tiny_pipeline if request.param == "sd" else tiny_xl_pipeline)(folder)
    return folder


@pytest.fixture
def pipeline(base: Path) -> Any:
    return load_base_model(str(base), device=CPU)


def _drawn(pipeline: Any, prompts: list[str], **options: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    return torch.tensor(pipeline(prompts, num_inference_steps=2, generator=noise, output_type="np", **options).images)


def test_places_are_those_of_the_words_wherever_they_stand() -> None:
    gate = Gate([[7], [7, 3]], {})
    found = gate.places(torch.tensor([[7, 3, 1, 3], [3, 7, 2, 0], [3, 3, 3, 7], [1, 2, 3, 4]]))
    assert found.int().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert not Gate([[1, 2, 3]], {}).places(torch.tensor([[1, 2]])).any()


def test_only_prompts_with_the_word_change_and_only_there(pipeline: Any) -> None:
    before = _drawn(pipeline, [PLAIN, "x"])
    values: list[torch.Tensor] = []
    projection = pipeline.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_v")
    with apply_deltas(pipeline, [gated_delta(pipeline)]):
        assert _drawn(pipeline, [PLAIN, "x"]).equal(before)
        mixed = _drawn(pipeline, [PLAIN, OWN])
        # Two pictures of a batch are computed together: not the same kernels everywhere, but nearly the same numbers.
        torch.testing.assert_close(mixed[0], before[0], atol=1e-5, rtol=1e-5)
        handle = projection.register_forward_hook(
            lambda module, inputs, output: values.append(output - nn.functional.linear(inputs[0], module.weight))
        )
        _drawn(pipeline, [OWN])
        handle.remove()
        # Of a guided batch the second is the prompt's: start, photo, of, a, <new1>, cat, end.
        moved = values[0].abs().amax(dim=-1) > 1e-6
        assert not moved[0].any()
        assert moved[1].nonzero().flatten().tolist() == [4, 5]
        other = _drawn(pipeline, [PLAIN, OWN])[1]
    assert _drawn(pipeline, [PLAIN, "x"]).equal(before)
    assert not pipeline.unet.state_dict().keys() & {"gated"}
    assert not list(pipeline.unet.named_buffers())
    assert (other - before[1]).abs().max() > 1e-3


def test_scale_repeated_prompts_and_given_features(pipeline: Any) -> None:
    delta = gated_delta(pipeline)
    with apply_deltas(pipeline, [delta], scale=0.0):
        nothing = _drawn(pipeline, [OWN])
    with apply_deltas(pipeline, [delta]):
        once = _drawn(pipeline, [OWN, OWN])
        assert not once[0].allclose(nothing[0], atol=1e-3)
        noise = [torch.Generator().manual_seed(number) for number in range(2)]
        options = {"num_inference_steps": 2, "output_type": "np", "generator": noise}
        repeated = torch.tensor(pipeline([OWN], num_images_per_prompt=2, **options).images)
        torch.testing.assert_close(repeated, once, atol=1e-5, rtol=1e-5)


def test_what_many_prompts_said_before_is_not_what_is_forgotten(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated_pipeline, "MOST_ROWS", 4)
    with apply_deltas(pipeline, [gated_delta(pipeline)]):
        wanted = _drawn(pipeline, [OWN])
        for prompt in ("x <new1> cat", "of <new1> cat", "photo <new1>", "dog <new1> cat"):
            _drawn(pipeline, [prompt])
        assert _drawn(pipeline, [OWN]).equal(wanted)


def test_a_file_keeps_gates_and_their_words(pipeline: Any, tmp_path: Path) -> None:
    delta = gated_delta(pipeline)
    folder = _saved(delta, tmp_path / "tuned")
    loaded = load_delta(folder)
    assert not loaded.changes
    assert loaded.gated[0].words == ("<new1> cat",)
    assert all(value.equal(delta.gated[0].changes[name]) for name, value in loaded.gated[0].changes.items())  # type: ignore[union-attr]
    layers = describe(loaded)["layers"]
    assert {tuple(layer["words"]) for layer in layers} == {("<new1> cat",)}
    result = _execute("delta-compress", tmp_path / "small", delta=str(folder), rank=1)
    assert result.manifest.details["rank"] == 1
    assert load_delta(tmp_path / "small").gated[0].words == ("<new1> cat",)


@pytest.mark.parametrize("gates", ["[]", "[[]]", "[[3]]", "{", '[["a\\nb"]]', '["<new1>"]'])
def test_a_file_with_broken_gates_is_damaged(pipeline: Any, tmp_path: Path, gates: str) -> None:
    save_delta(gated_delta(pipeline), tmp_path / "delta.safetensors")
    header, tensors = read_tensors(tmp_path / "delta.safetensors")
    write_tensors(tmp_path / "delta.safetensors", tensors, header | {"gates": gates})
    with pytest.raises(InputError, match="damaged"):
        load_delta(tmp_path)


def test_an_exported_pipeline_draws_the_same_with_diffusers_alone(base: Path, pipeline: Any, tmp_path: Path) -> None:
    folder, out = _saved(gated_delta(pipeline), tmp_path / "tuned"), tmp_path / "exported with ü"
    _execute("export", out, delta=str(folder), to="diffusers-pipeline", base=str(base))
    with apply_deltas(pipeline, [load_delta(folder)]):
        wanted = _drawn(pipeline, [PLAIN, OWN])
    if base.name == "xl":  # in this process: a new one takes seconds
        exported = DiffusionPipeline.from_pretrained(str(out), trust_remote_code=True)
        torch.testing.assert_close(_drawn(exported, [PLAIN, OWN]), wanted, atol=1e-5, rtol=1e-5)
        return
    code = (
        "import sys, torch; from diffusers import DiffusionPipeline\n"
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "noise = [torch.Generator().manual_seed(number) for number in range(2)]\n"
        f"images = pipe([{PLAIN!r}, {OWN!r}], num_inference_steps=2, generator=noise, output_type='np').images\n"
        "assert 'cdkit' not in sys.modules\n"
        "torch.save(torch.tensor(images), sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(out), str(tmp_path / "drawn.pt")], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "drawn.pt"), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="code of its own"):
        load_base_model(str(out), device=CPU)


def test_attention_is_seen_through_a_gate(base: Path, pipeline: Any, tmp_path: Path) -> None:
    folder = _saved(gated_delta(pipeline), tmp_path / "tuned")
    values: dict[str, Any] = {"base": str(base), "deltas": [str(folder)], "prompt": OWN, "steps": 2, "device": "cpu"}
    result = _execute("attention", tmp_path / "maps", **values)
    assert (result.out / "attention.png").exists()


@pytest.mark.parametrize("to", ["diffusers-lora", "kohya-lora", "webui-diff"])
def test_a_lora_cannot_hold_it(pipeline: Any, tmp_path: Path, to: str) -> None:
    folder = _saved(gated_delta(pipeline), tmp_path / "tuned")
    with pytest.raises(ConfigError, match="acts at the words <new1> cat alone") as refused:
        _execute("export", tmp_path / "out", delta=str(folder), to=to)
    assert "diffusers-pipeline" in str(refused.value.hint)


def test_gated_deltas_merge_side_by_side_and_with_no_others(base: Path, pipeline: Any, tmp_path: Path) -> None:
    one, other = gated_delta(pipeline), gated_delta(pipeline, category="dog", seed=1)
    for name, delta in (("one", one), ("other", other), ("whole", made_delta(pipeline, seed=2))):
        _saved(delta, tmp_path / name)
    captions = tmp_path / "captions.csv"
    captions.write_text("caption\nphoto of a cat\n")
    shared: dict[str, Any] = {"base": str(base), "captions": [str(captions)]}
    paths = [str(tmp_path / name) for name in ("one", "other", "whole")]
    result = _execute("merge", tmp_path / "merged", deltas=paths[:2], **shared)
    merged = load_delta(tmp_path / "merged")
    words = [entry["token"] for entry in result.manifest.details["tokens"]]
    assert [gate.words for gate in merged.gated] == [(f"{words[0]} cat",), (f"{words[1]} dog",)]
    with apply_deltas(pipeline, [one]):
        alone = _drawn(pipeline, [OWN])
    with apply_deltas(pipeline, [merged]):
        torch.testing.assert_close(_drawn(pipeline, [f"photo of a {words[0]} cat"]), alone, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="for every word"):
        _execute("merge", tmp_path / "mixed", deltas=paths[1:], **shared)
