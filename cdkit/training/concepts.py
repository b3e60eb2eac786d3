"""Concepts as a training configuration describes them: category, photos, captions, and a word that is fit for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.text import naming, same_word, whole_words
from cdkit.deltas.methods import Method
from cdkit.tokens.config import RareRule
from cdkit.tokens.count import COUNTS_FOLDER, TokenCounts, read_counts
from cdkit.tokens.explain import Explanation, explain_word
from cdkit.tokens.vocabulary import Tower, tower_of

if TYPE_CHECKING:
    from cdkit.tokens.modifiers import Pick


# The word that Ruiz et al. 2023 made known, for a DreamBooth run that names none.
RARE_WORD = "sks"
# Merges are in the order of frequency: those of the last quarter make the vocabulary's rare tokens.
COMMON_MERGES = 0.75
# The rule's bounds are for so many caption rows (Kumari et al. 2023, appendix E).
RULE_ROWS = 200_000


@dataclass(frozen=True)
class Concept:
    """One concept. word: what stands before the category in prompts, "" for nothing; initializer: None for a word
    that does not train; regularization: the folder of its images, or None."""

    name: str
    category: str
    folder: str
    word: str = ""
    initializer: Pick | str | None = None
    regularization: str | None = None

    @property
    def subject(self) -> str:
        """What prompts call it: `<new1> dog`."""
        return f"{self.word} {self.category}".strip()

    def caption_of(self, written: str | None, template: str) -> str:
        """The caption of a photo: its own, naming this concept, or the template's.

        `{}` in a caption stands for the subject; without it the word is put before the category. Raises InputError
        for a caption of its own that names neither.
        """
        if written is None:
            return template.replace("{}", self.subject)
        named = naming(written, self.word, self.category)
        if named is None:
            raise InputError(
                f"The caption {written!r} names neither {self.word} nor {self.category!r}.",
                hint=f"Write {{}} where the concept stands: it becomes {self.subject!r}.",
            )
        return named

    def captions_of(self, written: str | None, templates: Sequence[str]) -> tuple[str, ...]:
        """The forms that the caption of a photo takes: its own alone, or one for every template."""
        return tuple(dict.fromkeys(self.caption_of(written, template) for template in templates))

    def without_word(self, caption: str) -> str:
        """What a caption says of the class: the same without the concept's own word."""
        return " ".join(whole_words(self.word).sub("", caption).split()) if self.word else caption


def describe_concepts(
    method: Method,
    folders: Mapping[str, str],
    categories: Mapping[str, str],
    regularization: Mapping[str, str],
    words: Mapping[str, str],
    picks: Sequence[Pick] | None,
    *,
    no_token: bool,
    taken: Sequence[str] = (),
) -> list[Concept]:
    """The concepts in the order given. words: `<new1>` or `<new1>=ktn` by concept name, for those that name one.

    taken: modifier tokens that an earlier delta brings. Raises ConfigError for a word that is used twice, and when
    initializers are wanting.
    """
    concepts = []
    named = {same_word(word) for word in (*taken, *(word.partition("=")[0] for word in words.values()))}
    free = (word for word in map("<new{}>".format, count(1)) if word not in named)
    for number, (name, folder) in enumerate(folders.items(), start=1):
        word, _, initializer = words.get(name, "").partition("=")
        numbered = next(free)
        if no_token:
            word = ""
        elif not word:
            word = numbered if method.word == "modifier" else _rare_word(number, picks)
        category = categories.get(name, name)
        concepts.append(Concept(name, category, folder, word, initializer or None, regularization.get(name)))
    used = [same_word(word) for word in (*taken, *(concept.word for concept in concepts if concept.word))]
    twice = sorted({word for word in used if used.count(word) > 1})
    if twice:
        raise ConfigError(f"Two concepts would have the word {twice[0]!r}.", hint="Give each its own with --token.")
    return _with_initializers(concepts, picks) if method.word == "modifier" and not no_token else concepts


def _rare_word(number: int, picks: Sequence[Pick] | None) -> str:
    if picks and number <= len(picks):
        return picks[number - 1].surface
    if number == 1:
        return RARE_WORD
    raise ConfigError(
        "Each concept needs a rare word of its own.",
        hint="Pick some with cdkit tokens rare --for prompt, and give --tokens, or --token NAME=WORD.",
    )


