"""The table of contents: every stage with its config, function, inputs and output, and how one is executed."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from cdkit.config import ParallelConfig, StageConfig, canonical, did_you_mean, field_settings
from cdkit.datasets import Dataset
from cdkit.engines import create_engine
from cdkit.errors import CdkitError, ConfigError, OutputError
from cdkit.inputs import Input, check_apart, resolve_inputs
from cdkit.main_guard import refuse_in_worker
from cdkit.manifest import (
    MANIFEST_NAME,
    STARTED_NAME,
    Identity,
    Manifest,
    differences,
    is_damaged,
    read_manifest,
    run_record,
)
from cdkit.peak_memory import PeakMemory
from cdkit.protocols import Context, Engine, Progress, SilentProgress
from cdkit.storage import TEMPORARY_PREFIX, Folder
from cdkit.system_errors import writing
from cdkit.threads import threads

StageFunction = Callable[[StageConfig, Mapping[str, Input], Folder, Context], Dataset]


@dataclass(frozen=True)
class Stage:
    """One step of the work. `owns` are the entries it writes into its folder; it deletes nothing else.

    config and function are `module:name`, imported only when the stage is used. A stage `extends` an earlier one
    when it does that one's work first, in the same folder: their shards are shared.
    """

    name: str
    summary: str
    config: str
    function: str
    version: int
    owns: tuple[str, ...]
    extends: str | None = None

    def config_class(self) -> type[StageConfig]:
        return _load(self.config)  # type: ignore[no-any-return]

    def run(self) -> StageFunction:
        return _load(self.function)  # type: ignore[no-any-return]


_IMPORTED = ("captions", "image_rows", "rejects", "buckets")
_SET = ("images", "contact_sheet.png", "README.md", "building", "diffusers", "imagefolder", "webdataset")
_COUNTS = ("token_counts", "token_counts_2", "sample")

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="import",
            summary="read pools of captions; clean, filter, deduplicate and partition them",
            config="cdkit.captions.import_captions:ImportConfig",
            function="cdkit.captions.import_captions:import_captions",
            version=2,
            owns=_IMPORTED,
        ),
        Stage(
            name="embed",
            summary="import pools, and embed every distinct caption",
            config="cdkit.index.build:EmbedConfig",
            function="cdkit.index.build:embed_pool",
            version=2,
            owns=(*_IMPORTED, "embeddings"),
            extends="import",
        ),
        Stage(
            name="index",
            summary="build a caption index: import, embed and index in one folder",
            config="cdkit.index.build:IndexConfig",
            function="cdkit.index.build:build_index",
            version=2,
            owns=(*_IMPORTED, "embeddings", "caption.index", "building", "removed", "pending", "adding"),
            extends="embed",
        ),
        Stage(
            name="retrieve",
            summary="find images whose captions are like a prompt, download and curate them: a regularization set",
            config="cdkit.sampling.filled_retrieval:FilledRetrieveConfig",
            function="cdkit.sampling.filled_retrieval:retrieve_and_fill",
            version=2,
            owns=(*_SET, "rejects"),
        ),
        Stage(
            name="class-images",
            summary="draw a regularization set with the base model, for a concept without real images",
            config="cdkit.sampling.class_images:ClassImagesConfig",
            function="cdkit.sampling.class_images:class_images",
            version=2,
            owns=_SET,
        ),
        Stage(
            name="token-counts",
            summary="count every vocabulary token over a sample of caption rows",
            config="cdkit.tokens.caption_counts:TokenCountsConfig",
            function="cdkit.tokens.caption_counts:count_caption_tokens",
            version=2,
            owns=_COUNTS,
        ),
        Stage(
            name="tokens",
            summary="pick rare tokens to start modifier tokens from",
            config="cdkit.tokens.pick:RareTokensConfig",
            function="cdkit.tokens.pick:pick_tokens",
            version=2,
            owns=(*_COUNTS, "picks.json"),
        ),
        Stage(
            name="train",
            summary="teach a base model concepts from a few photos each; makes a delta",
            config="cdkit.training.train:TrainConfig",
            function="cdkit.training.train:train",
            version=3,
            owns=("delta.safetensors", "metrics.csv", "checkpoints", "samples", "tensorboard"),
        ),
        Stage(
            name="sample",
            summary="draw images from a base model and deltas: every prompt with every seed",
            config="cdkit.sampling.sample:SampleConfig",
            function="cdkit.sampling.sample:sample",
            version=2,
            owns=("images", "samples.parquet", "grid.png", "grids"),
        ),
        Stage(
            name="evaluate",
            summary="score samples against their prompts, the concept's photos, real images and the base model",
            config="cdkit.evaluation.evaluate:EvaluateConfig",
            function="cdkit.evaluation.evaluate:evaluate",
            version=2,
            owns=("scores.parquet", "summary.json"),
        ),
        Stage(
            name="compare",
            summary="put the scores of several methods in one table, beside the paper's",
            config="cdkit.evaluation.compare_scores:CompareConfig",
            function="cdkit.evaluation.compare_scores:compare",
            version=1,
            owns=("table.json", "table.md", "table.csv"),
        ),
        Stage(
            name="weight-change",
            summary="measure how far training moved each group of weights",
            config="cdkit.evaluation.compare_weights:WeightChangeConfig",
            function="cdkit.evaluation.compare_weights:weight_change",
            version=1,
            owns=("weight_change.csv", "weight_change.svg", "weight_change.json"),
        ),
        Stage(
            name="attention",
            summary="draw an image and where each token of its prompt was looked at",
            config="cdkit.evaluation.draw_attention:AttentionConfig",
            function="cdkit.evaluation.draw_attention:attention_maps",
            version=1,
            owns=("image.png", "attention.png", "maps.safetensors", "attention.json"),
        ),
        Stage(
            name="report",
            summary="make the report of a run: one HTML page, Markdown, scores and a model card",
            config="cdkit.publishing.report:ReportConfig",
            function="cdkit.publishing.report:report",
            version=1,
            owns=("report.html", "report.md", "scores.csv", "sources.csv", "README.md", "pipeline.yaml", "pictures"),
        ),
        Stage(
            name="merge",
            summary="merge deltas of several concepts into one, in closed form",
            config="cdkit.merging.merge:MergeConfig",
            function="cdkit.merging.merge:merge",
            version=1,
            owns=("delta.safetensors",),
        ),
        Stage(
            name="delta-import",
            summary="turn other tools' weight files into a delta",
            config="cdkit.weights.import_delta:ImportDeltaConfig",
            function="cdkit.weights.import_delta:import_delta",
            version=1,
            owns=("delta.safetensors",),
        ),
        Stage(
            name="delta-compress",
            summary="store a delta's matrices as products of low rank",
            config="cdkit.weights.compress:CompressConfig",
            function="cdkit.weights.compress:compress",
            version=1,
            owns=("delta.safetensors",),
        ),
        Stage(
            name="export",
            summary="write a delta as files that other tools load",
            config="cdkit.weights.export:ExportConfig",
            function="cdkit.weights.export:export",
            version=1,
            owns=(
                *("pytorch_lora_weights.safetensors", "loras", "embeddings"),
                *("model_index.json", "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
                *("scheduler", "feature_extractor", "image_encoder", "safety_checker"),
            ),
        ),
    )
}


@dataclass(frozen=True)
class Result:
    """How one stage ended: cached, done or partial, with its manifest and the seconds it took now."""

    stage: str
    state: Literal["cached", "done", "partial"]
    manifest: Manifest
    out: Path
    seconds: float


def stage_named(name: str) -> Stage:
    """The row of the stage called `name`; raises ConfigError that suggests the right one."""
    if name not in STAGES:
        hint = "See cdkit.stages.STAGES."
        raise ConfigError(f"There is no stage {name!r}{did_you_mean(str(name), STAGES)}.", hint=hint)
    return STAGES[name]


def identity_of(stage: Stage, config: StageConfig, inputs: Mapping[str, Input]) -> Identity:
    """What `stage` would make from this config and these inputs."""
    return Identity(stage.name, stage.version, canonical(config), {name: i.fingerprint for name, i in inputs.items()})


def earlier_identities(stage: Stage, config: StageConfig, inputs: Mapping[str, Input]) -> dict[str, Identity]:
    """Identities of the stages that `stage` extends, by name: what a half-way folder may hold."""
    found: dict[str, Identity] = {}
    while stage.extends is not None:
        stage = STAGES[stage.extends]
        config = project(config, stage.config_class())
        needed = field_settings(type(config))
        inputs = {name: given for name, given in inputs.items() if name in needed}
        found[stage.name] = identity_of(stage, config, inputs)
    return found


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
        takes, given = stage.config.replace(":", "."), type(config).__name__
        raise ConfigError(f"The stage {name!r} does not take a {given}.", hint=f"It takes a {takes}.")
    with writing(out):
        target = Target(Folder(out), stage, config, resolve_inputs(config))
        clock = time.monotonic()
        known = None if force else target.finished()
        if known is not None:
            return Result(name, "partial" if known.shortfall else "cached", known, out, time.monotonic() - clock)
        check_apart(target.inputs, out)
        target.check(may_replace=force or replace_other)
        parallel = (config.engine, config.worker_count()) if isinstance(config, ParallelConfig) else ("local", 1)
        engine = create_engine(*parallel)
        with target.folder.lock(), threads(config.thread_count()):
            target.check(may_replace=force or replace_other)
            if force or not target.continues():
                target.folder.remove([*stage.owns, MANIFEST_NAME, STARTED_NAME])
            target.folder.remove_temporaries()
            try:
                return target.make(engine, progress or SilentProgress())
            except CdkitError:
                # Refused before anything was made: nothing was begun that a report should call interrupted.
                if not target.holds_results():
                    target.folder.remove(stage.owns)
                    if target.folder.entries() == [STARTED_NAME]:
                        target.folder.remove([STARTED_NAME])
                raise


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
        if may_replace or self.continues() or not self.holds_results():
            return
        comparable = self.earlier.get(existing.stage, self.identity)
        raise OutputError(
            f"{self.folder.path} holds something else: {'; '.join(differences(existing.identity(), comparable))}.",
            hint="Choose another --out, or add --force to throw the old content away.",
        )

    def holds_results(self) -> bool:
        """Whether anything would be lost: a run that failed at once (a misspelt column) leaves only its marker."""
        found = [path for name in self.stage.owns for path in (self.folder / name, *(self.folder / name).rglob("*"))]
        kept = [path for path in found if path.is_file() and not path.name.startswith(TEMPORARY_PREFIX)]
        return bool(kept) or (self.folder / MANIFEST_NAME).exists()

    def make(self, engine: Engine, progress: Progress) -> Result:
        """Run the stage's function and write the manifest last."""
        started, clock = datetime.now(UTC), time.monotonic()
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
            dataset = self.stage.run()(self.config, self.inputs, self.folder, context)
        seconds = time.monotonic() - clock
        manifest = replace(
            draft,
            counts=dataset.counts.as_json(),
            shortfall=dataset.shortfall,
            details=dataset.details,
            steps={name: step for name, step in steps.items() if name not in dataset.dropped},
            run=run_record(started, seconds, peak.bytes, dataset.clocks),
        )
        manifest.write(self.folder.path)
        self.folder.remove([STARTED_NAME])
        return Result(self.stage.name, "partial" if dataset.shortfall else "done", manifest, self.folder.path, seconds)


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)
