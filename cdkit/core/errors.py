"""Typed errors: each carries what happened, what to do next, and the exit code the command line ends with."""

from __future__ import annotations

from collections.abc import Sequence

# PyPI's `cdkit` is somebody else's library: what pip installs has another name than what Python imports.
DISTRIBUTION = "custom-diffusion-kit"
EXIT_BUG = 1
EXIT_INTERRUPTED = 130
# What a shell says of a program that writes to a pipe nobody reads: 128 and the number of SIGPIPE.
EXIT_READER_GONE = 141


def pip_install(extra: str = "", *, upgrade: bool = False) -> str:
    """The shell command that installs this package: with an optional extra, or its newest version."""
    option = "--upgrade " if upgrade else ""
    return f"pip install {option}" + (f"'{DISTRIBUTION}[{extra}]'" if extra else DISTRIBUTION)


class CdkitError(Exception):
    """Base of every error a user can meet: a message, a hint, a stable code and an exit code."""

    code = "bug"
    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries; the default reduction would lose the keyword-only hint.
        return _rebuild, (type(self), self.message, self.__dict__.copy())


def _rebuild(kind: type[CdkitError], message: str, state: dict[str, object]) -> CdkitError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class ConfigError(CdkitError):
    """Wrong usage or configuration; `problems` lists every mistake found, not only the first."""

    code = "configuration"
    exit_code = 2

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in problems)]), hint=hint)
        self.problems = list(problems)


class ResourceError(ConfigError):
    """These settings need more memory, threads or open files than the machine, or a limit set on it, allows."""

    code = "resources"


class InputError(CdkitError):
    """An input is missing, unreadable or not what it should be."""

    code = "input"
    exit_code = 3


class MissingExtraError(CdkitError):
    """An optional dependency is not installed."""

    code = "missing_extra"
    exit_code = 4

    def __init__(self, what: str, *, extra: str) -> None:
        super().__init__(
            f"{what} needs the optional dependency {DISTRIBUTION}[{extra}], which is not installed.",
            hint=pip_install(extra),
        )


class PartialError(CdkitError):
    """Less was found than asked for; what was found is kept."""

    code = "partial"
    exit_code = 5


class NetworkError(CdkitError):
    """The network or a model hub failed."""

    code = "network"
    exit_code = 6


class OutputError(CdkitError):
    """The output folder holds something else, is in use, or cannot be written."""

    code = "output"
    exit_code = 7
