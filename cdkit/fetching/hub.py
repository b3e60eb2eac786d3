"""The Hugging Face Hub: what `hub:USER/NAME` names there, and what the hub's refusals mean.

The token is huggingface_hub's own affair: it reads $HF_TOKEN or what `hf auth login` stored, and nothing here sees it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cdkit.core.errors import CdkitError, ConfigError, NetworkError, causes, system_problem
from cdkit.core.formatting import first_line, without_credentials, without_userinfo

HUB = "hub:"
RepositoryKind = Literal["model", "dataset"]
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token of https://huggingface.co/settings/tokens."
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

# How hf_xet, through which large files go where it is installed, tells of an answer.
_TOLD = re.compile(r"HTTP status \w+ error \((\d{3})\b")


class HubError(NetworkError):
    """The hub refused, or could not be reached. status: of its answer; wait: seconds it asks to wait, if it does."""

    code = "hub"

    def __init__(self, message: str, *, hint: str = "", status: int | None = None, wait: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.wait = wait


@dataclass(frozen=True)
class Repository:
    """A repository on the hub: `USER/NAME`, and whether it holds a model (deltas too) or a dataset (sets, indexes)."""

    name: str
    kind: RepositoryKind

    @classmethod
    def parse(cls, text: str, kind: RepositoryKind) -> Repository:
        """The repository that `USER/NAME`, with or without `hub:` in front, names; raises ConfigError."""
        name = text.removeprefix(HUB)
        if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
            raise ConfigError(
                f"{text!r} is no name of a repository on the hub.",
                hint="Write USER/NAME: letters, digits, '-', '_' and '.', at most 96 each.",
            )
        return cls(name, kind)

    @property
    def url(self) -> str:
        """Where people look at it."""
        from huggingface_hub import constants

        endpoint = without_userinfo(constants.ENDPOINT)
        return f"{endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def commit(self) -> str:
        """The commit that its main branch is at; the one in the cache when the hub cannot be reached.

        Raises HubError when neither is to be had.
        """
        from huggingface_hub import HfApi

        try:
            with hub_errors(self):
                return str(HfApi().repo_info(self.name, repo_type=self.kind).sha)
        except HubError as error:
            cached = self.cached_commit() if error.status is None else ""
            if cached:
                return cached
            raise

    def cached_commit(self) -> str:
        """The commit of main that the hub's cache on this machine has; empty when it has none."""
        reference = self._cache() / "refs" / "main"
        return reference.read_text(encoding="ascii", errors="replace").strip() if reference.is_file() else ""

    def cached_folder(self) -> Path | None:
        """What the hub's cache on this machine has of main, all of it or not; None when it has nothing."""
        commit = self.cached_commit()
        folder = self._cache() / "snapshots" / commit
        return folder if commit and folder.is_dir() else None

    def _cache(self) -> Path:
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE) / f"{self.kind}s--{self.name.replace('/', '--')}"

    def folder(self, commit: str | None = None) -> Path:
        """All its files at a commit, or at what main is now, in the hub's cache, fetched there when they are not.

        Raises HubError when that fails.
        """
        from huggingface_hub import snapshot_download

        with hub_errors(self), without_bars():
            return Path(snapshot_download(self.name, repo_type=self.kind, revision=commit))


def came_from_hub(folder: Path) -> bool:
    """Whether a folder lies in the hub's cache on this machine: somebody else wrote what is in it."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(os.path.abspath(folder)).is_relative_to(os.path.abspath(HF_HUB_CACHE))


@contextmanager
def without_bars() -> Iterator[None]:
    """Without huggingface_hub's own bars and warnings: ours are shown, and errors say what went wrong."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled, level = are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not disabled:
            enable_progress_bars()


@contextmanager
def hub_errors(repository: Repository) -> Iterator[None]:
    """Turn whatever talking to the hub about a repository raises into a HubError; a full disk stays what it is."""
    try:
        yield
    except CdkitError:
        raise
    except Exception as error:
        raise _problem(error, repository) from error


def _problem(error: Exception, repository: Repository) -> CdkitError:
    # Of the hub's own words nothing is passed on: they may repeat what was sent.
    answer = next((cause.response for cause in causes(error) if hasattr(cause, "response")), None)
    status = getattr(answer, "status_code", None)
    if status is None and (told := next(filter(None, (_TOLD.search(str(cause)) for cause in causes(error))), None)):
        status = told[1]
    if status is not None:
        return _refusal(int(status), _seconds_to_wait(answer), repository)
    if any(type(cause).__name__ in ("OfflineModeIsEnabled", "LocalEntryNotFoundError") for cause in causes(error)):
        return HubError(
            f"The {repository} is not on this machine, and the hub cannot be asked.",
            hint="Unset HF_HUB_OFFLINE, and check the connection and $HF_ENDPOINT.",
        )
    if any(isinstance(cause, UnicodeError) or "header" in str(cause).lower() for cause in causes(error)):
        # Such an error quotes what was to be sent.
        return HubError("The hub's token has characters that no token has.", hint=LOG_IN)
    problem = None if isinstance(error, ConnectionError | TimeoutError) else system_problem(error, None)
    if problem is not None and not isinstance(problem, NetworkError):
        return problem
    return HubError(
        f"The connection to the hub broke over the {repository} ({type(error).__name__}: {_said(error)}).",
        hint="Check the connection and run the same command again: what arrived is not sent again.",
    )


def _said(error: Exception) -> str:
    """What a connection's error says, without what addresses may carry: passwords, and signatures behind `?`."""
    return re.sub(r"\?\S+", "?…", without_credentials(first_line(error)))


def _seconds_to_wait(answer: Any) -> float | None:
    """What Retry-After says in seconds; None for a date, or nothing."""
    text = str(getattr(answer, "headers", {}).get("Retry-After") or "").strip()
    return float(text) if text.isdigit() else None


def _refusal(status: int, wait: float | None, repository: Repository) -> HubError:
    meanings = {
        401: ("does not know who asks, or knows no such repository", f"Check the name. {LOG_IN}"),
        403: (
            "does not let this token do that",
            f"Use a token that may write to {repository.name.split('/')[0]}, or a name of your own.",
        ),
        404: (
            "knows no such repository, or keeps it private",
            f"Check the name, and that it is a {repository.kind}. {LOG_IN}",
        ),
        409: (
            "was changed by somebody else at the same time",
            "Run the same command again: what arrived is not sent again.",
        ),
        413: ("does not take files of this size", "Publish fewer or smaller files."),
        429: (
            "has had too many requests",
            f"Run the same command again {f'in {wait:.0f} seconds' if wait else 'later'}; "
            "what arrived is not sent again.",
        ),
    }
    trouble = ("is in trouble", "Run the same command again later; what arrived is not sent again.")
    what, hint = meanings.get(status, trouble if status >= 500 else ("refused", "Check the name and the token."))
    return HubError(f"The hub {what} ({status}): {repository}.", hint=hint, status=status, wait=wait)
