"""Teaching from Python: train a concept's photos into a delta, and merge deltas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from cdkit.api.places import Place, base_of, list_of, named, optional_text, photos_folder, text_of, texts_of
from cdkit.api.progress import ProgressCallback
from cdkit.api.results import DeltaFolder
from cdkit.api.running import config_of, make
from cdkit.deltas.methods import MethodName, ScheduleName
from cdkit.merging.config import MergeConfig, WayName
from cdkit.training.config import Fit, Keep, PresetName, TrainConfig

if TYPE_CHECKING:
    from cdkit.api.places import Photos


def train(
    concepts: Mapping[str, Photos],
    *,
    out: Place | None = None,
    base: Place = "embedded",
    regularization: Mapping[str, Place] | None = None,
    keep: Keep | None = None,
    token: Mapping[str, str] | None = None,
    no_token: bool = False,
    tokens: Place | None = None,
    categories: Mapping[str, str] | None = None,
    template: str | Iterable[str] | None = None,
    method: MethodName = "custom-diffusion",
    blocks: str | None = None,
    preset: PresetName | None = None,
    delta: Place | Iterable[Place] = (),
    steps: int | None = None,
    batch_size: int | None = None,
    gradient_accumulation: int = 1,
    learning_rate: float | None = None,
    token_learning_rate: float | None = None,
    schedule: ScheduleName | None = None,
    prior_weight: float | None = None,
    resolution: int | None = None,
    augmentation: bool | None = None,
    flip: bool = False,
    enlarge: bool = False,
    regularization_count: int | None = None,
    max_grad_norm: float = 1.0,
    precision: Literal["no", "bf16", "fp16"] = "no",
    seed: int = 0,
    processes: int = 1,
    sample_every: int = 0,
    checkpoint_every: int = 100,
    compile: bool = False,
    gradient_checkpointing: bool = False,
    fit: Fit | None = None,
    early_stop: str | None = None,
    tensorboard: bool = False,
    device: str | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: ProgressCallback | bool | None = None,
) -> DeltaFolder:
    """Teach a base model concepts: by category, 4 to 20 photos each, as a folder, paths or pictures in memory.

    The other arguments are the options of `cdkit train`.
    """
    plain: dict[str, Any] = {
        "base": text_of(base),
        "concepts": {name: photos_folder(photos) for name, photos in named(concepts, "photos").items()},
        "regularization": {name: text_of(place) for name, place in named(regularization, "folder").items()},
        "token": named(token, "'<new1>'"),
        "categories": named(categories, "'animal'"),
        "tokens": optional_text(tokens),
        "template": None if template is None else list_of(template),
        "delta": texts_of(delta),
    }
    config = config_of(TrainConfig, locals() | plain)
    return make(DeltaFolder, "train", config, out=out, force=force, progress=progress)


def merge(
    deltas: Iterable[Place],
    *,
    out: Place | None = None,
    base: Place | None = None,
    captions: Place | Iterable[Place] = (),
    pool: str | None = None,
    caption_column: str | None = None,
    index: Place | None = None,
    captions_count: int = 1000,
    seed: int = 0,
    way: WayName = "words",
    ridge: float = 0.1,
    soft: float | None = None,
    end_of_text: bool = True,
    apart: bool = True,
    near_weight: float = 1.0,
    resolution: int | None = None,
    edge_weight: float = 60.0,
    device: str | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: ProgressCallback | bool | None = None,
) -> DeltaFolder:
    """Merge deltas that were trained apart into one, in closed form; give captions or an index of ordinary captions.

    base: None stands for the model that the first delta names. The other arguments are the options of `cdkit merge`.
    """
    places = texts_of(deltas)
    plain: dict[str, Any] = {
        "deltas": places,
        "base": base_of(base, places),
        "captions": texts_of(captions),
        "index": optional_text(index),
    }
    config = config_of(MergeConfig, locals() | plain)
    return make(DeltaFolder, "merge", config, out=out, force=force, progress=progress)
