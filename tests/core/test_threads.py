"""Threads: what --threads sets, and that idle threads sleep."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import typer

from cdkit.cli.app import app
from cdkit.core.config import ModelConfig, ThreadedConfig, field_settings
from cdkit.core.threads import NUMBERS, WAITING, set_threads, thread_count, threads
from cdkit.engines import create_engine
from cdkit.stages import STAGES


@pytest.mark.parametrize(("value", "expected"), [("3", 3), (" 3 ", 3), ("4,2", 4), ("0", 1), ("many", 1), ("", 1)])
def test_what_the_user_set_for_openmp_counts(value: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert thread_count(small=True) == expected


def _in_python(code: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in (*NUMBERS, *WAITING)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


SHOW = (
    "import os, cdkit; print({n: os.environ.get(n) for n in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')})"
)


@pytest.mark.parametrize(
    ("set_before", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": "0"}),
        *(
            ({name: value}, {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": None} | {name: value})
            for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "1000"), ("KMP_BLOCKTIME", "200"))
        ),
    ],
)
def test_threads_wait_passively_unless_the_user_said_otherwise(
    set_before: dict[str, str], expected: dict[str, str | None]
) -> None:
    assert _in_python(SHOW, **set_before) == str(expected)


LIBRARIES = """
import json
from cdkit.core.threads import threads
{before}
with threads(1):
    import torch, faiss, pyarrow
    inside = torch.get_num_threads(), faiss.omp_get_max_threads(), pyarrow.cpu_count()
outside = torch.get_num_threads(), faiss.omp_get_max_threads(), pyarrow.cpu_count()
print(json.dumps([inside, outside]))
"""


@pytest.mark.parametrize("before", ["", "import torch, faiss, pyarrow", "import faiss"])
def test_libraries_take_the_number_whenever_they_are_loaded(before: str) -> None:
    inside, outside = json.loads(_in_python(LIBRARIES.format(before=before), OMP_NUM_THREADS="2"))
    assert (inside, outside) == ([1, 1, 1], [2, 2, 2])


def test_the_environment_is_as_before_after_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    with threads(1):
        assert os.environ["RAYON_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"] == "1"
    assert (os.environ["OMP_NUM_THREADS"], "RAYON_NUM_THREADS" in os.environ) == ("2", False)


def _seen(_: int) -> tuple[int, str]:
    import torch

    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


@pytest.mark.parametrize(("count", "workers", "expected"), [(4, 2, 2), (1, 2, 1), (5, 2, 2)])
def test_workers_share_the_threads(count: int, workers: int, expected: int) -> None:
    with threads(count):
        outcomes = [outcome.unwrap() for outcome in create_engine("local", workers).map(_seen, [1, 2], label="seen")]
    assert outcomes == [(expected, str(expected))] * 2


HEAVY = [
    *("train", "sample", "class-images", "evaluate", "merge", "retrieve", "run", "export"),
    *("index import", "index embed", "index build", "index add", "tokens count", "tokens rare"),
    *("inspect attention", "delta compress"),
]


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_commands_take_threads(name: str) -> None:
    command = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]  # type: ignore[attr-defined]
    options = {flag for parameter in command.params for flag in parameter.opts}
    assert "--threads" in options


def test_threads_stay_out_of_fingerprints_and_are_few_for_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("cdkit.core.threads.cpu_count", lambda: 8)
    threaded = [
        kind for kind in (stage.config_class() for stage in STAGES.values()) if issubclass(kind, ThreadedConfig)
    ]
    assert len(threaded) >= 13
    assert all(field_settings(kind)["threads"].execution for kind in threaded)
    assert ModelConfig().thread_count() == 1
    assert ModelConfig(base="owner/name").thread_count() == 8
    assert ModelConfig(base="owner/name", threads=3).thread_count() == ModelConfig(threads=3).thread_count() == 3


def test_set_threads_reaches_what_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NUMBERS:
        monkeypatch.setenv(name, "1")
    set_threads(2)
    try:
        code = "import torch; print(torch.get_num_threads())"
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "2"
    finally:
        set_threads(1)
