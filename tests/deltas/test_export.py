"""Every export, loaded by the library it is for, does what the delta does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError, InputError
from cdkit.core.manifest import MANIFEST_NAME
from cdkit.core.storage import Folder
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.config import ExportConfig
from cdkit.deltas.delta import DELTA_NAME, Delta, load_delta, save_delta
from cdkit.deltas.formats.lora import write_kohya_lora
from cdkit.deltas.formats.textual_inversion import file_stems
from cdkit.deltas.low_rank import LowRank, approximate, matrix
from cdkit.execute import Result, execute
from cdkit.stages import STAGES
from tests.deltas.conftest import loaded
from tests.support.made_deltas import made_delta, unet_output
from tests.support.progress import Notes
from tests.support.real_names import cross_attention_shapes
from tests.support.web_ui_reader import read_patches

PROMPT = "photo of a <new1> cat"


def _save(delta: Delta, tmp_path: Path) -> Path:
    save_delta(delta, tmp_path / "delta" / DELTA_NAME)
    return tmp_path / "delta"


def _export(delta: Path, out: Path, **values: Any) -> Result:
    result = execute("export", parse_config(ExportConfig, {"delta": str(delta), **values}), out)
    assert set(Folder(out).entries()) <= {*STAGES["export"].owns, MANIFEST_NAME}
    return result


def _wanted(base: Path, delta: Delta, **options: Any) -> torch.Tensor:
    pipeline = loaded(base)
    apply_deltas(pipeline, [delta], **options)
    return unet_output(pipeline, PROMPT)


def _load_embeddings(pipeline: Any, out: Path) -> None:
    for path in sorted((out / "embeddings").glob("*.safetensors")):
        stored = load_file(str(path))
        if set(stored) == {"clip_l", "clip_g"}:
            pipeline.load_textual_inversion(stored["clip_l"], token="<new1>")
            pipeline.load_textual_inversion(
                stored["clip_g"],
                token="<new1>",
                text_encoder=pipeline.text_encoder_2,
                tokenizer=pipeline.tokenizer_2,
            )
        else:
            pipeline.load_textual_inversion(str(path))


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("to", "values"),
    [
        ("diffusers-lora", {}),
        ("diffusers-lora", {"max_error": 0.3}),
        ("diffusers-lora", {"precision": "fp16"}),
        ("kohya-lora", {}),
        ("kohya-lora", {"rank": 3}),
    ],
)
def test_a_lora_does_what_the_delta_does(base: Path, tmp_path: Path, to: str, values: dict[str, Any]) -> None:
    pytest.importorskip("peft")
    delta = made_delta(loaded(base), rank=None if "max_error" in values else 4)
    if values.get("rank"):
        # What is asked for is less than there is, but known exactly: compare with that.
        parts = approximate(delta.changes, rank=values["rank"])
        expected = _wanted(base, replace(delta, changes=dict(parts)))
    else:
        expected = _wanted(base, delta)
    result = _export(_save(delta, tmp_path), tmp_path / "exported", to=to, **values)
    error = result.manifest.details["error"]
    pipeline = loaded(base)
    before = unet_output(pipeline, PROMPT)
    place = tmp_path / "exported"
    pipeline.load_lora_weights(str(place if to == "diffusers-lora" else place / "loras" / "exported.safetensors"))
    _load_embeddings(pipeline, place)
    found = unet_output(pipeline, PROMPT)
    assert _distance(before, expected) > 0.05, "the delta has an effect"
    if "max_error" in values:
        assert 0.2 < error <= 0.3
        assert _distance(found, expected) < _distance(before, expected) * 0.6
    else:
        assert error < {"fp16": 1e-3}.get(values.get("precision", ""), 1e-6) or "rank" in values
        assert _distance(found, expected) < (1e-3 if "precision" in values else 1e-5)
        assert result.manifest.details["rank"] == values.get("rank", 4)


@pytest.mark.parametrize("to", ["kohya-lora", "webui-diff"])
def test_web_uis_add_what_the_delta_adds(base: Path, tmp_path: Path, to: str) -> None:
    pipeline = loaded(base)
    delta = made_delta(pipeline, rank=5)
    result = _export(_save(delta, tmp_path), tmp_path / "my pets", to=to)
    path = tmp_path / "my pets" / "loras" / "my-pets.safetensors"
    assert result.manifest.details["files"][1] == "loras/my-pets.safetensors"
    patches = read_patches(path, dict(pipeline.unet.named_parameters()))
    assert set(patches) == set(delta.changes)
    for name, patch in patches.items():
        whole = matrix(delta.changes[name])
        assert torch.equal(patch, whole) if to == "webui-diff" else _distance(patch, whole) < 1e-6


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_real_models_matrices_are_all_found(tmp_path: Path, family: str) -> None:
    """The web UIs' rules, and diffusers' own reading of kohya's files, give every matrix its name back."""
    from diffusers.loaders.lora_conversion_utils import (
        _convert_non_diffusers_lora_to_diffusers,
        _maybe_map_sgm_blocks_to_diffusers,
    )

    shapes = cross_attention_shapes(family)
    random = torch.Generator().manual_seed(0)
    products = {
        name: LowRank(torch.randn(shape[0], 1, generator=random), torch.randn(1, shape[1], generator=random))
        for name, shape in shapes.items()
    }
    delta = Delta("custom-diffusion", "real", "", changes=dict(products))
    path = tmp_path / "lora.safetensors"
    write_kohya_lora(delta, products, path, half=False)
    patches = read_patches(path, shapes)
    assert len(patches) == {"sd1": 32, "sd2": 32, "sdxl": 140}[family]
    assert all(torch.equal(patches[name], matrix(product)) for name, product in products.items())

    class Config:
        layers_per_block = 2

    state = load_file(str(path))
    if family == "sdxl":
        state = _maybe_map_sgm_blocks_to_diffusers(state, Config())
    converted, _ = _convert_non_diffusers_lora_to_diffusers(state)
    assert len(converted) == 2 * len(shapes)
    for name, product in products.items():
        # diffusers reads kohya's names by way of its former ones, of attention processors.
        block, _, matrix_name = name.removesuffix(".weight").rpartition(".")
        module = f"unet.{block}.processor.{matrix_name}_lora"
        assert torch.equal(converted[f"{module}.down.weight"], product.down)
        assert torch.equal(converted[f"{module}.up.weight"], product.up)


