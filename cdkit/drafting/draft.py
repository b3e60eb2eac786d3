"""The draft of a pipeline: its YAML from the answers, checked as `cdkit run` checks it, and then written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import OutputError, writing
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import command_line, json_text
from cdkit.core.storage import alone_with, atomic_path
from cdkit.core.templates import template_environment
from cdkit.deltas.methods import Recipe
from cdkit.drafting.answers import Answers, ConceptAnswer, Shows, names_of, with_article
from cdkit.pipeline import spec
from cdkit.training.config import ANY, PRESETS
from cdkit.training.live_page import LIVE_NAME

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
OPEN_CLIP_TEXT, OPEN_CLIP_SCORES = "open_clip:ViT-L-14/openai", "open_clip:ViT-B-32/openai"
# Intervals over fewer than five prompts are rough, and the scores say so.
PLACES = ("on the grass", "at night", "on the water", "against a gray wall", "in a green meadow")
STYLED = ("a house", "a cat", "a city street", "a tree", "a boat")
SAMPLES_IN_TRAINING = 5


@dataclass(frozen=True)
class Draft:
    """A pipeline that is ready to be written. name: of the pipeline and its run's folder."""

    name: str
    text: str

    @property
    def live_page(self) -> Path:
        """Where the run can be watched."""
        return Path("runs") / self.name / LIVE_NAME


def draft(answers: Answers) -> Draft:
    """The YAML that the answers make."""
    names = names_of([concept.word for concept in answers.concepts])
    name = "-".join(names)[:60].strip("-")
    text = _environment().get_template("pipeline.yaml.jinja").render(**_values(answers, names, name))
    return Draft(name, f"{text.rstrip()}\n")


def write_draft(made: Draft, path: Path, *, force: bool) -> None:
    """Write a pipeline, whole or not at all, after a check as `cdkit run` makes it.

    Raises OutputError for a file that is there, unless `force`; ConfigError with every mistake.
    """
    with writing(path):
        refuse_existing(path, force=force)
        with alone_with(path), atomic_path(path) as temporary:
            temporary.write_text(made.text, encoding="utf-8")
            spec.load(temporary, {}, Path("runs") / made.name)


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise OutputError where something is that must not be replaced."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder.", hint="Name the file to write, such as dog.yaml.")
    if path.exists() and not force:
        raise OutputError(f"{path} exists.", hint="Choose another --out, or add --force.")


def commands(path: Path) -> tuple[str, str]:
    """The two commands that follow: the one that checks, and the one that runs."""
    return command_line("cdkit", "run", path, "--dry-run"), command_line("cdkit", "run", path)


