from __future__ import annotations

import errno
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import torch

from cdkit.core import errors
from cdkit.core.errors import CdkitError, InputError, NetworkError, OutputError, ResourceError, system_problem, writing
from cdkit.core.storage import atomic_path

CODES = {
    errors.CdkitError: 1,
    errors.ConfigError: 2,
    errors.InputError: 3,
    errors.PartialError: 5,
    errors.NetworkError: 6,
    errors.OutputError: 7,
}


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_exit_codes_are_the_documented_ones(kind: type[errors.CdkitError], code: int) -> None:
    assert kind("what").exit_code == code


def test_an_error_keeps_its_hint_across_processes() -> None:
    error = errors.ConfigError("two mistakes", problems=["a: b", "c: d"], hint="mend them")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.message, copy.hint, copy.problems) == (
        errors.ConfigError,
        error.message,
        "mend them",
        ["a: b", "c: d"],
    )
    assert "  - c: d" in str(copy)


def test_a_missing_extra_names_what_to_install() -> None:
    error = pickle.loads(pickle.dumps(errors.MissingExtraError("The engine 'ray'", extra="ray")))
    assert error.exit_code == 4
    assert "custom-diffusion-kit[ray]" in error.message
    assert error.hint == "pip install 'custom-diffusion-kit[ray]'"


OUT = Path("runs/out")


def of_file(code: int, name: str | bytes | None = None) -> OSError:
    error = OSError(code, os.strerror(code))
    error.filename = name
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (of_file(errno.ENOSPC), OutputError, "disk is full while writing to runs/out."),
        (of_file(errno.EDQUOT, "runs/out/images/1.png"), OutputError, "disk is full while writing to runs/out."),
        (of_file(errno.ENOSPC, "/elsewhere/tmp123"), OutputError, "disk is full while writing to /elsewhere/tmp123."),
        (RuntimeError("I/O error: No space left on device (os error 28)"), OutputError, "disk is full"),
        (duckdb.IOException("IO Error: Could not write file: No space left on device"), OutputError, "disk is full"),
        (of_file(errno.EFBIG), OutputError, "larger than it may"),
        (pa.ArrowException("[Errno 27] Error writing bytes to file. Detail: File too large"), OutputError, "larger"),
        (of_file(errno.EACCES, "runs/out"), OutputError, "Cannot write to runs/out"),
        (of_file(errno.EACCES, "runs"), OutputError, "Cannot write to runs"),
        (of_file(errno.EROFS, "runs/out/x"), OutputError, "Cannot write to runs/out"),
        (of_file(errno.EACCES, "runs/.tmp-12-out"), OutputError, "Cannot write to runs/out"),
        (of_file(errno.EACCES, "runs/.other"), InputError, "runs/.other cannot be used: Permission denied"),
        (of_file(errno.EACCES, "photos/1.jpg"), InputError, "photos/1.jpg cannot be used: Permission denied"),
        (of_file(errno.ENAMETOOLONG, f"runs/out/{'n' * 300}"), OutputError, "File name too long"),
        (of_file(errno.ENAMETOOLONG, "n" * 300), InputError, "cannot be used: File name too long"),
        (of_file(errno.ENOENT, "photos/gone.jpg"), InputError, "photos/gone.jpg cannot be used: No such file"),
        (of_file(errno.ENOENT, b"photos/\xff.jpg"), InputError, "photos/\udcff.jpg"),
        (of_file(errno.EIO), OutputError, "Cannot write to runs/out: Input/output error"),
        (of_file(errno.EMFILE, "photos/1.jpg"), ResourceError, "Too many files are open"),
        (RuntimeError("IO Error: Too many open files"), ResourceError, "Too many files are open"),
        (MemoryError(), ResourceError, "not enough memory"),
        (pa.ArrowMemoryError("malloc of size 9 failed"), ResourceError, "malloc of size 9 failed"),
        (duckdb.OutOfMemoryException("Out of Memory Error: failed to pin block"), ResourceError, "failed to pin"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nof"), ResourceError, "2 GiB."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), ResourceError, "not enough memory"),
        (RuntimeError("can't start new thread"), ResourceError, "thread"),
        (RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"), ResourceError, "mmap"),
        (ImportError("libtorch.so: failed to map segment from shared object"), ResourceError, "not enough memory"),
        (of_file(errno.ENOMEM), ResourceError, "not enough memory"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), ResourceError, "process"),
        (RuntimeError("std::bad_alloc"), ResourceError, "bad_alloc"),
        (socket.gaierror(-3, "Temporary failure in name resolution"), NetworkError, "network"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), NetworkError, "refused"),
        (TimeoutError("timed out"), NetworkError, "timed out"),
    ],
    ids=repr,
)
def test_what_an_error_means(error: Exception, kind: type[CdkitError], words: str) -> None:
    found = system_problem(error, OUT)
    assert type(found) is kind
    assert words in found.message
    assert found.hint
    with pytest.raises(kind), writing(OUT):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        ValueError("no such thing"),
        RuntimeError("a file's own words\nNo space left on device, out of memory, permission denied"),
        OSError("without a number"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ],
    ids=repr,
)
def test_what_is_no_error_of_the_system_stays_what_it_is(error: Exception) -> None:
    assert system_problem(error, OUT) is None
    with pytest.raises(type(error)), writing(OUT):
        raise error


