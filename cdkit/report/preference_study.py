"""A preference study of a run: pairs of pictures of two methods, shuffled and blinded, as one page, and its key.

The page tells nobody which picture is whose: pictures are encoded anew without their texts, prompts lose the modifier
tokens (which differ between methods), pairs are named by their place in a shuffled order, sides are drawn by lot.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

from cdkit.core.config import did_you_mean
from cdkit.core.errors import ConfigError, InputError
from cdkit.core.formatting import json_text
from cdkit.evaluation.preference import QUESTIONS, Key, KeyPair, Side
from cdkit.evaluation.samples import read_sample_set
from cdkit.pictures.picture import open_file
from cdkit.pictures.reading import read_pictures
from cdkit.report.page import TEMPLATES, environment
from cdkit.report.picture_box import PictureBox, Shown
from cdkit.report.run_folder import RunFolder, StepFolder
from cdkit.report.subjects import named_places

SIDES: tuple[Side, Side] = ("left", "right")
PHOTOS_SHOWN = 6
PHOTO_SIDE, PICTURE_SIDE = 160, 512
# A page that mail takes, and a browser opens at once.
PAGE_BYTES = 40_000_000


@dataclass(frozen=True)
class StudySettings:
    """pairs: of each two methods; checks: pairs that ask for one side; seed: of choice, order and sides."""

    pairs: int = 60
    checks: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """The pictures of two methods for one prompt and seed. concepts: (word, where its photos are), sorted."""

    methods: tuple[str, str]
    pictures: tuple[Path, Path]
    concepts: tuple[tuple[str, str], ...]
    prompt: str
    seed: int


@dataclass(frozen=True)
class _Entry:
    """One pair as it stands on the page."""

    comparison: Comparison
    swapped: bool
    check: Side | None = None


def build_study(run: RunFolder, methods: Sequence[str], settings: StudySettings) -> tuple[str, Key]:
    """The page and the key: the same for the same run, methods and settings.

    Raises ConfigError for methods that the run does not have, InputError when they share no prompt and seed, or a
    picture cannot be read.
    """
    if len(set(methods)) < 2:
        raise ConfigError("A preference needs two different methods.", hint="Example: --methods joint merged")
    lot = random.Random(settings.seed)
    comparisons = {pair: list(find_comparisons(run, pair)) for pair in combinations(dict.fromkeys(methods), 2)}
    empty = next((pair for pair, of_pair in comparisons.items() if not of_pair), None)
    if empty is not None:
        raise InputError(
            f"{empty[0]} and {empty[1]} have no prompt of a concept with the same seed in common.",
            hint="Draw both with cdkit sample for the same prompts and --seeds.",
        )
    chosen = [entry for of_pair in comparisons.values() for entry in _spread(of_pair, settings.pairs, lot)]
    lot.shuffle(chosen)
    entries = [_Entry(comparison, lot.random() < 0.5) for comparison in chosen]
    for _ in range(min(settings.checks, len(entries))):
        check = _Entry(lot.choice(chosen), lot.random() < 0.5, lot.choice(SIDES))
        entries.insert(lot.randint(1, len(entries)), check)
    return _written(entries, list(dict.fromkeys(methods)))


def find_comparisons(run: RunFolder, methods: tuple[str, str]) -> Iterator[Comparison]:
    """What two methods drew for the same concepts, prompt and seed, prompts without their modifier tokens."""
    first, second = (_drawn(run, method) for method in methods)
    for place, picture in first.items():
        if place in second:
            concepts, prompt, seed = place
            yield Comparison(methods, (picture, second[place]), concepts, prompt, seed)


def _drawn(run: RunFolder, method: str) -> dict[tuple[tuple[tuple[str, str], ...], str, int], Path]:
    drawn: dict[tuple[tuple[tuple[str, str], ...], str, int], Path] = {}
    for step in sample_steps(run, method):
        concepts, tokens = _concepts(run, step)
        samples = read_sample_set(step.path, tokens)
        for place in samples.about_concept():
            sample = samples.samples[place]
            drawn.setdefault((concepts, sample.plain_prompt, sample.seed), step.path / sample.path)
    return drawn


def sample_steps(run: RunFolder, method: str) -> list[StepFolder]:
    """The steps that drew a method's samples: the step of that name, those that a compare step puts under it, or those
    with the method's name in theirs. Raises ConfigError when there are none."""
    samples = {step.name: step for step in run.of_stage("sample")}
    if method in samples:
        return [samples[method]]
    compared = _compared(run)
    scored = {step.name: str(step.values.get("samples")) for step in run.steps if step.stage == "evaluate"}
    named = [samples[scored[name]] for name in compared.get(method, []) if scored.get(name) in samples]
    word = re.compile(rf"(?:^|[-_]){re.escape(method)}(?:[-_]|$)")
    steps = named or [step for name, step in samples.items() if word.search(name)]
    if not steps:
        raise ConfigError(
            f"{run.path} has no samples of {method!r}{did_you_mean(method, [*compared, *samples])}.",
            hint="Name methods of its compare step, or steps that drew samples.",
        )
    return steps


