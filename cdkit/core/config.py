"""Stage configuration: one pydantic class per stage, from which CLI options, YAML keys and fingerprints all come."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticUndefined

from cdkit.core.errors import ConfigError
from cdkit.core.text import is_text
from cdkit.core.threads import thread_count

# What a field names: `hub:USER/NAME` may stand where a model, a delta, an index or a regularization set may.
InputKind = Literal["files", "folder", "model", "encoder", "run", "delta", "index", "set"]
MOST_NAMES, LONGEST_NAME = 40, 100  # in suggestions


@dataclass(frozen=True)
class Setting:
    """What a config field is to the command line and to fingerprints, beyond its type and default.

    flag: the option's name when it differs from the field's (`--concept` for `concepts`); argument: given by
    position; execution: how the work runs, not what comes out, so it stays out of fingerprints; input: the field
    names data, which enters the fingerprint by content instead of by name; hidden: no command-line option.
    """

    flag: str | None = None
    argument: bool = False
    execution: bool = False
    input: InputKind | None = None
    hidden: bool = False


def setting(  # noqa: PLR0913 - one call declares everything about a field
    default: Any = PydanticUndefined,
    help: str = "",
    *,
    flag: str | None = None,
    argument: bool = False,
    execution: bool = False,
    input: InputKind | None = None,
    hidden: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    min_length: int | None = None,
) -> Any:
    """A pydantic field that carries a Setting; without a default it is required. `help` is its `--help` text."""
    extra = Setting(flag=flag, argument=argument, execution=execution, input=input, hidden=hidden)
    return Field(
        default,
        description=help,
        ge=ge,
        gt=gt,
        le=le,
        min_length=min_length,
        json_schema_extra={"setting": asdict(extra)},
    )


class StageConfig(BaseModel):
    """Base of every stage's configuration: frozen, and unknown keys are errors."""

    # Built on first use: most commands use one of these classes, and --help none.
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), defer_build=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _texts_can_be_written(cls, values: Any) -> Any:
        """Bytes of the command line that are no UTF-8 may stand in a path, and in no text."""
        if isinstance(values, Mapping):
            paths = {name for name, extra in field_settings(cls).items() if extra.input is not None}
            for name, value in values.items():
                if not _is_writable(value, keys_only=name in paths):
                    raise ValueError(f"{name}: it has bytes, or half of a character, that are not UTF-8")
        return values

    def thread_count(self) -> int:
        """CPU threads for this work."""
        return thread_count()


class ThreadedConfig(StageConfig):
    """Settings of stages that compute: how many CPU threads they take. A result's last bits may depend on it."""

    threads: int | None = setting(
        None, "CPU threads of the command and its workers together [default: one per CPU].", execution=True, ge=1
    )

    def thread_count(self) -> int:
        return self.threads or thread_count(small=self.is_small())

    def is_small(self) -> bool:
        """Whether a second thread would gain little: the embedded model's operations take microseconds."""
        return False


class ModelConfig(ThreadedConfig):
    """Settings of stages that run a base model."""

    base: str = setting("embedded", "Base model: 'embedded', a diffusers folder, or a hub id.", input="model")
    device: str | None = setting(None, "Device [default: the GPU when there is one].", execution=True)

    def is_small(self) -> bool:
        return self.base == "embedded"


class ParallelConfig(ThreadedConfig):
    """Settings of stages whose work an engine spreads over workers."""

    engine: Literal["local", "ray"] = setting(
        "local", "Where the work runs: this machine or a Ray cluster.", execution=True
    )
    workers: int | None = setting(None, "Parallel workers [default: one per thread].", execution=True, ge=1)

    def worker_count(self) -> int | None:
        """Workers of the engine; None leaves it to the engine."""
        return self.workers or (self.threads if self.engine == "local" else None)


def _is_writable(value: Any, *, keys_only: bool) -> bool:
    if isinstance(value, Mapping):
        return all(_is_writable(key, keys_only=False) for key in value) and _is_writable(
            list(value.values()), keys_only=keys_only
        )
    if isinstance(value, list | tuple):
        return all(_is_writable(item, keys_only=keys_only) for item in value)
    return keys_only or not isinstance(value, str) or value.isascii() or is_text(value)


Config = TypeVar("Config", bound=StageConfig)


def field_settings(config: type[StageConfig]) -> dict[str, Setting]:
    """The Setting of every field, by field name."""
    settings = {}
    for name, info in config.model_fields.items():
        extra = info.json_schema_extra
        settings[name] = Setting(**extra["setting"]) if isinstance(extra, dict) else Setting()  # type: ignore[arg-type]
    return settings


def canonical(config: StageConfig) -> dict[str, Any]:
    """The values that decide the output, as JSON: execution settings and inputs (counted by content) left out."""
    settings = field_settings(type(config))
    deciding = {name for name, extra in settings.items() if not extra.execution and not extra.input}
    values = config.model_dump(mode="json", include=deciding)
    return {name: values[name] for name in sorted(values)}


def parse_config(config: type[Config], values: Mapping[str, Any], *, where: str = "") -> Config:
    """Validate `values`; raises ConfigError that lists every mistake, with a suggestion for misspelt keys."""
    try:
        return config.model_validate(dict(values))
    except ValidationError as error:
        problems = describe_mistakes(error, config, where=where)
        raise ConfigError(f"{len(problems)} mistake(s) in the settings:", problems=problems) from error


def describe_mistakes(error: ValidationError, config: type[BaseModel], *, where: str = "") -> list[str]:
    """One plain line per mistake pydantic found; `where` is put before the key (`stages.picks`)."""
    lines = []
    for mistake in error.errors(include_url=False):
        keys = [str(part) for part in mistake["loc"]]
        name = ".".join([part for part in [where] if part] + keys)
        if mistake["type"] == "extra_forbidden":
            lines.append(f"{name}: unknown key{did_you_mean(keys[-1], config.model_fields)}")
        elif mistake["type"] == "missing":
            lines.append(f"{name}: missing")
        elif mistake["type"] == "too_short":
            least, given = mistake["ctx"]["min_length"], mistake["ctx"]["actual_length"]
            lines.append(f"{name}: give at least {least}, not {given}")
        else:
            message = mistake["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            # Of a rule over several settings, the input is all of them.
            given = f" (got {_short(mistake['input'])})" if keys else ""
            lines.append(f"{name}: {message}{given}" if name else message)
    return lines


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a close match, else the list of what is known."""
    names = sorted(choices)
    close = nearest(word, names)
    if close is not None:
        return f"; did you mean {close!r}?"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f" (known: {', '.join(names[:MOST_NAMES])}{more})"


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The known name that `word` may have been meant to be, whatever its case."""
    names = {name.lower(): name for name in choices}
    close = difflib.get_close_matches(word[:LONGEST_NAME].lower(), names, n=1, cutoff=0.6)
    return names[close[0]] if close else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
