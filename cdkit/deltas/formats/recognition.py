"""Which tool a file comes from, told by what it holds."""

from __future__ import annotations

from pathlib import Path

from cdkit.core.errors import ConfigError, InputError
from cdkit.deltas.delta import DELTA_FORMAT
from cdkit.deltas.formats import adobe, lora, textual_inversion
from cdkit.deltas.formats import adobe as custom_diffusion
from cdkit.deltas.formats.reading import Contents, Found, read_contents, shown


def read_foreign(path: Path) -> Found:
    """Read one file of any known kind; raises InputError that names what it is when it is of no use here."""
    contents = read_contents(path)
    values = contents.values
    if contents.header.get("format") == DELTA_FORMAT:
        raise ConfigError(f"{path} is a cdkit delta already.", hint="Use it as it is.")
    if isinstance(values.get("state_dict"), dict):
        return adobe.read_compvis(contents)
    if isinstance(values.get("unet"), dict):
        return adobe.read_diffusers(contents)
    if any(custom_diffusion.MARK in key for key in values):
        return custom_diffusion.read_processors(contents)
    kind = lora.lora_kind(values)
    if kind is not None:
        return lora.read_lora(contents, kind)
    if textual_inversion.is_embedding(contents):
        return textual_inversion.read_embedding(contents)
    raise InputError(
        f"{path} {_impression(contents)}.", hint="See cdkit delta import --help for what can be imported."
    )


def _impression(contents: Contents) -> str:
    keys = list(contents.values)
    if any(key.startswith(("first_stage_model.", "cond_stage_model.", "conditioner.")) for key in keys):
        return "is a whole Stable Diffusion checkpoint, not a delta"
    if any(key.startswith(("down_blocks.", "encoder.down_blocks.", "text_model.")) for key in keys):
        return "is a whole model, not a delta"
    return f"is of no known kind: it holds {', '.join(map(shown, keys[:3])) or 'nothing'}"
