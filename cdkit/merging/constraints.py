"""Constraints of a merge: the places of the concepts' words whose values it keeps, and the captions' features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from cdkit.core.errors import ConfigError
from cdkit.core.text import same_word, whole_words
from cdkit.deltas.apply import row_texts
from cdkit.deltas.delta import Delta
from cdkit.deltas.families.family import Family
from cdkit.deltas.families.table import denoiser_of, family_of
from cdkit.deltas.text_features import TextTower, text_towers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

BATCH = 64


@dataclass(frozen=True)
class Place:
    """One constraint: a word of a prompt, and the concept (by the position of its delta) whose value it gets.

    exact: whether it is met in any case. Of many concepts in many forms of captions there are more words than a text
    encoder has dimensions: what stands behind another concept or in a longer caption is met nearly.
    """

    concept: int
    prompt: str
    word: str
    exact: bool

    @property
    def label(self) -> str:
        return f"{self.word} in {self.prompt!r}"


@dataclass(frozen=True)
class Constraints:
    """Places, exact ones first, their text features, and those whose value under the concept's own weights is wanted.

    features, sources: (places, width) each, fp32; the same but for places behind another concept.
    """

    places: tuple[Place, ...]
    features: torch.Tensor
    sources: torch.Tensor

    @property
    def exact(self) -> int:
        """How many are met in any case."""
        return sum(place.exact for place in self.places)


@dataclass(frozen=True)
class _Subject:
    """A concept as its prompts name it. words: its modifier's entries or, without a modifier, its category."""

    concept: int
    words: str
    modifier: bool
    prompts: tuple[str, ...]

    @property
    def shortest(self) -> str:
        return min(self.prompts, key=len)

    def tail(self, prompt: str) -> str:
        """The prompt from the concept's words on; what stands before them belongs to no concept."""
        match = whole_words(self.words).search(prompt)
        return prompt[match.start() :] if match else prompt

    def plain(self, prompt: str) -> str:
        """The prompt without the modifier."""
        return " ".join(substitution({self.words: ""})(prompt).split())


@dataclass(frozen=True)
class _Reading:
    """A prompt as the towers read it, start to end of text: the first tower's ids, and features (ids, width)."""

    prompt: str
    ids: list[int]
    features: torch.Tensor


@dataclass(frozen=True)
class PromptReader:
    """Reads prompts as the keys and values of a denoiser do; words go by the tower whose words stand there."""

    family: Family
    towers: Sequence[TextTower]
    denoiser: Any

    @classmethod
    def of(cls, pipeline: DiffusionPipeline) -> PromptReader:
        """A reader of a pipeline's text towers as they are now."""
        return cls(family_of(pipeline), text_towers(pipeline), denoiser_of(pipeline))

    @property
    def tokenizer(self) -> Any:
        return self.family.words_of(self.towers).tokenizer

    def words(self, text: str) -> list[int]:
        """The ids of words within a prompt, where a space stands before them; a modifier takes none."""
        starts_new = any(text.startswith(word) for word in self.tokenizer.get_added_vocab())
        return list(self.tokenizer(text if starts_new else f" {text}", add_special_tokens=False).input_ids)

    def features(self, ids: Sequence[torch.Tensor], longest: int) -> torch.Tensor:
        """What is read of prompts' ids (n, positions, width), fp32 on the CPU; at least of `longest` positions."""
        if self.family.causal and not self.family.masks_padding:
            # What stands behind what is asked for cannot change it.
            ids = [row[:, :longest] for row in ids]
        with torch.no_grad():
            read = self.family.read(self.denoiser, self.family.encode(self.towers, ids))
        return read.float().cpu()

    def read(self, prompt: str) -> _Reading:
        ids, (length,) = self.family.ids(self.towers, [prompt])
        row = self.family.seen(self.towers, ids)[0].tolist()[:length]
        return _Reading(prompt, row, self.features(ids, length)[0, :length])

    def end(self, reading: _Reading) -> int:
        """Where the end of the text stands, or would stand, in a prompt's ids."""
        return len(reading.ids) - int(reading.ids[-1] == self.tokenizer.eos_token_id)

    def places(self, subject: _Subject, reading: _Reading, positions: range, *, exact: bool) -> dict[int, Place]:
        """The words at some positions of a prompt, as places of a concept."""
        entries = self.tokenizer.convert_ids_to_tokens([reading.ids[position] for position in positions])
        words = [str(entry).removesuffix("</w>") for entry in entries]
        return {
            position: Place(subject.concept, reading.prompt, word, exact)
            for position, word in zip(positions, words, strict=True)
        }


