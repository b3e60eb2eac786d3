"""How a call becomes a stage that is run: its arguments as a config, its folder, its progress."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cdkit.api.places import Place, results_folder
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
        value = values[name]
        if info.is_required() or value != info.get_default():
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
        folder = Path(os.fspath(out))
    done = execute(stage, config, folder, progress=heard, force=force, replace_other=replace_other)
    return result(done.out, done.state, done.manifest, tuple(heard.notes))
