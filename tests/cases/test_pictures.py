"""Cases 04, 05 and 22: pictures are the same pictures, and all of them, wherever they are read."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cdkit import encoders
from cdkit.cli.app import execute_command
from cdkit.core.config import parse_config
from cdkit.core.errors import InputError
from cdkit.core.protocols import SilentProgress
from cdkit.evaluation import stage as evaluation
from cdkit.evaluation.config import EvaluateConfig
from cdkit.pictures.picture import Picture
from cdkit.training.photos import concept_photos
from tests.support.hashing_encoder import HashingEncoder
from tests.support.photo_pool import PoolPicture, index_of, picture
from tests.support.pretend_run import run_stage
from tests.support.progress import Notes
from tests.support.regularization_sets import read_regularization_set

CASES = Path(__file__).parent
PHOTOS_OF_THE_USER, OTHERS = range(5), range(5, 10)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Case 04's pool, over an encoder that is quick."""
    encoder = HashingEncoder(threshold=0.3)
    monkeypatch.setattr(encoders, "load_text_encoder", lambda *_, **__: encoder)
    rows = pq.read_table(CASES / "04-exclude-like-jfif-avif" / "leak.parquet").to_pylist()
    return index_of(tmp_path / "index", [PoolPicture(row["TEXT"], row["URL"]) for row in rows], encoder)


def retrieved(index: Path, out: Path, *words: object) -> set[str]:
    """The URLs of what case 04's command accepts."""
    command = ["retrieve", index, "a photo of a red star", "--count", 10, "--min-similarity", 0.1]
    command += ["--images", CASES / "04-exclude-like-jfif-avif" / "web", "--out", out, *words]
    assert execute_command([str(word) for word in command]) in (0, 5)
    return {Path(str(image.url)).stem for image in read_regularization_set(out)}


def test_photos_of_every_format_are_kept_out(index: Path, tmp_path: Path) -> None:
    everything = retrieved(index, tmp_path / "all")
    assert len(everything) == 10
    case = CASES / "04-exclude-like-jfif-avif"
    assert retrieved(index, tmp_path / "set", "--exclude-like", case / "mine_mixed") == set("56789")


@pytest.mark.parametrize("kind", ["jpe", "apng", "mpo", "sub", "webp", "tiff"])
def test_photos_of_further_names_are_kept_out(index: Path, tmp_path: Path, kind: str) -> None:
    mine = tmp_path / "mine"
    (mine / "from the phone").mkdir(parents=True)
    for number in PHOTOS_OF_THE_USER:
        source = CASES / "04-exclude-like-jfif-avif" / "web" / f"w{number}.jpg"
        target = mine / "from the phone" / f"{number}.png" if kind == "sub" else mine / f"{number}.{kind}"
        formats = {"jpe": "JPEG", "apng": "PNG", "mpo": "JPEG", "sub": "PNG"}
        with Image.open(source) as photo:
            photo.save(target, format=formats.get(kind, kind.upper()))
    assert retrieved(index, tmp_path / "set", "--exclude-like", mine) == set("56789")


