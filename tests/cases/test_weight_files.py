"""Files given as weights that are something else, or that say more than they hold: named for what they are."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.core.errors import InputError
from cdkit.deltas.delta import load_delta
from cdkit.deltas.importing import read_foreign
from tests.cli.running import ran

CASES = Path(__file__).parent


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _raw(path: Path, header: Any, data: bytes = b"") -> Path:
    """A safetensors file byte by byte."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return _written(path, struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("name", "words"),
    [("15-not-a-weight-file/lfs.bin", "a Git LFS pointer"), ("15-not-a-weight-file/html.bin", "a web page")],
)
def test_a_pointer_and_a_page_are_called_that(tmp_path: Path, name: str, words: str) -> None:
    done = ran(["delta", "import", CASES / name, "--base", "embedded", "--out", tmp_path / "o"])
    assert done.code == 3
    assert words in done.err
    assert "code" not in done.err


OTHER_FILES: list[tuple[str, bytes, str]] = [
    ("page.safetensors", b"\n  <!DOCTYPE html><html><body>Log in</body></html>", "a web page"),
    ("error.safetensors", b'{"error": "Repository not found"}', "JSON text"),
    ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS pointer"),
    ("annex.ckpt", b"/annex/objects/SHA256E-s5--00.ckpt\n", "git-annex pointer"),
    ("empty.safetensors", b"", "is empty"),
    ("zeros.safetensors", b"\0" * 5000, "nothing but zeros"),
    ("model.gguf.bin", b"GGUF\3\0\0\0", "a GGUF file"),
    ("weights.bin", b"PK\5\6" + b"\0" * 18, "an empty zip archive"),
    ("weights.pt", b"\x1f\x8b\x08\0", "a gzip archive"),
    ("weights.pth", b"Rar!\x1a\7\0", "a RAR archive"),
    ("preview.safetensors", b"\x89PNG\r\n\x1a\n", "a picture"),
    ("readme.bin", "Größe: 犬\n".encode() * 400, "a text file"),
    ("noise.bin", bytes(range(7, 250)) * 9, "no weight file"),
]


@pytest.mark.parametrize(("name", "content", "words"), OTHER_FILES, ids=[name for name, _, _ in OTHER_FILES])
def test_other_files_are_called_what_they_are(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = _written(tmp_path / name, content)
    for read in (read_foreign, load_delta):
        with pytest.raises(InputError, match=words) as refused:
            read(path)
        assert refused.value.hint


def test_a_zip_that_torch_did_not_write(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "models.zip", "w") as archive:
        archive.writestr("model/weights.safetensors", b"x")
    with pytest.raises(InputError, match="a zip archive"):
        read_foreign(tmp_path / "models.zip")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_pipe, "a named pipe"),
        (_socket, "a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (Path.mkdir, "holds no"),
        (lambda path: path.symlink_to(path), "cannot be read|does not exist"),
    ],
)
def test_what_is_no_ordinary_file_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], words: str
) -> None:
    # Names of sockets are short.
    monkeypatch.chdir(tmp_path)
    path = Path("delta.safetensors")
    make(path)
    for command in (["delta", "inspect", path], ["delta", "import", path, "--out", "imported"]):
        done = ran(command)
        assert done.code == 3, done.err
    with pytest.raises(InputError, match=words):
        load_delta(path)
    # Beside others in a folder it is not opened either.
    assert ran(["delta", "import", tmp_path, "--out", tmp_path / "out"]).code in (2, 3)


_ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
_TEXT = json.dumps(_ONE).encode()
LAYOUTS: list[tuple[Any, bytes]] = [
    ({"a": {**_ONE, "shape": [-1]}}, bytes(4)),
    ({"a": {**_ONE, "shape": [1 << 33, 1 << 33]}}, bytes(4)),
    ({"a": {**_ONE, "shape": [0, 1 << 62]}}, bytes(4)),
    ({"a": {**_ONE, "shape": [1.5]}}, bytes(4)),
    ({"a": {**_ONE, "shape": 1}}, bytes(4)),
    ({"a": {**_ONE, "shape": [1] * 100_000}}, bytes(4)),
    ({"a": {**_ONE, "dtype": "F99"}}, bytes(4)),
    ({"a": {**_ONE, "dtype": "F6_E2M3", "shape": [16], "data_offsets": [0, 12]}}, bytes(12)),
    ({"a": {**_ONE, "dtype": "F4", "shape": [8]}}, bytes(4)),
    ({"a": _ONE, "b": _ONE}, bytes(4)),
    ({"a": {**_ONE, "data_offsets": [0, 4000]}}, bytes(4)),
    ({"a": {**_ONE, "data_offsets": [4, 8]}}, bytes(8)),
    ({"a": {**_ONE, "data_offsets": [8, 4]}}, bytes(8)),
    ({"a": {**_ONE, "data_offsets": []}}, bytes(4)),
    ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    ({"a": 7}, bytes(4)),
    ({"__metadata__": {"x": 1}, "a": _ONE}, bytes(4)),
    ({"__metadata__": "text", "a": _ONE}, bytes(4)),
    ({"__metadata__": [], "a": _ONE}, bytes(4)),
    (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    (b'{"__metadata__":{"x":"1","x":"2"},"a":%b}' % _TEXT, bytes(4)),
    (b'{"a":' * 50_000, b""),
    (b'{"\xff\xfe":1}', b""),
    (b"{not json", b""),
]


@pytest.mark.parametrize(("header", "data"), LAYOUTS, ids=range(len(LAYOUTS)))
def test_safetensors_headers_that_say_what_cannot_be(tmp_path: Path, header: Any, data: bytes) -> None:
    path = _raw(tmp_path / "file.safetensors", header, data)
    for read in (read_foreign, load_delta):
        with pytest.raises(InputError) as refused:
            read(path)
        assert str(path) in refused.value.message
        assert len(refused.value.message) < 1000


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 30, (1 << 64) - 1])
def test_a_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    path = _written(tmp_path / "file.safetensors", length.to_bytes(8, "little") + b'{"a":1}')
    for read in (read_foreign, load_delta):
        with pytest.raises(InputError):
            read(path)


