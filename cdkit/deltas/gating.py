"""Gated changes in a delta: what acts at a concept's words alone, how a file holds it, how a pipeline gets it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError
from cdkit.core.formatting import json_text
from cdkit.core.shards import write_tensors
from cdkit.core.storage import read_json, write_json, write_text
from cdkit.deltas.low_rank import LowRank, matrix
from cdkit.deltas.text_features import TextTower

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    from cdkit.deltas.formats.gated_pipeline import Gate

MOST_WORDS = 1000
PIPELINE_CODE, MODEL_INDEX = "pipeline.py", "model_index.json"


@dataclass(frozen=True)
class GatedChange:
    """Changes by parameter name, (outputs, inputs) each, that act where one of the words stands: `<new1> star`.

    A word is a modifier token, and the category behind it where that stands there, too.
    """

    words: tuple[str, ...]
    changes: Mapping[str, torch.Tensor | LowRank]

    def renamed(self, rename: Callable[[str], str]) -> GatedChange:
        """The same for words that are called something else."""
        return GatedChange(tuple(map(rename, self.words)), self.changes)


def words_of_gates(text: str) -> list[tuple[str, ...]]:
    """The words of every gated change, as a header holds them; raises ValueError for anything else."""
    entries = json.loads(text)
    if not isinstance(entries, list) or sum(map(len, entries)) > MOST_WORDS:
        raise ValueError("its gates are no lists of words")
    for words in entries:
        if not isinstance(words, list) or not words:
            raise ValueError("its gates are no lists of words")
        for word in words:
            if not isinstance(word, str) or not word.strip() or not word.isprintable():
                raise ValueError(f"{str(word)[:80]!r} cannot be a gate's word")
    return [tuple(words) for words in entries]


def word_ids(tower: TextTower, words: Sequence[str]) -> list[list[int]]:
    """The ids of every word, and of its first part, the modifier token, alone; the tower knows the tokens."""
    ids = [list(tower.tokenizer(word, add_special_tokens=False).input_ids) for word in words]
    distinct = dict.fromkeys(entry for word in ids for entry in (tuple(word[:1]), tuple(word)))
    return [list(entry) for entry in distinct]


def check_gated(pipeline: DiffusionPipeline) -> None:
    """Raise ConfigError unless the pipeline is one that gated changes can act in."""
    if getattr(pipeline, "unet", None) is None or not type(pipeline.text_encoder).__name__.startswith("CLIP"):
        raise ConfigError(
            "Gated keys and values need Stable Diffusion 1, 2 or XL: elsewhere text is mixed with the picture.",
            hint="Train with --method custom-diffusion.",
        )


def open_gates(
    pipeline: DiffusionPipeline, tower: TextTower, gated: Sequence[GatedChange], scale: float
) -> list[Gate]:
    """Put gated changes, times `scale`, on a pipeline whose first tower knows their tokens."""
    from cdkit.deltas.formats.gated_pipeline import Gate

    gates = []
    for change in gated:
        changes = {name: scale * matrix(entry).float() for name, entry in change.changes.items()}
        gates.append(Gate(word_ids(tower, change.words), changes))
        gates[-1].attach(pipeline.unet)
        gates[-1].follow(pipeline)
    return gates


def write_gates(folder: Path, tower: TextTower, gated: Sequence[GatedChange], *, scale: float, half: bool) -> None:
    """Make a saved pipeline's folder one with gated changes: their file, the code that reads it, and the index.

    Without that code diffusers refuses the folder; it is never drawn with unchanged.
    """
    from cdkit.deltas.formats import gated_pipeline

    tensors: dict[str, Any] = {
        f"{number}.{name}": scale * matrix(entry).float()
        for number, change in enumerate(gated)
        for name, entry in change.changes.items()
    }
    words = json_text([word_ids(tower, change.words) for change in gated])
    write_tensors(folder / gated_pipeline.CHANGES_NAME, tensors, {gated_pipeline.WORDS: words}, half=half)
    write_text(folder / PIPELINE_CODE, Path(gated_pipeline.__file__).read_text(encoding="utf-8"))
    index = read_json(folder / MODEL_INDEX)
    code = [PIPELINE_CODE.removesuffix(".py"), f"Gated{index['_class_name']}"]
    write_json(folder / MODEL_INDEX, index | {"_class_name": code})