def test_a_pipeline_folder_has_the_delta_in_it(base: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    delta = made_delta(loaded(base), tokens=("<new1>", "<b>"), rows=2)
    out = tmp_path / "exported"
    _export(_save(delta, tmp_path), out, to="diffusers-pipeline", base=str(base), scale=0.5)
    pipeline = DiffusionPipeline.from_pretrained(out)
    found = unet_output(pipeline, PROMPT)
    assert torch.allclose(found, _wanted(base, delta, scale=0.5), atol=1e-6)
    assert len(pipeline.tokenizer("<new1> <b>", add_special_tokens=False).input_ids) == 2
    assert not [path for path in out.iterdir() if path.name.startswith(".tmp")]


def test_embeddings_load_under_their_names(tiny_base: Path, tmp_path: Path) -> None:
    delta = made_delta(loaded(tiny_base), tokens=("<new1>", "<a/../CON>"), rows=2)
    result = _export(_save(delta, tmp_path), tmp_path / "out", to="textual-inversion")
    assert result.manifest.details["files"] == ["embeddings/a-CON.safetensors", "embeddings/new1.safetensors"]
    pipeline = loaded(tiny_base)
    _load_embeddings(pipeline, tmp_path / "out")
    for token in delta.tokens:
        ids = pipeline.tokenizer.convert_tokens_to_ids([token.text, f"{token.text}_1"])
        assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[ids], token.rows["text_encoder"])