def test_a_few_aliases_are_not_copied_into_millions_of_values(tmp_path: Path) -> None:
    """Case 21: 3 KB that stand for 300³ lists."""
    started = time.monotonic()
    done = ran(["delta", "import", CASES / "21-alias-bomb/wide_aliases.bin", "--base", "embedded", "--out", tmp_path])
    assert done.code == 3
    assert "stands for more than" in done.err
    assert time.monotonic() - started < 20


class _Call:
    """Makes a pickle call a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made


def _doubled(times: int) -> list[Any]:
    value: list[Any] = [torch.ones(1)]
    for _ in range(times):
        value = [value, value]
    return value


def _endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _grown() -> Any:
    storage = torch.ones(4).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    return _Call(torch._utils._rebuild_tensor_v2, typed, 0, (60_000, 60_000), (60_000, 1), False, {})


SMALL_FILES: list[tuple[Callable[[], Any], str]] = [
    (lambda: {"a": _doubled(40)}, "stands for more"),
    (lambda: {"a": _endless()}, "stands for more"),
    (lambda: {"a": _Call(bytearray, 10**12)}, "more than plain tensors"),
    (lambda: {"a": _Call(torch.Tensor, 100_000, 100_000)}, "more than plain tensors"),
    (lambda: {"a": _grown()}, "its tensors say 14,400,000,000|cannot be read|can be read"),
    (lambda: {"a": torch.ones(1).expand(60_000, 60_000)}, "its tensors say 14,400,000,000"),
    (lambda: {"a": (tied := torch.ones(1_000_000)), **{str(n): tied for n in range(300)}}, "its tensors say"),
    (lambda: {"a": torch.ones(3, 4, device="meta")}, "more than plain tensors"),
    (lambda: {10**300: torch.ones(3)}, "no name, an? int"),
    (lambda: {"<new1>": b"bytes"}, "is a bytes"),
    (lambda: [[[[[torch.ones(3)]]]]], "holds a list"),
]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("make", "words"), SMALL_FILES, ids=range(len(SMALL_FILES)))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_small_torch_files_that_stand_for_much(
    tmp_path: Path, make: Callable[[], Any], words: str, legacy: bool
) -> None:
    path = tmp_path / "file.bin"
    torch.save(make(), path, _use_new_zipfile_serialization=not legacy)
    started = time.monotonic()
    with pytest.raises(InputError, match=words):
        read_foreign(path)
    assert time.monotonic() - started < 20


ROWS = torch.ones(4)
PARTS: list[tuple[Any, str]] = [
    ({"unet": {}, "modifier_token": torch.ones(3)}, "names no tokens"),
    ({"unet": {}, "modifier_token": {"<new1>": []}}, "0 embeddings"),
    ({"unet": {}, "modifier_token": {"<new1>": "row"}}, "no tensor"),
    ({"unet": {}, "text_encoder": torch.ones(3)}, "text encoder"),
    ({"state_dict": {"embed": torch.ones(3, 0)}}, "no tensor"),
    ({"state_dict": {"embed": {"a": 1}}}, "no tensor"),
    (
        {
            "state_dict": {
                f"{start}diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(2, 2)
                for start in ("", "model.")
            }
        },
        "twice",
    ),
    ({"state_dict": {f"diffusion_model.input_blocks.{'9' * 5000}.1.x": torch.ones(2, 2)}}, "no cross-attention"),
    ({"string_to_param": {"*": "row"}, "name": "x"}, "no embedding"),
    ({"string_to_param": {}, "name": "x"}, "no embedding"),
    ({"emb_params": torch.ones(0, 4)}, "no tensor"),
    ({"clip_l": "a", "clip_g": ROWS}, "no tensor"),
    ({"a\x1b[2Jb": ROWS}, "names a token"),
    ({"x" * 5000: ROWS}, "names a token"),
    ({"..\\windows": ROWS}, "looks like a path"),
]


@pytest.mark.parametrize(("values", "words"), PARTS, ids=range(len(PARTS)))
def test_parts_that_are_not_what_they_should_be(tmp_path: Path, values: Any, words: str) -> None:
    torch.save(values, tmp_path / "file.bin")
    with pytest.raises(InputError, match=words) as refused:
        read_foreign(tmp_path / "file.bin")
    assert refused.value.message.isprintable()
