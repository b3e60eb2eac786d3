"""The contracts plug-ins meet: engines that run work, progress that shows it, encoders that embed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Outcome(Generic[Item, Value]):
    """What became of one item: a value, or the error that stopped it."""

    item: Item
    value: Value | None = None
    error: BaseException | None = None

    def unwrap(self) -> Value:
        """The value; raises the error when there is one."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


class Engine(Protocol):
    """Runs one function over many items somewhere: one outcome per item, in the items' order, never fewer.

    gpus: how many GPUs its workers have between them. With `gpu`, every worker gets one of them for itself, as the
    only one it sees; without any GPU that changes nothing.
    """

    name: str
    workers: int

    @property
    def gpus(self) -> int: ...

    def map(
        self, work: Callable[[Item], Value], items: Sequence[Item], *, label: str, gpu: bool = False
    ) -> Iterator[Outcome[Item, Value]]: ...


class Task(Protocol):
    """One progress bar."""

    def advance(self, amount: float = 1) -> None: ...


class Progress(Protocol):
    """Where a stage reports how far it is; the command line draws it, a library call ignores it."""

    def task(self, label: str, total: float | None, *, unit: str = "") -> AbstractContextManager[Task]: ...

    def note(self, message: str) -> None:
        """Say one thing the user should know (a warning, a choice made)."""


class _SilentTask:
    def advance(self, amount: float = 1) -> None:
        return None


class SilentProgress:
    """Progress that goes nowhere: the default of the Python API."""

    @contextmanager
    def task(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Task]:
        yield _SilentTask()

    def note(self, message: str) -> None:
        return None


@dataclass(frozen=True)
class Context:
    """What a stage may use besides its config and inputs.

    fingerprint: of what the stage makes, for the shards it may find done; earlier: those of the stages it extends, by
    name. Work outside of a stage has none, and finds nothing done.
    """

    engine: Engine
    progress: Progress = field(default_factory=SilentProgress)
    fingerprint: str = ""
    earlier: Mapping[str, str] = field(default_factory=dict)

    def of_earlier(self, stage: str) -> Context:
        """The context of a stage that this one extends, for doing its work first."""
        return replace(self, fingerprint=self.earlier[stage], earlier={})


class TextEncoder(Protocol):
    """Embeds captions as they were written: normalised fp32 rows, exact whatever the batch.

    It cleans them itself, as its model's library does, and once: nobody else cleans what it is given.

    precision: the number format the tower runs in (fp32, fp16 or bf16). default_threshold: the similarity from which
    captions count as alike.
    """

    spec: str
    dimension: int
    context_length: int
    default_threshold: float
    precision: str

    def weights_hash(self) -> str:
        """sha256 in hex of the text tower: its weights and what else decides its output."""

    def token_counts(self, captions: Sequence[str]) -> np.ndarray:
        """int32 [n]: tokens per caption with start and end, before truncation to the context."""

    def encode(self, captions: Sequence[str], *, advance: Callable[[int], None] | None = None) -> np.ndarray:
        """float32 [n, dimension], rows of norm 1, in the order given.

        `advance` is called with the number of captions each batch finished. Raises InputError when the encoder gives
        NaN or infinite values.
        """


class ImageEncoder(Protocol):
    """Embeds images into the same space as its text encoder."""

    spec: str
    dimension: int

    def weights_hash(self) -> str: ...

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """float32 [n, dimension], rows of norm 1."""
