"""Why a fetch failed: the failure kinds, how errors and statuses map to them, and which are worth another try."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.error
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FAILURE_KINDS = (
    *("dns", "refused", "reset", "timeout", "tls", "redirect", "scheme", "port", "blocked_address"),
    *("http_403", "http_404", "http_4xx", "http_5xx", "opt_out", "robots", "ai_txt"),
    *("protocol", "encoding", "too_large", "memory", "hash_mismatch", "blocklisted", "lost"),
)
# Said about the host, or by its owner: another spelling of the same URL would end the same way.
HOST_FAILURES = frozenset(
    {"dns", "refused", "tls", "scheme", "port", "blocked_address", "opt_out", "robots", "ai_txt", "blocklisted"}
)
# Not a failure: the fetch never began, because its host was busy until the deadline.
DEFERRED = "deferred"
LONGEST_RETRY_AFTER = 120.0
FIRST_BACKOFF = 1.0


class FetchFailure(Exception):
    """One fetch failed. kind: one of FAILURE_KINDS; status: the HTTP status where there was one."""

    def __init__(self, kind: str, detail: str = "", *, status: int | None = None, retry_after: float | None = None):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail
        self.status = status
        self.retry_after = retry_after


def status_failure(status: int, reason: str, retry_after: str | None = None) -> FetchFailure:
    """The failure that an HTTP status of 300 or more, or below 200, means."""
    if status in (403, 404):
        kind = f"http_{status}"
    elif 400 <= status < 500:
        kind = "http_4xx"
    elif 300 <= status < 400:
        kind = "redirect"
    else:
        kind = "http_5xx"
    return FetchFailure(kind, f"{status} {reason}"[:200], status=status, retry_after=retry_seconds(retry_after))


def retry_seconds(header: str | None, now: datetime | None = None) -> float | None:
    """Retry-After in seconds, given as a number or as a date; None when absent or unreadable."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def classify(error: BaseException) -> FetchFailure:
    """The failure that an exception of the network stack means; the innermost cause that says something decides."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, FetchFailure):
            return cause
    for cause in causes:
        kind = _kind(cause)
        if kind:
            return FetchFailure(kind, f"{type(cause).__name__}: {cause}"[:200])
    return FetchFailure("reset", f"{type(error).__name__}: {error}"[:200])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        reason = getattr(current, "reason", None) if isinstance(current, urllib.error.URLError) else None
        current = reason if isinstance(reason, BaseException) else current.__cause__


def _kind(error: BaseException) -> str | None:
    if isinstance(error, MemoryError) or "can't start new thread" in str(error):
        return "memory"
    # Order matters: TLS and DNS errors are OSErrors too, and a timeout inside TLS is a timeout.
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, socket.gaierror | UnicodeError | http.client.InvalidURL):
        return "dns"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "reset"
    if isinstance(error, ssl.SSLError | ssl.CertificateError):
        return "tls"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, ConnectionError | http.client.HTTPException):
        return "reset"
    if isinstance(error, OSError) and not isinstance(error, urllib.error.URLError):
        return "refused"  # no route, network unreachable, host down
    return None


def is_retryable(kind: str, status: int | None, retry_after: float | None) -> bool:
    """Whether another try may end differently: timeouts, resets, 429, 5xx and memory that others took.

    Not when the server asks for too long a wait.
    """
    if retry_after is not None and retry_after > LONGEST_RETRY_AFTER:
        return False
    return kind in {"timeout", "reset", "http_5xx", "memory"} or status == 429


def backoff_seconds(tries: int, retry_after: float | None) -> float:
    """How long to wait after `tries` failed tries: 1, 2, 4, … seconds, or longer where the server says so."""
    return max(FIRST_BACKOFF * 2.0 ** (tries - 1), retry_after or 0.0)
