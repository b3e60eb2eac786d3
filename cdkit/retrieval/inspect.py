"""Inspection of single images in bounded worker processes: decoded, measured, hashed, judged, stored once."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import CdkitError, InputError, write_problem
from cdkit.core.machine import limit_memory, limit_time
from cdkit.engines.local import require_main_guard
from cdkit.fetching.blocklist import BLOCKLISTED, Blocklist, digests
from cdkit.pictures.picture import NEAR, Content, FileContent, NearHashes, perceptual_hash

if TYPE_CHECKING:
    from PIL import Image

# A picture from the web may take less than one of the user's own; in RGB it has 360 MB.
MAX_PIXELS = 89_478_485
# Reasons that mean: not even a picture came out of the bytes.
UNDECODED = frozenset(
    {"unreadable", "not_raster", "not_an_image", "too_many_pixels", "truncated", "damaged", "memory", "decode_time"}
    | {"decoder_crash"}
)
START_SECONDS = 60.0
# Items a worker has at hand, so that it never waits for this process.
AT_HAND = 8


@dataclass(frozen=True)
class InspectionRules:
    """What an image must be by itself. max_side: larger pictures are shrunk to it, in pixels.

    min_sharpness, max_flat, max_text: limits of `cdkit.pictures.measures`; None for what is not measured.
    """

    min_side: int = 1
    max_aspect_ratio: float | None = None
    max_side: int = 1024
    blocklist: Blocklist = field(default_factory=Blocklist)
    min_sharpness: float | None = None
    max_flat: float | None = None
    max_text: float | None = None


@dataclass(frozen=True)
class InspectionLimits:
    """What one image may cost. memory: bytes beyond what the idle worker holds; seconds: of processor time.

    patience: seconds on the clock, for a decoder that waits for something; a busy machine must not reject images.
    """

    memory: int = 1 << 30
    seconds: int = 10
    patience: float = 120.0


@dataclass(frozen=True)
class Inspection:
    """What was found. sha256: of the original bytes; reason: why it is not used, None when it can be.

    width, height: of the stored picture; phash: its 64-bit perceptual hash; name: the stored file; size: its bytes.
    """

    sha256: str = ""
    reason: str | None = None
    detail: str = ""
    width: int = 0
    height: int = 0
    phash: int = 0
    name: str = ""
    size: int = 0


def inspect(content: Content, rules: InspectionRules, store: Path) -> Inspection:
    """Decode one image and store it, encoded once.

    Raises MemoryError, and OSError when the store cannot be written.
    """
    from cdkit.pictures.content_credentials import forbidden_training
    from cdkit.pictures.decoding import Undecodable, decode, encode, is_blank

    try:
        original = content.read()
    except InputError as error:
        return Inspection(reason="unreadable", detail=error.message[:200])
    sha256 = hashlib.sha256(original).hexdigest()
    listed = rules.blocklist
    if listed.hashes and not listed.hashes.isdisjoint(digests(original)):
        return Inspection(sha256, BLOCKLISTED, f"sha256 {sha256}")
    try:
        decoded = decode(original, rules.max_side, max_pixels=MAX_PIXELS)
    except Undecodable as error:
        return Inspection(sha256, error.reason, error.detail)
    picture = decoded.picture
    inspection = Inspection(sha256, width=picture.width, height=picture.height, phash=perceptual_hash(picture))
    if inspection.phash in NearHashes(NEAR, listed.perceptual):
        return replace(inspection, reason=BLOCKLISTED, detail=f"sha256 {sha256}")
    forbidden = forbidden_training(original)
    if forbidden is not None:
        return replace(inspection, reason="do_not_train", detail=forbidden)
    reason = _reason(picture, rules, is_blank(picture))
    if reason is not None:
        return replace(inspection, reason=reason, detail=f"{picture.width} × {picture.height}")
    measured = _measured(picture, rules)
    if measured is not None:
        return replace(inspection, reason=measured[0], detail=f"{measured[1]:.3g}")
    encoded, suffix = encode(decoded)
    name = f"{sha256}.{suffix}"
    # Neither renamed nor synced, which takes longer than decoding: the journal tells what was cut short by its size.
    (store / name).write_bytes(encoded)
    return replace(inspection, name=name, size=len(encoded))


def _reason(picture: Image.Image, rules: InspectionRules, blank: bool) -> str | None:
    short, long = sorted(picture.size)
    if short < rules.min_side:
        return "too_small"
    if rules.max_aspect_ratio is not None and long / short > rules.max_aspect_ratio:
        return "aspect_ratio"
    return "blank" if blank else None


def _measured(picture: Image.Image, rules: InspectionRules) -> tuple[str, float] | None:
    """The first measure that is beyond its limit: the reason and the value."""
    from cdkit.pictures.measures import flat_share, sharpness, text_share

    if rules.max_flat is not None and (share := flat_share(picture)) > rules.max_flat:
        return "flat", share
    if rules.min_sharpness is not None and (value := sharpness(picture)) < rules.min_sharpness:
        return "blurred", value
    if rules.max_text is not None and (share := text_share(picture)) > rules.max_text:
        return "text_heavy", share
    return None


@dataclass
class _Worker:
    """One process, the pipe to it, and the items it was given; the first is to be done by `due`."""

    process: Any
    pipe: Connection
    items: deque[int] = field(default_factory=deque)
    due: float = 0.0


class Inspectors:
    """A context in which images are inspected; leaving it ends every worker."""

    def __init__(
        self, rules: InspectionRules, store: Path, *, workers: int, limits: InspectionLimits | None = None
    ) -> None:
        self._rules = rules
        self._store = store
        self._limits = limits or InspectionLimits()
        self._count = max(1, workers)
        self._workers: list[_Worker] = []

    def __enter__(self) -> Inspectors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            self._end(worker)
        self._workers.clear()

    def inspect(self, contents: Sequence[Content]) -> Iterator[tuple[int, Inspection]]:
        """Each content's place and what it is, as they come. Raises OutputError when the store cannot be written."""
        waiting = deque(range(len(contents)))
        left = len(contents)
        self._workers += self._start(min(self._count, left) - len(self._workers), contents)
        while left:
            self._hand_out(waiting, contents)
            for worker in self._ready():
                item, inspection = self._take(worker, waiting, contents)
                left -= 1
                yield item, inspection

    def _start(self, count: int, contents: Sequence[Content]) -> list[_Worker]:
        """Start workers side by side for contents like these, and see that they have."""
        require_main_guard()
        # Spawned: a fork would copy locks that other threads of this process hold.
        context = multiprocessing.get_context("spawn")
        started = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            arguments = (theirs, self._rules, self._store, self._limits, contents[0])
            process = context.Process(target=work, args=arguments, daemon=True, name="cdkit-inspector")
            process.start()
            theirs.close()
            started.append(_Worker(process, ours))
        for worker in started:
            try:
                ready = worker.pipe.poll(START_SECONDS) and worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                ready = False
            if not ready:
                for other in started:
                    self._end(other)
                raise CdkitError(
                    f"A process that decodes images did not start (exit code {worker.process.exitcode}).",
                    hint="Is there enough memory? Python scripts must guard their main program with "
                    "if __name__ == '__main__'.",
                )
        return started

    def _end(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()

    def _hand_out(self, waiting: deque[int], contents: Sequence[Content]) -> None:
        """Give every worker what it can hold, one item each in turn."""
        for _ in range(AT_HAND):
            for worker in self._workers:
                if waiting and len(worker.items) < AT_HAND:
                    self._give(worker, waiting.popleft(), contents)

    def _give(self, worker: _Worker, item: int, contents: Sequence[Content]) -> None:
        worker.items.append(item)
        if len(worker.items) == 1:
            worker.due = time.monotonic() + self._limits.patience
        # A worker that died is found out when its answer is taken.
        with suppress(BrokenPipeError, ConnectionResetError):
            worker.pipe.send(contents[item])

    def _ready(self) -> list[_Worker]:
        """Busy workers that have answered, died, or taken too long."""
        busy = [worker for worker in self._workers if worker.items]
        patience = max(0.0, min(worker.due for worker in busy) - time.monotonic())
        answered = set(wait([worker.pipe for worker in busy], patience))
        now = time.monotonic()
        return [worker for worker in busy if worker.pipe in answered or worker.due <= now]

    def _take(self, worker: _Worker, waiting: deque[int], contents: Sequence[Content]) -> tuple[int, Inspection]:
        """A worker's first item and what became of it; a worker that is dead or too slow is replaced."""
        item = worker.items.popleft()
        answer: Any = None
        with suppress(EOFError, ConnectionResetError):
            answer = worker.pipe.recv() if worker.pipe.poll() else None
        if isinstance(answer, CdkitError):
            raise answer
        if isinstance(answer, Inspection):
            worker.due = time.monotonic() + self._limits.patience
            return item, answer
        late = worker.due <= time.monotonic()
        if not late:
            worker.process.join(START_SECONDS)
        code = worker.process.exitcode
        self._end(worker)
        # What it had not come to yet is for others.
        waiting.extendleft(reversed(worker.items))
        self._workers[self._workers.index(worker)] = self._start(1, contents)[0]
        if late or code == -signal.SIGXCPU:
            return item, Inspection(reason="decode_time", detail=f"not decoded after {self._limits.seconds} s")
        return item, Inspection(reason="decoder_crash", detail=f"the decoder ended with exit code {code}")


def work(pipe: Connection, rules: InspectionRules, store: Path, limits: InspectionLimits, sample: Content) -> None:
    """A worker's life: inspect what comes through the pipe, contents of the sample's kind, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _warm_up(sample)
    limit_memory(limits.memory)
    pipe.send(True)
    # The pipe closes when the parent ends, however it does.
    with suppress(EOFError, OSError):
        while True:
            content = pipe.recv()
            limit_time(limits.seconds)
            pipe.send(_inspected(content, rules, store))


def _inspected(content: Content, rules: InspectionRules, store: Path) -> Inspection | CdkitError:
    try:
        return inspect(content, rules, store)
    except MemoryError:
        return Inspection(reason="memory", detail="more memory than an image may take")
    except Exception as error:
        problem = write_problem(error, store)
        return problem or Inspection(reason="damaged", detail=f"{type(error).__name__}: {error}"[:200])


def _warm_up(sample: Content) -> None:
    """Load every library before limits are set: they belong to the worker, not to an image."""
    from PIL import Image

    from cdkit.pictures import decoding, measures  # noqa: F401
    from cdkit.pictures.content_credentials import can_read_credentials
    from cdkit.pictures.picture import perceptual_hash

    Image.init()
    can_read_credentials()
    picture = Image.linear_gradient("L").convert("RGB")
    perceptual_hash(picture)
    decoding.encode(decoding.Decoded(picture, exact=False))
    if not isinstance(sample, FileContent):
        # Reading a Parquet cell, or drawing a picture, takes libraries of its own.
        with suppress(CdkitError):
            sample.read()
