"""The model card: a README.md with the front matter that model hubs read, and samples beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import CdkitError, InputError
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import command_line
from cdkit.core.storage import Folder, write_text
from cdkit.core.templates import markdown_of
from cdkit.deltas.delta import DELTA_NAME
from cdkit.deltas.exporting import EMBEDDINGS
from cdkit.evaluation.samples import find_tokens
from cdkit.report.loading import (
    DIFFUSERS,
    EXPORT_FOLDERS,
    Export,
    ToolWords,
    best_format,
    diffusers_lines,
    exports_of,
    to_be_exported,
    tool_words,
)
from cdkit.report.picture_box import PICTURES
from cdkit.report.run_folder import RunFolder, StepFolder
from cdkit.report.sections.images import drawn_images
from cdkit.report.sections.training import step_family, token_spellings, token_texts

if TYPE_CHECKING:
    from cdkit.report.page import Page

CARD_NAME = "README.md"
EMBEDDING = "a new word's embedding"
FILE_KINDS = {
    "diffusers-pipeline": "a whole model, as diffusers loads it",
    "diffusers-lora": "a LoRA for diffusers",
    "kohya-lora": "a LoRA in kohya's form",
    "webui-diff": "whole matrices for web UIs",
    "textual-inversion": EMBEDDING,
}
REPORT_FILES = {
    "report.html": "the report: one page, opens from disk",
    "report.md": "the report as Markdown",
    "scores.csv": "every score with its interval",
    "sources.csv": "where each regularization image came from",
    "pipeline.yaml": "the run as a pipeline, to repeat it",
}
SAMPLES_SHOWN = 4
SIDE = 512
# A hub id of a base model; anything else (`embedded`, a folder) has no place in the front matter.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LICENCES_WITHOUT_NAME = ("other",)


@dataclass(frozen=True)
class CardSample:
    """One sample on the card: its file beside the card, and its prompt."""

    file: str
    prompt: str


@dataclass(frozen=True)
class Card:
    """What the card says. files: what lies beside it, with what each is; commands: how to draw with the delta, and to
    export it where no export is there; code: lines that load an export into diffusers; tools: what is typed where."""

    front_matter: str
    title: str
    base: str
    method: str
    finished: bool
    files: Sequence[tuple[str, str]]
    commands: str
    code: str
    exported: bool
    tools: Sequence[ToolWords]
    prompts: Sequence[str]
    samples: Sequence[CardSample]
    licence: str


def write_model_card(page: Page, licence: str, out: Folder) -> None:
    """Write README.md for the run's last delta, and its samples; nothing when the run trains none."""
    steps = page.run.of_stage("train", "merge", "delta-compress")
    if steps:
        there = (steps[-1].path / DELTA_NAME).exists()
        delta = f"{Path(os.path.relpath(steps[-1].path, out.path)).as_posix()}/{DELTA_NAME}"
        write_card_of(page, steps[-1], licence, out, delta=delta, file=delta if there else "")


def write_card_of(page: Page, step: StepFolder, licence: str, out: Folder, *, delta: str, file: str) -> None:
    """Write README.md for the delta of one step, and its samples.

    delta: what commands call the delta; file: where it lies from the card, empty while it is not finished.
    """
    from cdkit.report.page import environment

    card = _card(page, step, _write_samples(page.run, step, out), licence, out, delta, file)
    text = environment().get_template("model_card.md.jinja").render(card=card, page=page)
    write_text(out / CARD_NAME, markdown_of(text))


def _card(
    page: Page, step: StepFolder, samples: Sequence[CardSample], licence: str, out: Folder, delta: str, file: str
) -> Card:
    base = str(step.values.get("base") or EMBEDDED)
    tokens = token_texts(step.details.get("tokens", []))
    prompts = [str(prompt) for prompt in step.details.get("prompts", [])]
    prompts = prompts or list(dict.fromkeys(sample.prompt for sample in samples))
    method = str(step.details.get("method") or step.values.get("method") or "custom-diffusion")
    exports = exports_of(page.run, step, out.path)
    best = best_format(step)
    exported = next((each for name in DIFFUSERS for each in exports if each.to == name), None)
    prompt = (prompts or ["a photo"])[0]
    return Card(
        front_matter=_front_matter(base, licence, tokens, prompts, samples),
        title=page.title,
        base=base,
        method="merged in closed form" if step.stage == "merge" else method,
        finished=bool(file),
        files=_files(file, exports, out),
        commands=_commands(delta, base, prompt, best, exported is not None),
        code=diffusers_lines(exported or to_be_exported(best, step), base, step_family(step), prompt),
        exported=exported is not None,
        tools=tool_words(step, exports, token_spellings(step)),
        prompts=prompts,
        samples=samples,
        licence=licence,
    )


