"""How one stage is run in a folder: found done, continued, refused, or made."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

from cdkit.core.config import ParallelConfig, StageConfig, canonical, field_settings
from cdkit.core.errors import CdkitError, ConfigError, OutputError, writing
from cdkit.core.fingerprints import Input
from cdkit.core.manifest import (
    MANIFEST_NAME,
    STARTED_NAME,
    Identity,
    Manifest,
    differences,
    is_damaged,
    read_manifest,
    run_record,
)
from cdkit.core.peak_memory import PeakMemory
from cdkit.core.protocols import Context, Engine, Progress, SilentProgress
from cdkit.core.storage import TEMPORARY_PREFIX, Folder, flush_names
from cdkit.core.threads import threads
from cdkit.engines import create_engine
from cdkit.engines.local import refuse_in_worker
from cdkit.inputs import check_apart, resolve_inputs, with_local_copies
from cdkit.stages import STAGES, Stage, stage_named


@dataclass(frozen=True)
class Result:
    """How one stage ended: cached, done or partial, with its manifest and the seconds it took now."""

    stage: str
    state: Literal["cached", "done", "partial"]
    manifest: Manifest
    out: Path
    seconds: float


def identity_of(stage: Stage, config: StageConfig, inputs: Mapping[str, Input]) -> Identity:
    """What `stage` would make from this config and these inputs."""
    return Identity(stage.name, stage.version, canonical(config), {name: i.fingerprint for name, i in inputs.items()})


def earlier_identities(stage: Stage, config: StageConfig, inputs: Mapping[str, Input]) -> dict[str, Identity]:
    """Identities of the stages that `stage` extends, by name: what a half-way folder may hold."""
    identities: dict[str, Identity] = {}
    while stage.extends is not None:
        stage = STAGES[stage.extends]
        config = project(config, stage.config_class())
        needed = field_settings(type(config))
        inputs = {name: value for name, value in inputs.items() if name in needed}
        identities[stage.name] = identity_of(stage, config, inputs)
    return identities


def project(config: StageConfig, target: type[StageConfig]) -> StageConfig:
    """The part of a config that an extended stage's config class knows."""
    return target.model_validate({name: getattr(config, name) for name in target.model_fields})


def execute(
    name: str,
    config: StageConfig,
    out: Path,
    *,
    progress: Progress | None = None,
    force: bool = False,
    replace_other: bool = False,
) -> Result:
    """Run one stage into `out`, or find it done already.

    force: make it again even if it is done; replace_other: throw away what another configuration left in the folder
    (pipelines own their folders). Raises OutputError when the folder holds something else or is in use, ConfigError
    for another stage's config.
    """
    refuse_in_worker()
    stage = stage_named(name)
    if not isinstance(config, stage.config_class()):
        takes, offered = stage.config.replace(":", "."), type(config).__name__
        raise ConfigError(f"The stage {name!r} does not take a {offered}.", hint=f"It takes a {takes}.")
    with writing(out):
        target = Target(Folder(out), stage, config, resolve_inputs(config))
        clock = time.monotonic()
        finished = None if force else target.finished()
        if finished is not None:
            return Result(name, "partial" if finished.shortfall else "cached", finished, out, time.monotonic() - clock)
        check_apart(target.inputs, out)
        target.check(may_replace=force or replace_other)
        parallel = (config.engine, config.worker_count()) if isinstance(config, ParallelConfig) else ("local", 1)
        engine = create_engine(*parallel)
        with target.folder.lock(), threads(config.thread_count()):
            target.check(may_replace=force or replace_other)
            progress = progress or SilentProgress()
            if not force and target.renews():
                kept = " and ".join(target.kept())
                progress.note(f"{out} is of an earlier version: it is made anew from what {kept} made in it.")
            elif force or not target.continues():
                target.discard()
            target.folder.remove_temporaries()
            try:
                return target.make(engine, progress)
            except CdkitError:
                # Refused before anything was made: nothing was begun that a report should call interrupted.
                if not target.holds_results():
                    target.folder.remove(stage.owns)
                    if target.folder.entries() == [STARTED_NAME]:
                        target.folder.remove([STARTED_NAME])
                raise


def is_changed(manifest: Manifest) -> bool:
    """Whether a finished folder was changed since its stage made it; its own first fingerprint is then a step."""
    return manifest.stage in manifest.steps


