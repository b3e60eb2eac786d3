"""The paper's evaluation protocol: how many prompts, samples and references it takes, and CustomConcept101's files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.core.config import did_you_mean
from cdkit.core.errors import InputError
from cdkit.core.storage import read_json, read_lines
from cdkit.evaluation.samples import SampleSet, find_tokens

# Custom Diffusion, section 4 and appendix D: of one concept, and of several.
PROMPTS_SINGLE, PROMPTS_MULTI = 20, 8
SAMPLES_PER_PROMPT, REFERENCES, STEPS, GUIDANCE = 50, 500, 50, 6.0


def deviations(samples: SampleSet, concepts: int, references: int | None) -> list[str]:
    """What keeps an evaluation from being the paper's, one line each; empty when it is."""
    prompts = PROMPTS_MULTI if concepts > 1 else PROMPTS_SINGLE
    counts = Counter(samples.samples[place].prompt for place in samples.about_concept())
    lines = []
    if len(counts) < prompts:
        lines.append(f"{len(counts)} of {prompts} prompts")
    if min(counts.values()) < SAMPLES_PER_PROMPT:
        lines.append(f"{min(counts.values())} of {SAMPLES_PER_PROMPT} samples per prompt")
    if concepts == 0:
        lines.append("no concept photos")
    if concepts <= 1 and (references or 0) < REFERENCES:
        lines.append(f"{references or 0} of {REFERENCES} real reference images")
    drawn = samples.drawn_with
    if drawn.get("scheduler") not in (None, "ddpm"):
        lines.append(f"drawn with {drawn['scheduler']} instead of ddpm")
    if drawn.get("steps") is not None and int(drawn["steps"]) < STEPS:
        lines.append(f"{drawn['steps']} of {STEPS} sampling steps")
    if drawn.get("guidance") not in (None, GUIDANCE):
        lines.append(f"guidance {drawn['guidance']} instead of {GUIDANCE:g}")
    return lines


@dataclass(frozen=True)
class BenchmarkConcept:
    """One concept of CustomConcept101: its class, photos, training prompt and test prompts."""

    category: str
    photos: Path
    training_prompt: str
    prompts_file: Path | None


@dataclass(frozen=True)
class BenchmarkEntry:
    """One line of CustomConcept101's dataset file: a concept, or two that are composed."""

    name: str
    concepts: tuple[BenchmarkConcept, ...]
    prompts_file: Path

    def prompts(self, words: Sequence[str]) -> list[str]:
        """The test prompts with `words` (such as `<new1> dog`, one per concept) in their places.

        A single concept stands at `{}`, several at `{0}`, `{1}`. Raises InputError for an unreadable file or a
        placeholder without a word.
        """
        lines = [line.strip() for line in read_lines(self.prompts_file)]
        return list(dict.fromkeys(fill(line, words) for line in lines if line))

    def modifier_words(self) -> list[str]:
        """`<new1> dog` for each concept: its token, if its training prompt has one, and its class."""
        return [" ".join([*find_tokens(concept.training_prompt), concept.category]) for concept in self.concepts]


def fill(template: str, words: Sequence[str]) -> str:
    """Put `words` at `{}` or `{0}`, `{1}`, …; braces that hold anything else stay as they are."""

    def word(match: re.Match[str]) -> str:
        place = int(match[1] or 0)
        if place >= len(words):
            raise InputError(
                f"The prompt {template!r} asks for {place + 1} concepts, there are {len(words)}.",
                hint="Use the prompts of a single concept with a single concept.",
            )
        return words[place]

    return re.sub(r"\{(\d*)\}", word, template)


def read_benchmark(path: Path) -> list[BenchmarkEntry]:
    """Read CustomConcept101's dataset.json or dataset_multiconcept.json; its paths are relative to the file.

    Raises InputError when an entry is not what it should be.
    """
    document = read_json(path)
    if not isinstance(document, list) or not document:
        raise InputError(f"{path} is no list of concepts.", hint="Give CustomConcept101's dataset.json.")
    entries = []
    for number, entry in enumerate(document, start=1):
        try:
            entries.append(_entry(path.parent, entry if isinstance(entry, list) else [entry]))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}, entry {number}: {error} is missing or misshapen.",
                hint="An entry has instance_prompt, class_prompt, instance_data_dir and prompt_filename.",
            ) from error
    return entries


def find_entry(entries: Sequence[BenchmarkEntry], name: str) -> BenchmarkEntry:
    """The entry of a name; raises InputError with what is close."""
    for entry in entries:
        if entry.name == name:
            return entry
    names = [entry.name for entry in entries]
    raise InputError(f"The benchmark has no concept {name!r}{did_you_mean(name, names)}.", hint="Leave the name out.")


def _entry(folder: Path, parts: Sequence[dict[str, Any]]) -> BenchmarkEntry:
    composed = [part["prompt_filename_compose"] for part in parts if "prompt_filename_compose" in part]
    concepts = tuple(_concept(folder, part) for part in parts if "instance_data_dir" in part)
    if not concepts:
        raise KeyError("instance_data_dir")
    prompts = folder / composed[0] if composed else concepts[0].prompts_file
    if prompts is None:
        raise KeyError("prompt_filename")
    return BenchmarkEntry("+".join(concept.photos.name for concept in concepts), concepts, prompts)


def _concept(folder: Path, part: dict[str, Any]) -> BenchmarkConcept:
    prompts = part.get("prompt_filename")
    return BenchmarkConcept(
        category=str(part["class_prompt"]),
        photos=folder / part["instance_data_dir"],
        training_prompt=str(part["instance_prompt"]),
        prompts_file=folder / prompts if prompts else None,
    )
