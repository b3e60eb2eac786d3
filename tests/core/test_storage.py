from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import fsspec
import pytest

from cdkit.core.errors import CdkitError, InputError, NetworkError, OutputError, writing
from cdkit.core.fingerprints import content_fingerprint
from cdkit.core.storage import TEMPORARY_PREFIX, Folder, SourceFile, atomic_path, find_files, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "data.json"
    write_json(target, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(target) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


def _hold(folder: Path, ready: Path) -> None:
    with Folder(folder).lock():
        ready.touch()
        time.sleep(60)


def test_one_run_at_a_time_and_a_killed_run_lets_go(tmp_path: Path) -> None:
    folder, ready = tmp_path / "out", tmp_path / "ready"
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(folder, ready))
    process.start()
    while not ready.exists():
        time.sleep(0.05)
    with pytest.raises(OutputError, match=f"process {process.pid}"), Folder(folder).lock():
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with Folder(folder).lock():
        pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (RuntimeError("IO Error: Could not write file: No space left on device"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "Cannot write"),
    ],
)
def test_a_full_disk_is_an_output_error_with_a_hint(error: Exception, words: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=words) as caught, writing(tmp_path):
        raise error
    assert caught.value.hint


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("x")


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_files_folders_globs_and_urls_expand_in_a_fixed_order(tmp_path: Path) -> None:
    _touch(tmp_path, "b.csv", "a.csv", "notes.txt", "sub/c.csv", ".cache/d.csv")
    pattern = [str(tmp_path / "sub" / "c.csv"), str(tmp_path), str(tmp_path / "*.csv")]
    assert [source.name for source in find_files(pattern, [".csv"])] == ["c.csv", "a.csv", "b.csv"]
    memory = fsspec.filesystem("memory")
    memory.pipe("/storage-test/one.csv", b"x")
    found = find_files(["memory://storage-test"], [".csv"])
    assert [(source.name, source.size, source.is_local) for source in found] == [("one.csv", 1, False)]
    memory.rm("/storage-test", recursive=True)


def test_a_name_of_a_remote_file_has_no_key_in_it() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/storage-test/one.csv?signature=secret", b"x")
    [found] = find_files(["memory://storage-test/one.csv?signature=secret"], [".csv"])
    assert (found.name, found.url) == ("one.csv", "memory:///storage-test/one.csv?signature=secret")
    memory.rm("/storage-test", recursive=True)


def test_paths_with_spaces_and_accents_are_plain_paths(tmp_path: Path) -> None:
    _touch(tmp_path, "mes légendes/été 1.csv")
    assert [source.name for source in find_files([str(tmp_path / "mes légendes")], [".csv"])] == ["été 1.csv"]


@pytest.mark.parametrize("pattern", ["missing.csv", "*.csv", "nothing/"])
def test_a_pattern_that_matches_nothing_is_named(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"matches no input file") as caught:
        find_files([str(tmp_path / pattern)], [".csv"])
    assert ".csv" in caught.value.hint


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("http://[x", InputError),
        ("http://[x/y.csv", InputError),
        ("https://[::1]:99999/x.csv", InputError),
        ("http://a:b/x.csv", InputError),
        ("http://a b.invalid/x.csv", NetworkError),
        ("http://127.0.0.1:1/x.csv", NetworkError),
        ("http://\\x00/x.csv", InputError),
        ("http:///x.csv", InputError),
        ("zip://x.csv::http://[a", InputError),
        ("data:,x", InputError),
        ("foo://x/y.csv", InputError),
        ("file://\0", InputError),
        ("\0.csv", InputError),
    ],
)
def test_an_address_that_is_none_is_an_error_of_ours(pattern: str, kind: type[CdkitError]) -> None:
    with pytest.raises(kind) as caught:
        find_files([pattern], [".csv"])
    assert caught.value.hint
    if "foo" not in pattern:
        assert "driver" not in caught.value.hint
    source = SourceFile(pattern if "://" in pattern else f"http://{pattern}", "x.csv", 1)
    with pytest.raises((InputError, NetworkError)):
        content_fingerprint(source)


def test_a_fingerprint_follows_the_content(tmp_path: Path) -> None:
    _touch(tmp_path, "a.csv", "b.csv")
    first, other = find_files([str(tmp_path)], [".csv"])
    before = content_fingerprint(first)
    assert before == content_fingerprint(first) != content_fingerprint(other)
    (tmp_path / "a.csv").write_text("A.csv")  # the same size
    os.utime(tmp_path / "a.csv", ns=(1, 1))
    assert content_fingerprint(first) != before


def test_temporaries_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    _touch(tmp_path, f"sub/{TEMPORARY_PREFIX}1-part.parquet", "sub/part.parquet")
    Folder(tmp_path).remove_temporaries()
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["part.parquet"]