def concept_constraints(
    reader: PromptReader, deltas: Sequence[Delta], *, end_of_text: bool = True, apart: bool = True
) -> Constraints:
    """The places of every concept: modifier, category words and end-of-text of its prompts, with features.

    The reader's towers hold all the deltas' tokens. A prompt is taken whole ("photo of a <new1> cat") and from the
    modifier on ("<new1> cat"): V = W_k c of equation 5. Met exactly is what the concept's shortest prompt says.
    apart: also its words behind another delta's concept ("photo of a <new2> dog and a <new1> cat"). A causal text
    tower mixes <new2> into the features of all that follows, and the cat comes out looking like the dog; wanted there
    is the value of the same words behind the plain one ("photo of a dog and a <new1> cat"). Not in the paper.
    Raises ConfigError for a delta without a word of its own.
    """
    subjects = [subject for number, delta in enumerate(deltas) for subject in _subjects(number, delta)]
    behind = _behind_others(reader, subjects) if apart else ()
    found = chain(_in_own_prompts(reader, subjects, end_of_text), behind)
    places, features, sources = zip(*sorted(found, key=lambda entry: not entry[0].exact), strict=True)
    return Constraints(places, torch.stack(features), torch.stack(sources))


def prompt_features(reader: PromptReader, deltas: Sequence[Delta]) -> tuple[torch.Tensor, ...]:
    """What cross-attention is given for each delta's own prompts, whole and from the modifier on: (positions, width).

    The reader's towers hold all the deltas' tokens. Padding counts where the model sees it.
    """
    features = []
    for number, delta in enumerate(deltas):
        subjects = list(_subjects(number, delta))
        whole = [prompt for subject in subjects for prompt in subject.prompts]
        tails = [subject.tail(prompt) for subject in subjects for prompt in subject.prompts]
        ids, lengths = reader.family.ids(reader.towers, list(dict.fromkeys([*whole, *tails])))
        context = ids[0].shape[1]
        seen = lengths if reader.family.masks_padding else [context] * len(lengths)
        rows = zip(reader.features(ids, context), seen, strict=True)
        features.append(torch.cat([row[:length] for row, length in rows]))
    return tuple(features)


def caption_rows(
    reader: PromptReader,
    captions: Sequence[str],
    counts: Sequence[int],
    *,
    edge_weight: float,
    advance: Callable[[int], None] = lambda number: None,
) -> torch.Tensor:
    """Rows (n, width): features of every word and end-of-text of the captions, scaled by the roots of their weights.

    A caption weighs its count. The start token, the same in every caption, is one row, and the first padding after
    every end-of-text another; they weigh edge_weight per caption. Where padding is masked, only the start is left.
    """
    ids, lengths = reader.family.ids(reader.towers, captions)
    first = int(reader.family.starts_alike)
    order = sorted(range(len(captions)), key=lambda index: lengths[index])
    rows, start = [], None
    for begin in range(0, len(order), BATCH):
        batch = order[begin : begin + BATCH]
        longest = min(max(lengths[index] for index in batch) + 1, ids[0].shape[1])
        hidden = reader.features([rows_of_tower[batch] for rows_of_tower in ids], longest)
        start = hidden[0, 0]
        for index, features in zip(batch, hidden, strict=True):
            end = lengths[index]
            rows.append(features[first:end] * counts[index] ** 0.5)
            if edge_weight and end < len(features) and not reader.family.masks_padding:
                rows.append(features[end : end + 1] * (edge_weight * counts[index]) ** 0.5)
        advance(len(batch))
    if edge_weight and first and start is not None:
        rows.append(start[None] * (edge_weight * sum(counts)) ** 0.5)
    return torch.cat(rows)


