"""Processes and devices of one training, through accelerate; gradients averaged over all of them."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdkit.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from accelerate import Accelerator

LONGEST_WAIT = timedelta(minutes=10)


@dataclass(frozen=True)
class Team:
    """One process' place among those that train together. address: where they meet (host:port)."""

    rank: int = 0
    size: int = 1
    address: str = ""

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


@contextmanager
def started_team(size: int, work: Callable[..., None], arguments: Sequence[Any]) -> Iterator[Team]:
    """Start `work(*arguments, team)` in size − 1 further processes; yields this process' place, the first."""
    if size == 1:
        yield Team()
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    context = torch.multiprocessing.get_context("spawn")
    others = [
        context.Process(target=work, args=(*arguments, Team(rank, size, address)), daemon=True)
        for rank in range(1, size)
    ]
    for process in others:
        process.start()
    try:
        yield Team(0, size, address)
        for process in others:
            process.join(LONGEST_WAIT.total_seconds())
    finally:
        for process in others:
            if process.is_alive():
                process.terminate()
            process.join()


@contextmanager
def accelerated(
    team: Team, *, device: torch.device, precision: str, tensorboard: Path | None = None
) -> Iterator[Accelerator]:
    """An Accelerator for this process; what it sets for the whole process is taken back at the end.

    Raises ConfigError for fp16 on a CPU and for more processes than GPUs.
    """
    _check(team, device, precision)
    if tensorboard is not None and not _has_tensorboard():
        raise MissingExtraError("--tensorboard", extra="tensorboard")
    environment = team.environment()
    if device.index is not None and team.size == 1:
        environment["ACCELERATE_TORCH_DEVICE"] = str(device)
    with _environment(environment), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import InitProcessGroupKwargs

        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)] if team.size > 1 else None,
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
    if team.size > 1 and device.type == "cuda" and team.size > torch.cuda.device_count():
        raise ConfigError(
            f"{team.size} processes need as many GPUs; this machine has {torch.cuda.device_count()}.",
            hint="Lower --processes, or use --gradient-accumulation.",
        )


def _has_tensorboard() -> bool:
    from accelerate.utils import is_tensorboard_available

    return bool(is_tensorboard_available())


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """The mean gradient over all processes, in place, sent as one vector; a missing gradient counts as zero.

    The loop calls this once a step: wrapping modules would tie the gradients' exchange to one forward pass each.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def total(sums: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    return sums
