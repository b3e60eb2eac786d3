"""What is asked before a pipeline is written, in which order, and what is taken where nobody is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cdkit.core.config import did_you_mean
from cdkit.core.errors import CdkitError, ConfigError
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import size_text
from cdkit.core.protocols import Progress
from cdkit.drafting.answers import (
    SHOWS,
    Answers,
    ConceptAnswer,
    Keep,
    Shows,
    check_source,
    check_word,
    default_base,
    default_captions,
    names_of,
)
from cdkit.drafting.bases import BaseModel, bases_at_hand, describe_base
from cdkit.drafting.captions import NONE, CaptionSource, indexes_at_hand, look_at_captions
from cdkit.drafting.graphics_card import NO_CARD, card_memory, fit_of, parse_fit
from cdkit.drafting.photos import PhotoSurvey, class_word, survey_photos

Known = TypeVar("Known", bound=str)
KEEPS: dict[Keep, str] = {
    "distil": "the base model's own predictions, for the time of a second, smaller pass",
    "none": "nothing: fast, and every other one of the class will look like the photos",
}


@dataclass(frozen=True)
class Given:
    """What the options say; empty where they say nothing."""

    photos: Sequence[str] = ()
    words: Sequence[str] = ()
    shows: Sequence[str] = ()
    base: str = ""
    captions: Sequence[str] = ()
    keep: str = ""
    fit: str = ""
    out: str = ""


@dataclass(frozen=True)
class Question:
    """One thing to know. option: that answers it, too; choices: value and meaning; default: "" where there is none.

    check: makes a value of an answer, or raises CdkitError that says what is wrong with it.
    """

    option: str
    text: str
    check: Callable[[str], Any]
    default: str = ""
    choices: Sequence[tuple[str, str]] = ()


Ask = Callable[[Question], Any]


@dataclass
class Interview:
    """Gathers the answers: from the options, from whoever can be asked, else from defaults.

    ask: puts a question and returns what its check makes of the answer; None where nobody is there. notes: what was
    said on the way.
    """

    given: Given
    ask: Ask | None
    progress: Progress
    notes: list[str] = field(default_factory=list)
    _cached_bases: list[BaseModel] | None = None
    _surveys: dict[str, PhotoSurvey] = field(default_factory=dict)

    def answers(self) -> Answers:
        """Everything. Raises ConfigError that lists what is missing, or every mistake in the options."""
        self._check_options()
        surveys, words, shows = self._concepts()
        base = self._base(surveys)
        for survey in surveys:
            self._note(survey.notes(base.side))
        concepts = tuple(
            ConceptAnswer(word, survey, kind) for word, survey, kind in zip(words, surveys, shows, strict=True)
        )
        captions = self._captions(base)
        keep = self._keep(captions)
        fit = self._fit(base)
        return Answers(concepts, base, captions, keep, fit, self._out(words))

    def _check_options(self) -> None:
        """Raise one error for all that the options lack or get wrong, before anything is asked."""
        given = self.given
        problems = self._missing() if self.ask is None else []
        photos = len(given.photos)
        if photos and len(given.words) > photos:
            problems.append(f"{len(given.words)} --word for {photos} --photos: one for each folder, in order")
        if len(given.shows) > 1 and len(given.shows) != photos:
            problems.append(f"{len(given.shows)} --shows for {photos} --photos: one for all, or one for each")
        errors = []
        for check, value in self._checks():
            try:
                check(value)
            except CdkitError as error:
                errors.append(error)
        if len(errors) == 1 and not problems:
            raise errors[0]
        problems += [error.message for error in errors]
        if problems:
            hint = "Every question of cdkit init is an option, too: cdkit init --help lists them."
            raise ConfigError(f"{len(problems)} mistake(s) in the options:", problems=problems, hint=hint)

    def _checks(self) -> list[tuple[Callable[[str], Any], str]]:
        """What each option's value must pass."""
        given = self.given
        single = ((_keep_of, given.keep), (self._described, given.base), (parse_fit, given.fit))
        return [
            *((self._survey, source) for source in given.photos),
            *((check_word, word) for word in given.words),
            *((_kind_of, kind) for kind in given.shows),
            *((check, value) for check, value in single if value),
            *(((lambda _: self._captions_given(), ""),) if given.captions else ()),
        ]

    def _missing(self) -> list[str]:
        """What has no default and is not given."""
        given = self.given
        missing = [] if given.photos else ["--photos is missing: a folder of 4 to 20 photos, or embedded:striped-star"]
        wordless = [source for source in given.photos[len(given.words) :] if not _class_word(source)]
        if wordless or not (given.photos or given.words):
            missing.append("--word is missing: what the photos show, such as dog; one for each --photos, in order")
        photos_known = bool(given.photos)
        if not given.base and not default_base(given.photos, self._bases()) and photos_known:
            missing.append("--base is missing: no base model lies here or in the hub's cache; a folder or a hub id")
        return missing

    def _concepts(self) -> tuple[list[PhotoSurvey], list[str], list[Shows]]:
        surveys: list[PhotoSurvey] = []
        words: list[str] = []
        shows: list[Shows] = []
        for source in self.given.photos:
            self._add(self._survey(source), surveys, words, shows)
        while self.ask is not None and not self.given.photos:
            text = (
                "Another concept: its folder of photos (nothing: no other)"
                if surveys
                else ("Where are the photos of your concept? A folder of 4 to 20, or embedded:striped-star to try it")
            )
            survey = self._put(Question("--photos", text, self._survey_or_none if surveys else self._survey))
            if survey is None:
                break
            self._add(survey, surveys, words, shows)
        return surveys, words, shows

    def _add(self, survey: PhotoSurvey, surveys: list[PhotoSurvey], words: list[str], shows: list[Shows]) -> None:
        """Note a concept: its photos, its word, and what the photos show."""
        self._note([f"{survey.source}: {survey.sentence()}."])
        place = len(surveys)
        given = self.given
        surveys.append(survey)
        if place < len(given.words):
            words.append(check_word(given.words[place]))
        else:
            text = "What is it, in the word that names every other one, such as dog?"
            words.append(self._put(Question("--word", text, check_word, _class_word(survey.source))))
        if given.shows:
            shows.append(_kind_of(given.shows[place if len(given.shows) > 1 else 0]))
        else:
            text = "What do these photos show? Nothing here can see it. Photos of several subjects: a folder for each."
            shows.append(self._put(Question("--shows", text, _kind_of, "thing", list(SHOWS.items()))))

    def _survey(self, source: str) -> PhotoSurvey:
        path = check_source(source.strip(), "--photos")
        if path not in self._surveys:
            self._surveys[path] = survey_photos(path, self.progress)
        self._surveys[path].check()
        return self._surveys[path]

    def _survey_or_none(self, source: str) -> PhotoSurvey | None:
        return self._survey(source) if source.strip() else None

    def _base(self, surveys: Sequence[PhotoSurvey]) -> BaseModel:
        if self.given.base:
            base = self._described(self.given.base)
        else:
            choices = [(found.spec, found.sentence()) for found in self._bases()]
            default = default_base([survey.source for survey in surveys], self._bases()) or EMBEDDED
            text = "Which base model? One of these, a diffusers folder, or a hub id"
            base = self._put(Question("--base", text, self._described, default, choices))
        self._note([f"{base.spec}: {base.sentence()}."])
        return base

    def _described(self, spec: str) -> BaseModel:
        return describe_base(check_source(spec.strip(), "--base"))

    def _bases(self) -> list[BaseModel]:
        if self._cached_bases is None:
            self._cached_bases = bases_at_hand()
        return self._cached_bases

    def _captions(self, base: BaseModel) -> CaptionSource:
        if self.given.captions:
            captions = self._captions_given()
        else:
            indexes = indexes_at_hand()
            choices = [(index, "a built index") for index in indexes]
            choices += [(EMBEDDED, "the pool of the embedded world")] if base.spec == EMBEDDED else []
            choices += [(NONE, "no captions: nothing is searched for and nothing counted")]
            text = "Captions of pictures to keep the class word by: pool files, an index, or none?"
            default = default_captions(base.spec, indexes)
            captions = self._put(Question("--captions", text, _captions_of, default, choices))
        if captions.kind != "none" and captions.pictures is False:
            self._note([f"{' '.join(captions.named)}: {captions.described}: no set is made of them."])
        return captions

    def _captions_given(self) -> CaptionSource:
        return look_at_captions([check_source(value, "--captions") for value in self.given.captions])

    def _keep(self, captions: CaptionSource) -> Keep:
        if self.given.keep:
            return _keep_of(self.given.keep)
        if captions.kind != "none" and captions.pictures is not False:
            return "distil"
        text = "Without pictures of the class, what keeps its word as it is?"
        keep: Keep = self._put(Question("--keep", text, _keep_of, "distil", list(KEEPS.items())))
        return keep

    def _fit(self, base: BaseModel) -> str | None:
        if self.given.fit:
            return parse_fit(self.given.fit)
        if base.spec == EMBEDDED:
            return None
        memory = card_memory()
        if memory is not None:
            self._note([f"The graphics card has {size_text(memory)}: --fit {fit_of(memory)}."])
        text = "How much memory has the graphics card? 8GB, 12GB, 16GB, 24GB, auto, or none"
        return self._put(Question("--fit", text, parse_fit, fit_of(memory) if memory is not None else NO_CARD))  # type: ignore[no-any-return]

    def _out(self, words: Sequence[str]) -> Path:
        name = f"{'-'.join(names_of(words))[:60].strip('-')}.yaml"
        if self.given.out:
            return Path(self.given.out)
        return Path(self._put(Question("--out", "Which file shall be written?", _file_of, name)))

    def _put(self, question: Question) -> Any:
        return question.check(question.default) if self.ask is None else self.ask(question)

    def _note(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.notes.append(line)
            self.progress.note(line)


def _class_word(source: str) -> str:
    try:
        return class_word(source)
    except ConfigError:  # said when the photos are looked at
        return ""


def _kind_of(text: str) -> Shows:
    return _one_of(text, SHOWS, "--shows")


def _keep_of(text: str) -> Keep:
    return _one_of(text, KEEPS, "--keep")


def _one_of(text: str, known: Mapping[Known, str], option: str) -> Known:
    plain = text.strip().lower()
    for value in known:
        if value == plain:
            return value
    raise ConfigError(f"{option}: unknown {text!r}{did_you_mean(plain, known)}", hint=f"Give {', '.join(known)}.")


def _captions_of(text: str) -> CaptionSource:
    return look_at_captions([check_source(text.strip(), "--captions")])


def _file_of(text: str) -> str:
    if not text.strip():
        raise ConfigError("A file needs a name.", hint="Example: dog.yaml")
    return text.strip()
