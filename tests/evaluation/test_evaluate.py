from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError, InputError, OutputError
from cdkit.evaluation.config import EvaluateConfig
from cdkit.execute import Result, execute
from tests.support.pretend_run import run_stage, write_retrieved, write_trained

PROMPTS = ["a photo of a star", "a <new1> star on the grass", "a <new1> star at night"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tuned: three prompts with a delta; base: the class prompt without; one: a single image; a regularization set."""
    folder = tmp_path_factory.mktemp("material")
    write_trained(folder / "delta")
    shared: dict[str, Any] = {"steps": 3, "guidance": 4.0, "device": "cpu"}
    run_stage("sample", folder / "tuned", prompts=PROMPTS, seeds=3, deltas=[str(folder / "delta")], **shared)
    run_stage("sample", folder / "base", prompts=PROMPTS[:1], seeds=2, **shared)
    run_stage("sample", folder / "one", prompts=PROMPTS[1:2], seeds=1, **shared)
    write_retrieved(folder / "real", images=8)
    return folder


def _evaluate(out: Path, **values: Any) -> Result:
    return execute("evaluate", parse_config(EvaluateConfig, {"device": "cpu", **values}), out)


def _rows(out: Path, metric: str, name: str = "samples") -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    table = pq.read_table(out / "scores.parquet").to_pylist()
    return [row for row in table if row["metric"] == metric and row["set"] == name]


def _embeddings(folder: Path) -> np.ndarray:
    """The embedded CLIP's own, by the model's methods."""
    import torch

    from cdkit.embedded import load_clip

    clip = load_clip()
    images = [Image.open(path) for path in sorted((folder / "images").glob("*.png"))]
    with torch.no_grad():
        states = clip.model.vision_model(pixel_values=clip.preprocess(images)).pooler_output
        rows: np.ndarray = clip.model.visual_projection(states).numpy().astype(np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _text(prompt: str) -> np.ndarray:
    import torch

    from cdkit.embedded import load_clip

    clip = load_clip()
    tokens = clip.tokenizer([prompt], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        states = clip.model.text_model(input_ids=tokens.input_ids).pooler_output
        row: np.ndarray = clip.model.text_projection(states)[0].numpy().astype(np.float64)
    return np.asarray(row / np.linalg.norm(row))


def test_alignment_is_the_encoders_own_without_the_modifier_token(material: Path, out: Path) -> None:
    result = _evaluate(out, samples=str(material / "tuned"), concepts={"star": "embedded:striped-star"})
    images = _embeddings(material / "tuned")
    expected = [
        float(images[place] @ _text(prompt))
        for place, prompt in enumerate(
            ["a photo of a star"] * 3 + ["a star on the grass"] * 3 + ["a star at night"] * 3
        )
    ]
    rows = _rows(out, "text_alignment")
    assert [row["value"] for row in rows] == pytest.approx(expected[3:], abs=1e-5)
    assert {row["prompt"] for row in rows} == set(PROMPTS[1:])
    metric = result.manifest.details["metrics"]["text_alignment"]
    assert metric["value"] == pytest.approx(np.mean(expected[3:]), abs=1e-5)
    assert metric["n"] == 6
    assert metric["low"] < metric["value"] < metric["high"]


def test_a_prompt_is_read_as_clip_reads_captions(material: Path, out: Path, tmp_path: Path) -> None:
    # Cleaned twice, this would lose one escape more.
    prompt = "a <new1> \u201cstar\u201d <3 &amp;amp;amp;quot;  at NIGHT"
    settings: dict[str, Any] = {"steps": 2, "device": "cpu", "seeds": 1, "deltas": [str(material / "delta")]}
    run_stage("sample", tmp_path / "samples", prompts=[prompt], **settings)
    _evaluate(out, samples=str(tmp_path / "samples"))
    expected = _embeddings(tmp_path / "samples")[0] @ _text('a "star" <3 &amp;quot; at night')
    assert [row["value"] for row in _rows(out, "text_alignment")] == pytest.approx([float(expected)], abs=1e-5)


def test_image_alignment_is_over_all_pairs_with_the_photos(material: Path, out: Path, tmp_path: Path) -> None:
    from cdkit.embedded import write_concept

    photos = tmp_path / "photos"
    write_concept("striped-star", photos)
    (photos / "images").mkdir()
    shutil.copytree(photos, tmp_path / "like" / "images", dirs_exist_ok=True)
    result = _evaluate(out, samples=str(material / "tuned"), concepts={"star": str(photos)})
    pairs = _embeddings(material / "tuned")[3:] @ _embeddings(tmp_path / "like").T
    assert result.manifest.details["metrics"]["image_alignment"]["value"] == pytest.approx(pairs.mean(), abs=1e-5)
    nearest = [row["value"] for row in _rows(out, "nearest_photo")]
    assert nearest == pytest.approx(pairs.max(axis=1), abs=1e-5)


def test_everything_at_once(material: Path, out: Path, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**small, image_size=16, patch_size=8), add_pooling_layer=False).save_pretrained(
        tmp_path / "vit"
    )
    result = _evaluate(
        out,
        samples=str(material / "tuned"),
        compare={"base": str(material / "base")},
        concepts={"star": "embedded:striped-star", "mug": "embedded:checkered-mug"},
        reference=str(material / "real"),
        base_samples=str(material / "base"),
        dino=f"transformers:{tmp_path / 'vit'}",
    )
    metrics = result.manifest.details["metrics"]
    assert metrics["image_alignment"]["value"] == pytest.approx(
        (metrics["image_alignment.star"]["value"] + metrics["image_alignment.mug"]["value"]) / 2
    )
    assert metrics["drift"]["n"] == 2
    assert 0 < metrics["drift"]["value"] < 2
    assert metrics["kid"]["n"] == 3
    assert metrics["kid"]["reference_n"] == 8
    assert metrics["kid"]["standard_error"] > 0
    assert "dino_image_alignment" in metrics
    assert metrics["delta_bytes"]["value"] == (material / "delta" / "delta.safetensors").stat().st_size
    assert metrics["train_seconds"]["value"] == 24.5
    assert metrics["seconds_per_image"]["low"] is None
    assert "drift" not in result.manifest.details["sets"]["base"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["encoder"] == "embedded"
    assert summary["kid_features"]
    assert len(_rows(out, "clip_score", "base")) == 2


def test_the_same_call_gives_the_same_figures(material: Path, tmp_path: Path) -> None:
    values = {"samples": str(material / "tuned"), "concepts": {"star": "embedded:striped-star"}}
    _evaluate(tmp_path / "a", **values)
    _evaluate(tmp_path / "b", **values)
    assert (tmp_path / "a" / "scores.parquet").read_bytes() == (tmp_path / "b" / "scores.parquet").read_bytes()
    assert (tmp_path / "a" / "summary.json").read_text() == (tmp_path / "b" / "summary.json").read_text()


def test_images_are_embedded_once(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cdkit.encoders.image_towers import TowerImageEncoder

    monkeypatch.setenv("CDKIT_CACHE", str(tmp_path / "cache"))
    seen: list[int] = []
    original = TowerImageEncoder.encode_images

    def counting(self: TowerImageEncoder, images: Any) -> np.ndarray:
        seen.append(len(images))
        return original(self, images)

    monkeypatch.setattr(TowerImageEncoder, "encode_images", counting)
    _evaluate(tmp_path / "a", samples=str(material / "tuned"))
    assert sum(seen) == 9
    copy = tmp_path / "elsewhere"
    shutil.copytree(material / "tuned", copy)
    changed = copy / "images" / "0000-0.png"
    Image.new("RGB", (32, 32), "red").save(changed)
    _evaluate(tmp_path / "b", samples=str(copy))
    assert sum(seen) == 10


def test_an_unusable_cache_only_costs_time(
    material: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CDKIT_CACHE", str(tmp_path / "file"))
    assert _evaluate(out, samples=str(material / "one")).manifest.details["metrics"]["text_alignment"]["n"] == 1


def test_one_sample_has_no_interval_and_says_so(material: Path, out: Path) -> None:
    result = _evaluate(out, samples=str(material / "one"), reference=str(material / "real"))
    metric = result.manifest.details["metrics"]["text_alignment"]
    assert (metric["n"], metric["low"], metric["high"]) == (1, None, None)
    notes = " ".join(json.loads((out / "summary.json").read_text())["sets"]["samples"]["notes"])
    assert "no interval" in notes
    assert "KID needs at least two" in notes
    assert "kid" not in result.manifest.details["metrics"]


def test_few_prompts_are_said_to_be_few(material: Path, out: Path) -> None:
    _evaluate(out, samples=str(material / "tuned"), compare={"base": str(material / "base")})
    sets = json.loads((out / "summary.json").read_text())["sets"]
    assert "only 2 prompts" in " ".join(sets["samples"]["notes"])
    assert "one prompt" in " ".join(sets["base"]["notes"])


def test_customconcept101s_layout_is_read(material: Path, out: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "samples").mkdir(parents=True)
    prompts = {}
    for path in sorted((material / "tuned" / "images").glob("*.png")):
        shutil.copy(path, root / "samples" / path.name)
        prompts[path.stem] = PROMPTS[int(path.stem[:4])]
    (root / "prompts.json").write_text(json.dumps(prompts))
    result = _evaluate(out, samples=str(root))
    assert result.manifest.details["metrics"]["text_alignment"]["n"] == 6
    (root / "samples" / "extra.png").write_bytes((root / "samples" / "0000-0.png").read_bytes())
    with pytest.raises(InputError, match=r"no prompt for 1 images, the first extra\.png"):
        _evaluate(tmp_path / "again", samples=str(root))


def test_the_papers_protocol_says_what_is_short(material: Path, out: Path) -> None:
    config = parse_config(EvaluateConfig, {"samples": "x", "preset": "paper"})
    assert config.encoder == "open_clip:ViT-B-32/openai"
    result = _evaluate(
        out,
        samples=str(material / "tuned"),
        concepts={"star": "embedded:striped-star"},
        reference=str(material / "real"),
        encoder="embedded",
        preset="paper",
    )
    assert result.state == "partial"
    for line in ("2 of 20 prompts", "3 of 50 samples", "8 of 500 real", "ddim instead", "guidance 4.0"):
        assert line in result.manifest.shortfall


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    from cdkit.pictures.reading import read_pictures

    image = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert [picture.open().size for picture in read_pictures(str(tmp_path)).pictures] == [(20, 40)]


def test_the_grid_beside_samples_is_no_reference(material: Path) -> None:
    from cdkit.pictures.reading import read_pictures

    assert len(read_pictures(str(material / "base")).pictures) == 2
    assert len(read_pictures(str(material / "real")).pictures) == 8


def test_bad_input_is_named(material: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("no pictures")
    with pytest.raises(InputError, match="holds no samples"):
        _evaluate(out, samples=str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"gone.* does not exist"):
        _evaluate(out, samples=str(material / "tuned"), reference=str(tmp_path / "gone"))
    with pytest.raises(InputError, match="holds no image"):
        _evaluate(out, samples=str(material / "tuned"), reference=str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="no embedded concept"):
        _evaluate(out, samples=str(material / "tuned"), concepts={"star": "embedded:nothing"})
    with pytest.raises(InputError, match="no class prompt and seed in common"):
        _evaluate(out, samples=str(material / "one"), base_samples=str(material / "base"))
    with pytest.raises(ConfigError, match="the main set's name"):
        parse_config(EvaluateConfig, {"samples": "x", "compare": {"samples": "y"}})


def test_missing_and_broken_images_are_named(material: Path, out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(material / "tuned", copy)
    (copy / "images" / "0001-1.png").unlink()
    with pytest.raises(InputError, match=r"1 of 9 images .* missing, the first images/0001-1\.png"):
        _evaluate(out, samples=str(copy))
    (copy / "images" / "0001-1.png").write_bytes(b"not a picture")
    (copy / "images" / "0002-0.png").write_bytes(b"neither")
    with pytest.raises(InputError) as caught:
        _evaluate(out, samples=str(copy))
    assert "0001-1.png" in caught.value.message
    assert "0002-0.png" in caught.value.message


def test_nan_pixels_are_an_error(tmp_path: Path) -> None:
    from cdkit.pictures.reading import read_pictures

    values = np.full((8, 8), 0.5, dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "good.tiff")
    values[2, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "nan.tiff")
    good, broken = read_pictures(str(tmp_path)).pictures
    assert good.open().getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(InputError, match="NaN"):
        broken.open()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_an_unwritable_folder_is_an_output_error(material: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError):
        _evaluate(tmp_path / "locked" / "out", samples=str(material / "one"))


def test_a_file_in_the_way_is_an_output_error(material: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError):
        _evaluate(tmp_path / "out", samples=str(material / "one"))
