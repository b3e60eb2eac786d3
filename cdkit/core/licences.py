"""Licences of pictures as pools word them (an address, a name, Flickr's words), by one short name each.

Only wordings that are known in full have a name: of anything else nothing is known, and what is unknown is not free.
"""

from __future__ import annotations

import re
from functools import lru_cache

PUBLIC_DOMAIN, CC0, NO_KNOWN_COPYRIGHT, US_GOVERNMENT = "public-domain", "cc0", "no-known-copyright", "us-government"
LICENCES = (
    *(PUBLIC_DOMAIN, CC0, NO_KNOWN_COPYRIGHT, US_GOVERNMENT),
    *("cc-by", "cc-by-sa", "cc-by-nd", "cc-by-nc", "cc-by-nc-sa", "cc-by-nc-nd"),
)
# Those that let a picture be passed on, changed too; all but the first four ask for attribution.
FREE = frozenset({PUBLIC_DOMAIN, CC0, NO_KNOWN_COPYRIGHT, US_GOVERNMENT, "cc-by", "cc-by-sa"})

_CODES = r"by(?:-nc)?(?:-nd|-sa)?"
_VERSION = r"(?:-?v?\d(?:\.\d)?)?"
_WHERE = r"(?:-(?:[a-z]{2}|international|generic|unported|universal))?"
_END = rf"{_VERSION}{_WHERE}(?:-public)?(?:-(?:licen[cs]e|dedication|deed))?"
_ADDRESS = re.compile(
    rf"(?:https?://)?(?:www\.)?creativecommons\.org/(?:licenses/(?P<code>{_CODES})|publicdomain/(?P<tool>zero|mark))"
    r"(?:/\d\.\d)?(?:/[a-z]{2,4})?(?:/(?:deed|legalcode)[^/]*)?/?"
)
_NAME_AND_ADDRESS = re.compile(r"(?P<name>[^:/]*\w)[\s,:(<]+(?P<address>https?://[^\s)>]+)[)>]?")
_FLICKR_COMMONS = re.compile(r"(?:https?://)?(?:www\.)?flickr\.com/commons/usage/?")
_CODE = re.compile(rf"(?:cc-)?(?P<code>by-(?:nc|sa|nd)(?:-(?:sa|nd))?)(?:{_END})|cc-(?P<plain>by){_END}")
_WORDS = re.compile(
    r"(?:cc-|creative-commons-)?(?P<by>attribution)(?P<nc>-non-?commercial)?(?P<sa>-share-?alike)?"
    rf"(?P<nd>-no-?deriv(?:ative)?s(?:-works)?)?{_END}"
)
_NAMES = {
    PUBLIC_DOMAIN: re.compile(
        rf"(?:cc-)?(?:pd|pdm|public-domain(?:-mark)?){_END}|pd-(?:us|old|art)|public-domain-work"
    ),
    CC0: re.compile(rf"(?:cc-?0|cc-zero|(?:creative-commons-)?zero|public-domain-dedication-\(cc0\)){_END}"),
    NO_KNOWN_COPYRIGHT: re.compile(r"no-known-copyright(?:-restrictions?)?(?:-\(flickr-commons\))?"),
    US_GOVERNMENT: re.compile(r"(?:us|u\.s\.|united-states)-government(?:-work)?"),
}


@lru_cache(maxsize=1 << 12)
def licence_code(text: str | None) -> str | None:
    """The short name (of LICENCES) of a licence in a pool's words; None for one that is unknown, or not stated."""
    words = (text or "").strip().lower()
    if both := _NAME_AND_ADDRESS.fullmatch(words):
        codes = {licence_code(both["name"]), licence_code(both["address"])}
        return codes.pop() if len(codes) == 1 else None
    if match := _ADDRESS.fullmatch(words):
        tools = {"zero": CC0, "mark": PUBLIC_DOMAIN}
        return tools[match["tool"]] if match["tool"] else f"cc-{match['code']}"
    if _FLICKR_COMMONS.fullmatch(words):
        return NO_KNOWN_COPYRIGHT
    word = re.sub(r"[\s_/–-]+", "-", words)
    if match := _CODE.fullmatch(word):
        code = f"cc-{match['code'] or match['plain']}"
        return code if code in LICENCES else None
    if match := _WORDS.fullmatch(word):
        code = "-".join(["cc-by", *(name for name in ("nc", "sa", "nd") if match[name])])
        return code if code in LICENCES else None
    return next((name for name, pattern in _NAMES.items() if pattern.fullmatch(word)), None)
