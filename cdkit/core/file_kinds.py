"""What a file is when it is not what it should be: no ordinary file, a download that went wrong, another format."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cdkit.core.errors import InputError

_LOOKED_AT = 1024
_PICKLE = b"\x80"
_ZIP = b"PK\x03\x04"
AGAIN = "Download it again."
_LFS_HINT = "Fetch the file itself: git lfs pull in its repository, or the download button of its page."
_PAGE_HINT = "The link led to a page (a log-in, a preview, an error), not to the file: download the file itself."
_ANNEX_HINT = "Fetch the file itself: git annex get."
_UNPACK_HINT = "Unpack it, and give the weight file or folder inside."
# What a file starts with, what that makes it, and what to do: of what stands for a file, and of files of weights.
_POINTERS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for", _LFS_HINT),
    (b"version https://hawser", "a Git LFS pointer, not the file that it stands for", _LFS_HINT),
    (b"/annex/objects/", "a git-annex pointer, not the file that it stands for", _ANNEX_HINT),
)
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    *_POINTERS,
    (b"GGUF", "a GGUF file, which holds quantised weights", "Give the model's safetensors files."),
    (b"PK\x05\x06", "an empty zip archive", AGAIN),
    (b"\x1f\x8b", "a gzip archive", _UNPACK_HINT),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK_HINT),
    (b"Rar!", "a RAR archive", _UNPACK_HINT),
    (b"\xfd7zXZ", "an xz archive", _UNPACK_HINT),
    (b"BZh", "a bzip2 archive", _UNPACK_HINT),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK_HINT),
    (b"\x89HDF", "an HDF5 file of Keras or TensorFlow", "Give the model's PyTorch or safetensors files."),
    (b"\x93NUMPY", "a NumPy array", "Give a safetensors file."),
    (b"PAR1", "a Parquet table", "Give the file with the weights."),
    (b"\x89PNG", "a picture", "Give the file with the weights."),
    (b"\xff\xd8\xff", "a picture", "Give the file with the weights."),
    (b"%PDF", "a PDF", "Give the file with the weights."),
)
# What transformers and open_clip read from a folder.
_LOADED = ("*.safetensors", "pytorch_model*.bin", "open_clip_*.bin")
_BEFORE_TEXT = b"\xef\xbb\xbf \t\r\n"
_PAGES = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--", b"<svg")


def require_file(path: Path, *, hint: str = "") -> None:
    """Raise InputError, without opening it, unless `path` is an ordinary file: reading a pipe or a device may hang."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.", hint=hint or "Check the path.") from error
    except (OSError, ValueError) as error:  # a name too long, a NUL in it, a loop of links
        raise InputError(f"{path} cannot be read: {error}", hint="Check the path and the permissions.") from error
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    what = kinds.get(stat.S_IFMT(mode), "no ordinary file")
    raise InputError(
        f"{path} is {what}, not a file.", hint=hint or "Give the file itself; what a pipe sends, save first."
    )


def check_weight_file(path: Path) -> bytes:
    """The first bytes of a file that may hold weights.

    Raises InputError that says what it is when it cannot: it is empty, a Git LFS pointer, a web page, an archive, a
    picture, text, …
    """
    require_file(path)
    try:
        with path.open("rb") as handle:
            start = handle.read(_LOOKED_AT)
            size = os.fstat(handle.fileno()).st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}", hint="Check the path and the permissions.") from error
    impression = _impression(start, size)
    if impression is not None:
        what, hint = impression
        raise InputError(f"{path} is {what}.", hint=hint)
    return start


def check_weight_folder(folder: Path) -> None:
    """Raise InputError when one of the weight files that libraries load from a model's folder is something else."""
    for pattern in _LOADED:
        for path in sorted(folder.glob(pattern)):
            check_weight_file(path)


def wrong_download(start: bytes) -> tuple[str, str] | None:
    """What a file of data is when it is a pointer or a web page, and what to do; None for any other."""
    for mark, what, hint in _POINTERS:
        if start.startswith(mark):
            return what, hint
    # Tables may begin with `<`; XML and comments are no sign of a page either.
    page = start.lstrip(_BEFORE_TEXT).lower().startswith(_PAGES[:2])
    return ("a web page, not the file itself", _PAGE_HINT) if page else None


def _impression(start: bytes, size: int) -> tuple[str, str] | None:
    """What a file is, and what to do; None when it may hold weights."""
    if size == 0:
        return "empty", AGAIN
    if start.startswith((_ZIP, _PICKLE)) or is_safetensors(start):
        return None
    for mark, what, hint in _STARTS:
        if start.startswith(mark):
            return what, hint
    plain = start.lstrip(_BEFORE_TEXT).lower()
    if plain.startswith(_PAGES):
        return "a web page, not a file of weights", _PAGE_HINT
    if start[257:262] == b"ustar":
        return "a tar archive", _UNPACK_HINT
    if plain.startswith((b"{", b"[")):
        return "JSON text, not a file of weights", "Give the file with the weights, not its settings or an error page."
    if not start.strip(b"\0"):
        return "nothing but zeros, as an interrupted download leaves", AGAIN
    if _is_text(start, size):
        return "a text file, not a file of weights", "Give the file with the weights."
    return "no weight file that cdkit knows", "Weights come as safetensors or as PyTorch files; it may be damaged."


def is_safetensors(start: bytes) -> bool:
    """Whether a file that starts so is meant as safetensors: the length of a JSON header, then the header."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 56


def _is_text(start: bytes, size: int) -> bool:
    # A longer file may be cut inside a letter of up to four bytes.
    for cut in range(4 if size > len(start) else 1):
        try:
            text = start[: len(start) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return all(letter.isprintable() or letter in "\t\r\n\f" for letter in text)
    return False