def _compared(run: RunFolder) -> dict[str, list[str]]:
    """The evaluate steps of each method, as compare steps name them."""
    methods: dict[str, list[str]] = {}
    for step in run.steps:
        for group in ("single", "multi") if step.stage == "compare" else ():
            table = step.values.get(group)
            for method, names in table.items() if isinstance(table, Mapping) else ():
                methods.setdefault(str(method), []).extend(map(str, names if isinstance(names, list) else [names]))
    return methods


def _concepts(run: RunFolder, step: StepFolder) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    """What a sample step's pictures should show, with the photos' places, and words that stand for it."""
    deltas = step.values.get("deltas") or []
    trained = [deltas] if isinstance(deltas, str) else list(deltas)
    for other in run.steps:
        compared = other.values.get("compare")
        scored = [other.values.get("samples"), *(compared.values() if isinstance(compared, Mapping) else ())]
        about = other.stage == "evaluate" and step.name in scored
        if about or (other.stage == "train" and other.name in trained):
            places, tokens = named_places(run, other), other.values.get("tokens")
            if places:
                words = [str(token) for token in tokens] if about and isinstance(tokens, list) else []
                return tuple(sorted(places)), words
    return (), []


def _spread(comparisons: Sequence[Comparison], most: int, lot: random.Random) -> list[Comparison]:
    """At most so many, drawn by lot, of every prompt as equally often as can be."""
    prompts: dict[tuple[object, str], list[Comparison]] = {}
    for comparison in comparisons:
        prompts.setdefault((comparison.concepts, comparison.prompt), []).append(comparison)
    groups = list(prompts.values())
    lot.shuffle(groups)
    for group in groups:
        lot.shuffle(group)
    rounds = (entry for some in zip_longest(*groups) for entry in some if entry is not None)
    return [entry for entry, _ in zip(rounds, range(most), strict=False)]


def _written(entries: Sequence[_Entry], methods: list[str]) -> tuple[str, Key]:
    box = PictureBox(PAGE_BYTES)
    places = list(dict.fromkeys(place for entry in entries for place in entry.comparison.concepts))
    concepts = [{"word": word, "photos": _photos(photos, box)} for word, photos in places]
    pairs: list[dict[str, Any]] = []
    keys: dict[str, KeyPair] = {}
    for number, entry in enumerate(entries, start=1):
        compared, name = entry.comparison, f"pair-{number:03d}"
        order = (1, 0) if entry.swapped else (0, 1)
        shown: dict[str, Any] = dict(
            zip(SIDES, (_picture(compared.pictures[place], box) for place in order), strict=True)
        )
        text = compared.prompt if entry.check is None else _instruction(entry.check)
        numbers = [places.index(place) for place in compared.concepts]
        pairs.append({"name": name, "text": text, "concepts": numbers, **shown})
        keys[name] = KeyPair(
            left=compared.methods[order[0]],
            right=compared.methods[order[1]],
            concept=", ".join(word for word, _ in compared.concepts),
            prompt=compared.prompt,
            seed=compared.seed,
            check=entry.check,
        )
    questions = [{"name": name, "text": text} for name, text in QUESTIONS.items() if name != "likeness" or concepts]
    content = {"questions": questions, "concepts": concepts, "pairs": pairs}
    known = json_text([content, {name: pair.model_dump() for name, pair in keys.items()}], sort_keys=True)
    study = hashlib.sha256(known.encode()).hexdigest()[:16]
    # In a script element nothing but `<` can end the data.
    data = json_text({"study": study, **content}, compact=True).replace("<", "\\u003c")
    script = (TEMPLATES / "preference.js").read_text(encoding="utf-8")
    page = environment().get_template("preference.html.jinja").render(data=data, script=script)
    return page, Key(study=study, methods=methods, questions=[asked["name"] for asked in questions], pairs=keys)


def _instruction(side: Side) -> str:
    return f"No picture is judged here: answer every question with “{side}”."


def _photos(source: str, box: PictureBox) -> list[str]:
    photos = read_pictures(source).without_others().pictures[:PHOTOS_SHOWN]
    return [_shown(box.image(photo.open(), PHOTO_SIDE)) for photo in photos]


def _picture(path: Path, box: PictureBox) -> str:
    return _shown(box.image(open_file(path), PICTURE_SIDE))


def _shown(picture: Shown | None) -> str:
    if picture is None:
        raise InputError(
            f"The page would be larger than {PAGE_BYTES / 1e6:.0f} MB.",
            hint="Ask for fewer --pairs or --methods.",
        )
    return picture.uri
