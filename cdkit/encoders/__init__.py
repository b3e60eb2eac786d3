"""Text encoders behind one contract: `embedded`, open_clip's and the transformers library's CLIPs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cdkit.core.config import did_you_mean
from cdkit.core.errors import ConfigError, InputError
from cdkit.core.file_kinds import check_weight_folder
from cdkit.core.machine import choose_device

if TYPE_CHECKING:
    from cdkit.encoders.text_tower import TowerTextEncoder

Library = Literal["embedded", "open_clip", "transformers"]
LIBRARIES: tuple[Library, ...] = ("embedded", "open_clip", "transformers")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
# How captions become tokens: part of every embedding's identity. 1 took captions as written; 2 cleans them.
ENCODING = 2
# Custom Diffusion's threshold, for CLIP ViT-L/14 (Kumari et al. 2023, section 4). No published value exists for other
# CLIPs, so they start from the same one; `--min-similarity` overrides it. The embedded encoder has a measured one.
PAPER_THRESHOLD = 0.85
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def parse_spec(spec: str) -> tuple[Library, str]:
    """The library of an encoder spec and what it should load.

    Raises ConfigError when the spec is malformed, InputError when it names a folder that is not there.
    """
    library, separator, location = spec.partition(":")
    libraries: dict[str, Library] = {name: name for name in LIBRARIES}
    if library not in libraries:
        raise ConfigError(f"There is no encoder {spec!r}{did_you_mean(library, LIBRARIES)}.", hint=_FORMS)
    if library == "embedded":
        if separator:
            raise ConfigError(
                f"The embedded encoder has no variants (got {spec!r}).", hint="Write --encoder embedded."
            )
        return "embedded", ""
    if not location:
        raise ConfigError(f"The encoder spec {spec!r} names no model.", hint=_FORMS)
    path = Path(location).expanduser()
    if path.is_file():
        raise InputError(
            f"{location} is a file, not a model folder.", hint="Give the folder with its config and weights."
        )
    if path.is_dir():
        check_weight_folder(path)
    else:
        if location.startswith((".", "/", "~")):
            raise InputError(f"The model folder {location} does not exist.", hint="Check the path.")
        if library == "transformers" and not _HUB_ID.fullmatch(location):
            raise ConfigError(f"{location!r} is neither a folder nor a hub id.", hint=_FORMS)
    return libraries[library], location


_FORMS = "Write embedded, open_clip:ViT-L-14/openai, open_clip:FOLDER, or transformers:HUB_ID_OR_FOLDER."


def load_text_encoder(spec: str, *, device: str | None = None, precision: str | None = None) -> TowerTextEncoder:
    """Load the text tower that `spec` names.

    device: a torch device, None for a GPU when there is one. precision: fp32, fp16 or bf16; None or auto means fp16
    on a GPU and fp32 elsewhere. Raises ConfigError, InputError or NetworkError with a hint.
    """
    library, location = parse_spec(spec)
    chosen = str(choose_device(device))
    numbers = resolve_precision(precision, chosen)

    from cdkit.encoders.text_tower import TowerTextEncoder

    threshold = PAPER_THRESHOLD
    if library == "embedded":
        from cdkit.encoders import embedded

        tower, threshold = embedded.load_tower()
    elif library == "open_clip":
        from cdkit.encoders import open_clip

        tower = open_clip.load_tower(location)
    else:
        from cdkit.encoders import transformers

        tower = transformers.load_tower(location)
    return TowerTextEncoder(spec, tower, device=chosen, precision=numbers, threshold=threshold)


def resolve_precision(precision: str | None, device: str) -> str:
    """fp32, fp16 or bf16; `auto` is fp16 on a GPU (three bits more than bf16) and fp32 elsewhere."""
    if precision in (None, "auto"):
        return "fp16" if device.startswith("cuda") else "fp32"
    if precision not in PRECISIONS:
        raise ConfigError(f"There is no precision {precision!r}{did_you_mean(str(precision), PRECISIONS)}.")
    return str(precision)
