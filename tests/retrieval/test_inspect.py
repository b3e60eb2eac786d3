"""Inspection in worker processes: the limits hold, one bad image costs itself only, a full disk is no fault of it."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from cdkit.core.errors import InputError, OutputError
from cdkit.fetching.blocklist import Blocklist
from cdkit.pictures.picture import Content, perceptual_hash
from cdkit.retrieval.inspect import Inspection, InspectionLimits, InspectionRules, Inspectors
from tests.pictures.test_decoding import png_header, saved
from tests.support.photo_pool import picture


@dataclass(frozen=True)
class BytesContent:
    """Bytes at hand; `act` first does its worst in the worker that reads them."""

    content: bytes
    act: str = ""

    def read(self) -> bytes:
        if self.act == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.act == "exit":
            os._exit(7)
        if self.act == "busy":
            while True:
                pass
        if self.act == "wait":
            time.sleep(600)
        if self.act == "hungry":
            bytearray(3 << 30)
        if self.act == "gone":
            raise InputError("it was moved")
        if self.act == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.content


def inspected(
    tmp_path: Path,
    contents: list[Content],
    rules: InspectionRules | None = None,
    limits: InspectionLimits | None = None,
    workers: int = 2,
) -> dict[int, Inspection]:
    with Inspectors(rules or InspectionRules(), tmp_path, workers=workers, limits=limits) as inspectors:
        return dict(inspectors.inspect(contents))


def test_hostile_images_cost_themselves_only(tmp_path: Path) -> None:
    acts = ["", "crash", "exit", "", "busy", "hungry", "gone", ""]
    contents: list[Content] = [BytesContent(picture(number), act) for number, act in enumerate(acts)]
    found = inspected(tmp_path, contents, limits=InspectionLimits(seconds=1))
    reasons = [found[number].reason for number in range(len(acts))]
    assert reasons == [
        *(None, "decoder_crash", "decoder_crash", None),
        *("decode_time", "memory", "unreadable", None),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(found[number].name for number in (0, 3, 7))


def test_a_decoder_that_waits_for_ever_is_ended(tmp_path: Path) -> None:
    contents: list[Content] = [BytesContent(picture(0)), BytesContent(picture(1), "wait"), BytesContent(picture(2))]
    found = inspected(tmp_path, contents, limits=InspectionLimits(patience=5), workers=1)
    assert found[1].reason == "decode_time"
    assert len(found) == 3


def test_a_picture_that_takes_too_much_memory_is_left_out(tmp_path: Path) -> None:
    contents: list[Content] = [BytesContent(png_header(9_000, 9_000)), BytesContent(picture(1))]
    found = inspected(tmp_path, contents, limits=InspectionLimits(memory=100 << 20), workers=1)
    assert found[0].reason == "memory"
    assert found[1].reason is None


def test_what_is_known_of_an_image(tmp_path: Path) -> None:
    original = picture(3, "PNG", (300, 240))
    (found,) = inspected(tmp_path, [BytesContent(original)], InspectionRules(max_side=200)).values()
    assert found.sha256 == hashlib.sha256(original).hexdigest()
    assert (found.width, found.height) == (200, 160)
    stored = tmp_path / found.name
    assert stored.stat().st_size == found.size
    with Image.open(stored) as image:
        assert image.size == (200, 160)
        assert image.format == "JPEG"
        assert bin(perceptual_hash(image) ^ found.phash).count("1") <= 2


def test_size_shape_and_emptiness(tmp_path: Path) -> None:
    contents: list[Content] = [
        BytesContent(picture(0, size=(100, 200))),
        BytesContent(picture(1, size=(500, 120))),
        BytesContent(saved(Image.new("RGB", (200, 200), "white"), "PNG")),
        BytesContent(picture(2, size=(360, 120))),
    ]
    rules = InspectionRules(min_side=120, max_aspect_ratio=3.0)
    found = inspected(tmp_path, contents, rules)
    assert [found[number].reason for number in range(4)] == ["too_small", "aspect_ratio", "blank", None]
    assert found[1].detail == "500 × 120"
    assert len(list(tmp_path.iterdir())) == 1


def test_blocklisted_images_are_not_stored(tmp_path: Path) -> None:
    md5 = hashlib.md5(picture(0)).hexdigest()
    with Image.open(io.BytesIO(picture(1))) as image:
        perceptual = perceptual_hash(image.convert("RGB"))
    rules = InspectionRules(blocklist=Blocklist(hashes=frozenset({md5}), perceptual=(perceptual ^ 1,)))
    found = inspected(tmp_path, [BytesContent(picture(number)) for number in range(3)], rules)
    assert [found[number].reason for number in range(3)] == ["blocklisted", "blocklisted", None]
    assert found[0].detail == f"sha256 {hashlib.sha256(picture(0)).hexdigest()}"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_an_error_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="full"):
        inspected(tmp_path, [BytesContent(picture(0)), BytesContent(b"", "full")])
