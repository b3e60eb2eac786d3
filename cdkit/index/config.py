"""Settings of the stages embed and index."""

from __future__ import annotations

from typing import Literal

from cdkit.captions.config import ImportConfig
from cdkit.core.config import setting
from cdkit.index.layout import CODE_BYTES, EXACT_BELOW, RECALL_TARGET


class EmbedConfig(ImportConfig):
    """Settings of the embed stage: import, then embed, in one folder."""

    encoder: str = setting("embedded", "Text encoder: embedded, open_clip:…, transformers:….", input="encoder")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = setting(
        "auto", "Number format of the encoder; auto is fp16 on a GPU, fp32 elsewhere."
    )
    device: str | None = setting(None, "Torch device [default: every GPU there is, else the CPU].", execution=True)


class IndexConfig(EmbedConfig):
    """Settings of the index stage."""

    bytes_per_caption: int = setting(
        CODE_BYTES, "Bytes of one compressed embedding; its 8-byte id comes on top.", ge=4, le=256
    )
    exact_below: int = setting(EXACT_BELOW, "Up to this many captions the index is exact, not compressed.", ge=0)
    keep_embeddings: bool = setting(False, "Keep the embeddings: faster re-ranking for more disk.")
    recall_target: float = setting(RECALL_TARGET, "Threshold recall to choose search settings for.", gt=0, le=1)
    seed: int = setting(0, "Seed of the training sample and of the measuring queries.", ge=0)
