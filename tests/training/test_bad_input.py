"""What cannot work is said clearly, before the base model is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cdkit.core.errors import CdkitError, ConfigError, InputError
from cdkit.execute import execute
from cdkit.training.base_facts import BaseFacts
from tests.support.progress import Notes
from tests.support.tiny_pipeline import tiny_pipeline
from tests.training.conftest import write_photos
from tests.training.running import Material, delta_tensors, run


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when the base model is loaded."""

    def load(base: Any) -> None:
        pytest.fail("the base model was loaded before the mistake was found")

    monkeypatch.setattr(BaseFacts, "load", load)


def _error(material: Material, out: Path, **values: Any) -> CdkitError:
    with pytest.raises(CdkitError) as caught:
        run(material.config(**values), out)
    assert not (out / "delta.safetensors").exists()
    return caught.value


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("values", "words", "hint"),
    [
        ({"token": {"cat": "dog=cat"}}, "already a word", "<new1>"),
        ({"token": {"cat": "photo=cat"}}, "already a word", "<new1>"),
        ({"token": {"cat": "<a b>=cat"}}, "cannot be a modifier token", "without spaces"),
        ({"token": {"cat": "<new1>=blubb"}}, "not one token", "cdkit tokens rare"),
        ({"token": {"cat": "<new1>=99999"}}, "no id 99999", "cdkit tokens rare"),
        ({"token": {}}, "no entry 'ktn'", "tokenizer"),
        ({"regularization_count": 7}, "6 regularization images, 7 were asked for", "--regularization-count"),
        ({"resolution": 33}, "no multiple of 8", "32"),
        ({"resolution": 64}, "smaller than the resolution", "--resolution 32"),
        ({"precision": "fp16"}, "fp16 needs a GPU", "bf16"),
    ],
)
def test_settings_that_do_not_fit(
    material: Material, out: Path, values: dict[str, Any], words: str, hint: str
) -> None:
    error = _error(material, out, **values)
    assert words in error.message
    assert hint in error.hint


@pytest.mark.usefixtures("no_model")
def test_more_concepts_than_initializers(material: Material, out: Path) -> None:
    folders = {f"cat{number}": str(material.root / "cat") for number in range(4)}
    error = _error(material, out, concepts=folders, regularization={}, token={})
    assert "4 concepts need 4 initializers" in error.message


@pytest.mark.usefixtures("no_model")
def test_two_concepts_of_one_token(material: Material, out: Path) -> None:
    folders = {"cat": str(material.root / "cat"), "dog": str(material.root / "dog")}
    error = _error(material, out, concepts=folders, token={"cat": "<x>=cat", "dog": "<x>=dog"})
    assert "'<x>'" in error.message