def test_a_photo_that_cannot_be_read_stops_the_exclusion(index: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(CASES / "04-exclude-like-jfif-avif" / "mine_mixed", mine)
    (mine / "5.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    command = ["retrieve", index, "a photo of a red star", "--images", CASES / "04-exclude-like-jfif-avif" / "web"]
    words = [str(word) for word in (*command, "--exclude-like", mine, "--out", tmp_path / "set")]
    assert execute_command(words) == 3


def trained_on(folder: Path) -> list[np.ndarray]:
    return [np.asarray(photo.open(), dtype=np.int16) for photo in concept_photos(str(folder)).pictures]


def evaluated(folder: Path) -> list[np.ndarray]:
    photos: list[Picture] = list(evaluation._pictures(str(folder), SilentProgress()))
    return [np.asarray(photo.open(), dtype=np.int16) for photo in photos]


def test_training_and_evaluation_see_the_same_pixels(tmp_path: Path) -> None:
    case = CASES / "05-evaluate-other-pixels"
    for number, name in enumerate(["p3.jpg", "sixteen_be.tif", "alpha_only/0.png", "jfif_only/0.jfif"]):
        shutil.copy(case / name, tmp_path / f"{number}{Path(name).suffix}")
    for one, other in zip(trained_on(tmp_path), evaluated(tmp_path), strict=True):
        assert (one == other).all()
    display_p3, sixteen, _, _ = evaluated(tmp_path)
    assert np.abs(display_p3[32, 32] - [219, 37, 48]).max() <= 3
    with Image.open(case / "sixteen_be.tif") as stored:
        expected = np.asarray(stored).astype(np.float64) / 257
    assert np.abs(sixteen[..., 0] - expected).max() <= 1
    assert sixteen.std() > 10


def test_what_is_transparent_is_white_in_evaluation_too() -> None:
    case = CASES / "05-evaluate-other-pixels"
    for one, other in zip(evaluated(case / "alpha_only"), evaluated(case / "alpha_flat"), strict=True):
        assert (one == other).all()
    assert len(evaluated(case / "jfif_only")) == 5


FORMS: dict[str, dict[str, Any]] = {
    "la.png": {"mode": "LA"},
    "palette.png": {"mode": "P", "transparency": 3},
    "palette.gif": {"mode": "P", "transparency": 3},
    "alpha.webp": {"mode": "RGBA", "lossless": True},
    "alpha.tiff": {"mode": "RGBA"},
    "alpha.avif": {"mode": "RGBA", "quality": 100},
    "grey.bmp": {"mode": "L"},
    "inks.jpg": {"mode": "CMYK"},
    "inks.tif": {"mode": "CMYK"},
    "float.tiff": {"mode": "F"},
    "bits.png": {"mode": "1"},
    "sixteen.png": {"mode": "I;16"},
    "sixteen_little.tif": {"mode": "I;16"},
    "turned.jpeg": {"mode": "RGB", "turned": True},
    "turned.png": {"mode": "RGB", "turned": True},
    "turned.webp": {"mode": "RGB", "turned": True},
    "turned.tif": {"mode": "RGB", "turned": True},
    "turned_lzw.tif": {"mode": "RGB", "turned": True, "compression": "tiff_lzw"},
    "turned.avif": {"mode": "RGB", "turned": True},
}


def write_form(path: Path, mode: str, turned: bool = False, **options: Any) -> None:
    values = np.random.default_rng(4).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    if mode == "F":
        image = Image.fromarray(values[..., 0].astype(np.float32) / 255)
    elif mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(values, "RGBA").convert("RGB" if mode == "P" else "RGBA").convert(mode)
    if turned:
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    image.save(path, **options)


def test_every_form_of_a_picture_is_the_same_in_both_places(tmp_path: Path) -> None:
    for name, options in FORMS.items():
        write_form(tmp_path / name, **options)
    one, other = trained_on(tmp_path), evaluated(tmp_path)
    assert len(one) == len(FORMS)
    for name, first, second in zip(sorted(FORMS), one, other, strict=True):
        assert (first == second).all(), name
        assert first.shape == ((60, 40, 3) if "turned" in name else (40, 60, 3)), name


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "samples"
    run_stage("sample", folder, prompts=["a photo of a star"], seeds=2, steps=2, device="cpu")
    return folder


def evaluating(samples: Path, photos: Path, out: Path) -> int:
    words = ["evaluate", "--samples", samples, "--concept", f"star={photos}", "--device", "cpu", "--out", out]
    return execute_command([str(word) for word in words])


def test_only_formats_of_pictures_are_opened(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert evaluating(samples, CASES / "22-evaluate-opens-anything", tmp_path / "scores") == 0
    assert "b.jpg (PostScript)" in capsys.readouterr().err
    assert not (tmp_path / "started").exists(), "Pillow asked Ghostscript"
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["concepts"] == {"star": 1}


STRANGERS = {
    "paper.png": b"%PDF-1.7\n",
    "layers.jpeg": b"8BPS\0\1" + bytes(40),
    "drawing.webp": b"<?xml version='1.0'?><svg/>",
    "meta.bmp": b"\xd7\xcd\xc6\x9a" + bytes(40),
    "film.tif": b"\0\0\0\x18ftypmp42" + bytes(40),
    "all.gif": b"PK\x03\x04" + bytes(40),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_picture_is_named_and_left_out(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / name).write_bytes(STRANGERS[name])
    (photos / "a.jpg").write_bytes(picture(1))
    assert evaluating(samples, photos, tmp_path / "scores") == 0
    assert name in capsys.readouterr().err
    with pytest.raises(InputError, match=f"only one photo.*{name}"):
        concept_photos(str(photos))


def png_of(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png_of(20_000, 10_000), "too_many_pixels"),
        (png_of(2**31 - 1, 2**31 - 1), "too_many_pixels"),
        (b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + b"\0\0\0,\0\0\0\0" + struct.pack("<HH", 9, 9), "image"),
        (picture(0)[:-100], "truncated"),
        (b"", "it is empty"),
        (b"<!doctype html><p>404", "a web page in place of the picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"\xff\xd8\xff\xe0 no picture", "damaged"),
        (bytes(range(256)), "no format of pictures"),
    ],
)
def test_a_picture_that_cannot_be_read_is_an_input_error_of_both(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "large.jpg").write_bytes(content)
    (photos / "a.jpg").write_bytes(picture(1))
    assert evaluating(samples, photos, tmp_path / "scores") == 3
    said = capsys.readouterr().err
    assert "large.jpg" in said
    assert words in said
    assert "Traceback" not in said
    train = ["train", "--base", "embedded", "--concept", f"star={photos}", "--steps", "1", "--device", "cpu", "--out"]
    assert execute_command([*train, str(tmp_path / "tuned")]) == 3
    assert "large.jpg" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_warnings_that_are_errors_change_nothing() -> None:
    from cdkit.pictures.decoding import Undecodable, decode

    with pytest.raises(Undecodable) as caught:
        decode(png_of(10_000, 10_000))
    assert caught.value.reason in {"truncated", "damaged"}, "100 megapixels may be read"


def test_a_pipe_among_the_photos_is_left_out(samples: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(picture(1))
    for name in ("b.jpg", "a.txt", "metadata.jsonl", "caption.txt"):
        os.mkfifo(photos / name)
    progress = Notes()
    assert len(evaluation._pictures(str(photos), progress)) == 1
    assert "b.jpg (no file)" in progress.notes[0]
    (photos / "samples").mkdir()
    os.mkfifo(photos / "samples" / "s.png")
    (photos / "prompts.json").write_text('{"s": "a photo of a star"}')
    with pytest.raises(InputError, match="holds no samples"):
        evaluation.read_sample_set(photos)


@pytest.mark.parametrize(
    "name", [b"\xff\xfe photo.jpg", b"new\nline \x1b[31m.jpg", b"n" * 251 + b".jpg", "naïve 星.jpg".encode()]
)
def test_photos_of_every_name_are_read_or_named(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: bytes
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    with open(os.path.join(os.fsencode(photos), name), "wb") as handle:
        handle.write(picture(2))
    (photos / "a.jpg").write_bytes(picture(1))
    assert evaluating(samples, photos, tmp_path / "scores") == 0
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["concepts"] == {"star": 2}
    assert len(concept_photos(str(photos)).pictures) == 2
    with open(os.path.join(os.fsencode(photos), name), "wb") as handle:
        handle.write(picture(2)[:-90])
    assert evaluating(samples, photos, tmp_path / "again") == 3
    said = capsys.readouterr().err
    assert "truncated" in said
    assert "\x1b" not in said


def test_the_evaluation_looks_at_the_photos_again() -> None:
    """What an earlier version computed from the photos' files is not taken for these pixels."""
    from cdkit.stages import STAGES

    assert STAGES["evaluate"].version >= 2
    assert parse_config(EvaluateConfig, {"samples": "x"}).clip == "embedded"
