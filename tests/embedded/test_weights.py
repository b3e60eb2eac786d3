"""The shipped weights: small, checked by hash, loaded fast and only when asked for."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from shutil import copytree

import pytest

from cdkit.core.errors import InputError
from cdkit.embedded import load_clip, load_pipeline, text_encoder_hash, weight_files, weights_hash


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the weights that a test may damage."""
    return copytree(weight_files.FOLDER, tmp_path / "weights")


def test_they_are_small() -> None:
    total = sum(path.stat().st_size for path in weight_files.FOLDER.iterdir())
    assert total <= 20_000_000
    assert {path.suffix for path in weight_files.FOLDER.iterdir()} == {".safetensors", ".json"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, cdkit.embedded, cdkit.embedded.concepts, cdkit.embedded.weight_files;"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'open_clip') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", weight_files.FILES)
def test_a_corrupt_file_is_an_input_error(weights: Path, name: str) -> None:
    path = weights / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    load = load_clip if name == weight_files.PICTURE_ENCODER else load_pipeline
    with pytest.raises(InputError, match=r"corrupt.*" + name) as caught:
        load(weights)
    assert "cdkit.embedded.pretraining" in caught.value.hint


@pytest.mark.parametrize("name", [*weight_files.FILES, weight_files.RECORD])
def test_a_missing_file_is_an_input_error(weights: Path, name: str) -> None:
    (weights / name).unlink()
    load = load_clip if name == weight_files.PICTURE_ENCODER else load_pipeline
    with pytest.raises(InputError, match=name):
        load(weights)


def test_a_broken_record_is_an_input_error(weights: Path) -> None:
    (weights / weight_files.RECORD).write_text("{")
    with pytest.raises(InputError, match="record"):
        load_pipeline(weights)


def test_hashes_name_the_weights(weights: Path) -> None:
    assert len(weights_hash()) == len(text_encoder_hash()) == 64
    assert weights_hash(weights) == weights_hash()
    tensors = weight_files.read_tensors(weight_files.UNET, weights)
    tensors["conv_in.bias"] += 1
    weight_files.write_tensors(weight_files.UNET, tensors, weights)
    assert weights_hash(weights) != weights_hash()
    assert text_encoder_hash(weights) == text_encoder_hash()


def test_the_pipeline_and_clip_share_one_text_tower() -> None:
    pipeline, clip = load_pipeline(), load_clip()
    tower = clip.model.text_model.state_dict()
    for name, tensor in pipeline.text_encoder.state_dict().items():
        assert tensor.equal(tower[name]), name
    assert pipeline.text_encoder.config.vocab_size == 49_408
    assert pipeline.tokenizer.model_max_length == 77


def test_loading_is_fast() -> None:
    load_pipeline()  # imports
    from cdkit.embedded import models as load

    load.untrained_table.cache_clear()
    started = time.process_time()
    load_pipeline()
    assert time.process_time() - started < 3.0
