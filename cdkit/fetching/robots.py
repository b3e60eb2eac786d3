"""robots.txt and ai.txt: what a host's owner lets programs fetch, asked for once per host and day.

The files' groups and rules are read by urllib.robotparser; which of them holds for a URL is decided as RFC 9309 has
it, section 2.2: the longest matching rule, with `*` and `$`, which the library does not know and rules for images are
made of (`Disallow: /*.jpg$`). ai.txt (Spawning's) is written alike, its patterns also without a slash (`*.jpg`).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote
from urllib.robotparser import RobotFileParser

from cdkit.core.fingerprints import DAY, CacheFile
from cdkit.core.formatting import json_text
from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.urls import WebUrl

# The failure kind of what each file forbids.
FILES = {"robots": "/robots.txt", "ai_txt": "/ai.txt"}
# Whose rules count: those of cdkit, and of the program that it fetches by; of others only where neither is named.
AGENTS = ("cdkit", "img2dataset")
# RFC 9309, section 2.5: as much of a file must be read at least.
MOST_BYTES = 500 << 10
RULES = CacheFile("robots.sqlite", most=20_000)
# The library keeps one group for everybody, where RFC 9309 joins them all.
_EVERYBODY = re.compile(r"^(\s*user-agent\s*:\s*)\*", re.IGNORECASE | re.MULTILINE)
_ANY = "everybody"
_TOO_MANY_REQUESTS = 429


@dataclass(frozen=True)
class Answer:
    """What a host said to one of the files: the status and the text."""

    status: int
    text: str = ""


# Asks for one of the files; raises FetchFailure when there is no answer at all.
AskFile = Callable[[WebUrl], Answer]


class HostRules:
    """What hosts allow, by their files; safe for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, Future[dict[str, Answer]]] = {}

    def require(self, url: WebUrl, ask: AskFile, patience: float) -> None:
        """Raise FetchFailure, robots or ai_txt, when a file of the URL's host forbids it.

        Whoever comes first asks, the others wait for at most `patience` seconds. A file that is not there forbids
        nothing, one that cannot be told (5xx, 429) everything: RFC 9309, section 2.3.1.
        """
        host = url.origin
        with self._lock:
            first = host not in self._answers
            answers = self._answers.setdefault(host, Future())
        if first:
            self._ask(host, answers, url, ask)
        path = url.text.removeprefix(host)
        for kind, answer in answers.result(patience).items():
            if answer.status >= 500 or answer.status == _TOO_MANY_REQUESTS:
                raise FetchFailure(kind, f"{FILES[kind]} answered {answer.status}", status=answer.status)
            rule = forbidding_rule(answer.text, path)
            if rule is not None:
                raise FetchFailure(kind, f"{FILES[kind]}: {rule}"[:200], status=answer.status)

    def _ask(self, host: str, answers: Future[dict[str, Answer]], url: WebUrl, ask: AskFile) -> None:
        try:
            answers.set_result({kind: _kept_or_asked(host, name, url, ask) for kind, name in FILES.items()})
        except BaseException as error:
            # The next one asks again.
            with self._lock:
                self._answers.pop(host, None)
            answers.set_exception(error)


def _kept_or_asked(host: str, name: str, url: WebUrl, ask: AskFile) -> Answer:
    key = hashlib.sha256(f"{host}{name}".encode()).digest()
    try:
        kept = json.loads(RULES.get([key]).get(key, b""))
        if 0 <= time.time() - kept["at"] < DAY:
            return Answer(kept["status"], kept["text"])
    except (ValueError, KeyError, TypeError):
        pass
    answer = ask(WebUrl(f"{host}{name}", url.scheme, url.host, url.port))
    if 200 <= answer.status < 300:
        RULES.put({key: json_text({"at": time.time(), "status": answer.status, "text": answer.text}).encode()})
    elif 400 <= answer.status < 500 and answer.status != _TOO_MANY_REQUESTS:
        RULES.put({key: json_text({"at": time.time(), "status": answer.status, "text": ""}).encode()})
    return answer


def forbidding_rule(text: str, path: str, agents: Sequence[str] = AGENTS) -> str | None:
    """The rule of a file that forbids a path (with its query) to one of the agents; None when it is allowed."""
    groups = _groups(text)
    named = [groups[agent] for agent in agents if agent in groups]
    for rules in named or [groups.get(_ANY, [])]:
        matching = [(len(rule.pattern), rule.allows, rule.pattern) for rule in rules if rule.matches(unquote(path))]
        # Of equally long ones that allow and forbid, the one that allows counts.
        if matching and not max(matching)[1]:
            return f"Disallow: {max(matching)[2]}"
    return None


@dataclass(frozen=True)
class _Rule:
    """One line: a pattern, percent-decoded, and whether it allows."""

    pattern: str
    allows: bool

    def matches(self, path: str) -> bool:
        """Whether a path, percent-decoded, begins like the pattern; `*` is any text, a last `$` the path's end."""
        pattern = self.pattern if self.pattern.startswith(("/", "*")) else f"/{self.pattern}"
        first, *others = pattern.removesuffix("$").split("*")
        if not path.startswith(first):
            return False
        place, last = len(first), ""
        if pattern.endswith("$"):
            if not others:
                return path == first
            last = others.pop()
        for piece in others:
            # The first place will do: it leaves most to what follows. A regular expression would try every other.
            start = path.find(piece, place)
            if start < 0:
                return False
            place = start + len(piece)
        return path.endswith(last) and len(path) - len(last) >= place


@lru_cache(maxsize=256)
def _groups(text: str) -> Mapping[str, list[_Rule]]:
    """The rules of a file by agent in lower case, those of all its groups together."""
    parser: Any = RobotFileParser()
    parser.parse(_EVERYBODY.sub(rf"\1{_ANY}", text.removeprefix("\ufeff")).splitlines())
    groups: dict[str, list[_Rule]] = {}
    for entry in parser.entries:
        rules = [_Rule(unquote(line.path), line.allowance) for line in entry.rulelines if line.path]
        for name in entry.useragents:
            groups.setdefault(name.partition("/")[0].strip().lower(), []).extend(rules)
    return groups
