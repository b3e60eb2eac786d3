"""Failure kinds: what errors and statuses mean, and what is worth another try."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.error
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.fetching.failures import (
    FAILURE_KINDS,
    FetchFailure,
    backoff_seconds,
    classify,
    is_retryable,
    retry_seconds,
    status_failure,
)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (socket.gaierror(-2, "Name or service not known"), "dns"),
        (UnicodeError("label too long"), "dns"),
        (ConnectionRefusedError(), "refused"),
        (OSError(113, "No route to host"), "refused"),
        (ConnectionResetError(), "reset"),
        (BrokenPipeError(), "reset"),
        (http.client.RemoteDisconnected("closed"), "reset"),
        (http.client.IncompleteRead(b""), "reset"),
        (http.client.BadStatusLine("x"), "reset"),
        (TimeoutError(), "timeout"),
        (ssl.SSLCertVerificationError(1, "self-signed"), "tls"),
        (ssl.SSLError(1, "wrong version number"), "tls"),
        (ssl.SSLEOFError(8, "EOF"), "reset"),
        (FetchFailure("opt_out"), "opt_out"),
    ],
)
def test_errors_are_classified_bare_and_wrapped(error: Exception, kind: str) -> None:
    assert classify(error).kind == kind
    assert classify(urllib.error.URLError(error)).kind == kind


@given(st.integers(100, 599).filter(lambda status: not 200 <= status < 300))
def test_every_status_has_a_kind(status: int) -> None:
    failure = status_failure(status, "reason")
    assert failure.kind in FAILURE_KINDS
    assert failure.status == status
    assert failure.kind.startswith("http_") == (status >= 400 or status < 200)


def test_only_what_can_change_is_tried_again() -> None:
    retryable = {kind for kind in FAILURE_KINDS if is_retryable(kind, None, None)}
    assert retryable == {"timeout", "reset", "http_5xx", "memory"}
    assert is_retryable("http_4xx", 429, None)
    assert is_retryable("http_4xx", 429, 60.0)
    assert not is_retryable("http_4xx", 429, 86_400.0)
    assert not is_retryable("http_4xx", 410, None)


def test_waiting_grows_and_honours_the_server() -> None:
    assert [backoff_seconds(tries, None) for tries in (1, 2, 3)] == [1, 2, 4]
    assert backoff_seconds(1, 30.0) == 30
    assert backoff_seconds(3, 0.0) == 4
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    assert retry_seconds("Thu, 01 Jan 2026 12:00:30 GMT", now) == 30
    assert retry_seconds("Thu, 01 Jan 2026 11:00:00 GMT", now) == 0
    assert retry_seconds(" 7 ") == 7
    assert retry_seconds(None) is retry_seconds("soon") is retry_seconds("-1") is None
