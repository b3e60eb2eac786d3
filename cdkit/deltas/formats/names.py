"""Names in exported files: of files, safe on every system; of modules as each tool calls them; the word to type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.errors import pip_install
from cdkit.core.formatting import command_line, json_text
from cdkit.deltas.delta import Delta

if TYPE_CHECKING:
    import torch

    from cdkit.deltas.low_rank import LowRank


def lora_name(out: Path) -> str:
    """The name of an exported LoRA, which web UIs call it by: its output folder's, in safe letters."""
    (stem,) = file_stems([out.resolve().name]).values()
    return stem


def loading_hints(to: str, out: Path, tokens: Sequence[str]) -> list[str]:
    """How the exported files are used: where they go, and what is typed in prompts."""
    words = spellings(tokens)
    if to == "diffusers-pipeline":
        sample = command_line("cdkit", "sample", "--base", out, "--prompt", "a photo", "--out", "samples")
        hints = [f"DiffusionPipeline.from_pretrained({str(out)!r}), or {sample}"]
        return [*hints, *(f"type in prompts: {word.token}, whatever loads it" for word in words)]
    if to == "diffusers-lora":
        hints = [
            f"pipe.load_lora_weights({str(out)!r}), and pipe.load_textual_inversion for each embeddings file",
            f"diffusers needs peft to load it: {pip_install('peft')}",
        ]
        return [*hints, *(f"type in prompts: {word.token}" for word in words)]
    hints = [
        "pipe.load_textual_inversion, or the web UI's embeddings folder"
        if to == "textual-inversion"
        else f"copy loras/ and embeddings/ to the web UI's folders; prompt: <lora:{lora_name(out)}:1>"
    ]
    return [*hints, *(f"type in prompts: {word}" for word in words)]


# Names that Windows keeps for devices, with any ending.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
_LONGEST = 64
SD2_WIDTH, SDXL_WIDTH = 1024, 2048
LAST_NORM = "conv_norm_out"


def file_stems(texts: Iterable[str]) -> dict[str, str]:
    """A file name without ending for every text: letters, digits, `-` and `_`, different even ignoring case."""
    stems: dict[str, str] = {}
    used: set[str] = set()
    for text in texts:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:_LONGEST].strip("-") or "token"
        stem = f"{stem}-token" if stem.lower() in _RESERVED else stem
        chosen, number = stem, 2
        while chosen.lower() in used:
            chosen, number = f"{stem}-{number}", number + 1
        used.add(chosen.lower())
        stems[text] = chosen
    return stems


@dataclass(frozen=True)
class Spelling:
    """What a modifier token is typed as: in cdkit and diffusers, in A1111 and Forge, in ComfyUI.

    The web UIs call an embedding by its file's name.
    """

    token: str
    webui: str
    comfyui: str

    def __str__(self) -> str:
        return f"{self.token} in diffusers and cdkit, {self.webui} in A1111 and Forge, {self.comfyui} in ComfyUI"


def spellings(tokens: Iterable[str]) -> list[Spelling]:
    """How each token of a delta is typed once its embedding, as cdkit exports it, is installed."""
    return [Spelling(text, stem, f"embedding:{stem}") for text, stem in file_stems(tokens).items()]


def module_of(parameter: str) -> tuple[str, str]:
    """A parameter's module and whether it is its `weight` or `bias`."""
    module, _, kind = parameter.rpartition(".")
    return module, kind


def text_width(changes: Mapping[str, torch.Tensor | LowRank]) -> int:
    """The text width that the changed keys and values take, 0 when there is none: 768, 1024 or 2048 tell families."""
    for name, change in changes.items():
        if re.search(r"\.attn2\.to_[kv]\.weight$", name):
            return int(change.shape[1])
    return 0


def kohya_module(module: str, width: int) -> str:
    """A module's name in kohya's files: `lora_unet_` and the path with underscores.

    Stable Diffusion 1 and 2 are named as in diffusers, SDXL as in its original checkpoint; sd-scripts knows no other.
    The last norm, which no LoRA has, goes by its original name everywhere: A1111 turns every diffusers name into the
    original one but this.
    """
    original = width == SDXL_WIDTH or module == LAST_NORM
    return underscored(original_module(module) if original else module)


def underscored(module: str) -> str:
    """`lora_unet_` and a module's path with underscores."""
    return "lora_unet_" + module.replace(".", "_")


def original_module(module: str) -> str:
    """A module of a U-Net with two layers per block, as CompVis and Stability AI name it."""
    if module in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[module]
    for pattern, named in _IN_BLOCKS:
        match = re.match(pattern, module)
        if match:
            rest = module[match.end() :]
            inner = _IN_RESNET.get(rest, rest) if "resnets" in pattern else rest
            return named(*(int(number) for number in match.groups())) + inner
    return module


_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_IN_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_IN_BLOCKS: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"down_blocks\.(\d+)\.attentions\.(\d+)\.", lambda block, layer: f"input_blocks.{1 + 3 * block + layer}.1."),
    (r"down_blocks\.(\d+)\.resnets\.(\d+)\.", lambda block, layer: f"input_blocks.{1 + 3 * block + layer}.0."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda block: f"input_blocks.{3 + 3 * block}.0.op"),
    (r"mid_block\.attentions\.\d+\.", lambda: "middle_block.1."),
    (r"mid_block\.resnets\.(\d+)\.", lambda layer: f"middle_block.{2 * layer}."),
    (r"up_blocks\.(\d+)\.attentions\.(\d+)\.", lambda block, layer: f"output_blocks.{3 * block + layer}.1."),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda block, layer: f"output_blocks.{3 * block + layer}.0."),
    # Behind the attention, which SDXL has in every block that has an upsampler.
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda block: f"output_blocks.{2 + 3 * block}.2."),
)


def header(delta: Delta, **more: str) -> dict[str, str]:
    """What every exported file says of itself; `cdkit delta import` reads it back."""
    return {
        "format": "pt",
        "cdkit_base": delta.base,
        "cdkit_base_hash": delta.base_hash,
        "cdkit_method": delta.method,
        "cdkit_prompts": json_text(list(delta.prompts)),
        **more,
    }
