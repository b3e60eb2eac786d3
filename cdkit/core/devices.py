"""Devices: the one choice of where a model runs, for encoders, training and drawing alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdkit.core.errors import ConfigError

if TYPE_CHECKING:
    import torch


def choose_device(device: str | None = None) -> torch.device:
    """The device named; for None or `auto` CUDA, else Apple's, else the CPU.

    Raises ConfigError for one that is not there, or on which nothing can be computed.
    """
    import torch

    if device in (None, "auto"):
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        chosen = torch.device(str(device))
        # `meta` is a device to torch, but has no numbers.
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"There is no device {device!r} here: {reason}",
            hint="Write cpu, cuda, cuda:0 or mps, or leave it out; cdkit doctor lists what this machine has.",
        ) from error
    return chosen
