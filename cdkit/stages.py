"""THE TABLE OF CONTENTS: every stage with its config, function, version and what it writes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cdkit.core.config import StageConfig, did_you_mean
from cdkit.core.errors import ConfigError
from cdkit.core.fingerprints import Input
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset
from cdkit.core.storage import Folder

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
_LAYOUTS = ("diffusers", "imagefolder", "webdataset", "kohya", "ai-toolkit", "onetrainer", "simpletuner")
_SET = ("images", "contact_sheet.png", "README.md", "building", *_LAYOUTS)
_COUNTS = ("token_counts", "token_counts_2", "token_counts_3", "token_counts_4", "sample")
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="import",
            summary="read pools of captions; clean, filter, deduplicate and partition them",
            config="cdkit.captions.config:ImportConfig",
            function="cdkit.captions.importing:import_captions",
            version=3,
            owns=_IMPORTED,
        ),
        Stage(
            name="embed",
            summary="import pools, and embed every distinct caption",
            config="cdkit.index.config:EmbedConfig",
            function="cdkit.index.stage:embed_pool",
            version=3,
            owns=(*_IMPORTED, "embeddings"),
            extends="import",
        ),
        Stage(
            name="index",
            summary="build a caption index: import, embed and index in one folder",
            config="cdkit.index.config:IndexConfig",
            function="cdkit.index.stage:build_index",
            version=5,
            owns=(*_IMPORTED, "embeddings", "caption.index", "building", "removed", "pending", "adding"),
            extends="embed",
        ),
        Stage(
            name="retrieve",
            summary="find images whose captions are like a prompt, download and curate them: a regularization set",
            config="cdkit.retrieval.config:RetrieveConfig",
            function="cdkit.retrieval.stage:retrieve",
            version=3,
            owns=(*_SET, "rejects"),
        ),
        Stage(
            name="class-images",
            summary="draw a regularization set with the base model, for a concept without real images",
            config="cdkit.retrieval.config:ClassImagesConfig",
            function="cdkit.retrieval.stage:class_images",
            version=3,
            owns=_SET,
        ),
        Stage(
            name="dataset",
            summary="write a regularization set as other trainers and tools read it",
            config="cdkit.retrieval.config:DatasetConfig",
            function="cdkit.retrieval.stage:dataset",
            version=2,
            owns=("building", *_LAYOUTS),
        ),
        Stage(
            name="token-counts",
            summary="count every vocabulary token over a sample of caption rows",
            config="cdkit.tokens.config:TokenCountsConfig",
            function="cdkit.tokens.stage:count_caption_tokens",
            version=2,
            owns=_COUNTS,
        ),
        Stage(
            name="tokens",
            summary="pick rare tokens to start modifier tokens from",
            config="cdkit.tokens.config:RareTokensConfig",
            function="cdkit.tokens.stage:pick_tokens",
            version=2,
            owns=(*_COUNTS, "picks.json"),
        ),
        Stage(
            name="train",
            summary="teach a base model concepts from a few photos each; makes a delta",
            config="cdkit.training.config:TrainConfig",
            function="cdkit.training.stage:train",
            version=6,
            owns=(
                *("delta.safetensors", "metrics.csv", "live.html", "checkpoints", "samples", "tensorboard"),
                "class-images",
            ),
        ),
        Stage(
            name="sample",
            summary="draw images from a base model and deltas: every prompt with every seed",
            config="cdkit.sampling.config:SampleConfig",
            function="cdkit.sampling.stage:sample",
            version=2,
            owns=("images", "samples.parquet", "grid.png", "grids"),
        ),
        Stage(
            name="evaluate",
            summary="score samples against their prompts, the concept's photos, real images and the base model",
            config="cdkit.evaluation.config:EvaluateConfig",
            function="cdkit.evaluation.stage:evaluate",
            version=2,
            owns=("scores.parquet", "summary.json"),
        ),
        Stage(
            name="compare",
            summary="put the scores of several methods in one table, beside the paper's",
            config="cdkit.evaluation.config:CompareConfig",
            function="cdkit.evaluation.stage:compare",
            version=1,
            owns=("table.json", "table.md", "table.csv"),
        ),
        Stage(
            name="weight-change",
            summary="measure how far training moved each group of weights",
            config="cdkit.evaluation.config:WeightChangeConfig",
            function="cdkit.evaluation.stage:weight_change",
            version=1,
            owns=("weight_change.csv", "weight_change.svg", "weight_change.json"),
        ),
        Stage(
            name="attention",
            summary="draw an image and where each token of its prompt was looked at",
            config="cdkit.evaluation.config:AttentionConfig",
            function="cdkit.evaluation.stage:attention_maps",
            version=1,
            owns=("image.png", "attention.png", "maps.safetensors", "attention.json"),
        ),
        Stage(
            name="report",
            summary="make the report of a run: one HTML page, Markdown, scores and a model card",
            config="cdkit.report.config:ReportConfig",
            function="cdkit.report.stage:report",
            version=2,
            owns=("report.html", "report.md", "scores.csv", "sources.csv", "README.md", "pipeline.yaml", "pictures"),
        ),
        Stage(
            name="merge",
            summary="merge deltas of several concepts into one, in closed form",
            config="cdkit.merging.config:MergeConfig",
            function="cdkit.merging.stage:merge",
            version=2,
            owns=("delta.safetensors",),
        ),
        Stage(
            name="delta-import",
            summary="turn other tools' weight files into a delta",
            config="cdkit.deltas.config:ImportDeltaConfig",
            function="cdkit.deltas.stage:import_delta",
            version=1,
            owns=("delta.safetensors",),
        ),
        Stage(
            name="delta-compress",
            summary="store a delta's matrices as products of low rank",
            config="cdkit.deltas.config:CompressConfig",
            function="cdkit.deltas.stage:compress",
            version=1,
            owns=("delta.safetensors",),
        ),
        Stage(
            name="export",
            summary="write a delta as files that other tools load",
            config="cdkit.deltas.config:ExportConfig",
            function="cdkit.deltas.stage:export",
            version=1,
            owns=(
                *("pytorch_lora_weights.safetensors", "loras", "embeddings"),
                *("model_index.json", "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
                *("scheduler", "feature_extractor", "image_encoder", "safety_checker"),
                *("pipeline.py", "gated_changes.safetensors"),
            ),
        ),
    )
}


def stage_named(name: str) -> Stage:
    """The row of the stage called `name`; raises ConfigError that suggests the right one."""
    if name not in STAGES:
        hint = "See cdkit.stages.STAGES."
        raise ConfigError(f"There is no stage {name!r}{did_you_mean(str(name), STAGES)}.", hint=hint)
    return STAGES[name]


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)