def test_the_cause_counts_where_a_library_wraps_it() -> None:
    def wrapped(cause: BaseException) -> CdkitError | None:
        try:
            try:
                raise cause
            except BaseException as error:
                raise RuntimeError("the library failed") from error
        except RuntimeError as error:
            return system_problem(error, OUT)

    assert isinstance(wrapped(MemoryError()), ResourceError)
    assert isinstance(wrapped(of_file(errno.ENOSPC)), OutputError)
    # A file that is missing while a bug is on its way does not make it the user's mistake.
    assert wrapped(of_file(errno.ENOENT, "x")) is None


def test_names_that_are_not_utf_8_are_shown_escaped() -> None:
    with pytest.raises(InputError, match=r"photos/\\udcff.jpg"), writing(OUT):
        "photos/\udcff.jpg".encode()


def test_without_an_output_a_full_disk_is_of_the_file_that_the_error_names() -> None:
    found = system_problem(of_file(errno.ENOSPC, "/a/b"), None)
    assert found is not None
    assert "/a/b" in found.message
    assert system_problem(of_file(errno.EIO), None) is None


@pytest.mark.parametrize("length", [200, 240, 255])
def test_a_name_as_long_as_a_name_can_be_is_written(tmp_path: Path, length: int) -> None:
    for letter, width in (("n", 1), ("ü", 2)):
        target = tmp_path / (letter * (length // width))
        with atomic_path(target) as temporary:
            temporary.write_text("x")
        assert target.read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 2


LIMITED = """
import resource, sys
from pathlib import Path
from cdkit.core.errors import CdkitError
from cdkit.core.storage import write_text
from cdkit.core.errors import writing
kind, amount = sys.argv[1], int(sys.argv[2])
resource.setrlimit(getattr(resource, kind), (amount, resource.getrlimit(getattr(resource, kind))[1]))
held = []
try:
    with writing(Path("out")):
        if kind == "RLIMIT_FSIZE":
            write_text(Path("out/file"), "." * 1_000_000)
        elif kind == "RLIMIT_NOFILE":
            while True:
                held.append(open("/dev/null"))
        else:
            bytearray(1 << 34)
except CdkitError as error:
    print(error.code, error.message)
"""


@pytest.mark.parametrize(
    ("kind", "amount", "words"),
    [
        ("RLIMIT_FSIZE", 4096, "output A file became larger than it may (ulimit -f is 4 kB) while writing to out."),
        ("RLIMIT_NOFILE", 20, "resources Too many files are open at once (ulimit -n is 20)."),
        ("RLIMIT_AS", 2 << 30, "resources There is not enough memory"),
    ],
)
def test_limits_of_the_shell_are_named(tmp_path: Path, kind: str, amount: int, words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", LIMITED, kind, str(amount)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(words), done.stdout + done.stderr