@pytest.mark.usefixtures("no_model")
def test_photos_that_cannot_be_used(material: Material, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write_photos(folder, 1, seed=0)
    one = _error(material, out, concepts={"cat": str(folder)})
    assert isinstance(one, InputError)
    assert "only one photo" in one.message
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (folder / "phone.HEIC").write_bytes(b"....ftypheic")
    broken = _error(material, out, concepts={"cat": str(folder)})
    assert "broken.jpg" in broken.message
    assert "phone.HEIC" in broken.message
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.pdf").write_text("x")
    nothing = _error(material, out, concepts={"cat": str(empty)})
    assert "no photo" in nothing.message
    assert "notes.pdf" in nothing.message


@pytest.mark.usefixtures("no_model")
def test_a_caption_that_does_not_name_the_concept(material: Material, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write_photos(folder, 2, seed=0)
    (folder / "1.txt").write_text("something else")
    error = _error(material, out, concepts={"cat": str(folder)})
    assert "neither <new1> nor 'cat'" in error.message
    assert "{}" in error.hint


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("change", ["transformer", "inpainting"])
def test_a_base_model_of_another_family(material: Material, out: Path, tmp_path: Path, change: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(material.root / "base", base)
    path = base / ("model_index.json" if change == "transformer" else "unet/config.json")
    values = json.loads(path.read_text())
    if change == "transformer":
        values["transformer"] = ["diffusers", "FluxTransformer2DModel"]
        del values["unet"]
    else:
        values["in_channels"] = 9
    path.write_text(json.dumps(values))
    error = _error(material, out, base=str(base))
    assert isinstance(error, ConfigError)
    assert ("FluxTransformer2DModel" if change == "transformer" else "inpainting") in error.message


@pytest.mark.usefixtures("no_model")
def test_a_delta_that_is_none(material: Material, out: Path) -> None:
    assert "delta.safetensors" in _error(material, out, delta=[str(material.root / "cat")]).message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"regularization": {"horse": "x"}}, "regularization names 'horse'"),
        ({"token": {"horse": "<new1>"}}, "token names 'horse'"),
        ({"concepts": {}}, "concepts"),
        ({"no_token": True, "token": {"cat": "<new1>"}}, "no_token"),
        ({"no_token": True, "method": "textual-inversion"}, "needs a token"),
        ({"template": "photo of a cat"}, "{}"),
        ({"method": "lora"}, "method"),
        ({"steps": 0}, "steps"),
    ],
)
def test_configurations_that_contradict_themselves(material: Material, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        material.config(**{"token": {}, **values} if "no_token" not in values else values)


def test_photos_below_the_resolution_can_be_enlarged(material: Material, out: Path) -> None:
    assert run(material.config(resolution=64, enlarge=True, steps=1, batch_size=2), out).state == "done"


def test_what_nothing_keeps_is_said(material: Material, out: Path) -> None:
    notes = Notes()
    run(material.config(regularization={}, keep="none", steps=1), out, progress=notes)
    assert any("what the model draws for 'cat' will drift" in note for note in notes.notes)


def test_what_is_left_out_and_what_is_missing_is_said(material: Material, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write_photos(folder, 2, seed=0)
    (folder / "notes.pdf").write_text("x")
    notes = Notes()
    result = run(material.config(concepts={"cat": str(folder)}, regularization={}, steps=1), out, progress=notes)
    assert result.manifest.counts == {"in": 3, "kept": 2, "rejected": {"not_an_image": 1}}
    assert any("notes.pdf" in note for note in notes.notes)
    assert any("the base model's own predictions keep 'cat' as it is" in note for note in notes.notes)
    assert any("2 photos; 4 to 20 work best" in note for note in notes.notes)


def test_nan_stops_the_run_with_its_step(material: Material, out: Path, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path / "broken")
    pipeline.unet.conv_out.weight.data.fill_(float("nan"))
    pipeline.save_pretrained(tmp_path / "broken")
    error = _error(material, out, base=str(tmp_path / "broken"))
    assert "NaN at step 1, which shows " in error.message
    assert ".png" in error.message
    assert "--learning-rate" in error.hint


def test_a_card_without_bf16_is_refused_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from cdkit.training.processes import Team, accelerated

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce GTX 1080")
    with (
        pytest.raises(ConfigError, match="GTX 1080 cannot compute in bf16") as caught,
        accelerated(Team(), device=torch.device("cuda"), precision="bf16"),
    ):
        pass
    assert "--precision fp16" in caught.value.hint


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_out_of_memory_says_what_to_lower(
    material: Material, out: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    from cdkit.training.loop import Loop

    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(Loop, "run", fail)
    found = _error(material, out)
    assert "Out of memory" in found.message
    assert "--batch-size" in found.hint
    assert "--gradient-accumulation" in found.hint


def test_out_of_memory_at_a_step_leaves_the_step_before(
    material: Material, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdkit.training.passes import EagerPass

    whole = material.config(steps=6)
    run(whole, tmp_path / "whole")
    real, calls = EagerPass.__call__, []

    def fail(passes: EagerPass, batch: Any) -> torch.Tensor:
        calls.append(batch)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(passes, batch)

    with monkeypatch.context() as patch:
        patch.setattr(EagerPass, "__call__", fail)
        error = _error(material, out, steps=6)
    assert "at step 5: CUDA out of memory" in error.message
    assert "--fit " in error.hint
    assert "The checkpoint of step 4 is there" in error.hint
    notes = Notes()
    run(whole, out, progress=notes)
    assert "Going on after step 4." in notes.notes
    one, other = delta_tensors(out), delta_tensors(tmp_path / "whole")
    assert all(one[name].equal(other[name]) for name in other)


def test_photos_are_turned_upright_and_keep_their_aspect(tmp_path: Path) -> None:
    from cdkit.training.photos import centre_square, concept_photos

    image = Image.new("RGB", (60, 40), "blue")
    image.paste("red", (0, 0, 60, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: what is on top of the file belongs to the right
    for name in ("b.jpg", "a.jpg"):
        image.save(tmp_path / name, exif=exif, quality=95)
    (tmp_path / "a.txt").write_text(" a {}\n by the sea ")
    found = concept_photos(str(tmp_path))
    photos = [(photo.key, photo.caption) for photo in found.pictures]
    assert photos == [("a.jpg", "a {} by the sea"), ("b.jpg", None)]
    assert found.left_out == []
    upright = found.pictures[0].open()
    assert upright.size == (40, 60)
    square = centre_square(upright, 1000, least=16)
    assert square.pixels.shape == (3, 40, 40)
    assert square.frame == (60, 40, 10, 0)
    red, _, blue = square.pixels[:, 20, 38].tolist()
    assert red > 200
    assert blue < 60
    assert square.pixels[2, 20, 10] > 200
    assert centre_square(upright, 24, least=16).pixels.shape == (3, 24, 24)
    assert centre_square(upright, 1000, least=64).pixels.shape == (3, 64, 64)


def test_execute_refuses_a_folder_of_photos_that_is_missing(material: Material, out: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        execute("train", material.config(concepts={"cat": "no/such/folder"}), out)
