"""The CPUs there are to use, and the devices that there are and are not."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.core.errors import ConfigError
from cdkit.core.machine import cgroup_quota, choose_device, cpu_count
from cdkit.core.threads import thread_count
from cdkit.deltas.base_model import load_base_model
from cdkit.encoders import load_text_encoder
from cdkit.encoders.image_towers import load_image_encoder
from cdkit.engines import create_engine

V2_MOUNT = "35 24 0:29 {root} {top} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "36 24 0:30 {root} {top} rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct"
MEMORY_MOUNT = "37 24 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
DISK_MOUNT = "24 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw"


def _machine(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    """A root folder with /proc/self and the cgroup files given."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text("\n".join([DISK_MOUNT, MEMORY_MOUNT, *mounts, "no mount at all"]))
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


V2 = [V2_MOUNT.format(root="/", top="/sys/fs/cgroup")]
V1 = [V1_MOUNT.format(root="/", top="/sys/fs/cgroup/cpu,cpuacct")]
DOCKER_V1 = [V1_MOUNT.format(root="/docker/abc", top="/sys/fs/cgroup/cpu")]
MACHINES = {
    "v2, in a container of its own": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
    "v2, a service": (
        "0::/system.slice/a.service\n",
        V2,
        {"sys/fs/cgroup/system.slice/a.service/cpu.max": "50000 100000"},
        0.5,
    ),
    "v2, the group above is narrower": (
        "0::/jobs/7/step\n",
        V2,
        {
            "sys/fs/cgroup/jobs/7/step/cpu.max": "400000 100000",
            "sys/fs/cgroup/jobs/7/cpu.max": "200000 100000",
            "sys/fs/cgroup/jobs/cpu.max": "max 100000",
        },
        2.0,
    ),
    "v2, no limit": ("0::/a\n", V2, {"sys/fs/cgroup/a/cpu.max": "max 100000"}, None),
    "v2, the path is the host's": ("0::/kube/pod7\n", V2, {"sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
    "v2, the path lies outside": ("0::/../../other\n", V2, {"sys/fs/cgroup/cpu.max": "max 100000"}, None),
    "v1": (
        "4:cpu,cpuacct:/batch\n3:memory:/batch\n0::/\n",
        V1,
        {
            "sys/fs/cgroup/cpu,cpuacct/batch/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu,cpuacct/batch/cpu.cfs_period_us": "100000",
        },
        2.5,
    ),
    "v1, in a container": (
        "4:cpu,cpuacct:/docker/abc\n",
        DOCKER_V1,
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000"},
        2.0,
    ),
    "v1, no limit": (
        "4:cpu,cpuacct:/\n",
        V1,
        {
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        None,
    ),
    "nonsense": ("0::/\nwhat\n", V2, {"sys/fs/cgroup/cpu.max": "many"}, None),
    "a period of nothing": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "1000 0"}, None),
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_quota_of_a_cgroup_is_found(name: str, tmp_path: Path) -> None:
    groups, mounts, files, expected = MACHINES[name]
    assert cgroup_quota(_machine(tmp_path, groups, mounts, files)) == expected


def test_a_machine_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (1.5, 2), (0.2, 1), (16.0, 4)])
def test_cpus_are_those_of_affinity_and_quota(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdkit.core.machine.cgroup_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert (cpu_count(), thread_count(), thread_count(small=True)) == (expected, expected, 1)
    assert create_engine("local", None).workers == expected


LOADING: dict[str, Callable[[str | None], Any]] = {
    "text encoder": lambda device: load_text_encoder("embedded", device=device),
    "image encoder": lambda device: load_image_encoder("embedded", device=device),
    "base model": lambda device: load_base_model("embedded", device=choose_device(device)),
}


@pytest.mark.parametrize("device", [None, "auto"])
@pytest.mark.parametrize("kind", LOADING)
def test_apples_gpu_is_chosen_by_all(monkeypatch: pytest.MonkeyPatch, kind: str, device: str | None) -> None:
    assert LOADING[kind]("cpu").device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # Cached, as torch's own is: torch looks behind the cache.
    monkeypatch.setattr(torch.backends.mps, "is_available", cache(lambda: True))
    # This torch is built without it, and says so when a model is sent there.
    with pytest.raises((RuntimeError, AssertionError), match=r"mps|MPS"):
        LOADING[kind](device)


def test_cuda_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device().type == "cuda"
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["cdua", "cuda:99", "meta", "", "cpu:x", "-1"])
@pytest.mark.parametrize("kind", LOADING)
def test_a_device_that_is_not_there_is_one_mistake_everywhere(kind: str, device: str) -> None:
    with pytest.raises(ConfigError, match=f"There is no device '{device}' here") as caught:
        LOADING[kind](device)
    assert "cdkit doctor" in caught.value.hint
