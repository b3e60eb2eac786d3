"""Servers, a context that records notes, and candidates made from URLs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdkit.cli.app import execute_command
from cdkit.core.protocols import Context
from cdkit.core.shards import parts
from cdkit.engines.local import LocalEngine
from cdkit.retrieval.candidates import Candidate
from tests.support.hashing_encoder import HashingEncoder
from tests.support.hostile_server import HostileServer
from tests.support.progress import Notes

ENCODER = HashingEncoder(threshold=0.6)


@pytest.fixture
def context() -> Context:
    return Context(LocalEngine(1), Notes())


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer() as running:
        yield running


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate and its key, as nobody should trust it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is needed to make a certificate")
    path = tmp_path / "self-signed.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(tmp_path / "key.pem")]
    subprocess.run(
        [openssl, "req", "-x509", *key, "-out", str(path), "-days", "2", "-subj", "/CN=127.0.0.1"],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + (tmp_path / "key.pem").read_text())
    return path


def candidates_of(urls: Sequence[str | None], md5: dict[int, str] | None = None) -> list[Candidate]:
    """One candidate per URL, each with a caption of its own."""
    return [
        Candidate("a dog", number, f"dog {number}", 1.0 - number / 10_000, url, md5=(md5 or {}).get(number))
        for number, url in enumerate(urls)
    ]


def retrieve(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Run the command; returns its exit code, the object it printed, and its words."""
    code = execute_command(["retrieve", *map(str, arguments), "--format", "json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out), printed.err


def rejected(out: Path) -> list[dict[str, Any]]:
    return [row for path in parts(out / "rejects") for row in pq.read_table(path).to_pylist()]