def _commands(delta: str, base: str, prompt: str, to: str, exported: bool) -> str:
    """How the delta is drawn with, and exported where that was not done, as lines for a shell."""
    sample = ["cdkit", "sample", "--base", base, "--delta", delta, "--prompt", prompt, "--out", "samples"]
    export = ["cdkit", "export", delta, "--to", to, "--base", base, "--out", EXPORT_FOLDERS[to]]
    return "\n".join(command_line(*words) for words in ([sample] if exported else [sample, export]))


def _files(file: str, exports: Sequence[Export], out: Folder) -> list[tuple[str, str]]:
    """What lies beside the card, by where it is from there; nothing that is not there."""
    files = [(file, "the delta, as cdkit reads it")] if file else []
    for export in exports:
        whole = export.to == "diffusers-pipeline"
        named = [""] if whole else [each for each in export.files if (export.path / each).exists()]
        files += [
            (f"{export.place}/{each}", FILE_KINDS[export.to] if not each.startswith(EMBEDDINGS) else EMBEDDING)
            for each in named
        ]
    return [*files, *((name, what) for name, what in REPORT_FILES.items() if (out / name).exists())]


def _front_matter(
    base: str, licence: str, tokens: Sequence[str], prompts: Sequence[str], samples: Sequence[CardSample]
) -> str:
    import yaml

    values: dict[str, Any] = {"license": licence}
    if licence in LICENCES_WITHOUT_NAME:
        values["license_name"] = "see-base-model-and-photos"
    if _HUB_ID.fullmatch(base) and not Path(base).exists():
        values["base_model"] = base
    values |= {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "custom-diffusion", "cdkit"],
    }
    if prompts:
        values["instance_prompt"] = prompts[0]
    if samples:
        values["widget"] = [{"text": sample.prompt, "output": {"url": sample.file}} for sample in samples]
    if tokens:
        values["trigger_words"] = list(tokens)
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)).strip()


def _write_samples(run: RunFolder, step: StepFolder, out: Folder) -> list[CardSample]:
    """Samples drawn with the delta, or with any when none names it: one per prompt, shrunk, in `pictures`."""
    from PIL import Image

    from cdkit.pictures.picture import open_file, save_png

    drawn = run.of_stage("sample")
    with_delta = [sampled for sampled in drawn if step.name in _deltas(sampled.values)] or drawn[-1:]
    written: list[CardSample] = []
    for prompt, path in _first_of_each_prompt(with_delta[-1]) if drawn else ():
        if len(written) == SAMPLES_SHOWN:
            break
        try:
            shown = open_file(path)
        except InputError:
            continue
        if max(shown.size) > SIDE:
            shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        elif max(shown.size) < 128:
            factor = 256 // max(shown.size)
            shown = shown.resize((shown.width * factor, shown.height * factor), Image.Resampling.NEAREST)
        name = f"{PICTURES}/sample-{len(written)}.png"
        save_png(shown, out / name)
        written.append(CardSample(name, prompt))
    return written


def _deltas(values: Mapping[str, Any]) -> list[str]:
    deltas = values.get("deltas") or []
    return [str(deltas)] if isinstance(deltas, str) else [str(item) for item in deltas]


def _first_of_each_prompt(step: StepFolder) -> list[tuple[str, Path]]:
    first: dict[str, Path] = {}
    try:
        for image in drawn_images(step):
            first.setdefault(image.prompt, image.path)
    except (OSError, LookupError, ValueError, CdkitError):  # Arrow's are ValueErrors, or those of files
        pass
    # What the delta is for comes first: prompts with its token.
    return sorted(first.items(), key=lambda entry: not find_tokens(entry[0]))
