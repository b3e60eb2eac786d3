"""What a run is about: its concepts with the words they are called by, and the title that this makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.core.errors import CdkitError
from cdkit.core.text import whole_words
from cdkit.embedded.concepts import PREFIX, concept
from cdkit.evaluation.samples import find_tokens
from cdkit.report.run_folder import RunFolder, StepFolder

NAMED = 3


@dataclass(frozen=True)
class Subject:
    """One concept. word: its category; tokens: what stands before it in prompts, merges' new names behind; photos:
    where they are; look: what the photos of an embedded concept show, empty for others."""

    word: str
    tokens: tuple[str, ...]
    photos: str
    look: str = ""

    @property
    def name(self) -> str:
        """`striped star` where that is known, else what is typed in prompts: `<new1> dog`."""
        return self.look or self.phrase

    @property
    def phrase(self) -> str:
        """What is typed in prompts."""
        return f"{self.tokens[0]} {self.word}" if self.tokens else self.word

    def is_in(self, prompt: str, tokens: Sequence[str] = ()) -> bool:
        """Whether a prompt is about it: its token before its word, or, where no concept has a token, its word."""
        if find_tokens(prompt, tokens):
            phrases = [f"{token} {self.word}" for token in self.tokens]
            return bool(whole_words(*phrases).search(prompt)) if phrases else self.has_word(prompt)
        return self.has_word(prompt)

    def has_word(self, prompt: str) -> bool:
        return bool(whole_words(self.word).search(prompt))


def run_subjects(run: RunFolder) -> list[Subject]:
    """Every concept that a train or evaluate step names, once per word and photos, with all its tokens."""
    found: dict[tuple[str, str], list[str]] = {}
    for step in run.steps:
        concepts = step.values.get("concepts")
        if step.stage in ("train", "evaluate") and isinstance(concepts, Mapping):
            for word, photos in concepts.items():
                tokens = found.setdefault((str(word), run.resolve(str(photos))), [])
                tokens.extend(token for token in _tokens_of(run, step, str(word)) if token not in tokens)
    return [Subject(word, tuple(tokens), photos, _look(photos)) for (word, photos), tokens in found.items()]


def subjects_of(step: StepFolder, run: RunFolder, subjects: Sequence[Subject]) -> list[Subject]:
    """The concepts that a step names."""
    concepts = step.values.get("concepts")
    named = concepts if isinstance(concepts, Mapping) else {}
    wanted = {(str(word), run.resolve(str(photos))) for word, photos in named.items()}
    return [subject for subject in subjects if (subject.word, subject.photos) in wanted]


def run_title(run: RunFolder, subjects: Sequence[Subject]) -> str:
    """`A striped star and a checkered heart`, or what else the run is about; its name where nothing says it."""
    methods = {str(step.values.get("method") or "custom-diffusion") for step in run.steps if step.stage == "train"}
    names = list(dict.fromkeys(subject.name for subject in subjects))
    if names and any(step.stage == "compare" for step in run.steps) and len(methods) > 1:
        return f"{len(methods)} methods compared: {_listed(names)}"
    if names:
        called = [f"{_article(name)} {name}" for name in names] if all(s.look for s in subjects) else names
        return _capital(_listed(called))
    prompts = [
        _prompts(step)[0] for step in run.steps if step.stage in ("retrieve", "class-images") and _prompts(step)
    ]
    if prompts:
        return f"Images like {_listed([f'“{prompt}”' for prompt in dict.fromkeys(prompts)])}"
    return run.name


def joined(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([part for part in (", ".join(names[:-1]), *names[-1:]) if part])


def _listed(names: Sequence[str]) -> str:
    """All of a few names; of many the first, and how many more."""
    return joined(names if len(names) <= NAMED else [*names[:NAMED], f"{len(names) - NAMED} more"])


def _tokens_of(run: RunFolder, step: StepFolder, word: str) -> list[str]:
    """The tokens that a training gave a word, and what merges of its delta renamed them to."""
    if step.stage != "train":
        return []
    asked, texts, concepts = step.values.get("token"), step.details.get("tokens"), list(step.values["concepts"])
    stated = [str(asked[word])] if isinstance(asked, Mapping) and asked.get(word) else []
    if not stated and isinstance(texts, list) and len(texts) == len(concepts):
        # Texts alone stand in the order of the concepts.
        stated = [text for name, text in zip(concepts, texts, strict=True) if name == word and isinstance(text, str)]
    tokens = [str(entry["text"]) for entry in _records(step, "tokens") if entry.get("category") == word] or stated
    merges = (entry for merge in run.steps if merge.stage == "merge" for entry in _records(merge, "tokens"))
    renamed = [
        str(entry["token"])
        for entry in merges
        if Path(str(entry.get("delta"))).name == step.name and entry.get("was") in tokens and entry.get("token")
    ]
    return [*tokens, *renamed]


def _records(step: StepFolder, name: str) -> list[Mapping[str, Any]]:
    entries = step.details.get(name)
    return [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []


def _prompts(step: StepFolder) -> list[str]:
    prompts = step.details.get("prompts") or step.values.get("prompts") or []
    return [str(prompt) for prompt in prompts] if isinstance(prompts, list) else [str(prompts)]


def _look(photos: str) -> str:
    """`striped star` of `embedded:striped-star`."""
    try:
        return concept(photos).name.replace("-", " ") if photos.startswith(PREFIX) else ""
    except CdkitError:
        return ""


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
