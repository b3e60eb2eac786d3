"""The retrieve stage and its command: from prompts to a set, over a hostile web and from images at hand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cdkit import encoders
from cdkit.embedded.pool import DEFAULT_HOST, pool_rows
from cdkit.pictures.picture import NEAR, perceptual_hash
from tests.pictures.test_decoding import png_header, saved
from tests.retrieval.conftest import ENCODER, rejected, retrieve
from tests.support.hostile_server import HostileServer
from tests.support.photo_pool import PoolPicture, index_of, picture, real_photos, served
from tests.support.regularization_sets import read_regularization_set


@pytest.fixture(autouse=True)
def _hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "load_text_encoder", lambda *_, **__: ENCODER)


def manifest_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return found


# Pictures that must not enter, by the reason they must be left out for.
HOSTILE = {
    "not_raster": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "not_an_image": b"<p>hello",
    "truncated": picture(900)[:-300],
    "too_many_pixels": png_header(60_000, 60_000),
    "too_small": picture(901, size=(90, 90)),
    "aspect_ratio": picture(902, size=(800, 140)),
    "blank": saved(Image.new("RGB", (200, 200), "white"), "JPEG"),
}


def hostile_rows(server: HostileServer, caption: str) -> list[PoolPicture]:
    rows = []
    for reason, content in HOSTILE.items():
        server.files[f"/file/{reason}"] = content
        rows.append(PoolPicture(f"{caption} {reason}", server.url(f"file/{reason}")))
    for number in range(3):
        server.files[f"/file/placeholder-{number}"] = picture(999)
        rows.append(PoolPicture(f"{caption} lost{number}", server.url(f"file/placeholder-{number}")))
    return rows + [
        PoolPicture(f"{caption} {path}", server.url(f"{path}/x")) for path in ("404", "503", "noai", "reset")
    ]


def test_a_hostile_web_gives_what_is_good_in_it(
    tmp_path: Path, server: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = hostile_rows(server, "a photo of a dog")
    for number in range(30):
        server.files[f"/file/{number}"] = picture(number // 2 * 2)
        rows.append(PoolPicture(f"a photo of a dog no {number}", server.url(f"file/{number}-{number % 2}")))
        server.files[f"/file/{number}-{number % 2}"] = picture(number, "PNG" if number % 3 else "WEBP")
    index = index_of(tmp_path / "index", rows, ENCODER)
    out = tmp_path / "set"
    code, data, words = retrieve(
        *(capsys, index, "a photo of a dog", "--out", out, "--count", 40, "--allow-host", server.place),
        *("--deadline", 2, "--retries", 0, "--also-write", "diffusers", "--also-write=webdataset"),
    )
    assert code == 5
    assert data == {"asked": 40, "accepted": 30, "tried": 44, "rejected": data["rejected"], "out": str(out)}
    expected = dict.fromkeys(HOSTILE, 1) | {"placeholder": 3, "http_404": 1, "http_5xx": 1, "opt_out": 1, "reset": 1}
    assert data["rejected"] == expected
    assert "30 of 40 images found" in words

    manifest = manifest_of(out)
    assert manifest["counts"] == {"in": 44, "kept": 30, "rejected": dict(sorted(expected.items()))}
    details = manifest["details"]
    assert [step["count"] for step in details["funnel"]] == [44, 44, 44, 40, 36, 30]
    assert details["threshold"] == 0.6
    assert sum(details["similarities"]["counts"]) == 30
    assert len(details["similarities"]["edges"]) == len(details["similarities"]["counts"]) + 1
    by_reason = {row["reason"]: row for row in rejected(out)}
    assert len(rejected(out)) == 14
    assert by_reason["http_5xx"]["status"] == 503
    assert by_reason["truncated"]["status"] == 200
    assert by_reason["http_404"]["url"] == server.url("404/x")
    assert sorted(out.iterdir()) == sorted(
        out / name
        for name in (
            *(".lock", "README.md", "contact_sheet.png", "diffusers", "images", "manifest.json", "rejects"),
            "webdataset",
        )
    )
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
    found = read_regularization_set(out)
    assert sorted(int(image.caption.rsplit(" ", 1)[1]) for image in found) == list(range(30))
    assert all(
        image.url == server.url(f"file/{n}-{n % 2}") for image in found if (n := int(image.caption.split()[-1])) >= 0
    )

    # The same command again does nothing, and says the same.
    server.hits.clear()
    again = retrieve(
        *(capsys, index, "a photo of a dog", "--out", out, "--count", 40, "--allow-host", server.place),
        *("--deadline", 2, "--retries", 0, "--also-write", "diffusers", "--also-write=webdataset"),
    )
    assert again[:2] == (code, data)
    assert not server.hits


def test_images_at_hand_are_joined_by_url_and_nothing_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [PoolPicture(f"a photo of a dog {n}", f"http://a.test/{n}") for n in range(8)]
    index = index_of(tmp_path / "index", rows, ENCODER)
    folder = tmp_path / "downloads"
    (folder / "00000").mkdir(parents=True)
    table = [
        {"key": f"{n:09d}", "url": row.url, "caption": "?", "status": "success" if n else "failed_to_download"}
        for n, row in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(table[::-1]), folder / "00000.parquet")
    for n in range(1, 8):
        (folder / "00000" / f"{n:09d}.jpg").write_bytes(picture(n))
    command = (index, "a photo of a dog", "--images", folder)
    code, data, _ = retrieve(capsys, *command, "--count", 7, "--out", tmp_path / "set")
    assert (code, data["accepted"]) == (0, 7)
    for image in read_regularization_set(tmp_path / "set"):
        number = int(image.caption.rsplit(" ", 1)[1])
        with Image.open(io.BytesIO(image.image)) as kept, Image.open(io.BytesIO(picture(number))) as original:
            assert bin(perceptual_hash(kept) ^ perceptual_hash(original)).count("1") <= 2
    code, data, _ = retrieve(capsys, *command, "--count", 8, "--out", tmp_path / "short")
    assert (code, data["accepted"], data["rejected"]) == (5, 7, {"missing": 1})


def test_a_folder_of_its_own_is_compared_by_its_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = index_of(tmp_path / "index", [PoolPicture("a red boat", "http://a.test/1")], ENCODER)
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.jpg").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"a photo of a {'dog' if number % 2 else 'tall wooden ship at sea'}")
    code, data, words = retrieve(
        *(capsys, index, "a photo of a dog", "--images", folder, "--count", 2, "--per-caption", 3),
        *("--out", tmp_path / "set", "--min-similarity", 0.9),
    )
    assert (code, data["accepted"]) == (0, 2)
    assert "own captions" in words
    assert {image.source for image in read_regularization_set(tmp_path / "set")} == {"1.jpg", "3.jpg"}


def test_the_embedded_pool_needs_no_web(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [PoolPicture(row.text, row.url(DEFAULT_HOST)) for row in pool_rows(300)]
    index = index_of(tmp_path / "index", rows, ENCODER)
    command = (index, "a photo of a star", "--min-similarity", 0.3, "--count", 12)
    code, asked, _ = retrieve(capsys, *command, "--images", "embedded", "--out", tmp_path / "asked")
    assert code == 0
    code, unasked, words = retrieve(capsys, *command, "--out", tmp_path / "unasked")
    assert code == 0
    assert "drawn here" in words
    assert asked["tried"] == unasked["tried"]
    read = [read_regularization_set(tmp_path / name) for name in ("asked", "unasked")]
    assert read[0] == read[1]
    assert all(Image.open(io.BytesIO(image.image)).format == "PNG" for image in read[0])
    other = index_of(tmp_path / "other", [PoolPicture("a star", "http://a.test/star.png")], ENCODER)
    code, _, words = retrieve(capsys, other, "a star", "--images", "embedded", "--out", tmp_path / "no")
    assert code == 3
    assert "embedded world" in words


def test_bad_input_is_said_before_anything_is_tried(
    tmp_path: Path, server: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    index = index_of(tmp_path / "index", [PoolPicture("a dog", server.url("ok/1"))], ENCODER)
    textual = index_of(tmp_path / "textual", [PoolPicture("a dog", None)], ENCODER)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no photos")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.jpg").write_bytes(picture(1))
    (tmp_path / "broken" / "2.jpg").write_bytes(picture(2)[:-400])
    (tmp_path / "list.txt").write_text("not a url\n")
    for arguments, code, message in (
        ((textual, "a dog"), 3, "no URLs"),
        ((tmp_path / "empty", "a dog"), 3, "no finished caption index"),
        ((index, " "), 2, "no prompt may be empty"),
        ((index, "a dog", "--exclude-like", tmp_path / "empty"), 3, "no photos"),
        ((index, "a dog", "--exclude-like", tmp_path / "broken"), 3, "2.jpg (truncated)"),
        ((index, "a dog", "--blocklist", tmp_path / "list.txt"), 3, "neither a URL nor a hash"),
        ((index, "a dog", "--blocklist", tmp_path / "nowhere.txt"), 3, "does not exist"),
        ((index, "a dog", "--images", tmp_path / "nowhere"), 3, "does not exist"),
        ((index, "a dog", "--also-write", "difusers"), 2, "did you mean 'diffusers'"),
        ((index, "a dog", "--allow-host", "http://x/"), 2, "HOST"),
        ((index, "a dog", "--count", 0), 2, "greater than or equal to 1"),
    ):
        found, data, words = retrieve(capsys, *arguments, "--out", tmp_path / "set")
        assert (found, data["error"]["code"]) == (code, {2: "configuration", 3: "input"}[code]), arguments
        assert message in words
    assert not server.hits
    # Nothing that fails leaves a folder that stands in the way.
    code, data, _ = retrieve(capsys, index, "a cat and nothing else", "--out", tmp_path / "set", "--min-similarity", 1)
    assert (code, data["accepted"], data["tried"]) == (5, 0, 0)
    assert len(read_regularization_set(tmp_path / "set")) == 0


@pytest.mark.real
def test_three_prompts_over_all_real_photos_give_exactly_200(
    tmp_path: Path, server: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = real_photos()
    assert len(photos) == 1704
    rows = served(server, photos)
    prompts = ["a photo of a pigeon", "a photo of a dog", "a photo of a grand piano"]
    for prompt in prompts:
        rows += hostile_rows(server, prompt)
    index = index_of(tmp_path / "index", rows, ENCODER)
    own = {photo.path.parent for photo in photos if photo.dreambooth and photo.category == "dog"}
    out = tmp_path / "set"
    command = (index, *prompts, "--allow-host", server.place, "--deadline", 2, "--exclude-like", *own, "--retries", 0)
    code, data, _ = retrieve(
        capsys, *command, "--min-similarity", 0.7, "--per-caption", 40, "--count", 200, "--out", out
    )
    assert (code, data["accepted"]) == (0, 200)
    found = read_regularization_set(out)
    by_url = {server.url(f"file/{number}.jpg"): photo for number, photo in enumerate(photos)}
    hashes = []
    for image in found:
        photo = by_url[str(image.url)]
        assert image.caption in photo.captions
        assert image.similarity >= 0.7
        assert not (photo.dreambooth and photo.category == "dog")
        with Image.open(io.BytesIO(image.image)) as kept:
            kept.load()
            hashes.append(perceptual_hash(kept.convert("RGB")))
    apart = [bin(one ^ other).count("1") for place, one in enumerate(hashes) for other in hashes[:place]]
    # The hash of what is stored may be a bit or two off that of what was decoded.
    assert min(apart) > NEAR - 2
    assert len({image.url for image in found}) == 200

    short = tmp_path / "short"
    code, data, words = retrieve(
        capsys, *command[:1], "a photo of a grand piano", *command[4:], "--min-similarity", 0.99, "--out", short,
        "--per-caption", 100,
    )  # fmt: skip
    assert code == 5
    pianos = sum(photo.captions == ("a photo of a grand piano",) for photo in photos)
    assert data["accepted"] + data["rejected"].get("near_duplicate", 0) == pianos
    assert f"{data['accepted']} of 200 images" in words


def test_what_robots_txt_forbids_is_a_reason_of_its_own(
    tmp_path: Path, server: HostileServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDKIT_CACHE", str(tmp_path / "cache"))
    server.rules["/robots.txt"] = (200, b"User-agent: *\nDisallow: /file/private/\n", {})
    server.rules["/ai.txt"] = (200, b"User-Agent: *\nDisallow: *.gif\n", {})
    rows = []
    for number in range(6):
        name = ("private/{}.png", "{}.gif", "{}.png")[number % 3].format(number)
        server.files[f"/file/{name}"] = picture(number)
        rows.append(PoolPicture(f"a photo of a dog {number}", server.url(f"file/{name}")))
    index = index_of(tmp_path / "index", rows, ENCODER)
    command = (index, "a photo of a dog", "--allow-host", server.place, "--count", 6)
    code, data, _ = retrieve(capsys, *command, "--respect-robots", "--out", tmp_path / "set")
    assert (code, data["accepted"], data["rejected"]) == (5, 2, {"robots": 2, "ai_txt": 2})
    details = {row["reason"]: row["detail"] for row in rejected(tmp_path / "set")}
    assert details == {"robots": "/robots.txt: Disallow: /file/private/", "ai_txt": "/ai.txt: Disallow: *.gif"}
    assert not [path for path in server.hits if "private" in path or path.endswith(".gif")]
    assert server.hits["/robots.txt"] == 1
    assert retrieve(capsys, *command, "--out", tmp_path / "all")[:2][1]["accepted"] == 6