def _in_own_prompts(
    reader: PromptReader, subjects: Sequence[_Subject], end_of_text: bool
) -> Iterator[tuple[Place, torch.Tensor, torch.Tensor]]:
    for subject in subjects:
        # A prompt, and the same from the modifier on, for what stands before it belongs to no concept.
        prompts = {prompt: not subject.modifier or prompt == subject.shortest for prompt in subject.prompts}
        if subject.modifier:
            for prompt, exact in tuple(prompts.items()):
                tail = subject.tail(prompt)
                prompts[tail] = prompts.get(tail, False) or exact
        for prompt, exact in prompts.items():
            reading = reader.read(prompt)
            end = reader.end(reading)
            first, last = _position(reading.ids, reader.words(subject.words), prompt)
            # Where words see what follows them, those before the concept's are its own, too.
            positions = range(first if reader.family.causal else 0, end if subject.modifier else last)
            places = reader.places(subject, reading, positions, exact=exact)
            if end_of_text and end < len(reading.ids):
                places[end] = Place(subject.concept, prompt, "end of text", exact)
            for position, place in places.items():
                yield place, reading.features[position], reading.features[position]


def _behind_others(
    reader: PromptReader, subjects: Sequence[_Subject]
) -> Iterator[tuple[Place, torch.Tensor, torch.Tensor]]:
    for subject in subjects:
        tail = subject.tail(subject.shortest)
        ids = reader.words(tail)
        length = len(ids) if subject.modifier else len(reader.words(subject.words))
        for other in subjects:
            # Without a modifier, or without a plain word beside it, there is nothing to tell apart.
            head = other.shortest
            if other.concept == subject.concept or not other.modifier or not other.plain(other.tail(head)):
                continue
            mixed, clean = (reader.read(f"{before} and a {tail}") for before in (head, other.plain(head)))
            end = reader.end(mixed)
            first = end - len(ids)
            if mixed.ids[first:end] != ids:
                continue  # Both do not fit into the context.
            positions = range(first, first + length)
            for position, place in reader.places(subject, mixed, positions, exact=False).items():
                yield place, mixed.features[position], clean.features[position - len(mixed.ids)]


def _subjects(number: int, delta: Delta) -> Iterator[_Subject]:
    """The concepts of a delta: one for each modifier token; without any, its categories."""
    for token in delta.tokens:
        prompts = _with(token.text, delta.prompts) or [f"photo of a {token.text}"]
        # The token as all its rows' words, as diffusers writes a token of several embeddings.
        words = " ".join(row_texts(token))
        yield _Subject(number, words, True, tuple(map(substitution({token.text: words}), prompts)))
    categories = delta.settings.get("concepts") or {}
    if not delta.tokens and not (isinstance(categories, dict) and categories):
        raise ConfigError(
            f"A delta of {delta.base!r} has neither a modifier token nor a category: there is no word to merge it by.",
            hint="Train it with a token of its own; cdkit delta import takes --category NAME.",
        )
    for category in categories if not delta.tokens else ():
        yield _Subject(number, category, False, (*_with(category, delta.prompts), category))


def _with(word: str, prompts: Sequence[str]) -> list[str]:
    """The prompts in which a word stands."""
    return [prompt for prompt in prompts if whole_words(word).search(prompt)]


def _position(row: Sequence[int], wanted: Sequence[int], prompt: str) -> tuple[int, int]:
    """Where the wanted ids stand in a row of ids, as first and one past the last."""
    size = len(wanted)
    for start in range(len(row) - size + 1):
        if list(row[start : start + size]) == list(wanted):
            return start, start + size
    raise ConfigError(
        f"The concept's words are not within the text encoder's context in {prompt!r}.", hint="Use a shorter prompt."
    )


def substitution(names: dict[str, str]) -> Callable[[str], str]:
    """A function that puts new words in place of old ones in a text, all at once, and only where they stand alone."""
    pattern, new = whole_words(*names), {same_word(name): text for name, text in names.items()}
    return lambda text: pattern.sub(lambda match: new[same_word(" ".join(match.group().split()))], text)
