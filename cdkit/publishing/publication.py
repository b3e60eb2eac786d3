"""What is about to be published: the files as the repository will hold them, and what is left out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cdkit
from cdkit.core.formatting import json_text
from cdkit.core.templates import markdown_of, template_environment
from cdkit.fetching.hub import RepositoryKind

if TYPE_CHECKING:
    from jinja2 import Environment

Kind = Literal["set", "index", "delta"]
REPOSITORIES: Mapping[Kind, RepositoryKind] = {"set": "dataset", "index": "dataset", "delta": "model"}
CARD_NAME = "README.md"
# By this file a later publication knows that the repository is cdkit's, and what it holds.
MARK_NAME = "cdkit.json"
TEMPLATES = Path(__file__).parent / "templates"
OTHER = "other"


@dataclass(frozen=True)
class Publication:
    """The files by their names in the repository: paths here, or contents made for it.

    rows: published, of those there are; refused: the others by reason. notes: what the user should know before.
    base: of a delta, the model it goes on, as the card names it.
    """

    kind: Kind
    files: Mapping[str, Path | bytes]
    rows: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    base: str = ""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }

    @property
    def card(self) -> str:
        content = self.files[CARD_NAME]
        return content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")


def mark(kind: Kind, **facts: Any) -> bytes:
    """The content of cdkit.json."""
    return (json_text({"kind": kind, "cdkit": cdkit.__version__, **facts}, indent=2) + "\n").encode()


def licence_entry(licence: str, name: str) -> dict[str, str]:
    """The licence in a card's front matter; the hub asks for a name where it is none that it knows."""
    return {"license": licence} if licence != OTHER else {"license": licence, "license_name": name}


def front_matter(values: Mapping[str, Any]) -> str:
    """The YAML at the head of a card, which the hub reads."""
    import yaml

    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=110)).strip()


def render_card(template: str, **values: Any) -> bytes:
    """A card from its template; templates escape with `md`, `code` and `fenced`."""
    return markdown_of(_environment().get_template(template).render(**values)).encode()


@cache
def _environment() -> Environment:
    return template_environment(TEMPLATES)