@dataclass(frozen=True)
class Target:
    """One stage about to be made in one folder."""

    folder: Folder
    stage: Stage
    config: StageConfig
    inputs: Mapping[str, Input]

    @cached_property
    def identity(self) -> Identity:
        return identity_of(self.stage, self.config, self.inputs)

    @cached_property
    def earlier(self) -> dict[str, Identity]:
        return earlier_identities(self.stage, self.config, self.inputs)

    def finished(self) -> Manifest | None:
        """The folder's manifest when it already holds this result."""
        done = read_manifest(self.folder.path)
        ours = done is not None and self.identity.fingerprint in {done.fingerprint, *done.steps.values()}
        return done if ours else None

    def existing(self) -> Manifest | None:
        """What the folder says it holds; the marker first: it stands beside a manifest while a stage extends it."""
        return read_manifest(self.folder.path, STARTED_NAME) or read_manifest(self.folder.path)

    def continues(self) -> bool:
        """Whether what the folder holds is a part of this result, or this result a part of it."""
        existing = self.existing()
        if existing is None:
            return False
        ours = {self.identity.fingerprint, *(identity.fingerprint for identity in self.earlier.values())}
        return existing.fingerprint in ours or self.identity.fingerprint in existing.steps.values()

    def renews(self) -> bool:
        """Whether an earlier version of its stage made the folder, and what that was made from is good as it is.

        Not after a change (captions added or removed), which would be lost.
        """
        existing = self.existing()
        if existing is None or not self._is_older(existing):
            return False
        chain = [*reversed(self.earlier), self.stage.name]
        before = chain[: chain.index(existing.stage)]
        return bool(before) and set(before) <= set(self.kept()) and not is_changed(existing)

    def _is_older(self, existing: Manifest) -> bool:
        """Whether only its stage's version tells what the folder holds from what would be made."""
        ours = {self.stage.name: self.identity, **self.earlier}.get(existing.stage)
        if ours is None or existing.version >= ours.version:
            return False
        return replace(existing.identity(), version=ours.version) == ours

    def kept(self) -> list[str]:
        """The stages before this one whose work the folder holds as they would do it now."""
        existing = self.existing()
        steps = existing.steps if existing else {}
        return [name for name, ours in reversed(self.earlier.items()) if steps.get(name) == ours.fingerprint]

    def check(self, *, may_replace: bool) -> None:
        """Raise OutputError unless the folder is empty, ours to continue, or ours to replace."""
        entries = self.folder.entries()
        if not entries:
            return
        if may_replace and is_damaged(self.folder.path):
            return
        existing = self.existing()
        if existing is None:
            raise OutputError(
                f"{self.folder.path} is not empty and was not made by cdkit (it holds {', '.join(entries[:3])}).",
                hint="Choose another --out, or empty the folder yourself.",
            )
        if may_replace or self.continues() or self.renews() or not self.holds_results():
            return
        comparable = self.earlier.get(existing.stage, self.identity)
        hint = "Choose another --out, or add --force to throw the old content away"
        if is_changed(existing):
            hint += ", with what was added to it or removed from it since"
        if self._is_older(existing) and (self.folder / MANIFEST_NAME).exists():
            hint = f"An earlier version made it, and it can still be used. {hint}"
        raise OutputError(
            f"{self.folder.path} holds something else: {'; '.join(differences(existing.identity(), comparable))}.",
            hint=f"{hint}.",
        )

    def holds_results(self) -> bool:
        """Whether anything would be lost: a run that failed at once (a misspelt column) leaves only its marker."""
        paths = [path for name in self.stage.owns for path in (self.folder / name, *(self.folder / name).rglob("*"))]
        kept = [path for path in paths if path.is_file() and not path.name.startswith(TEMPORARY_PREFIX)]
        return bool(kept) or (self.folder / MANIFEST_NAME).exists()

    def discard(self) -> None:
        """Throw away what the folder holds; killed in between, it says that it holds a part of what it held."""
        if not self.folder.entries():
            return
        if (self.folder / MANIFEST_NAME).exists() and not (self.folder / STARTED_NAME).exists():
            os.replace(self.folder / MANIFEST_NAME, self.folder / STARTED_NAME)
        self.folder.remove([MANIFEST_NAME])
        flush_names(self.folder.path)
        self.folder.remove(self.stage.owns)
        flush_names(self.folder.path)
        self.folder.remove([STARTED_NAME])

    def make(self, engine: Engine, progress: Progress) -> Result:
        """Run the stage's function and write the manifest last."""
        started, clock = datetime.now(UTC), time.monotonic()
        # The time that is recorded is then that of the rest alone.
        continued = self.existing() is not None and self.holds_results()
        steps = {name: identity.fingerprint for name, identity in self.earlier.items()}
        context = Context(engine, progress, self.identity.fingerprint, steps)
        draft = Manifest(
            stage=self.stage.name,
            version=self.stage.version,
            fingerprint=self.identity.fingerprint,
            config=dict(self.identity.config),
            inputs=dict(self.identity.inputs),
            steps=steps,
        )
        # Recorded first, so that an interrupted folder is recognised as ours and can be continued.
        draft.write(self.folder.path, STARTED_NAME)
        with PeakMemory() as peak:
            config = with_local_copies(self.config, self.inputs)
            dataset = self.stage.run()(config, self.inputs, self.folder, context)
        # What a worker that died left half-written; another one has made it.
        self.folder.remove_temporaries()
        seconds = time.monotonic() - clock
        manifest = replace(
            draft,
            counts=dataset.counts.as_json(),
            shortfall=dataset.shortfall,
            details=dataset.details,
            steps={name: step for name, step in steps.items() if name not in dataset.dropped},
            run=run_record(started, seconds, peak.bytes, continued=continued, clocks=dataset.clocks),
        )
        manifest.write(self.folder.path)
        self.folder.remove([STARTED_NAME])
        return Result(self.stage.name, "partial" if dataset.shortfall else "done", manifest, self.folder.path, seconds)
