"""Indexes of an older cdkit, whose embeddings are not of captions as today's encoders read them."""

from __future__ import annotations

from pathlib import Path

from cdkit.encoders import ENCODING
from cdkit.errors import InputError
from cdkit.manifest import Manifest
from cdkit.shell import command_line


def is_outdated(manifest: Manifest) -> bool:
    """Whether the embeddings were made by another reading of captions than the encoders of this cdkit have."""
    return bool(manifest.details["encoder"].get("encoding", 1) != ENCODING)


def outdated_note(folder: Path, manifest: Manifest) -> str:
    """What is wrong with an outdated index, and the command that makes it anew; empty for one that is up to date."""
    if not is_outdated(manifest):
        return ""
    return f"{_problem(folder)} Captions with such may be missed or misplaced. {_renewal(folder, manifest)}"


def refuse_outdated(folder: Path, manifest: Manifest) -> None:
    """Raise InputError for an outdated index: embeddings of two kinds in one index cannot be told apart later."""
    if is_outdated(manifest):
        raise InputError(f"{_problem(folder)} Nothing can be added to it.", hint=_renewal(folder, manifest))


def _problem(folder: Path) -> str:
    return (
        f"The index {folder} is outdated: an older cdkit embedded its captions as written, with entities, curly "
        "quotes and mojibake in them, not as CLIP reads them."
    )


def _renewal(folder: Path, manifest: Manifest) -> str:
    options = ("--encoder", manifest.details["encoder"]["spec"], "--out", folder, "--force", "--captions")
    pools = "the pools and options it was made with"
    if manifest.details.get("additions"):
        pools += " (add again what was added since)"
    return f"Renew it: {command_line('cdkit', 'index', 'build', *options)} … with {pools}."
