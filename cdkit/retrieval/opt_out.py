"""Opt-out headers: X-Robots-Tag with noai or noimageai, and TDM-Reservation."""

from __future__ import annotations

from email.message import Message

OPT_OUTS = frozenset({"noai", "noimageai"})
# Directives that carry a value after a colon; any other word before a colon names a user agent.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def opts_out(headers: Message, agent: str) -> str | None:
    """The header that forbids this use to everybody or to `agent`, a lower-case token; None when there is none."""
    for value in headers.get_all("TDM-Reservation", []):
        if str(value).strip() == "1":
            return "TDM-Reservation: 1"
    for value in headers.get_all("X-Robots-Tag", []):
        if directives_for(str(value), agent) & OPT_OUTS:
            return f"X-Robots-Tag: {str(value)[:100]}"
    return None


def directives_for(value: str, agent: str) -> set[str]:
    """The directives of one X-Robots-Tag value that apply to `agent`: `noai, otherbot: noindex` is two scopes."""
    found, applies = set(), True
    for part in value.lower().split(","):
        directive = part.strip()
        name, colon, rest = directive.partition(":")
        if colon and name.strip() not in _VALUED:
            applies = name.strip() in {agent, "*"}
            directive = rest.strip()
        if applies and directive:
            found.add(directive.partition(":")[0].strip())
    return found
