"""What is read by tools that are not diffusers: every key of a whole U-Net's change, and the words to type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cdkit.deltas.delta import DELTA_NAME, Delta, save_delta
from cdkit.deltas.exporting import loading_hints
from cdkit.deltas.formats.lora import original_module, write_full_matrices
from cdkit.deltas.formats.textual_inversion import spellings
from cdkit.deltas.importing import _kohya_names
from cdkit.deltas.low_rank import LowRank
from tests.cli.running import ran
from tests.deltas.conftest import loaded
from tests.support.made_deltas import made_delta
from tests.support.real_names import empty_unet
from tests.support.web_ui_reader import a1111_module


def _original_names(family: str) -> set[str]:
    """The parameters of the family's original U-Net; diffusers' own conversion takes them for its own, one by one."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = empty_unet(family)
    names = {}
    for name in dict(unet.named_parameters()):
        module, _, kind = name.rpartition(".")
        original = original_module(module)
        if family != "sdxl" and module == "up_blocks.0.upsamplers.0.conv":
            original = "output_blocks.2.1.conv"  # no attention stands before it there
        names[f"{original}.{kind}"] = name
    marked = {f"model.diffusion_model.{name}": torch.tensor(float(n)) for n, name in enumerate(names)}
    converted = convert_ldm_unet_checkpoint(dict(marked), unet.config)
    found = {int(value): name for name, value in converted.items()}
    assert [found[number] for number in range(len(names))] == list(names.values())
    return set(names)


@pytest.mark.parametrize(("family", "number"), [("sd1", 686), ("sd2", 686), ("sdxl", 1680)])
def test_a1111_reads_every_key_of_a_whole_unets_change(tmp_path: Path, family: str, number: int) -> None:
    parameters = dict(empty_unet(family).named_parameters())
    assert len(parameters) == number
    widths = {name: torch.zeros(1, parameters[name].shape[-1]) for name in parameters if ".attn2.to_k.weight" in name}
    delta = Delta("fine-tune-all", family, "", {name: widths.get(name, torch.ones(1)) for name in parameters})
    write_full_matrices(delta, tmp_path / "whole.safetensors", half=True)
    modules = {f"diffusion_model_{name.rpartition('.')[0]}".replace(".", "_") for name in _original_names(family)}
    keys = list(load_file(str(tmp_path / "whole.safetensors")))
    assert len(keys) == number
    missed = [key for key in keys if a1111_module(key.partition(".")[0]) not in modules]
    assert missed == []


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_spelling_of_a_module_is_read_back(family: str) -> None:
    """Files of former versions, and of others, name the last norm as diffusers does."""
    parameters = dict(empty_unet(family).named_parameters())
    names = _kohya_names(parameters)
    assert names["lora_unet_out_0", "weight"] == names["lora_unet_conv_norm_out", "weight"] == "conv_norm_out.weight"
    for name in parameters:
        module, _, kind = name.rpartition(".")
        for spelled in (module, original_module(module)):
            assert names["lora_unet_" + spelled.replace(".", "_"), kind] == name


def test_words_to_type_are_told_per_tool() -> None:
    words = spellings(["<new1>", "<my cat's/toy>"])
    assert [(word.token, word.webui, word.comfyui) for word in words] == [
        ("<new1>", "new1", "embedding:new1"),
        ("<my cat's/toy>", "my-cat-s-toy", "embedding:my-cat-s-toy"),
    ]
    for to in ("kohya-lora", "webui-diff", "textual-inversion"):
        hints = "\n".join(loading_hints(to, Path("out"), ["<new1>"]))
        for told in ("<new1> in diffusers", " new1 in A1111", "embedding:new1 in ComfyUI"):
            assert told in hints
    for to in ("diffusers-lora", "diffusers-pipeline"):
        hints = "\n".join(loading_hints(to, Path("out"), ["<new1>"]))
        assert "type in prompts: <new1>" in hints
        assert "embedding:new1" not in hints
    assert not any("type in prompts" in hint for hint in loading_hints("webui-diff", Path("out"), []))
    assert "[peft]" in "\n".join(loading_hints("diffusers-lora", Path("out"), []))


def _saved(delta: Delta, folder: Path) -> Path:
    save_delta(delta, folder / DELTA_NAME)
    return folder


