"""What a run is about: its concepts with the words they are called by, and the title that this makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

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

    @property
    def anchor(self) -> str:
        """Its part of addresses on the page: its word, and where there is one its token, as words may be shared."""
        return "-".join((self.word, *self.tokens[:1]))

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
        for name, place in _named(run, step).items() if step.stage in ("train", "evaluate") else ():
            tokens = found.setdefault(place, [])
            tokens.extend(token for token in _tokens_of(run, step, name, place[0]) if token not in tokens)
    return [Subject(word, tuple(tokens), photos, _look(photos)) for (word, photos), tokens in found.items()]


def subjects_of(step: StepFolder, run: RunFolder, subjects: Sequence[Subject]) -> list[Subject]:
    """The concepts that a step names."""
    wanted = named_places(run, step)
    return [subject for subject in subjects if (subject.word, subject.photos) in wanted]


def named_places(run: RunFolder, step: StepFolder) -> list[tuple[str, str]]:
    """The word that prompts use for each concept that a step names, and the place of its photos."""
    return list(_named(run, step).values())


def _named(run: RunFolder, step: StepFolder) -> dict[str, tuple[str, str]]:
    """Word and place of photos by a concept's name. A training says where the word is another than the name, for
    itself and for the evaluations that call those photos by that name."""
    concepts, categories = step.values.get("concepts"), step.values.get("categories")
    places = (
        {str(name): run.resolve(str(photos)) for name, photos in concepts.items()} if _is_mapping(concepts) else {}
    )
    if step.stage == "train":
        words = {str(name): str(word) for name, word in categories.items()} if _is_mapping(categories) else {}
        return {name: (words.get(name, name), photos) for name, photos in places.items()}
    taught: dict[tuple[str, str], tuple[str, str]] = {}
    for training in run.steps:
        if training.stage == "train":
            named = _named(run, training)
            taught |= {(name, place[1]): place for name, place in named.items()}
    return {name: taught.get((name, photos), (name, photos)) for name, photos in places.items()}


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


def _tokens_of(run: RunFolder, step: StepFolder, name: str, word: str) -> list[str]:
    """The tokens that a training gave a concept of that name and word, and what merges of its delta made of them."""
    if step.stage != "train":
        return []
    asked, texts, concepts = step.values.get("token"), step.details.get("tokens"), list(step.values["concepts"])
    stated = [str(asked[name])] if isinstance(asked, Mapping) and asked.get(name) else []
    if not stated and isinstance(texts, list) and len(texts) == len(concepts):
        # Texts alone stand in the order of the concepts.
        stated = [text for other, text in zip(concepts, texts, strict=True) if other == name and isinstance(text, str)]
    tokens = _recorded_tokens(step, name, word, len(concepts)) or stated
    merges = (entry for merge in run.steps if merge.stage == "merge" for entry in _records(merge, "tokens"))
    renamed = [
        str(entry["token"])
        for entry in merges
        if Path(str(entry.get("delta"))).name == step.name and entry.get("was") in tokens and entry.get("token")
    ]
    return [*tokens, *renamed]


def _recorded_tokens(step: StepFolder, name: str, word: str, concepts: int) -> list[str]:
    """The tokens that a training recorded for a concept: by its place, since several may share a word, else by it."""
    records = _records(step, "tokens")
    if len(records) == concepts:
        records = [records[list(step.values["concepts"]).index(name)]]
    return [str(entry["text"]) for entry in records if entry.get("category") == word and entry.get("text")]


def _records(step: StepFolder, name: str) -> list[Mapping[str, Any]]:
    entries = step.details.get(name)
    return [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []


def _is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


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
