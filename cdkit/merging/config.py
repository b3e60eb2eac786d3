"""The merge stage: several deltas into one that keeps each concept's words, in closed form."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from cdkit.core.config import ModelConfig, setting

# words is what the paper solves; the others are what it is compared with, and sum is what orthogonal deltas are for.
WayName = Literal["words", "fusion", "average", "sum"]


class MergeConfig(ModelConfig):
    """Which deltas to merge, and over which captions the rest must not change."""

    deltas: list[str] = setting(
        help="Deltas to merge, each trained on its own: folders or files.", argument=True, input="delta", min_length=2
    )
    captions: list[str] = setting(
        [], "Pool files, folders, globs or URLs of ordinary captions; or give --index.", input="files"
    )
    pool: str | None = setting(None, "The pools' layout [default: detected].")
    caption_column: str | None = setting(None, "The pools' caption column [default: by its name].")
    index: str | None = setting(None, "An index folder whose captions to use; or give --captions.", input="index")
    captions_count: int = setting(1000, "Captions to draw.", ge=1)
    seed: int = setting(0, "Which captions are drawn.")
    way: WayName = setting(
        "words",
        "words: keep each concept's, the paper's way; fusion: least squares over the concepts' prompts; or the "
        "average or the sum of the deltas.",
    )
    ridge: float = setting(
        0.1, "Cost of a change that no caption shows; 0 refuses captions that leave some open.", ge=0, le=10
    )
    soft: float | None = setting(
        None, "Where a merge says that words contradict: meet all of them nearly, with this weight (1, or more).", gt=0
    )
    end_of_text: bool = setting(True, "Also keep what each concept's prompt says as a whole (its end-of-text token).")
    # Not in the paper: without it, the second concept of a prompt takes on the first one's looks.
    apart: bool = setting(True, "Also keep a concept's looks behind another one (not in the paper; more drift).")
    near_weight: float = setting(
        1.0, "Weight of what is kept nearly: words behind another concept, and in longer captions.", gt=0
    )
    resolution: int | None = setting(
        None,
        "Where text and picture share one attention: the side of what is drawn for the merge [default: half of the "
        "model's own].",
        ge=8,
    )
    # A caption of 17 tokens is padded by 60 to its context; with less weight there, prompts of several objects
    # draw only one.
    edge_weight: float = setting(60.0, "Weight of a caption's start and padding; a word's is 1.", ge=0)

    @model_validator(mode="after")
    def _check(self) -> MergeConfig:
        if bool(self.captions) == bool(self.index):
            raise ValueError("give either captions (pool files) or index (an index folder)")
        if self.way != "words" and self.soft is not None:
            raise ValueError(f"soft is about words that are kept; the way {self.way} keeps none")
        return self