def test_an_export_says_what_to_type_and_who_ignores_it(tiny_base: Path, tmp_path: Path) -> None:
    delta = _saved(made_delta(loaded(tiny_base), tokens=("<new1>", "<toy>")), tmp_path / "delta")
    done = ran(["export", delta, "--to", "webui-diff", "--out", tmp_path / "web"])
    assert done.code == 0, done.err
    for told in ("embedding:new1 in ComfyUI", "toy in A1111 and Forge", "<new1> in diffusers"):
        assert told in done.err
    for name in ("new1", "toy"):
        assert (tmp_path / "web" / "embeddings" / f"{name}.safetensors").exists()
    done = ran(["export", delta, "--to", "diffusers-lora", "--out", tmp_path / "lora"])
    assert "ComfyUI, A1111 and Forge do nothing with it" in done.err
    assert "pip install 'custom-diffusion-kit[peft]'" in done.err


def _of_base(base: str, pipeline: Any) -> Delta:
    from dataclasses import replace

    return replace(made_delta(pipeline), base=base)


def test_the_base_that_a_delta_names_is_used(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = loaded(tiny_base)
    delta = _saved(_of_base(str(tiny_base), pipeline), tmp_path / "delta")
    done = ran(["export", delta, "--to", "diffusers-pipeline", "--out", tmp_path / "baked"])
    assert done.code == 0, done.err
    assert f"the delta names: {tiny_base}" in " ".join(done.err.split())
    given = ["export", delta, "--to", "diffusers-pipeline", "--base", tiny_base, "--out", tmp_path / "given"]
    assert ran(given).code == 0
    for path in (tmp_path / "baked").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "given" / path.relative_to(tmp_path / "baked")).read_bytes()
    # A path that is told from where the training ran.
    monkeypatch.chdir(tiny_base.parent)
    relative = _saved(_of_base(tiny_base.name, pipeline), tmp_path / "relative")
    assert ran(["export", relative, "--to", "diffusers-pipeline", "--out", tmp_path / "third"]).code == 0


def test_a_hub_base_is_used_from_the_cache(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from tests.support.single_file import cached_settings

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    delta = _saved(_of_base("somebody/tiny", loaded(tiny_base)), tmp_path / "delta")
    words = ["export", delta, "--to", "diffusers-pipeline", "--out", tmp_path / "out"]
    done = ran(words)
    assert done.code == 2
    assert "It was somebody/tiny, which is not on this machine" in done.err
    assert "--base somebody/tiny" in done.err
    cached_settings(tiny_base, tmp_path / "cache", "somebody/tiny")
    (snapshot,) = (tmp_path / "cache" / "models--somebody--tiny" / "snapshots").iterdir()
    for path in tiny_base.rglob("*.safetensors"):
        shutil.copy(path, snapshot / path.relative_to(tiny_base))
    assert ran(words).code == 0


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("", "does not say which it was"),
        ("models/moved away", "It was models/moved away, which is not on this machine"),
        ("/nowhere/at/all", "It was /nowhere/at/all"),
        ("a" * 300, "which is not on this machine"),
    ],
)
def test_a_base_that_is_not_there_is_named(tiny_base: Path, tmp_path: Path, base: str, words: str) -> None:
    delta = _saved(_of_base(base, loaded(tiny_base)), tmp_path / "delta")
    done = ran(["export", delta, "--to", "diffusers-pipeline", "--out", tmp_path / "out"])
    assert done.code == 2, done.err
    assert words in " ".join(done.err.split())
    assert "--base" in done.err


def test_a_base_named_by_a_delta_must_fit_it(tiny_base: Path, tiny_xl_base: Path, tmp_path: Path) -> None:
    delta = _saved(_of_base(str(tiny_xl_base), loaded(tiny_base)), tmp_path / "delta")
    done = ran(["export", delta, "--to", "diffusers-pipeline", "--out", tmp_path / "out"])
    assert done.code == 2
    assert "does not fit this base model" in done.err


def test_a_loras_names_are_diffusers_own(tmp_path: Path) -> None:
    """sd-scripts knows Stable Diffusion 1 and 2 by no others."""
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    delta = Delta("m", "b", "", {f"{module}.weight": LowRank(torch.ones(2, 1), torch.ones(1, 768))})
    done = ran(["export", _saved(delta, tmp_path / "delta"), "--to", "kohya-lora", "--out", tmp_path / "out"])
    assert done.code == 0, done.err
    stored = load_file(str(tmp_path / "out" / "loras" / "out.safetensors"))
    assert {name.partition(".")[0] for name in stored} == {"lora_unet_" + module.replace(".", "_")}
