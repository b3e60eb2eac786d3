"""Servers, a context that records notes, and candidates made from URLs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cdkit.core.protocols import Context
from cdkit.engines.local import LocalEngine
from cdkit.retrieval.candidates import Candidate
from tests.support.hostile_server import HostileServer
from tests.support.progress import Notes


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
