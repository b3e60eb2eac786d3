"""Other tools' files: recognised, read back exactly, and refused when they are hostile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError, InputError
from cdkit.deltas.config import ExportConfig, ImportDeltaConfig
from cdkit.deltas.delta import Delta, load_delta, save_delta
from cdkit.deltas.importing import read_foreign
from cdkit.deltas.low_rank import LowRank, matrix
from cdkit.execute import execute
from tests.deltas.conftest import loaded
from tests.support import material
from tests.support.made_deltas import made_delta, unet_output
from tests.support.progress import Notes
from tests.support.real_names import cross_attention_shapes


def _import(files: Path | list[Path], out: Path, **values: Any) -> Delta:
    named = [str(file) for file in (files if isinstance(files, list) else [files])]
    execute("delta-import", parse_config(ImportDeltaConfig, {"files": named, **values}), out)
    return load_delta(out)


def _weights(pipeline: Any, delta: Delta) -> dict[str, torch.Tensor]:
    """Whole fine-tuned weights, as the legacy files hold them."""
    parameters = dict(pipeline.unet.named_parameters())
    return {name: parameters[name].detach() + matrix(change) for name, change in delta.changes.items()}


def _same(found: Delta, delta: Delta, *, tolerance: float = 1e-6) -> None:
    assert set(found.changes) == set(delta.changes)
    for name, change in delta.changes.items():
        whole = matrix(change)
        assert (matrix(found.changes[name]) - whole).norm() <= tolerance * whole.norm()
    for token, other in zip(found.tokens, delta.tokens, strict=True):
        assert set(token.rows) == set(other.rows)
        assert all(torch.equal(token.rows[tower], other.rows[tower]) for tower in other.rows)


# What a weight minus its base loses in fp32.
ROUNDED = 1e-5


def test_adobes_diffusers_files(base: Path, tmp_path: Path) -> None:
    pipeline = loaded(base)
    delta = made_delta(pipeline, tokens=("<new1>", "<new2>"))
    tokens = {
        token.text: [row[0] for row in token.rows.values()] if len(token.rows) > 1 else token.rows["text_encoder"][0]
        for token in delta.tokens
    }
    torch.save({"unet": _weights(pipeline, delta), "modifier_token": tokens}, tmp_path / "delta.bin")
    found = _import(tmp_path / "delta.bin", tmp_path / "out", base=str(base), category="cat")
    _same(found, delta, tolerance=ROUNDED)
    assert [token.text for token in found.tokens] == ["<new1>", "<new2>"]
    assert found.prompts == ("photo of a <new1> cat", "photo of a <new2> cat")
    assert found.base_hash == delta.base_hash
    assert found.settings["concepts"] == {"cat": ""}


def test_adobes_compressed_files(tiny_base: Path, tmp_path: Path) -> None:
    delta = made_delta(loaded(tiny_base), rank=3)
    values = {}
    for name, change in delta.changes.items():
        left, sizes, right = torch.linalg.svd(matrix(change), full_matrices=False)
        values[name] = {"u": left[:, :3] * sizes[:3], "v": right[:3]}
    row = delta.tokens[0].rows["text_encoder"][0]
    torch.save({"unet": values, "modifier_token": {"<new1>": row}}, tmp_path / "compressed_delta.bin")
    found = _import(tmp_path / "compressed_delta.bin", tmp_path / "out")
    _same(found, delta, tolerance=ROUNDED)
    assert all(isinstance(change, LowRank) and change.rank == 3 for change in found.changes.values())


def test_adobes_compvis_files_name_every_matrix(tmp_path: Path) -> None:
    """The reference table of blocks: inputs 1, 2, 4, 5, 7, 8, the middle, outputs 3 to 11."""
    blocks = {
        f"input_blocks.{number}.1": f"down_blocks.{number // 3}.attentions.{number % 3 - 1}"
        for number in (1, 2, 4, 5, 7, 8)
    }
    blocks["middle_block.1"] = "mid_block.attentions.0"
    blocks |= {
        f"output_blocks.{number}.1": f"up_blocks.{number // 3}.attentions.{number % 3}" for number in range(3, 12)
    }
    state: dict[str, torch.Tensor] = {}
    for number, block in enumerate(blocks):
        for kind in "kv":
            state[f"model.diffusion_model.{block}.transformer_blocks.0.attn2.to_{kind}.weight"] = torch.full(
                (2, 3), number + ord(kind) / 1000
            )
    rows = torch.randn(2, 768)
    torch.save({"state_dict": {**state, "embed": rows}}, tmp_path / "delta_epoch=000004.ckpt")
    found = read_foreign(tmp_path / "delta_epoch=000004.ckpt")
    assert found.kind == "adobe-compvis"
    assert set(found.full) == set(cross_attention_shapes("sd1"))
    for number, block in enumerate(blocks.values()):
        for kind in "kv":
            value = found.full[f"{block}.transformer_blocks.0.attn2.to_{kind}.weight"]
            assert float(value[0, 0]) == pytest.approx(number + ord(kind) / 1000)
    assert [token.text for token in found.tokens] == ["<new1>", "<new2>"]
    assert torch.equal(torch.cat([token.rows["text_encoder"] for token in found.tokens]), rows)


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_diffusers_folders(tiny_base: Path, tmp_path: Path, ending: str) -> None:
    pipeline = loaded(tiny_base)
    delta = made_delta(pipeline, tokens=("<new1>", "<new2>"))
    values: dict[str, Any] = {
        name.replace(".attn2.to_", ".attn2.processor.to_").replace(
            ".weight", "_custom_diffusion.weight"
        ): value.contiguous()
        for name, value in _weights(pipeline, delta).items()
    }
    folder = tmp_path / "trained"
    folder.mkdir()
    name = f"pytorch_custom_diffusion_weights.{ending}"
    if ending == "bin":
        torch.save({**values, "mid_block.attentions.0.transformer_blocks.0.attn1.processor": {}}, folder / name)
    else:
        save_file(values, str(folder / name))
    for token in delta.tokens:
        # As diffusers writes it: a view, which drags the whole table behind it along.
        table = token.rows["text_encoder"].repeat(50, 1)
        torch.save({token.text: table[0]}, folder / f"{token.text}.bin")
    (folder / "README.md").write_text("a model card")
    with pytest.raises(ConfigError, match="base model"):
        _import(folder, tmp_path / "none")
    found = _import(folder, tmp_path / "out", base=str(tiny_base))
    _same(found, delta, tolerance=ROUNDED)
    assert [token.text for token in found.tokens] == ["<new1>", "<new2>"]


def test_attention_training_with_queries_and_outputs(tiny_base: Path, tmp_path: Path) -> None:
    pipeline = loaded(tiny_base)
    parameters = dict(pipeline.unet.named_parameters())
    block = "mid_block.attentions.0.transformer_blocks.0.attn2"
    values = {
        f"{block}.processor.to_q_custom_diffusion.weight": parameters[f"{block}.to_q.weight"].detach() + 1,
        f"{block}.processor.to_out_custom_diffusion.0.weight": parameters[f"{block}.to_out.0.weight"].detach() + 2,
        f"{block}.processor.to_out_custom_diffusion.0.bias": parameters[f"{block}.to_out.0.bias"].detach() + 3,
    }
    torch.save(values, tmp_path / "pytorch_custom_diffusion_weights.bin")
    found = _import(tmp_path / "pytorch_custom_diffusion_weights.bin", tmp_path / "out", base=str(tiny_base))
    means = {name.removeprefix(f"{block}."): float(matrix(change).mean()) for name, change in found.changes.items()}
    assert means == pytest.approx({"to_q.weight": 1, "to_out.0.weight": 2, "to_out.0.bias": 3}, abs=1e-5)


@pytest.mark.parametrize("to", ["diffusers-lora", "kohya-lora", "webui-diff"])
def test_each_export_comes_back(base: Path, tmp_path: Path, to: str) -> None:
    delta = made_delta(loaded(base), rank=4, tokens=("<new1>", "<b c>".replace(" ", "-")), rows=2)
    save_delta(delta, tmp_path / "delta.safetensors")
    config = parse_config(ExportConfig, {"delta": str(tmp_path / "delta.safetensors"), "to": to})
    execute("export", config, tmp_path / "exported")
    found = _import(tmp_path / "exported", tmp_path / "out", base=str(base))
    by_text = {token.text: token for token in found.tokens}
    assert set(by_text) == {"<new1>", "<b-c>"}
    _same(
        Delta("", "", "", found.changes, tuple(by_text[token.text] for token in delta.tokens)),
        delta,
        tolerance=0 if to == "webui-diff" else 1e-5,
    )
    assert (found.method, found.prompts, found.base_hash) == (delta.method, delta.prompts, delta.base_hash)
    assert all(token.initializer == "ktn" for token in found.tokens)


def test_kohyas_alpha_scales(tiny_base: Path, tmp_path: Path) -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    up, down = torch.randn(64, 2), torch.randn(2, 32)
    tensors = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(1.0)}
    save_file(tensors, str(tmp_path / "theirs.safetensors"))
    found = _import(tmp_path / "theirs.safetensors", tmp_path / "out", base=str(tiny_base))
    (change,) = found.changes.values()
    assert torch.allclose(matrix(change), up @ down / 2)


def test_textual_inversion_files_of_every_kind(tmp_path: Path) -> None:
    row, rows, second = torch.randn(768), torch.randn(3, 768), torch.randn(3, 1280)
    torch.save({"<cat-toy>": row}, tmp_path / "learned_embeds.bin")
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "my-cat", "step": 500},
        tmp_path / "a1111.pt",
    )
    save_file({"emb_params": rows}, str(tmp_path / "params.safetensors"))
    save_file({"clip_l": rows, "clip_g": second}, str(tmp_path / "sdxl-cat.safetensors"))
    wanted = {
        "learned_embeds.bin": ("<cat-toy>", {"text_encoder": row[None]}),
        "a1111.pt": ("my-cat", {"text_encoder": rows}),
        "params.safetensors": ("params", {"text_encoder": rows}),
        "sdxl-cat.safetensors": ("sdxl-cat", {"text_encoder": rows, "text_encoder_2": second}),
    }
    for number, (name, (text, values)) in enumerate(wanted.items()):
        found = _import(tmp_path / name, tmp_path / str(number))
        assert not found.changes
        assert found.tokens[0].text == text
        assert set(found.tokens[0].rows) == set(values)
        assert all(torch.equal(found.tokens[0].rows[tower], value) for tower, value in values.items())
    renamed = _import(tmp_path / "learned_embeds.bin", tmp_path / "renamed", tokens=["<mine>"], prompts=["a <mine>"])
    assert (renamed.tokens[0].text, renamed.prompts) == ("<mine>", ("a <mine>",))


@pytest.mark.real
def test_real_files_are_recognised(tmp_path: Path) -> None:
    embedding = material.path("weights/textual_inversion/learned_embeds.bin")
    found = read_foreign(embedding)
    assert found.kind == "textual-inversion"
    assert found.tokens[0].text == "<birb-style>"
    assert found.tokens[0].rows["text_encoder"].shape == (1, 768)
    assert float(found.tokens[0].rows["text_encoder"].norm()) > 0
    for name in ("analog_svd_rank4", "lora_disney"):
        with pytest.raises(InputError, match="LoRA of the lora_diffusion package"):
            read_foreign(material.path(f"weights/lora/{name}.safetensors"))
    with pytest.raises(InputError, match="no known kind"):
        read_foreign(material.path("weights/taesd/taesd_decoder.safetensors"))


def test_what_does_not_belong_together_is_refused(tiny_base: Path, tiny_xl_base: Path, tmp_path: Path) -> None:
    pipeline = loaded(tiny_base)
    delta = made_delta(pipeline)
    one, other = tmp_path / "one.bin", tmp_path / "other.bin"
    for path in (one, other):
        torch.save({"unet": _weights(pipeline, delta), "modifier_token": {"<new1>": torch.ones(32)}}, path)
    token = tmp_path / "token.bin"
    torch.save({"<new1>": torch.ones(32)}, token)
    save_delta(delta, tmp_path / "delta.safetensors")
    wrong_name = "lora_unet_elsewhere_attn2_to_k"
    save_file({f"{wrong_name}.diff": torch.ones(2, 2)}, str(tmp_path / "diff.safetensors"))
    cases: list[tuple[list[Path], dict[str, Any], str]] = [
        ([one, other], {"base": str(tiny_base)}, "both hold weights"),
        ([one, token], {"base": str(tiny_base)}, "there twice"),
        ([one], {"base": str(tiny_xl_base)}, "of shape"),
        ([one], {"base": str(tiny_base), "tokens": ["<a>", "<b>"]}, "2 names for 1"),
        ([tmp_path / "diff.safetensors"], {"base": str(tiny_base)}, "does not fit"),
        ([tmp_path / "delta.safetensors"], {}, "delta already"),
    ]
    for number, (files, values, words) in enumerate(cases):
        with pytest.raises(ConfigError, match=words):
            _import(files, tmp_path / f"out {number}", **values)
        assert not list((tmp_path / f"out {number}").glob("*.safetensors"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="no weight files"):
        _import(tmp_path / "empty", tmp_path / "out")


def test_another_base_model_is_suspected(tiny_base: Path, tmp_path: Path) -> None:
    pipeline = loaded(tiny_base)
    weights = {name: torch.randn_like(value) for name, value in _weights(pipeline, made_delta(pipeline)).items()}
    torch.save({"unet": weights, "modifier_token": {}}, tmp_path / "delta.bin")
    config = parse_config(ImportDeltaConfig, {"files": [str(tmp_path / "delta.bin")], "base": str(tiny_base)})
    progress = Notes()
    execute("delta-import", config, tmp_path / "out", progress=progress)
    assert any("trained on this base" in note for note in progress.notes)


def test_an_imported_delta_has_its_effect(tiny_base: Path, tmp_path: Path) -> None:
    """diffusers' own loader does nothing with these files; here the output is the delta's."""
    from cdkit.deltas.apply import apply_deltas

    pipeline = loaded(tiny_base)
    delta = made_delta(pipeline)
    torch.save(
        {"unet": _weights(pipeline, delta), "modifier_token": {"<new1>": delta.tokens[0].rows["text_encoder"][0]}},
        tmp_path / "d.bin",
    )
    found = _import(tmp_path / "d.bin", tmp_path / "out", base=str(tiny_base))
    outputs = []
    for one in (delta, found):
        with apply_deltas(pipeline, [one]):
            outputs.append(unet_output(pipeline, "photo of a <new1> cat"))
    assert torch.allclose(*outputs, atol=1e-4)
    assert not torch.allclose(outputs[0], unet_output(pipeline, "photo of a <new1> cat"), atol=1e-2)
