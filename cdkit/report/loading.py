"""How what a run made is loaded elsewhere: the lines for diffusers, and the words to type in every tool."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import json_text
from cdkit.deltas.config import Format
from cdkit.deltas.delta import acts_at_words
from cdkit.deltas.exporting import EMBEDDINGS, LORAS, lora_name
from cdkit.deltas.families.family import Family
from cdkit.deltas.formats.textual_inversion import XL_KEYS, Spelling
from cdkit.deltas.gating import PIPELINE_CODE
from cdkit.deltas.methods import METHODS, NOTHING
from cdkit.fetching.hub import HUB
from cdkit.report.run_folder import RunFolder, StepFolder
from cdkit.report.sections.training import step_family, token_spellings, token_texts

# What each format is loaded by; the formats that diffusers loads, the first that is there.
READERS: Mapping[str, tuple[str, ...]] = {
    "A1111 and Forge": ("kohya-lora", "webui-diff"),
    "ComfyUI": ("kohya-lora", "webui-diff"),
    "kohya's sd-scripts": ("kohya-lora",),
}
EXPORT_FOLDERS = {"diffusers-lora": "lora", "diffusers-pipeline": "pipeline", "textual-inversion": "embedding"}
DIFFUSERS: tuple[Format, ...] = ("diffusers-pipeline", "diffusers-lora", "kohya-lora", "textual-inversion")


@dataclass(frozen=True)
class Export:
    """What one export made. place: its folder as the reader of the card names it."""

    to: str
    place: str
    path: Path
    files: Sequence[str]


@dataclass(frozen=True)
class ToolWords:
    """What is typed in one tool, what loads the weights there, from which folder, and what it takes to export where
    there is none."""

    tool: str
    words: Sequence[str]
    weights: str
    place: str
    needs: str


def exports_of(run: RunFolder, step: StepFolder, card: Path) -> list[Export]:
    """The run's exports of a step's delta, by their places from the folder of the card."""
    return [
        Export(
            str(export.details.get("to") or export.values.get("to")),
            Path(os.path.relpath(export.path, card)).as_posix(),
            export.path,
            [str(file) for file in export.details.get("files") or ()],
        )
        for export in run.of_stage("export")
        if export.state == "done" and step in run.named(export.values.get("delta"))
    ]


def best_format(step: StepFolder) -> Format:
    """The format that diffusers loads a step's delta in."""
    method = METHODS.get(str(step.details.get("method") or step.values.get("method") or ""))
    if method is not None and method.unet == NOTHING:
        return "textual-inversion"
    # Nothing of diffusers loads a transformer's new words, or what acts at words alone, but a whole pipeline.
    whole = step_family(step) is not None or acts_at_words(step.path)
    return "diffusers-pipeline" if whole else "diffusers-lora"


def to_be_exported(to: Format, step: StepFolder) -> Export:
    """What the export will be that the card's command makes: its files by the names that they will have."""
    place = EXPORT_FOLDERS[to]
    code = [PIPELINE_CODE] if acts_at_words(step.path) else []
    files = [f"{EMBEDDINGS}/{word.webui}.safetensors" for word in token_spellings(step)]
    return Export(to, place, Path(place), [*files, *code])


def diffusers_lines(export: Export, base: str, family: Family | None, prompt: str) -> str:
    """Python that loads an export into diffusers and draws with it; run from the card's folder."""
    place = json_text(export.place)
    lines = _base_lines(base)
    if export.to == "diffusers-pipeline":
        trust = ", trust_remote_code=True" if PIPELINE_CODE in export.files else ""
        lines = [
            "from diffusers import DiffusionPipeline",
            f"pipe = DiffusionPipeline.from_pretrained({place}{trust})",
        ]
    elif export.to == "diffusers-lora":
        lines.append(f"pipe.load_lora_weights({place})")
    elif export.to == "kohya-lora":
        lines += [
            f"pipe.load_lora_weights({json_text(f'{export.place}/{file}')})" for file in export.files if LORAS in file
        ]
    embeddings = [file for file in export.files if file.startswith(f"{EMBEDDINGS}/")]
    if export.to != "diffusers-pipeline" and family is None:
        lines += [f"pipe.load_textual_inversion({json_text(f'{export.place}/{file}')})" for file in embeddings]
        if any(_is_xl(export.path / file) for file in embeddings):
            lines.append("pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id")
    call = f", {family.call}" if family is not None and family.call else ""
    return "\n".join([*lines, f"image = pipe({json_text(prompt)}{call}).images[0]"])


def _base_lines(base: str) -> list[str]:
    if base == EMBEDDED:
        return ["from cdkit.embedded import load_pipeline", "pipe = load_pipeline()"]
    loaded = json_text(base.removeprefix(HUB))
    return ["from diffusers import DiffusionPipeline", f"pipe = DiffusionPipeline.from_pretrained({loaded})"]


def _is_xl(path: Path) -> bool:
    """Whether a file of embeddings has those of SDXL's two text encoders."""
    from safetensors import safe_open

    if not path.exists():
        return False
    with safe_open(str(path), "pt") as opened:
        return set(XL_KEYS.values()) <= set(opened.keys())


def tool_words(step: StepFolder, exports: Sequence[Export], spellings: Sequence[Spelling]) -> list[ToolWords]:
    """A row per tool: by what was exported, and with what else to export where that does not serve it."""
    exported = {export.to: export for export in exports}
    best = best_format(step)
    ours = next((format for format in DIFFUSERS if format in exported), None)
    tokens = token_texts(step.details.get("tokens", []))
    place = exported[ours].place if ours else ""
    rows = [ToolWords("diffusers", tokens, "the lines above", place, f"--to {best}")]
    # A rare word of the vocabulary is typed as it is.
    webui = [word.webui for word in spellings] or tokens
    comfyui = [word.comfyui for word in spellings] or tokens
    if best == "diffusers-pipeline":
        return rows
    for tool, readable in READERS.items():
        formats = (best,) if best == "textual-inversion" else readable
        export = next((exported[format] for format in formats if format in exported), None)
        words = comfyui if tool == "ComfyUI" else webui
        place = export.place if export else ""
        rows.append(ToolWords(tool, words, _weights(tool, export, best), place, f"--to {formats[0]}"))
    return rows


def _weights(tool: str, export: Export | None, best: Format) -> str:
    """What loads the weights in a tool."""
    if best == "textual-inversion":
        return "none: the word is all"
    name = lora_name(export.path) if export is not None else "NAME"
    if tool == "ComfyUI":
        return f"a Load LoRA node with {name}.safetensors"
    if tool.startswith("kohya"):
        return f"--network_weights {LORAS}/{name}.safetensors --textual_inversion_embeddings {EMBEDDINGS}/*"
    return f"<lora:{name}:1>"