def test_values_too_large_for_half_precision_are_refused_and_nothing_is_left(tiny_base: Path, tmp_path: Path) -> None:
    delta = made_delta(loaded(tiny_base))
    name = next(iter(delta.changes))
    row = replace(delta.tokens[0], rows={"text_encoder": torch.full((1, 32), 1e5)})
    for number, broken in enumerate(
        (
            replace(delta, changes={**delta.changes, name: matrix(delta.changes[name]) * 1e7}),
            replace(delta, tokens=(row,)),
        )
    ):
        folder = _save(broken, tmp_path / str(number))
        for to in ("webui-diff", "diffusers-pipeline"):
            out = tmp_path / f"{number}-{to}"
            with pytest.raises(InputError, match="fp16"):
                _export(folder, out, to=to, base=str(tiny_base), precision="fp16")
            assert not [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
            assert _export(folder, out, to=to, base=str(tiny_base)).state == "done"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"to": "webui-diff", "rank": 3}, "LoRA files"),
        ({"to": "kohya-lora", "rank": 3, "max_error": 0.1}, "not both"),
        ({"to": "safetensors"}, "diffusers-lora"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(ExportConfig, {"delta": "x", **values})


def test_what_a_format_cannot_hold_is_refused(tiny_base: Path, tiny_xl_base: Path, tmp_path: Path) -> None:
    whole = made_delta(loaded(tiny_base))
    cases = [
        (replace(whole, tokens=()), {"to": "textual-inversion"}, "no modifier token"),
        (replace(whole, changes={}), {"to": "kohya-lora"}, "changed no weights"),
        (replace(whole, changes={"a.to_out.0.bias": torch.ones(3)}), {"to": "diffusers-lora"}, "no matrix"),
        (whole, {"to": "kohya-lora", "base": str(tiny_xl_base)}, "does not fit"),
    ]
    for number, (delta, values, words) in enumerate(cases):
        with pytest.raises(ConfigError, match=words):
            _export(_save(delta, tmp_path / str(number)), tmp_path / f"out {number}", **values)


def test_a_lora_larger_than_the_matrices_says_so(tiny_base: Path, tmp_path: Path) -> None:
    delta = _save(made_delta(loaded(tiny_base)), tmp_path)
    config = parse_config(ExportConfig, {"delta": str(delta), "to": "kohya-lora", "rank": 32})
    large, small = Notes(), Notes()
    execute("export", config, tmp_path / "large", progress=large)
    assert any("the full matrices only" in note for note in large.notes)
    execute("export", config.model_copy(update={"rank": 2}), tmp_path / "small", progress=small)
    assert small.notes == []


def test_file_names_are_safe_and_different() -> None:
    texts = ["<new1>", "new1", "<NEW1>", "con", "../../etc/passwd", "犬", "", "a" * 300, "x:y*?", "-", "Lpt1."]
    stems = file_stems(texts)
    assert len({stem.lower() for stem in stems.values()}) == len(set(texts))
    for stem in stems.values():
        assert stem
        assert len(stem) <= 72
        assert set(stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
        assert stem.lower() not in {"con", "lpt1"}
    assert stems["<new1>"] == "new1"


@pytest.mark.parametrize(("values", "largest"), [({"rank": 2}, None), ({"max_error": 0.7}, 0.7)])
def test_compression_keeps_what_it_says(tiny_base: Path, tmp_path: Path, values: dict[str, Any], largest: Any) -> None:
    from cdkit.deltas.config import CompressConfig

    delta = made_delta(loaded(tiny_base))
    biased = replace(delta, changes={**delta.changes, "mid_block.attentions.0.proj_out.bias": torch.ones(64)})
    folder = _save(biased, tmp_path)
    result = execute(
        "delta-compress", parse_config(CompressConfig, {"delta": str(folder), **values}), tmp_path / "small"
    )
    found, details = load_delta(tmp_path / "small"), result.manifest.details
    errors = [
        float((matrix(found.changes[name]) - matrix(change)).norm() / matrix(change).norm())
        for name, change in biased.changes.items()
    ]
    assert details["error"] == pytest.approx(max(errors), rel=1e-3)
    assert 0 < details["error"] <= (largest or 1)
    assert details["bytes"] == (tmp_path / "small" / DELTA_NAME).stat().st_size
    if values.get("rank"):
        assert details["rank"] == 2
        assert details["bytes"] < details["bytes_before"]
    assert torch.equal(matrix(found.changes["mid_block.attentions.0.proj_out.bias"]), torch.ones(64))
    assert (found.tokens[0].text, found.prompts, found.method) == ("<new1>", delta.prompts, delta.method)
