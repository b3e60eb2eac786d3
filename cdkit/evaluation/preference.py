"""Human preference: answers of raters to blinded pairs of pictures, as win rates with intervals, and their agreement.

The study is the paper's (Kumari et al. 2023, section 4): two pictures of two methods for the same prompt, and which of
them is more like the concept's photos, and which more like the prompt; here also which is better on the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cdkit.core.columns import displayed
from cdkit.core.errors import InputError
from cdkit.core.manifest import mistakes
from cdkit.core.storage import read_json
from cdkit.evaluation.estimates import Estimate, block_numbers, draw_weights, percentile_interval

KEY_NAME, PAGE_NAME = "key.json", "preference.html"
QUESTIONS: Mapping[str, str] = {
    "likeness": "Which picture shows the object of the photos more faithfully?",
    "prompt": "Which picture fits the text better?",
    "overall": "Which picture is better on the whole?",
}
LARGEST_FILE = 16 << 20
Choice = Literal["left", "right", "same"]
Side = Literal["left", "right"]
_SHARES: Mapping[Choice, float] = {"left": 1.0, "right": 0.0, "same": 0.5}


class KeyPair(BaseModel):
    """What one pair of the page is: the methods on its sides; check: the side that it asks for, when it is no pair
    to be judged but one that shows whether its questions are read."""

    model_config = ConfigDict(extra="forbid")
    left: str
    right: str
    concept: str
    prompt: str
    seed: int
    check: Side | None = None


class Key(BaseModel):
    """What belongs to a page and is not on it. methods: compared; questions: asked; pairs: by their names there."""

    model_config = ConfigDict(extra="forbid")
    format: Literal["cdkit-preference-key-1"] = "cdkit-preference-key-1"
    study: str
    methods: list[str]
    questions: list[str]
    pairs: dict[str, KeyPair]


class Answers(BaseModel):
    """What one rater answered: by pair and question."""

    format: Literal["cdkit-preference-answers-1"]
    study: str
    rater: str = Field(min_length=1, max_length=100)
    finished: bool = False
    answers: dict[str, dict[str, Choice]]


def read_key(path: Path) -> Key:
    """Read a study's key; raises InputError."""
    try:
        return Key.model_validate(read_json(path))
    except ValidationError as error:
        hint = "Give the key.json that cdkit preference page wrote beside the page, with --key."
        raise InputError(f"{path} is no key of a preference study: {'; '.join(mistakes(error))}", hint=hint) from error


def read_answers(path: Path) -> Answers:
    """Read one rater's answers; raises InputError."""
    hint = "Give the file that the page's Download button wrote, or its text as it was pasted."
    if path.is_file() and path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{path} is too large for a file of answers.", hint=hint)
    try:
        given = Answers.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path} holds no answers of a rater: {'; '.join(mistakes(error))}", hint=hint) from error
    # Names come from files of people whom nobody knows.
    return given.model_copy(update={"rater": displayed(given.rater)})


@dataclass(frozen=True)
class Duel:
    """Two methods under one question. estimate: the share of comparisons that `method` wins against `other`, a "no
    difference" counting half; alpha: Krippendorff's, None with fewer than two raters; ties: share of "no difference".
    """

    question: str
    method: str
    other: str
    estimate: Estimate
    ties: float
    alpha: float | None

    def as_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("question", "method", "other", "ties", "alpha")},
            **asdict(self.estimate),
        }


@dataclass(frozen=True)
class Scored:
    """A study's result. raters: counted; left_out: the others with the reason; unanswered: per counted rater."""

    duels: Sequence[Duel]
    raters: Sequence[str]
    left_out: Mapping[str, str]
    unanswered: Mapping[str, int]


def score(
    key: Key, files: Sequence[Answers], *, keep_inattentive: bool = False, resamples: int = 1000, seed: int = 0
) -> Scored:
    """Win rates and agreement over all raters who passed the checks.

    Raises InputError for answers to another study, for two files of one rater, and when no rater is left.
    """
    _check_files(key, files)
    left_out: dict[str, str] = {}
    counted: list[Answers] = []
    for given in files:
        failed = failed_checks(key, given)
        if failed and not keep_inattentive:
            left_out[given.rater] = f"failed {failed} of {len(_checks(key))} attention checks"
        elif not any(pair in given.answers for pair in key.pairs if key.pairs[pair].check is None):
            left_out[given.rater] = "answered nothing"
        else:
            counted.append(given)
    if not counted:
        reasons = "; ".join(f"{rater} {reason}" for rater, reason in left_out.items())
        raise InputError(f"No rater's answers count: {reasons}.", hint="Ask others, or add --keep-inattentive.")
    judged = [pair for pair, facts in key.pairs.items() if facts.check is None]
    unanswered = {
        given.rater: sum(len(given.answers.get(pair, {})) < len(QUESTIONS) for pair in judged) for given in counted
    }
    duels = [
        duel
        for question in key.questions
        for first, second in combinations(key.methods, 2)
        if (duel := _duel(key, counted, question, first, second, resamples, seed)) is not None
    ]
    return Scored(duels, [given.rater for given in counted], left_out, unanswered)


