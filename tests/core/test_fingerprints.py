"""One bounded cache file for many processes; whatever happens to it, the right value comes out."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cdkit.core import fingerprints
from cdkit.core.fingerprints import CacheFile, content_fingerprint, sha256_file
from cdkit.core.storage import SourceFile

KEYS = [number.to_bytes(32, "big") for number in range(1000)]
HASHING = """
import sys
from pathlib import Path
from cdkit.core.fingerprints import content_fingerprint
from cdkit.core.storage import SourceFile
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, content_fingerprint(SourceFile(str(path), path.name, path.stat().st_size)))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CDKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def _fingerprint(path: Path) -> str:
    return content_fingerprint(SourceFile(str(path), path.name, path.stat().st_size))


def _is_remembered(path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether asking again reads nothing."""
    with monkeypatch.context() as patched:
        patched.setattr(fingerprints, "sha256_file", lambda _: "read again")
        return _fingerprint(path) != "read again"


def test_a_file_is_hashed_once_and_again_when_it_changed(
    cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _fingerprint(file) == sha256_file(file)
    assert _is_remembered(file, monkeypatch)
    file.write_bytes(b"CONTENT")
    os.utime(file, ns=(1, 1))
    assert _fingerprint(file) == sha256_file(file)
    os.utime(file, ns=(1, 2))
    assert not _is_remembered(file, monkeypatch)
    assert {path.name.split("-")[0] for path in cache.iterdir()} == {"fingerprints.sqlite"}


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(path: str) -> str:
        os.utime(file, ns=(5, 5))
        return sha256_file(path)

    with monkeypatch.context() as patched:
        patched.setattr(fingerprints, "sha256_file", changing)
        _fingerprint(file)
    assert not _is_remembered(file, monkeypatch)


def test_names_that_are_not_utf_8(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9")
    path.write_bytes(b"x")
    assert _fingerprint(path) == sha256_file(path)
    assert _is_remembered(path, monkeypatch)


def test_only_the_last_used_are_kept(cache: Path) -> None:
    bounded = CacheFile("some.sqlite", most=100)
    for key in KEYS:
        bounded.put({key: key})
    found = bounded.get(KEYS)
    assert 80 <= len(found) <= 100
    assert all(key == value for key, value in found.items())
    assert KEYS[-1] in found
    with sqlite3.connect(cache / "some.sqlite") as connection:
        connection.execute("UPDATE entries SET used = 1000")
    kept = next(iter(found))
    bounded.get([kept])
    bounded.put(dict.fromkeys(KEYS[:100], b"new"))
    left = bounded.get(list(found))
    assert kept in left, "what is asked for counts as used"
    assert len(left) < len(found)
    assert (cache / "some.sqlite").stat().st_size < 200_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(os.urandom(5000)),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(path.read_bytes()[:100] + bytes(4096) + path.read_bytes()[4196:]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"\x00\x00\x07", b"\x00\x00\x08")),
        lambda path: path.with_name(f"{path.name}-wal").write_bytes(os.urandom(5000)),
        lambda path: sqlite3.connect(path).executescript("DROP TABLE entries; CREATE TABLE entries (a, b)"),
        lambda path: sqlite3.connect(path).executescript("UPDATE entries SET value = 7"),
        lambda path: sqlite3.connect(path).executescript("UPDATE entries SET value = x'00', used = 'x'"),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)  # fmt: skip
def test_a_damaged_file_costs_only_time(cache: Path, damage: object) -> None:
    values = {key: key * 30 for key in KEYS}
    program = "import sys; from cdkit.core.fingerprints import CacheFile; " \
        "keys = [n.to_bytes(32, 'big') for n in range(1000)]; cache = CacheFile('some.sqlite', 5000); "  # fmt: skip
    checks = "found = cache.get(keys); assert all(v == k * 30 for k, v in found.items()), found; "
    put = "cache.put({key: key * 30 for key in keys}); "
    subprocess.run([sys.executable, "-c", program + put], check=True)
    assert CacheFile("some.sqlite", 5000).get(KEYS) == values
    from cdkit.core.fingerprints import _forget

    _forget(cache / "some.sqlite")
    damage(cache / "some.sqlite")  # type: ignore[operator]
    subprocess.run([sys.executable, "-c", program + checks + put + checks], check=True, timeout=60)


@pytest.mark.parametrize("kind", ["a file in the way", "nowhere", "locked"])
def test_without_a_cache_all_goes_on(kind: str, cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "a file in the way":
        cache.write_text("x")
    elif kind == "nowhere":
        monkeypatch.setenv("CDKIT_CACHE", "/proc/nowhere")
    else:
        _fingerprint(file)
        monkeypatch.setattr("cdkit.core.fingerprints.TIMEOUT_SECONDS", 0.1)
        holder = sqlite3.connect(cache / "fingerprints.sqlite", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
    other = file.with_name("other")
    other.write_bytes(b"other")
    with ThreadPoolExecutor(1) as pool:  # a thread has a connection of its own
        assert pool.submit(_fingerprint, other).result() == sha256_file(other)


def test_what_earlier_releases_kept_is_removed_once(cache: Path, file: Path) -> None:
    old = cache / "fingerprints"
    old.mkdir(parents=True)
    for number in range(50):
        (old / str(number)).write_text("x")
    (cache / "embedded-pool-0.1.0").mkdir()
    _fingerprint(file)
    assert not old.exists()
    assert (cache / "embedded-pool-0.1.0").exists()
    old.mkdir()
    _fingerprint(file.rename(file.with_name("other")))
    assert old.exists(), "only when the file is made"


def test_many_processes_share_it(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}").write_bytes(os.urandom(100))
    expected = "".join(f"{path.name} {sha256_file(path)}\n" for path in sorted(folder.iterdir()))
    running = [
        subprocess.Popen([sys.executable, "-c", HASHING, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate(timeout=120)[0] for process in running] == [expected] * 4
    with sqlite3.connect(cache / "fingerprints.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM entries").fetchone() == (40,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_fork_does_not_use_its_parents_connection(cache: Path, file: Path) -> None:
    _fingerprint(file)
    other = file.with_name("other")
    other.write_bytes(b"other")
    child = os.fork()
    if child == 0:
        os._exit(0 if _fingerprint(other) == sha256_file(other) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert _fingerprint(other) == sha256_file(other)