def _with_initializers(concepts: Sequence[Concept], picks: Sequence[Pick] | None) -> list[Concept]:
    from cdkit.tokens.modifiers import choose_initializers

    wanting = [concept.word for concept in concepts if concept.initializer is None]
    chosen = iter(choose_initializers(picks, wanting))
    return [
        concept if concept.initializer is not None else replace(concept, initializer=next(chosen))
        for concept in concepts
    ]


def initializer_name(initializer: Pick | str | None) -> str:
    """What to write down of an initializer: a pick's vocabulary entry, or the text given."""
    return initializer if isinstance(initializer, str) else "" if initializer is None else initializer.token


def check_word(tokenizer: Any, word: str) -> None:
    """Raise ConfigError when a new token's text is a word of the vocabulary, or cannot be one token."""
    if not word.strip() or any(letter.isspace() for letter in word):
        raise ConfigError(f"{word!r} cannot be a modifier token.", hint="Give a word without spaces: '<new1>'.")
    ids = tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) == 1 or word in tokenizer.get_vocab():
        raise ConfigError(
            f"The token {word!r} is already a word of the base model's vocabulary.",
            hint="Choose a word that does not exist, such as '<new1>'.",
        )


def check_split(tokenizer: Any, extended: Any, word: str, texts: Sequence[str]) -> None:
    """Raise ConfigError when a new token changes how the words around it, or the texts without it, are split.

    extended: the tokenizer with the token. A token is cut out of a text before anything else: `at` would leave a c of
    every cat, and SentencePiece's marks of spaces depend on what stands beside them.
    """

    def ids(reader: Any, text: str) -> list[int]:
        return list(reader(text, add_special_tokens=False, verbose=False)["input_ids"])

    alone = extended.convert_tokens_to_ids(word)
    before, behind = "a photo of a ", " dog on the grass"
    apart = [*ids(tokenizer, before), alone, *ids(tokenizer, behind)]
    stands = whole_words(word)
    changed = [text for text in texts if not stands.search(text) and ids(tokenizer, text) != ids(extended, text)]
    if changed or ids(extended, f"{before}{word}{behind}") != apart:
        shown = changed[0] if changed else before + word + behind
        raise ConfigError(
            f"The token {word!r} would change how other words are split: {shown!r}.",
            hint="Choose a word that stands in no other, such as '<new1>'.",
        )


def check_rarity(word: str, tokenizer: Any, picks: str | None, note: Callable[[str], None]) -> None:
    """Note when a word that stays as it is (DreamBooth's) is not one rare token of the first text encoder.

    picks: the folder of a `tokens` stage; the counts it keeps are used.
    """
    tower = tower_of("tokenizer", tokenizer)
    counts = read_counts(Path(picks), [tower]) if picks and (Path(picks) / COUNTS_FOLDER).is_dir() else None
    explanation = explain_word(word, tower, counts)
    reason = _not_rare(explanation, tower, counts)
    if reason:
        note(
            f"{word!r} is not rare: {reason}. What it means to the model stands in the way of what it is to learn. "
            "cdkit tokens rare --for prompt picks a rare word; cdkit tokens explain looks at one."
        )


def _not_rare(explanation: Explanation, tower: Tower, counts: TokenCounts | None) -> str:
    """Why the word is not rare, "" when it is."""
    if len(explanation.ids) != 1:
        shown = " + ".join(token.removesuffix("</w>") for token in explanation.tokens)
        return f"it is {len(explanation.ids)} tokens in a prompt ({shown}), each of which other words have too"
    index, entry = explanation.ids[0], explanation.tokens[0]
    if counts is not None:
        number = int(counts.counts[0][index])
        rows = counts.sampled or RULE_ROWS
        most = RareRule().max_count * max(rows, RULE_ROWS) / RULE_ROWS
        return f"it occurs {number:,} times in {rows:,} caption rows" if number > most else ""
    merges = len(tower.vocabulary.merges)
    rank = tower.vocabulary.merge_ranks.get(entry)
    if rank is None or rank < COMMON_MERGES * merges:
        place = f"its token is number {rank + 1:,} of {merges:,} by frequency" if rank is not None else "a letter"
        return f"{place} in the tokenizer's vocabulary (give --tokens for a count)"
    return ""
