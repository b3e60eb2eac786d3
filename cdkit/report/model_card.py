"""The model card: a README.md with the front matter that model hubs read, and samples beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import CdkitError, InputError
from cdkit.core.formatting import command_line
from cdkit.core.storage import Folder, write_text
from cdkit.deltas.delta import DELTA_NAME
from cdkit.deltas.formats.textual_inversion import Spelling
from cdkit.evaluation.samples import find_tokens
from cdkit.report.run_folder import RunFolder, StepFolder
from cdkit.report.sections.images import drawn_images
from cdkit.report.sections.training import step_family, token_spellings, token_texts

if TYPE_CHECKING:
    from cdkit.report.page import Page

CARD_NAME, PICTURES = "README.md", "pictures"
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
    """What the card says. delta: what commands call the delta; file: where it lies, empty while it is not finished.
    export: the format that other tools load it in."""

    front_matter: str
    title: str
    base: str
    method: str
    trigger: Sequence[str]
    spellings: Sequence[Spelling]
    prompts: Sequence[str]
    samples: Sequence[CardSample]
    licence: str
    delta: str
    file: str
    export: str

    @property
    def commands(self) -> str:
        """How the delta is drawn with and exported, as lines for a shell."""
        prompt = (self.prompts or ["a photo"])[0]
        sample = ["cdkit", "sample", "--base", self.base, "--delta", self.delta]
        sample += ["--prompt", prompt, "--out", "samples"]
        export = ["cdkit", "export", self.delta, "--to", self.export, "--base", self.base]
        export += ["--out", "lora" if self.export == "diffusers-lora" else "pipeline"]
        return f"{command_line(*sample)}\n{command_line(*export)}"


def write_model_card(page: Page, licence: str, out: Folder) -> None:
    """Write README.md for the run's last delta, and its samples; nothing when the run trains none."""
    steps = page.run.of_stage("train", "merge", "delta-compress")
    if steps:
        there = (steps[-1].path / DELTA_NAME).exists()
        file = f"the run's {steps[-1].name}/{DELTA_NAME}" if there else ""
        write_card_of(page, steps[-1], licence, out, delta=DELTA_NAME, file=file)


def write_card_of(page: Page, step: StepFolder, licence: str, out: Folder, *, delta: str, file: str) -> None:
    """Write README.md for the delta of one step, and its samples. delta, file: as in Card."""
    from cdkit.report.page import environment

    card = _card(page, step, _write_samples(page.run, step, out), licence, delta, file)
    text = environment().get_template("model_card.md.jinja").render(card=card, page=page)
    write_text(out / CARD_NAME, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")


def _card(page: Page, step: StepFolder, samples: Sequence[CardSample], licence: str, delta: str, file: str) -> Card:
    base = str(step.values.get("base") or "embedded")
    tokens = token_texts(step.details.get("tokens", []))
    prompts = [str(prompt) for prompt in step.details.get("prompts", [])]
    prompts = prompts or list(dict.fromkeys(sample.prompt for sample in samples))
    method = str(step.details.get("method") or step.values.get("method") or "custom-diffusion")
    return Card(
        front_matter=_front_matter(base, licence, tokens, prompts, samples),
        title=page.title,
        base=base,
        method="merged in closed form" if step.stage == "merge" else method,
        trigger=tokens,
        spellings=token_spellings(step),
        prompts=prompts,
        samples=samples,
        licence=licence,
        delta=delta,
        file=file,
        # Nothing of diffusers loads a transformer's new words but a whole pipeline.
        export="diffusers-lora" if step_family(step) is None else "diffusers-pipeline",
    )


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
