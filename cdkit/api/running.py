"""How a call becomes a stage that is run: its arguments as a config, its folder, its progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from cdkit.api.places import Place, folder_of, results_folder
from cdkit.api.progress import ProgressCallback, listener
from cdkit.api.results import StageFolder
from cdkit.core.config import Config, parse_config
from cdkit.execute import execute, identity_of
from cdkit.inputs import resolve_inputs
from cdkit.stages import stage_named

Made = TypeVar("Made", bound=StageFolder)


def config_of(config: type[Config], values: Mapping[str, Any]) -> Config:
    """A config of a call's arguments. What is as the config has it anyway is left to the config.

    Raises ConfigError that lists every mistake.
    """
    chosen = {}
    for name, info in config.model_fields.items():
        value, default = values[name], info.get_default()
        # Of one type before they are compared: an array would answer for each of its numbers.
        if info.is_required() or type(value) is not type(default) or value != default:
            chosen[name] = value
    return parse_config(config, chosen)


def make(
    result: type[Made],
    stage: str,
    config: Config,
    *,
    out: Place | None,
    force: bool,
    progress: ProgressCallback | bool | None,
    replace_other: bool = False,
) -> Made:
    """Run a stage into `out`, or into a folder of the cache that is named by its fingerprint."""
    heard = listener(progress)
    if out is None:
        identity = identity_of(stage_named(stage), config, resolve_inputs(config))
        folder = results_folder(stage, identity.fingerprint)
    else:
        folder = folder_of(out)
    done = execute(stage, config, folder, progress=heard, force=force, replace_other=replace_other)
    return result(done.out, done.state, done.manifest, tuple(heard.notes))
