"""Case 16: base models' folders and files, complete in other ways than cdkit's own, or damaged: loaded, or named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cdkit.core.errors import ConfigError, InputError
from cdkit.deltas.base_model import base_hash, load_base_model
from tests.cli.running import ran
from tests.support.made_deltas import made_delta
from tests.support.tiny_xl_pipeline import tiny_xl_pipeline

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def _load(path: Path | str) -> Any:
    return load_base_model(str(path), device=CPU)


def _index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / "model_index.json").read_text())
        change(values)
        (folder / "model_index.json").write_text(json.dumps(values))

    return damage


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name)


def _replaced(name: str, content: bytes | str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-5000])


def _tensors(name: str, change: Callable[[dict[str, torch.Tensor], str], Any]) -> Callable[[Path], None]:
    """Change a weight file's tensors; the function gets the name of a norm's weight that every part has."""

    def damage(folder: Path) -> None:
        tensors = load_file(str(folder / name))
        change(tensors, next(key for key in sorted(tensors) if "norm" in key and key.endswith("weight")))
        save_file(tensors, str(folder / name), metadata={"format": "pt"})

    return damage


def _nan_sized(folder: Path) -> None:
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, "in_channels": 9}))


def _scheduler(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "scheduler/scheduler_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def _setting(part: str, **values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def _wider_text(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.hidden_size = 40
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def _more_words(folder: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(folder / "tokenizer")


DAMAGES: list[tuple[str, Callable[[Path], Any], str]] = [
    *((f"no {name}", _without(name), f"no {name}/ folder") for name in ("tokenizer", "scheduler", "vae", "unet")),
    ("no text encoder", _without("text_encoder"), "no text_encoder/ folder"),
    ("index cut", _replaced("model_index.json", "{"), "model_index.json cannot be read as JSON"),
    ("index of another shape", _replaced("model_index.json", "[]"), "model_index.json is no configuration"),
    ("index deep", _replaced("model_index.json", "[" * 100_000), "model_index.json cannot be read as JSON"),
    ("index without class", _index(lambda values: values.pop("_class_name")), "another kind"),
    ("unknown class", _index(lambda values: values.update(_class_name="NoSuchPipeline")), "NoSuchPipeline"),
    ("other class", _index(lambda values: values.update(_class_name="FluxPipeline")), "transformer missing"),
    ("class and code", _index(lambda values: values.update(_class_name=["pipeline", "Mine"])), "code of its own"),
    ("code as a part", _index(lambda values: values.update(unet=["os", "system"])), "another family"),
    ("unknown scheduler", _index(lambda values: values.update(scheduler=["diffusers", "None"])), "cannot be loaded"),
    ("no autoencoder named", _index(lambda values: values.pop("vae")), "vae missing"),
    ("settings cut", _replaced("unet/config.json", "{"), "unet/config.json cannot be read as JSON"),
    ("settings of another shape", _replaced("vae/config.json", "null"), "vae/config.json is no configuration"),
    ("settings empty", _replaced("unet/config.json", "{}"), "in_channels|expected shape|channels"),
    ("text settings", _replaced("text_encoder/config.json", "{}"), "text_encoder holds weights of other shapes"),
    ("scheduler settings", _replaced("scheduler/scheduler_config.json", "x"), "scheduler_config.json cannot be read"),
    ("tokenizer cut", _replaced("tokenizer/tokenizer.json", "{"), "The tokenizer in .*tokenizer cannot be loaded"),
    ("tokenizer of another shape", _replaced("tokenizer/tokenizer.json", "{}"), "The tokenizer in"),
    ("tokenizer gone", lambda at: (at / "tokenizer/tokenizer.json").unlink(), "holds no tokenizer"),
    ("an inpainting U-Net", _nan_sized, "inpainting|expected shape"),
    ("a schedule without end", _scheduler(num_train_timesteps=10**12), "1000000000000 training steps"),
    ("a schedule of nothing", _scheduler(num_train_timesteps=0), "0 training steps"),
    ("a schedule of words", _scheduler(num_train_timesteps="many"), "many training steps"),
    ("an unknown prediction", _scheduler(prediction_type="flow"), "predicts 'flow'"),
    ("a schedule of a wrong type", _scheduler(beta_start="x"), "cannot be loaded"),
    ("a million layers", _setting("text_encoder", num_hidden_layers=10**6), "num_hidden_layers is 1000000"),
    ("layers without end", _setting("unet", layers_per_block=[1, 10**30]), "layers_per_block is"),
    ("a norm of no groups", _setting("unet", norm_num_groups=0), "cannot be loaded"),
    ("a width that is a word", _setting("vae", block_out_channels="x"), "cannot be loaded"),
    ("a text encoder of another width", _wider_text, "text encoders give a width of 40, the U-Net takes 32"),
    ("a tokenizer of more words", _more_words, "last entry is"),
    *((f"pointer {name}", _replaced(name, POINTER), "a Git LFS pointer") for name in (UNET, VAE, TEXT)),
    *((f"page {name}", _replaced(name, "<html>"), "a web page") for name in (UNET, TEXT)),
    *((f"empty {name}", _replaced(name, ""), "is empty") for name in (UNET, TEXT)),
    *((f"cut {name}", _cut(name), "is cut short") for name in (UNET, VAE, TEXT)),
    *((f"gone {name}", lambda at, name=name: (at / name).unlink(), "holds no weights") for name in (UNET, TEXT)),
    *((f"one missing {name}", _tensors(name, dict.pop), "not all weights") for name in (UNET, VAE, TEXT)),
    *(
        (f"other shape {name}", _tensors(name, lambda all_, key: all_.update({key: torch.ones(3, 3)})), "shape")
        for name in (UNET, VAE, TEXT)
    ),
]


@pytest.mark.parametrize(("damage", "words"), [entry[1:] for entry in DAMAGES], ids=[entry[0] for entry in DAMAGES])
def test_a_damaged_folder_is_named(folder: Path, damage: Callable[[Path], Any], words: str) -> None:
    damage(folder)
    with pytest.raises((InputError, ConfigError), match=words) as refused:
        _load(folder)
    assert refused.value.hint
    assert str(folder) in refused.value.message


def test_an_export_without_its_tokenizer(tmp_path: Path) -> None:
    """The case as it was met: sampling ended in an OverflowError, training blamed the initializer."""
    delta = tmp_path / "delta"
    from cdkit.deltas.delta import DELTA_NAME, save_delta

    save_delta(made_delta(_load("embedded")), delta / DELTA_NAME)
    exported = tmp_path / "model"
    words = ["export", delta, "--to", "diffusers-pipeline", "--base", "embedded", "--out", exported]
    assert ran(words).code == 0
    shutil.rmtree(exported / "tokenizer")
    photos = "star=embedded:striped-star"
    for command in (
        ["sample", "--base", exported, "--prompt", "a star", "--seeds", 1, "--steps", 1, "--out", tmp_path / "s"],
        ["class-images", "a star", "--base", exported, "--count", 1, "--steps", 1, "--out", tmp_path / "c"],
        ["train", "--base", exported, "--concept", photos, "--steps", 1, "--out", tmp_path / "t"],
        ["train", "--base", exported, "--concept", photos, "--steps", 1, "--out", tmp_path / "t", "--dry-run"],
    ):
        done = ran(command)
        assert done.code == 3, done.err
        assert "no tokenizer/ folder" in done.err


def _renamed(folder: Path, names: dict[str, str]) -> None:
    for old, new in names.items():
        (folder / old).rename(folder / new)


def _half(folder: Path) -> None:
    _renamed(folder, {name: name.replace(".safetensors", ".fp16.safetensors") for name in (UNET, VAE, TEXT)})


def _half_unet(folder: Path) -> None:
    _renamed(folder, {UNET: UNET.replace(".safetensors", ".fp16.safetensors")})


def _torch_files(folder: Path) -> None:
    for name in (UNET, VAE, TEXT):
        target = name.replace("text_encoder/model", "text_encoder/pytorch_model").replace(".safetensors", ".bin")
        torch.save(load_file(str(folder / name)), folder / target)
        (folder / name).unlink()


def _both(folder: Path) -> None:
    """Full precision is preferred, and PyTorch's files beside safetensors' are not read."""
    for name in (UNET, VAE, TEXT):
        (folder / name.replace(".safetensors", ".fp16.safetensors")).write_bytes(b"broken")
        (folder / name.replace(".safetensors", ".bin")).write_bytes(b"broken")


def _in_shards(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / UNET).unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="1MB", variant="fp16")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1


def _old_tokenizer(folder: Path) -> None:
    """vocab.json and merges.txt alone, as old folders have them: such a tokenizer does not know its context."""
    from tests.support.tiny_pipeline import tiny_tokenizer

    shutil.rmtree(folder / "tokenizer")
    tiny_tokenizer(folder / "tokenizer")


@pytest.mark.parametrize(
    "change",
    [
        _half,
        _half_unet,
        _torch_files,
        _both,
        _in_shards,
        _old_tokenizer,
        _index(lambda values: values.update(_class_name="StableDiffusionImg2ImgPipeline")),
        _index(lambda values: values.update(safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])),
        _index(lambda values: values.update(feature_extractor=["transformers", "CLIPImageProcessor"])),
    ],
)
def test_a_folder_that_is_complete_in_another_way_is_loaded(
    sound: Path, folder: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    change(folder)
    assert base_hash(_load(folder)) == base_hash(_load(sound))
    words = ["sample", "--base", folder, "--prompt", "a cat", "--seeds", 1, "--steps", 2, "--out", tmp_path / "out"]
    done = ran(words)
    assert done.code == 0, done.err


@pytest.mark.parametrize("damage", [_half, _torch_files])
def test_sdxl_in_other_files(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    whole = tmp_path / "xl"
    tiny_xl_pipeline(whole)
    expected = base_hash(_load(whole))
    damage(whole)
    assert base_hash(_load(whole)) == expected


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def test_code_in_a_folders_weights_is_not_run(folder: Path, tmp_path: Path) -> None:
    _torch_files(folder)
    sprung = tmp_path / "sprung"
    torch.save({"conv_in.weight": _Trap(sprung)}, folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="Nothing in it was run"):
        _load(folder)
    assert not sprung.exists()


@pytest.mark.parametrize("spec", ["transformers:", "open_clip:"])
@pytest.mark.parametrize(
    ("content", "words"), [(POINTER, "a Git LFS pointer"), (b"<!DOCTYPE html>", "a web page"), (b"", "is empty")]
)
def test_an_encoders_weights_that_are_something_else(tmp_path: Path, spec: str, content: bytes, words: str) -> None:
    from cdkit.encoders import load_text_encoder
    from cdkit.encoders.image_towers import load_image_encoder
    from tests.support.tiny_models import clip_folder, open_clip_folder

    (clip_folder if spec == "transformers:" else open_clip_folder)(tmp_path / "clip")
    (weights,) = (tmp_path / "clip").glob("*.safetensors")
    weights.write_bytes(content)
    for load in (load_text_encoder, load_image_encoder):
        with pytest.raises(InputError, match=words):
            load(f"{spec}{tmp_path / 'clip'}")


@pytest.mark.parametrize("change", [None, _half, _torch_files])
def test_neighbours_are_found_whatever_the_weights_are_called(
    folder: Path, change: Callable[[Path], None] | None
) -> None:
    from cdkit.tokens.explain import embedding_table

    if change is not None:
        change(folder)
    assert embedding_table(str(folder)).shape[1] == 32


DRAWN: list[tuple[str, Callable[[Path], Any]]] = [
    ("a schedule of one noise", _scheduler(trained_betas=1.5)),
    ("spaced by a word", _scheduler(timestep_spacing="x")),
    ("padded by nothing", _setting("unet", downsample_padding=[1, 2, 3, 4])),
    ("scaled by nothing", _setting("unet", mid_block_scale_factor=None)),
    ("normed by a mapping", _setting("unet", norm_eps={})),
    ("decoded by others", _setting("vae", up_block_types=["UpDecoderBlock2D"])),
]


@pytest.mark.parametrize("damage", [entry[1] for entry in DRAWN], ids=[entry[0] for entry in DRAWN])
def test_settings_that_a_library_takes_and_then_fails_on(
    folder: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    damage(folder)
    photos = "cat=embedded:striped-star"
    train = ["train", "--concept", photos, "--token", "cat=<new1>=cat", "--steps", 1, "--batch-size", 1]
    for command in (["sample", "--prompt", "a cat", "--seeds", 1, "--steps", 1], train):
        done = ran([*command, "--base", folder, "--out", tmp_path / str(command[0])])
        # What training does not use, such as the decoder, may be broken there.
        assert done.code in ((3,) if command[0] == "sample" else (0, 3)), done.err
        assert "a bug" not in done.err


@pytest.mark.parametrize(
    "values",
    [
        {"model_max_length": "gelu"},
        {"model_max_length": 10**30},
        {"model_max_length": -1},
        {"model_max_length": 1.5},
        {"pad_token": None},
    ],
)
def test_a_tokenizer_that_does_not_know_its_context_is_held_to_it(
    sound: Path, folder: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    path = folder / "tokenizer/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    outputs = []
    for base in (sound, folder):
        tokenizer = _load(base).tokenizer
        outputs.append(tokenizer("a cat", padding="max_length", truncation=True).input_ids)
    assert len(outputs[0]) == 77
    assert outputs[0] == outputs[1]
