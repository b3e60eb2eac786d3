"""What a retrieval says that finds too little, is refused something, or holds what must not be told."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from cdkit import encoders
from cdkit.cli.app import execute_command
from cdkit.core.errors import InputError
from cdkit.index.changes.remove import remove
from cdkit.pictures.picture import perceptual_hash
from cdkit.training.photos import regularization_pictures
from tests.retrieval.conftest import ENCODER, rejected, retrieve
from tests.support.hostile_server import HostileServer
from tests.support.photo_pool import PoolPicture, index_of, picture


@pytest.fixture(autouse=True)
def _hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "load_text_encoder", lambda *_, **__: ENCODER)


LAYOUT_OPTIONS = [f"--also-write={layout}" for layout in ("diffusers", "imagefolder", "webdataset")]


def test_where_nothing_is_similar_the_nearest_captions_and_what_would_take_them_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [PoolPicture(f"a photo of a dog in the {n}", f"http://a.test/{n}") for n in ["park", "street", "house"]]
    rows += [PoolPicture(f"a dog no {n}", f"http://b.test/{n}") for n in range(20)]
    index = index_of(tmp_path / "index", rows, ENCODER)
    command = (index, "a photo of a dog", "--images", tmp_path / "none", "--count", 4)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "0.jpg").write_bytes(picture(0))
    (tmp_path / "none" / "0.txt").write_text("a tall ship at sea")
    code, data, words = retrieve(
        capsys, *command[:2], "--min-similarity", 0.99, "--count", 4, "--out", tmp_path / "set"
    )
    assert (code, data["accepted"], data["tried"]) == (5, 0, 0)
    said = re.search(
        r"Nearest: '(a photo of a dog in the \w+)' \((0\.\d+)\), .* --min-similarity (\S+) takes 1 c", words
    )
    assert said is not None, words
    takes = dict(re.findall(r"([\d.]+) takes (\d+) caption", words))
    assert len(takes) == 3
    for threshold, number in takes.items():
        arguments = ["--min-similarity", threshold, "--limit", "50", "--format", "json"]
        assert execute_command(["index", "search", str(index), "a photo of a dog", *arguments]) == 0
        assert len(json.loads(capsys.readouterr().out)["results"]) == int(number)
    # Of a folder at hand, its own captions are the nearest.
    code, _, words = retrieve(capsys, *command, "--min-similarity", 0.99, "--out", tmp_path / "other")
    assert code == 5
    assert "Nearest: 'a tall ship at sea'" in words
    with pytest.raises(InputError, match=r"is empty: 0 of 4 images found.*Nearest: 'a tall ship"):
        regularization_pictures(str(tmp_path / "other"))


def test_who_is_refused_by_the_guard_is_told_the_option_that_lets_him_in(
    tmp_path: Path, server: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/file/0"] = picture(0)
    rows = [PoolPicture("a dog 0", server.url("file/0"))]
    rows += [PoolPicture("a dog 1", "http://[::1]:81/1"), PoolPicture("a dog 2", "http://10.0.0.1/1")]
    index = index_of(tmp_path / "index", rows, ENCODER)
    command = (index, "a dog", "--count", 3, "--deadline", 2, "--retries", 0)
    code, data, words = retrieve(capsys, *command, "--out", tmp_path / "set")
    assert (code, data["rejected"]) == (5, {"port": 2, "blocked_address": 1})
    options = " ".join(["--allow-host 10.0.0.1:80", f"--allow-host {server.place}", "--allow-host '[::1]:81'"])
    assert f"for servers of your own add {options}." in words
    assert not server.hits
    given = shlex.split(options)
    code, data, words = retrieve(capsys, *command, *given, "--out", tmp_path / "allowed")
    assert data["accepted"] == 1
    assert "--allow-host" not in words


def test_blocklisted_images_are_known_by_hash_only(
    tmp_path: Path, server: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        server.files[f"/file/{number}"] = picture(number)
    rows = [PoolPicture(f"a dog {number}", server.url(f"file/{number}")) for number in range(4)]
    index = index_of(tmp_path / "index", rows, ENCODER)
    listed = tmp_path / "list.txt"
    with Image.open(io.BytesIO(picture(2))) as image:
        listed.write_text(f"{server.url('file/0')}\n{perceptual_hash(image.convert('RGB')):016x}\n")
    code, data, _ = retrieve(
        *(capsys, index, "a dog", "--blocklist", listed, "--allow-host", server.place),
        *("--count", 4, "--out", tmp_path / "set"),
    )
    assert (code, data["rejected"]) == (5, {"blocklisted": 2})
    assert "/file/0" not in server.hits
    for row in rejected(tmp_path / "set"):
        assert (row["url"], row["caption"], row["caption_id"], row["source"]) == (None, None, None, None)
        assert "sha256" in row["detail"]
    text = b"".join(path.read_bytes() for path in tmp_path.glob("set/**/*") if path.is_file())
    assert server.url("file/0").encode() not in text


def test_a_set_says_nothing_of_user_names_and_passwords(
    tmp_path: Path, server: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        server.files[f"http://images.test/file/{number}"] = picture(number)
    # As an index of an earlier version holds them.
    paths = ("file/0", "file/1", "404")
    rows = [PoolPicture(f"a dog {n}", f"http://user:secret@images.test/{path}") for n, path in enumerate(paths)]
    index = index_of(tmp_path / "index", rows, ENCODER)
    command = (
        index,
        "a dog",
        "--proxy",
        f"http://user:secret@{server.place}",
        "--count",
        3,
        "--out",
        tmp_path / "set",
    )
    code, data, words = retrieve(capsys, *command, *LAYOUT_OPTIONS)
    assert (code, data["accepted"]) == (5, 2)
    assert f"the proxy http://{server.place}:" in words
    written = [path for path in (tmp_path / "set").rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not any(b"secret" in path.read_bytes() for path in written)
    # The same set without the proxy's password is the same set.
    server.hits.clear()
    again = retrieve(capsys, *command[:2], "--proxy", f"http://{server.place}", *command[4:], *LAYOUT_OPTIONS)
    assert again[:2] == (code, data)
    assert not server.hits
    removal = remove(index, urls=[str(rows[0].url)])
    assert (removal.rows, removal.unknown) == (1, 0)
