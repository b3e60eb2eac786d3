from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdkit.core.errors import ConfigError, InputError
from cdkit.encoders.image_towers import load_image_encoder
from tests.support import tiny_models


def _images(n: int = 3, size: tuple[int, int] = (50, 40)) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 255, (n, size[1], size[0], 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def _unit(rows: Any) -> np.ndarray:
    values: np.ndarray = rows.detach().numpy()
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_open_clip_equals_its_own_image_tower(tmp_path: Path) -> None:
    import open_clip
    import torch

    folder = tiny_models.open_clip_folder(tmp_path / "model")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    with torch.no_grad():
        expected = _unit(model.encode_image(torch.stack([transform(image) for image in _images()])))
    encoder = load_image_encoder(f"open_clip:{folder}", device="cpu")
    np.testing.assert_allclose(encoder.encode_images(_images()), expected, atol=1e-6)


def test_transformers_clip_equals_its_own_image_tower(tmp_path: Path) -> None:
    import torch
    from transformers import CLIPImageProcessor, CLIPModel

    folder = tiny_models.clip_folder(tmp_path / "model")
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor.save_pretrained(folder)
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        pixels = processor(images=_images(), return_tensors="pt")["pixel_values"]
        expected = _unit(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output))
    encoder = load_image_encoder(f"transformers:{folder}", device="cpu")
    np.testing.assert_allclose(encoder.encode_images(_images()), expected, atol=1e-6)


def test_dino_is_the_class_token_of_the_centre_crop(tmp_path: Path) -> None:
    import torch
    from torchvision.transforms.functional import center_crop, normalize, resize, to_tensor
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=28, patch_size=7
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    crops = [center_crop(resize(image, 32, interpolation=3), [28, 28]) for image in _images()]
    pixels = torch.stack([normalize(to_tensor(c), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) for c in crops])
    with torch.no_grad():
        expected = _unit(model(pixel_values=pixels).last_hidden_state[:, 0])
    encoder = load_image_encoder(f"transformers:{tmp_path}", device="cpu")
    np.testing.assert_allclose(encoder.encode_images(_images()), expected, atol=1e-5)


def test_the_embedded_clip_reads_its_own_world() -> None:
    from cdkit.embedded import concept_photos
    from cdkit.encoders import load_text_encoder

    photos = [concept_photos(name)[0] for name in ("striped-star", "checkered-mug")]
    images = load_image_encoder("embedded", device="cpu").encode_images(photos)
    texts = load_text_encoder("embedded", device="cpu").encode(["a photo of a star", "a photo of a mug"])
    cosines = images @ texts.T
    assert cosines[0, 0] > cosines[0, 1]
    assert cosines[1, 1] > cosines[1, 0]


def test_the_batch_does_not_change_an_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    from cdkit.encoders import image_towers

    encoder = load_image_encoder("embedded", device="cpu")
    whole = encoder.encode_images(_images(5))
    monkeypatch.setattr(image_towers, "BATCH", 2)
    np.testing.assert_allclose(encoder.encode_images(_images(5)), whole, atol=1e-6)


def test_the_hash_follows_the_weights(tmp_path: Path) -> None:
    one = load_image_encoder(f"transformers:{tiny_models.clip_folder(tmp_path / 'a', seed=0)}", device="cpu")
    other = load_image_encoder(f"transformers:{tiny_models.clip_folder(tmp_path / 'b', seed=1)}", device="cpu")
    assert one.weights_hash() != other.weights_hash()
    assert len(one.weights_hash()) == 64


def test_a_text_tower_alone_is_no_image_encoder(tmp_path: Path) -> None:
    folder = tiny_models.clip_text_folder(tmp_path / "text")
    with pytest.raises((ConfigError, InputError), match=r"image encoder|picture tower|cannot be loaded"):
        load_image_encoder(f"transformers:{folder}", device="cpu")


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tiny_models.clip_folder(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"] = torch.full_like(tensors["visual_projection.weight"], float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = load_image_encoder(f"transformers:{folder}", device="cpu")
    with pytest.raises(InputError, match="NaN, infinite or zero"):
        encoder.encode_images(_images())
