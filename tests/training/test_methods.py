"""Every method on the embedded model from one command and from YAML, and what becomes of full fine-tunes' deltas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cdkit.cli.app import execute_command
from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import load_delta
from cdkit.deltas.low_rank import matrix
from cdkit.deltas.methods import METHODS, selected_names
from cdkit.embedded.concepts import concept_captions
from cdkit.execute import Result, execute
from cdkit.stages import STAGES
from tests.support.made_deltas import unet_output
from tests.support.progress import Notes
from tests.support.tiny_pipeline import tiny_pipeline
from tests.support.web_ui_reader import read_patches
from tests.training.running import Material, delta_tensors, run

CPU = torch.device("cpu")
WHOLE = ("fine-tune-all", "dreambooth")


def _execute(stage: str, out: Path, notes: Notes | None = None, **values: Any) -> Result:
    return execute(stage, parse_config(STAGES[stage].config_class(), values), out, progress=notes)


def test_every_method_from_a_command_and_from_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exactly the selected parameters differ, and the command and the pipeline make the same delta."""
    shared = {"steps": 2, "batch_size": 2, "device": "cpu"}
    stages = {
        method: {"run": "train", "concepts": {"star": "embedded:striped-star"}, "method": method, **shared}
        for method in METHODS
    }
    (tmp_path / "all.yaml").write_text(json.dumps({"name": "all", "stages": stages}))
    assert (
        execute_command(["run", str(tmp_path / "all.yaml"), "--out", str(tmp_path / "run"), "--format", "quiet"]) == 0
    )
    base = load_base_model("embedded", device=CPU)
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    for method, row in METHODS.items():
        out = tmp_path / method
        words = ["train", "--concept", "star=embedded:striped-star", "--method", method, "--steps", "2"]
        assert execute_command([*words, "--batch-size", "2", "--device", "cpu", "--out", str(out)]) == 0
        one, other = delta_tensors(out), delta_tensors(tmp_path / "run" / method)
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)
        delta = load_delta(out)
        selected = set(selected_names(base.unet, row))
        assert len(selected) == {"custom-diffusion": 14, "textual-inversion": 0}.get(method, len(selected))
        with apply_deltas(base, [delta]):
            after = base.unet.state_dict()
            changed = {name for name, value in after.items() if not value.equal(before[name])}
        gated = {name for gate in delta.gated for name in gate.changes}
        assert changed | gated == selected
        assert not (changed and gated)
        assert [token.text for token in delta.tokens] == (["<new1>"] if row.word == "modifier" else [])
        subject = "<new1> star" if row.word == "modifier" else "sks star"
        assert sorted(delta.prompts) == sorted(caption.replace("{}", subject) for caption in concept_captions())
    capsys.readouterr()


