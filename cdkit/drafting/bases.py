"""Base models at hand: the embedded one, diffusers folders nearby, and what lies in the hub's cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdkit.core.errors import CdkitError, ConfigError, InputError
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import size_text
from cdkit.core.storage import read_json
from cdkit.deltas.base_model import file_family
from cdkit.deltas.families.table import family_of_parts
from cdkit.deltas.pipeline_folder import is_pipeline_folder, read_classes, weight_files
from cdkit.fetching.hub import HUB, Repository

# Where people keep models: here, and in folders of folders.
_PLACES = ("*", "*/*")
_MOST_SHOWN = 30


@dataclass(frozen=True)
class BaseModel:
    """A base model as it is named in a pipeline. family: None where only the hub knows; bytes: of its weights.

    side: of the pictures it draws, in pixels; merge: whether a merge on it is exact or sampled; lora: whether
    diffusers loads a LoRA of it.
    """

    spec: str
    family: str | None = None
    side: int | None = None
    bytes: int | None = None
    merge: str | None = None
    lora: bool = True

    def sentence(self) -> str:
        """`Stable Diffusion XL, 1024 × 1024 pixels, 6.9 GB of weights`."""
        if self.spec == EMBEDDED:
            return f"the small model that ships with cdkit: {self.side} × {self.side} pixels, for trying everything"
        if self.family is None:
            return "not on this machine: downloaded from the hub when the run starts"
        side = f", {self.side} × {self.side} pixels" if self.side else ""
        weights = f", {size_text(self.bytes)} of weights" if self.bytes else ""
        return f"{self.family}{side}{weights}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def bases_at_hand() -> list[BaseModel]:
    """Every usable base model: diffusers folders in and below this one, the hub's cache, and the embedded one last."""
    bases = [*_nearby(), *_cached()]
    return [*bases[:_MOST_SHOWN], describe_base(EMBEDDED)]


def describe_base(spec: str) -> BaseModel:
    """What a base model is, by its configuration files; nothing is loaded or downloaded.

    Raises ConfigError for a name that is none and a model of another family, InputError for a damaged folder or file.
    """
    if spec == EMBEDDED:
        from cdkit.embedded.world import IMAGE_SIZE

        return BaseModel(spec, "Stable Diffusion 1 and 2", IMAGE_SIZE, merge="exact")
    path = Path(spec).expanduser()
    if is_pipeline_folder(path):
        return _of_folder(spec, path)
    if path.is_file():
        return BaseModel(spec, file_family(path).name, bytes=path.stat().st_size, merge="exact")
    if path.exists():
        raise InputError(
            f"{spec} is not a diffusers pipeline: it has no model_index.json.",
            hint="Give the folder that save_pretrained wrote, a checkpoint file, or a hub id.",
        )
    if spec.startswith((".", "/", "~")):
        raise InputError(f"There is no base model {spec!r}.", hint="Give 'embedded', a folder, or a hub id.")
    name = spec.removeprefix(HUB)
    if "/" not in name:
        raise ConfigError(f"There is no base model {spec!r}.", hint="Give 'embedded', a folder, or a hub id.")
    repository = Repository.parse(name, "model")
    cached = repository.cached_folder()
    return _of_folder(spec, cached) if cached is not None and is_pipeline_folder(cached) else BaseModel(spec)


def _of_folder(spec: str, folder: Path) -> BaseModel:
    classes = read_classes(folder, spec)
    family = family_of_parts(classes, spec)
    denoiser, vae = (read_json(folder / part / "config.json") for part in (family.denoiser, "vae"))
    parts = [family.denoiser, "vae", *(tower for tower in family.texts if tower in classes)]
    weights = sum(path.stat().st_size for part in parts for path in weight_files(folder / part).files)
    side = family.own_cells(denoiser) * family.factor(vae)
    return BaseModel(spec, family.name, side, weights, family.merge, family.reads_lora)


def _nearby() -> Iterator[BaseModel]:
    for place in _PLACES:
        for path in sorted(Path().glob(place)):
            if not path.name.startswith(".") and is_pipeline_folder(path):
                yield from _usable(str(path))


def _cached() -> Iterator[BaseModel]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for path in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        _, owner, name = path.name.split("--", 2)
        found = list(_usable(f"{owner}/{name}"))
        # Without a family it is no pipeline, or not all of it is here.
        yield from (base for base in found if base.family is not None)


def _usable(spec: str) -> Iterator[BaseModel]:
    """The model, unless it is of another family, or not all of it is here: then there is nothing to offer."""
    try:
        yield describe_base(spec)
    except (CdkitError, OSError):
        return
