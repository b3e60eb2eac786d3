"""Weight files that call functions, made here and gathered by others: no reader of weights runs any of them.

The short form takes a part of each collection; `-m slow` all, and fetches it where it is not there.
"""

from __future__ import annotations

import io
import pickle
import random
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdkit.core.errors import CdkitError
from cdkit.deltas.base_model import load_base_model, load_single_file
from cdkit.deltas.delta import load_delta
from cdkit.deltas.importing import read_foreign
from cdkit.encoders import load_text_encoder
from cdkit.encoders.image_towers import load_image_encoder
from tests.cli.running import ran
from tests.faults.audit_watch import AuditWatch
from tests.faults.corpora import dangerous_names, hostile_files, sdist
from tests.faults.counts import count
from tests.faults.scenarios import stage, write_captions
from tests.support.tiny_models import clip_folder, open_clip_folder
from tests.support.tiny_pipeline import tiny_pipeline

LONGEST = 20.0
FEW = 3
Reader = Callable[[Path], object]

both_forms = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["some", "all"]
)


def chosen(items: list[Any], every: bool) -> list[Any]:
    return items if every else random.Random(0).sample(items, FEW)


class Watch(AuditWatch):
    """Sees what a pickle does to run something: it looks a function up; and what most of those functions do then."""

    EVENTS = frozenset(
        {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn"}
        | {"subprocess.Popen", "socket.connect", "socket.getaddrinfo", "urllib.Request", "webbrowser.open"}
    )

    def __init__(self) -> None:
        self.seen: list[str] = []
        super().__init__()

    def happened(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in self.EVENTS:
            self.seen.append(f"{event} {arguments!r}")


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


# Readers: every way by which a file with weights gets into a command


def _tried(name: str, out: Path, **values: Any) -> object:
    shutil.rmtree(out, ignore_errors=True)
    return stage(name, **values).run(out)


def _inspected(path: Path) -> None:
    done = ran(["delta", "inspect", path])
    if done.code:
        assert "Traceback" not in done.err
        raise CdkitError(done.err, hint=done.err) if done.code == 1 else _Refused(done.err, hint=done.err)


class _Refused(CdkitError):
    exit_code = 3


def _in_place_of(folder: Path, name: str, load: Callable[[], object]) -> Reader:
    """A reader of a model's folder, one of whose files is the hostile one."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        path.unlink()

    def read(path: Path) -> object:
        shutil.copyfile(path, folder / name)
        return load()

    return read


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    import torch

    root = tmp_path_factory.mktemp("models")
    captions = write_captions(root / "captions.csv", 0, 60)
    device, model = torch.device("cpu"), {"device": "cpu", "threads": 1}
    found: dict[str, Reader] = {
        "read_foreign": read_foreign,
        "load_delta": load_delta,
        "load_single_file": lambda path: load_single_file(path, torch.float32),
        "delta inspect": _inspected,
        "delta import": lambda path: _tried("delta-import", root / "out", files=[str(path)], base="embedded"),
        "delta compress": lambda path: _tried("delta-compress", root / "out", delta=str(path), rank=1, threads=1),
        "export": lambda path: _tried("export", root / "out", delta=str(path), to="kohya-lora", rank=1, threads=1),
        "inspect weights": lambda path: _tried("weight-change", root / "out", tuned=str(path), device="cpu"),
        "merge": lambda path: _tried(
            "merge", root / "out", deltas=[str(path), str(path)], captions=[captions], captions_count=20, **model
        ),
        "train --delta": lambda path: _tried(
            *("train", root / "out"),
            **{"concepts": {"star": "embedded:striped-star"}, "delta": [str(path)], "steps": 1, **model},
        ),
        "sample --delta": lambda path: _tried(
            "sample", root / "out", deltas=[str(path)], prompts=["a star"], seeds=1, steps=1, **model
        ),
        "sample --base FILE": lambda path: _tried(
            "sample", root / "out", base=str(path), prompts=["a star"], seeds=1, steps=1, **model
        ),
    }
    whole = root / "base"
    tiny_pipeline(whole)
    for part, file in (
        ("unet", "diffusion_pytorch_model.bin"),
        ("vae", "diffusion_pytorch_model.bin"),
        ("text_encoder", "pytorch_model.bin"),
    ):
        base = root / f"base-{part}"
        shutil.copytree(whole, base)
        found[f"base folder, {part}"] = _in_place_of(
            base / part, file, lambda base=base: load_base_model(str(base), device=device)
        )
    clip, other = clip_folder(root / "clip"), open_clip_folder(root / "open_clip")
    for kind, load in (("text", load_text_encoder), ("pictures", load_image_encoder)):
        found[f"transformers, {kind}"] = _in_place_of(
            clip, "pytorch_model.bin", lambda load=load: load(f"transformers:{clip}", device="cpu")
        )
        found[f"open_clip, {kind}"] = _in_place_of(
            other, "open_clip_pytorch_model.bin", lambda load=load: load(f"open_clip:{other}", device="cpu")
        )
    return found


def read_by_all(path: Path, readers: dict[str, Reader], watch: Watch, canary: Path, what: object) -> Counter[str]:
    """How readers ended with a file: it was refused, or read without that a function was looked up."""
    outcomes: Counter[str] = Counter()
    for name, reader in readers.items():
        clock = time.process_time()
        with watch.watching():
            try:
                reader(path)
                outcomes["read"] += 1
            except CdkitError as error:
                assert error.exit_code in (2, 3), (name, what, error)
                assert error.hint, (name, what, error)
                outcomes["refused"] += 1
        assert not watch.seen, (name, what, watch.seen)
        assert not canary.exists(), (name, what)
        assert time.process_time() - clock < LONGEST, (name, what)
    return outcomes


def pickles(module: str, name: str, canary: Path) -> Iterator[bytes]:
    """A call of a function and one of os.mkdir, which would show that anything was run; in the ways pickles say it."""
    made = pickle.dumps(str(canary), protocol=2)[2:-1]
    for protocol in (0, 2):
        named = f"c{module}\n{name}\n".encode()
        start = b"\x80\x02" if protocol == 2 else b""
        yield start + b"cos\nmkdir\n" + made + b"\x85R0" + named + made + b"\x85R."
        yield start + named + made + b"\x85R0" + b"cos\nmkdir\n" + made + b"\x85R."
    short = [text.encode() for text in (module, name)]
    stacked = b"".join(b"\x8c" + bytes([len(text)]) + text for text in short) + b"\x93"
    yield b"\x80\x04" + stacked + made + b"\x85R0" + b"cos\nmkdir\n" + made + b"\x85R."
    yield b"\x80\x02(" + made + f"i{module}\n{name}\n".encode() + b"."


def archives(content: bytes) -> Iterator[tuple[str, bytes]]:
    """A pickle as it is, and in the archive that torch.save makes; whole, and with broken checks."""
    yield "plain.bin", content
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    yield "archive.pt", target.getvalue()
    broken = bytearray(target.getvalue())
    place = broken.find(b"PK\x01\x02")
    broken[place + 16] ^= 0xFF
    yield "broken.ckpt", bytes(broken)


@both_forms
def test_calls_that_hostile_pickles_make(
    every: bool, tmp_path: Path, readers: dict[str, Reader], watch: Watch
) -> None:
    """All functions, through the readers that all others come down to; `-m slow` through all, each in one form."""
    names = dangerous_names(sdist("picklescan", fetch=every))
    canary, outcomes = tmp_path / "canary", Counter[str]()
    inner = {name: readers[name] for name in ("read_foreign", "load_delta", "load_single_file")}
    for number, (module, name) in enumerate(chosen(names, every)):
        files = [file for content in pickles(module, name, canary) for file in archives(content)]
        for place, (file, whole) in enumerate(files):
            path = tmp_path / file
            path.write_bytes(whole)
            through_all = every and place == number % len(files)
            outcomes += read_by_all(path, readers if through_all else inner, watch, canary, (module, name))
    count("calls in pickles of picklescan's dangerous functions", outcomes, functions=len(names), executed=0)
    assert set(outcomes) == {"refused"}


@both_forms
def test_files_that_others_gathered(every: bool, tmp_path: Path, readers: dict[str, Reader], watch: Watch) -> None:
    files = hostile_files(fetch=every)
    outcomes: Counter[str] = Counter()
    for source in chosen(files, every):
        for name in (source.name, "file.ckpt") if every else ("file.ckpt",):
            shutil.copyfile(source, tmp_path / name)
            outcomes += read_by_all(tmp_path / name, readers, watch, tmp_path / "canary", source.name)
    count("files of picklescan's tests through every reader of weights", outcomes, files=len(files), executed=0)
    assert outcomes["refused"] > outcomes["read"]


def test_the_canaries_would_tell(tmp_path: Path, watch: Watch) -> None:
    """Read as others read it, such a file is run, and both the folder and the look-up are seen."""
    canary = tmp_path / "canary"
    with watch.watching():
        pickle.loads(b"cos\nmkdir\n" + pickle.dumps(str(canary), protocol=2)[2:-1] + b"\x85R.")
    assert canary.exists()
    assert any("pickle.find_class" in event and "mkdir" in event for event in watch.seen)
    watch.seen.clear()