def _values(answers: Answers, names: Sequence[str], name: str) -> dict[str, Any]:
    """What the template shows."""
    base, captions = answers.base, answers.captions
    small, several = base.spec == EMBEDDED, len(names) > 1
    concepts = [
        _concept(concept, own, number, small=small)
        for number, (concept, own) in enumerate(zip(answers.concepts, names, strict=True), start=1)
    ]
    joint = several and captions.kind == "none"
    merges = several and not joint
    builds_index = captions.kind in ("embedded", "pool")
    presets = {concept["preset"] for concept in concepts}
    steps = _steps(answers.concepts, small=small) * (len(names) if joint else 1)
    check, run = commands(answers.out)
    final = "tuned" if joint else "merged" if merges else f"{names[0]}-tuned"
    after = "tuned" if joint else "${c.name}-tuned"
    words = " and ".join(with_article(concept.word) for concept in answers.concepts)
    return {
        "name": name,
        "description": f"Teach {base.spec} {words}: {_plan(joint=joint, merges=merges)}",
        "check": check,
        "run": run,
        "live": Path("runs") / name / LIVE_NAME,
        "concepts": concepts,
        "several": several,
        "joint": joint,
        "merges": merges,
        "together": together(answers.concepts, names_only=False),
        "together_before": together(answers.concepts, names_only=True),
        "base": base,
        "small": small,
        "captions": captions,
        "builds_index": builds_index,
        "index": captions.named[0] if captions.kind == "index" else "",
        "index_input": "index" if builds_index else '"${index}"' if captions.kind == "index" else "",
        "encoder": EMBEDDED if small or captions.kind == "embedded" else OPEN_CLIP_TEXT,
        "scorer": EMBEDDED if small else OPEN_CLIP_SCORES,
        "images": EMBEDDED if captions.kind == "embedded" or (small and captions.encoder == EMBEDDED) else None,
        "retrieves": captions.kind != "none" and captions.pictures is not False,
        "keep": answers.keep,
        "presets": presets != {None},
        "joint_preset": next(iter(presets)) if len(presets) == 1 else None,
        "steps": steps,
        "sample_every": max(1, steps // SAMPLES_IN_TRAINING),
        "fit": answers.fit,
        "enlarge": any(concept.photos.smaller_than(base.side) for concept in answers.concepts),
        "final": final,
        "drawn": [("after", after), *([("merged", "merged")] if merges else [])],
    }


def _plan(*, joint: bool, merges: bool) -> str:
    how = "train them together" if joint else "train them one by one, merge them" if merges else "train it"
    return f"{how}, draw before and after at the same seeds, score, and report."


def _steps(concepts: Sequence[ConceptAnswer], *, small: bool) -> int:
    """The steps of one concept's training: those of the preset that the photos ask for."""
    if small:
        return int(PRESETS["embedded"]["custom-diffusion"]["steps"])
    presets = [PRESETS[_preset(concept.shows) or "paper"].get(ANY, {}) for concept in concepts]
    return max(int(preset.get("steps", Recipe().steps)) for preset in presets)


def _preset(shows: Shows) -> str | None:
    return None if shows == "thing" else shows


def _concept(concept: ConceptAnswer, name: str, number: int, *, small: bool) -> dict[str, Any]:
    token, word = f"<new{number}>", concept.word
    if concept.shows == "style":
        before = [f"{thing} in the style of {word}" for thing in STYLED]
        after = [f"{thing} in the style of {token} {word}" for thing in STYLED]
        alike = [word, f"a picture in the style of {word}"]
    else:
        before = [f"a photo of {with_article(word)} {place}" for place in PLACES]
        after = [f"a photo of a {token} {word} {place}" for place in PLACES]
        alike = [f"a photo of {with_article(word)}", f"a picture of {with_article(word)}"]
    return {
        "name": name,
        "word": word,
        "token": token,
        "photos": concept.photos.source,
        "seen": concept.photos.sentence(),
        # The embedded model has settings of its own, whatever the photos show.
        "preset": None if small else _preset(concept.shows),
        "alike": alike,
        "before": before,
        "after": [*after, *before],
    }


def together(concepts: Sequence[ConceptAnswer], *, names_only: bool) -> list[str]:
    """Prompts of all concepts in one picture, five where there are places for them. names_only: without new words."""

    def called(place: int, concept: ConceptAnswer) -> str:
        return concept.word if names_only else f"<new{place}> {concept.word}"

    numbered = list(enumerate(concepts, start=1))
    things = [
        with_article(called(place, concept)) if names_only else f"a {called(place, concept)}"
        for place, concept in numbered
        if concept.shows != "style"
    ]
    styles = [called(place, concept) for place, concept in numbered if concept.shows == "style"]
    manner = f" in the style of {' and '.join(styles)}" if styles else ""
    if not things:
        return [f"{thing}{manner}" for thing in STYLED]
    prompts = [f"{' and '.join(things)} {place}{manner}" for place in PLACES]
    if len(things) == 2 and not styles:
        sides = [f"{one} on the left and {other} on the right" for one, other in (things, things[::-1])]
        return [*prompts[:3], *sides]
    return prompts


def quoted(text: object) -> str:
    """Text as YAML holds it between double quotes, readable where it can be."""
    plain = json_text(str(text))
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in plain)


def _escape(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


@cache
def _environment() -> Environment:
    made = template_environment(TEMPLATES)
    made.filters["q"] = quoted
    made.filters["append"] = lambda text, ending: f"{text}{ending}"
    return made