@pytest.fixture(scope="module")
def whole(material: Material, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    for method in (*WHOLE, "custom-diffusion-attention"):
        run(material.config(method=method, learning_rate=1e-2, token_learning_rate=1e-2), root / method)
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize("method", [*WHOLE, "custom-diffusion-attention"])
def test_a_full_fine_tune_is_inspected_and_exported(
    material: Material, whole: dict[str, Path], tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    folder, base = whole[method], str(material.root / "base")
    delta = load_delta(folder)
    assert execute_command(["delta", "inspect", str(folder), "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["method"] == method
    assert {layer["layer"] for layer in shown["layers"]} == set(delta.changes)
    pipeline = load_base_model(base, device=CPU)
    parameters = dict(pipeline.unet.named_parameters())
    before = unet_output(pipeline)
    with apply_deltas(pipeline, [delta]):
        wanted = unet_output(pipeline)
    assert (before - wanted).norm() > 0.05 * wanted.norm()
    _execute("export", tmp_path / "baked", delta=str(folder), to="diffusers-pipeline", base=base)
    torch.testing.assert_close(
        unet_output(load_base_model(str(tmp_path / "baked"), device=CPU)), wanted, rtol=1e-5, atol=1e-6
    )
    _execute("export", tmp_path / "diff", delta=str(folder), to="webui-diff", base=base)
    patches = read_patches(tmp_path / "diff" / "loras" / "diff.safetensors", parameters)
    assert set(patches) == set(delta.changes)
    assert all(patches[name].equal(matrix(change)) for name, change in delta.changes.items())
    notes = Notes()
    _execute("export", tmp_path / "lora", notes, delta=str(folder), to="diffusers-lora", base=base, max_error=1e-3)
    assert any("biases and norms changed too" in note for note in notes.notes)
    pipeline.load_lora_weights(str(tmp_path / "lora"))
    # All but the biases and norms, which a LoRA cannot hold.
    found = unet_output(pipeline)
    pipeline.unload_lora_weights()
    held = {name: change for name, change in delta.changes.items() if len(change.shape) > 1}
    with apply_deltas(pipeline, [type(delta)("m", "b", "", held)]):
        torch.testing.assert_close(found, unet_output(pipeline), rtol=1e-2, atol=2e-2)
    _execute("export", tmp_path / "kohya", notes, delta=str(folder), to="kohya-lora", base=base, max_error=1e-3)
    tensors = load_file(tmp_path / "kohya" / "loras" / "kohya.safetensors")
    for name, change in held.items():
        module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        product = tensors[f"{module}.lora_up.weight"].flatten(1) @ tensors[f"{module}.lora_down.weight"].flatten(1)
        error = (product - matrix(change).flatten(1)).norm() / matrix(change).norm()
        assert error < 1e-2, name
        assert tensors[f"{module}.lora_down.weight"].shape[1:] == change.shape[1:]


def test_real_sdxl_modules_have_their_original_names() -> None:
    """diffusers' own reader of original checkpoints gives every parameter its name back."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    from cdkit.deltas.formats.lora import module_of, original_module
    from tests.training.test_memory import XL

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(XL)
    stored = {}
    for name, _ in unet.named_parameters():
        module, kind = module_of(name)
        stored[f"model.diffusion_model.{original_module(module)}.{kind}"] = name
    found = convert_ldm_unet_checkpoint(dict(stored), dict(unet.config) | {"class_embed_type": None})
    assert len(found) == len(list(unet.parameters())) == 1680
    assert all(name == value for name, value in found.items())


@pytest.fixture(scope="module")
def sequence(material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A first concept, and a second trained on top of it."""
    root = tmp_path_factory.mktemp("sequence")
    run(material.config(learning_rate=1e-2), root / "first")
    second = {"concepts": {"dog": str(material.root / "dog")}, "regularization": {}, "token": {"dog": "<new2>=dog"}}
    run(material.config(learning_rate=1e-2, delta=[str(root / "first")], **second), root / "second")
    return root / "first", root / "second"


def test_a_second_concept_goes_on_top_of_a_first(
    material: Material, sequence: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = map(str, sequence)
    base = str(material.root / "base")
    assert load_delta(second).settings["on_top_of"] == [load_delta(first).base_hash]
    notes = Notes()
    prompts = ["photo of a <new1> cat", "photo of a <new2> dog"]
    shared: dict[str, Any] = {"base": base, "prompts": prompts, "seeds": 1, "steps": 2, "device": "cpu"}
    result = _execute("sample", tmp_path / "both", notes, deltas=[first, second], **shared)
    assert result.manifest.details["tokens"] == ["<new1>", "<new2>"]
    assert notes.notes == []
    _execute("sample", tmp_path / "alone", notes, deltas=[second], **shared)
    assert any("made on other weights" in note for note in notes.notes)
    assert any("<new1>" in note for note in notes.notes)


def test_merge_and_export_of_a_sequence_say_what_to_do(
    material: Material, sequence: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = map(str, sequence)
    base = str(material.root / "base")
    (tmp_path / "captions.csv").write_text("caption\n" + "\n".join(f"photo of a cat {n} x" for n in range(60)))
    with pytest.raises(ConfigError, match="on top of another delta") as failed:
        _execute("merge", tmp_path / "m", deltas=[first, second], base=base, captions=[str(tmp_path / "captions.csv")])
    assert "--delta twice" in str(failed.value.hint)
    notes = Notes()
    _execute("export", tmp_path / "one", notes, delta=first, to="diffusers-pipeline", base=base)
    assert notes.notes == []
    _execute("export", tmp_path / "two", notes, delta=second, to="diffusers-pipeline", base=str(tmp_path / "one"))
    assert ["trained on top of another one" in note for note in notes.notes] == [True]
    pipeline = load_base_model(base, device=CPU)
    apply_deltas(pipeline, [load_delta(first), load_delta(second)])
    baked = load_base_model(str(tmp_path / "two"), device=CPU)
    for prompt in ("photo of a <new1> cat", "photo of a <new2> dog"):
        torch.testing.assert_close(unet_output(baked, prompt), unet_output(pipeline, prompt), rtol=1e-5, atol=1e-5)


def test_a_second_delta_of_another_base(material: Material, sequence: tuple[Path, Path], tmp_path: Path) -> None:
    from tests.support.tiny_xl_pipeline import tiny_xl_pipeline

    first = [str(sequence[0])]
    second: dict[str, Any] = {"concepts": {"dog": str(material.root / "dog")}, "regularization": {}, "delta": first}
    tiny_xl_pipeline(tmp_path / "xl")
    config = material.config(base=str(tmp_path / "xl"), token={"dog": "<new2>=dog"}, **second)
    with pytest.raises(ConfigError, match="does not fit this base model") as failed:
        run(config, tmp_path / "refused")
    assert "family" in str(failed.value.hint)
    other = tiny_pipeline(tmp_path / "other")
    for parameter in other.unet.parameters():
        parameter.data.mul_(1.01)
    other.unet.save_pretrained(tmp_path / "other" / "unet")
    notes = Notes()
    config = material.config(base=str(tmp_path / "other"), token={"dog": "<new2>=dog"}, **second)
    run(config, tmp_path / "warned", progress=notes)
    assert any("made on other weights than these" in note for note in notes.notes)


def test_a_word_that_is_not_rare_is_warned_of() -> None:
    from cdkit.embedded.tokenizer import load_tokenizer
    from cdkit.training.concepts import check_rarity

    notes = Notes()
    tokenizer = load_tokenizer()
    for word in ("sks", "ktn", "cat", "dog"):
        check_rarity(word, tokenizer, None, notes.note)
    said = {word: [note for note in notes.notes if note.startswith(repr(word))] for word in ("sks", "ktn", "cat")}
    assert said["sks"] == []
    assert "2 tokens" in said["ktn"][0], "a word piece cannot be typed"
    assert "of 48,894 by frequency" in said["cat"][0]
    assert "cdkit tokens rare --for prompt" in said["cat"][0]


def test_a_word_that_was_counted_is_warned_of_with_its_count(material: Material, tmp_path: Path) -> None:
    captions = tmp_path / "captions.csv"
    captions.write_text("caption\n" + "\n".join(f"dog number {n}" for n in range(40)))
    base = str(material.root / "base")
    _execute("tokens", tmp_path / "picks", captions=[str(captions)], tokenizer=base, min_count=0)
    for word, said in (("dog", "'dog' is not rare: it occurs 40 times in 40 caption rows"), ("photo", None)):
        notes = Notes()
        values = {"token": {"cat": word}, "tokens": str(tmp_path / "picks"), "regularization": {}}
        run(material.config(method="dreambooth", **values), tmp_path / word, progress=notes)
        found = [note for note in notes.notes if "is not rare" in note]
        assert [note.startswith(said) for note in found] == ([True] if said else [])


def test_dreambooth_without_class_images_says_how_to_get_them(material: Material, tmp_path: Path) -> None:
    notes = Notes()
    run(material.config(method="dreambooth", regularization={}), tmp_path / "out", progress=notes)
    assert any("cdkit class-images 'photo of a cat'" in note for note in notes.notes)


def test_a_dry_run_checks_and_estimates_and_makes_nothing(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cdkit.training import feasibility

    monkeypatch.chdir(tmp_path)
    words = ["train", "--base", str(material.root / "base"), "--concept", f"cat={material.root / 'cat'}"]
    words += ["--token", "cat=<new1>=cat", "--device", "cpu", "--format", "json"]
    assert execute_command([*words, "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 16384 + 32
    assert found["memory"]["optimizer"] == 8 * found["parameters"]
    assert found["prompts"] == ["photo of a <new1> cat"]
    assert found["fits"] is True
    monkeypatch.setattr(feasibility, "device_memory", lambda device: (1000, 1 << 40))
    assert execute_command([*words, "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False
    assert "--gradient-checkpointing" in found["lower"]
    assert execute_command(words) == 2, "without --out"
    words[4] = f"cat={tmp_path / 'none'}"
    assert execute_command([*words, "--dry-run"]) == 3, "no such photos"
    assert list(tmp_path.iterdir()) == []


def test_a_large_delta_says_how_to_store_less(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdkit.training.stage.LARGE_DELTA", 1000)
    notes = Notes()
    run(material.config(), tmp_path / "out", progress=notes)
    assert any(f"cdkit delta compress {tmp_path / 'out'}" in note for note in notes.notes)
