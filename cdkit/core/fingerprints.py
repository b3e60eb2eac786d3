"""Input: one resolved input of a stage, with the fingerprint of its content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cdkit.core.config import InputKind
from cdkit.core.storage import SourceFile

EMBEDDED = "embedded"
REPORT_STAGE = "report"


@dataclass(frozen=True)
class Input:
    """One resolved input: what the config said, its content fingerprint, and for pool files the files."""

    name: str
    kind: InputKind
    value: Any
    fingerprint: str
    files: tuple[SourceFile, ...] = ()
