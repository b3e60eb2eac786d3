"""Processes and devices of one training, through accelerate; gradients averaged over all of them."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdkit.core.errors import CdkitError, ConfigError, MissingExtraError
from cdkit.core.threads import environment
from cdkit.engines.local import end_with_parent, require_main_guard

if TYPE_CHECKING:
    from accelerate import Accelerator


LONGEST_WAIT = timedelta(minutes=10)
GRACE_SECONDS, POLL_SECONDS = 10.0, 0.1
# As the process group, of which there is one in a process.
_BROKEN = threading.Event()


@dataclass(frozen=True)
class Team:
    """One process' place among those that train together. address: where they meet (host:port).

    helpers: the others, known to the first.
    """

    rank: int = 0
    size: int = 1
    address: str = ""
    helpers: tuple[Helper, ...] = ()

    def environment(self) -> dict[str, str]:
        """What accelerate and torch read."""
        if self.size == 1:
            return {}
        host, port = self.address.rsplit(":", 1)
        rank, size = str(self.rank), str(self.size)
        return {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
        }


@dataclass(frozen=True)
class Helper:
    """A further training process; what stopped it comes through `errors`."""

    rank: int
    process: Any
    errors: Connection

    def failure(self) -> CdkitError | None:
        """Why the process is dead, or about to be; None while it is not, and when it ended as it should."""
        with suppress(EOFError, OSError):
            if self.errors.poll():
                return self.errors.recv()  # type: ignore[no-any-return]
        if self.process.exitcode in (None, 0):
            return None
        return CdkitError(
            f"Training process {self.rank} died (exit code {self.process.exitcode}).",
            hint="Killed, or out of memory? Run the same command again: it goes on from the last checkpoint.",
        )


@contextmanager
def started_team(size: int, work: Callable[..., None], arguments: Sequence[Any]) -> Iterator[Team]:
    """Start `work(*arguments, team)` in size − 1 further processes; yields this process' place, the first.

    When one of them dies, what this one waits for is broken off, and the error says why it died.
    """
    if size == 1:
        yield Team()
        return
    require_main_guard()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    context = torch.multiprocessing.get_context("spawn")
    helpers: list[Helper] = []
    ended = threading.Event()
    watcher = threading.Thread(target=_break_off_when_one_dies, args=(helpers, ended), daemon=True)
    _BROKEN.clear()
    try:
        for rank in range(1, size):
            ours, theirs = context.Pipe(duplex=False)
            further = Team(rank, size, address)
            process = context.Process(target=_help, args=(theirs, work, arguments, further), daemon=True)
            process.start()
            theirs.close()
            helpers.append(Helper(rank, process, ours))
        watcher.start()
        try:
            yield Team(0, size, address, tuple(helpers))
        except RuntimeError as error:
            # A broken connection is noticed a moment before the process is gone.
            until = time.monotonic() + GRACE_SECONDS
            while (failure := _failure(helpers)) is None and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            if failure is None:
                raise
            raise failure from error
        for helper in helpers:
            helper.process.join(LONGEST_WAIT.total_seconds())
        failure = _failure(helpers)
        if failure is not None:
            raise failure
    finally:
        ended.set()
        for helper in helpers:
            if helper.process.is_alive():
                helper.process.terminate()
            helper.process.join()
            helper.errors.close()
        if watcher.ident is not None:
            watcher.join()
        _BROKEN.clear()


def _help(errors: Connection, work: Callable[..., None], arguments: Sequence[Any], team: Team) -> None:
    """What a further process does."""
    end_with_parent()
    try:
        work(*arguments, team)
    except CdkitError as error:
        errors.send(error)
        raise SystemExit(1) from None
    except Exception as error:
        errors.send(CdkitError(f"Training process {team.rank} ended with {type(error).__name__}: {error}"))
        raise


def _failure(helpers: Sequence[Helper]) -> CdkitError | None:
    return next((failure for helper in helpers if (failure := helper.failure()) is not None), None)


def _break_off_when_one_dies(helpers: Sequence[Helper], ended: threading.Event) -> None:
    """Wait for the first process that fails, and break off what this one does together with it."""
    alive = {helper.process.sentinel: helper for helper in helpers}
    while alive:
        for sentinel in wait(list(alive)):
            helper = alive.pop(sentinel)
            helper.process.join()
            if helper.process.exitcode == 0:
                continue
            if not ended.is_set():
                _BROKEN.set()
                with suppress(Exception):
                    # Sockets break by themselves; a GPU would wait for the others until LONGEST_WAIT is over.
                    if torch.distributed.get_backend() == "nccl":
                        torch.distributed.distributed_c10d._abort_process_group()
            return


def check_whole() -> None:
    """Raise RuntimeError when a process of the team has died: what was computed together since then is worthless."""
    if _BROKEN.is_set():
        raise RuntimeError("A training process has died.")


def _meet(team: Team, device: torch.device) -> None:
    """Join the team's process group as soon as all its processes are there; raises what a dead one died of."""
    host, port = team.address.rsplit(":", 1)
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(
        host, int(port), team.size, is_master=team.rank == 0, timeout=LONGEST_WAIT, wait_for_workers=False
    )
    store.set(f"here {team.rank}", "1")
    if team.rank == 0:
        while not store.check([f"here {rank}" for rank in range(team.size)]):
            failure = _failure(team.helpers)
            if failure is not None:
                raise failure
            time.sleep(POLL_SECONDS)
        store.set("all here", "1")
    store.wait(["all here"])
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(
        backend, store=store, rank=team.rank, world_size=team.size, timeout=LONGEST_WAIT
    )


@contextmanager
def accelerated(
    team: Team, *, device: torch.device, precision: str, tensorboard: Path | None = None
) -> Iterator[Accelerator]:
    """An Accelerator for this process; what it sets for the whole process is taken back at the end.

    Raises ConfigError for fp16 on a CPU, bf16 on a card that has none, and for more processes than GPUs.
    """
    _check(team, device, precision)
    if tensorboard is not None and not _has_tensorboard():
        raise MissingExtraError("--tensorboard", extra="tensorboard")
    variables = team.environment()
    if device.index is not None and team.size == 1:
        variables["ACCELERATE_TORCH_DEVICE"] = str(device)
    with environment(variables), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        if team.size > 1:
            _meet(team, device)
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=precision,
            log_with="tensorboard" if tensorboard else None,
            project_dir=str(tensorboard) if tensorboard else None,
        )
        if tensorboard is not None:
            accelerator.init_trackers("metrics")
        try:
            yield accelerator
        finally:
            accelerator.end_training()
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)


def _check(team: Team, device: torch.device, precision: str) -> None:
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 needs a GPU.", hint="On a CPU use --precision no (or bf16).")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} cannot compute in bf16.",
            hint="Use --precision fp16, or no for fp32, which takes twice the memory.",
        )
    if team.size > 1 and device.type == "cuda" and team.size > torch.cuda.device_count():
        raise ConfigError(
            f"{team.size} processes need as many GPUs; this machine has {torch.cuda.device_count()}.",
            hint="Lower --processes, or use --gradient-accumulation.",
        )


def _has_tensorboard() -> bool:
    from accelerate.utils import is_tensorboard_available

    return bool(is_tensorboard_available())


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """The mean gradient over all processes, in place, sent as one vector; a missing gradient counts as zero.

    The loop calls this once a step: wrapping modules would tie the gradients' exchange to one forward pass each.
    Raises RuntimeError when one of them has died.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    check_whole()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def total(sums: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes; raises RuntimeError when one of them has died."""
    check_whole()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    return sums


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; from page-locked memory, because a GPU copies from other memory only when idle."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