def _check_files(key: Key, files: Sequence[Answers]) -> None:
    for given in files:
        if given.study != key.study:
            raise InputError(
                f"The answers of {given.rater} are to study {given.study}, the key is of {key.study}.",
                hint="Give the key.json that was written with their page: --key DIR/key.json.",
            )
        unknown = set(given.answers) - set(key.pairs)
        if unknown:
            raise InputError(
                f"The answers of {given.rater} name a pair that the study has not: {displayed(min(unknown))}."
            )
    twice = [rater for rater, number in Counter(given.rater for given in files).items() if number > 1]
    if twice:
        raise InputError(f"There are two files of the rater {twice[0]}.", hint="Give each rater's last file alone.")


def _checks(key: Key) -> dict[str, Side]:
    return {pair: facts.check for pair, facts in key.pairs.items() if facts.check is not None}


def failed_checks(key: Key, given: Answers) -> int:
    """How many attention checks a rater answered otherwise than they ask for; those never come to do not count."""
    return sum(
        any(choice != side for choice in given.answers[pair].values())
        for pair, side in _checks(key).items()
        if given.answers.get(pair)
    )


def _duel(
    key: Key, files: Sequence[Answers], question: str, first: str, second: str, resamples: int, seed: int
) -> Duel | None:
    """One question of one pair of methods; None when nobody answered it."""
    units = [
        name
        for name, facts in key.pairs.items()
        if facts.check is None and {facts.left, facts.right} == {first, second}
    ]
    table: list[list[float | None]] = []
    for given in files:
        row: list[float | None] = []
        for name in units:
            choice = given.answers.get(name, {}).get(question)
            share = None if choice is None else _SHARES[choice]
            row.append(share if share is None or key.pairs[name].left == first else 1 - share)
        table.append(row)
    values = [share for row in table for share in row if share is not None]
    if not values:
        return None
    blocks = [(key.pairs[name].concept, key.pairs[name].prompt) for name in units]
    estimate = share_with_interval(table, blocks, resamples=resamples, seed=seed)
    ties = sum(share == 0.5 for share in values) / len(values)
    return Duel(question, first, second, estimate, ties, krippendorff_alpha(table) if len(files) > 1 else None)


def share_with_interval(
    table: Sequence[Sequence[float | None]], blocks: Sequence[object], *, resamples: int, seed: int
) -> Estimate:
    """The mean of a table of raters and pairs (None where unanswered) with a 95 % interval.

    blocks: the prompt of each pair. Raters and prompts are both drawn with replacement, so that neither few raters nor
    few prompts are taken for many (the pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics 1(2)).
    """
    import torch

    numbers, _ = block_numbers([str(block) for block in blocks])
    places = int(numbers.max()) + 1
    known = torch.tensor([[share is not None for share in row] for row in table], dtype=torch.float64)
    shares = torch.tensor([[share or 0.0 for share in row] for row in table], dtype=torch.float64)
    sums = torch.zeros(len(table), places, dtype=torch.float64).index_add_(1, numbers, shares)
    counts = torch.zeros(len(table), places, dtype=torch.float64).index_add_(1, numbers, known)
    total = int(counts.sum())
    mean = float(sums.sum() / total)
    if total < 2 or (len(table) == 1 and places == 1):
        return Estimate(mean, None, None, total)
    raters, prompts = draw_weights(len(table), resamples, seed), draw_weights(places, resamples, seed + 1)
    weight = ((raters @ counts) * prompts).sum(dim=1)
    replicates = ((raters @ sums) * prompts).sum(dim=1)[weight > 0] / weight[weight > 0]
    low, high = percentile_interval(replicates)
    return Estimate(mean, low, high, total, "raters and prompts")


def krippendorff_alpha(table: Sequence[Sequence[object | None]]) -> float | None:
    """Agreement of raters (rows) on units (columns; None: not answered), answers being names without an order.

    1 is full agreement, 0 what chance gives. None when no unit has two answers. Krippendorff 2011, "Computing
    Krippendorff's Alpha-Reliability": α = 1 − observed / expected disagreement, over units with two answers or more.
    """
    units = [Counter(value for value in column if value is not None) for column in zip(*table, strict=True)]
    units = [unit for unit in units if unit.total() > 1]
    totals: Counter[object] = sum(units, Counter())
    number = totals.total()
    if number == 0:
        return None
    observed = sum(
        (unit.total() ** 2 - sum(count**2 for count in unit.values())) / (unit.total() - 1) for unit in units
    )
    expected = (number**2 - sum(count**2 for count in totals.values())) / (number - 1)
    # All gave one answer: they agree, and chance would give the same.
    return 1.0 if expected == 0 else 1 - observed / expected
