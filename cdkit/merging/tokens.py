"""Modifier tokens of several deltas, renamed where they collide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cdkit.errors import ConfigError
from cdkit.text import same_word, whole_words
from cdkit.weights.delta import Delta, ModifierToken


@dataclass(frozen=True)
class Renamed:
    """A delta whose tokens are unique among all, and its tokens' old names by their new ones."""

    delta: Delta
    former: dict[str, str]


def rename_tokens(deltas: Sequence[Delta]) -> list[Renamed]:
    """Give every token of the deltas a name of its own: `<new1>`, `<new2>`, … for those that share one.

    A name that only one delta uses stays. Raises ConfigError when two deltas bring the very same token: then they are
    the same delta, or one was trained on top of the other.
    """
    texts = [same_word(token.text) for delta in deltas for token in delta.tokens]
    shared = {text for text in texts if texts.count(text) > 1}
    _check_distinct([token for delta in deltas for token in delta.tokens if same_word(token.text) in shared])
    taken = set(texts) - shared
    result = []
    for delta in deltas:
        names = {}
        for token in delta.tokens:
            names[token.text] = token.text if same_word(token.text) not in shared else _free(taken)
            taken.add(same_word(names[token.text]))
        result.append(Renamed(_renamed(delta, names), {new: old for old, new in names.items()}))
    return result


def _free(taken: set[str]) -> str:
    number = 1
    while f"<new{number}>" in taken:
        number += 1
    return f"<new{number}>"


def _check_distinct(tokens: Sequence[ModifierToken]) -> None:
    for position, token in enumerate(tokens):
        for other in tokens[:position]:
            same = same_word(other.text) == same_word(token.text) and set(other.rows) == set(token.rows)
            if same and all(other.rows[name].equal(token.rows[name]) for name in token.rows):
                raise ConfigError(
                    f"Two deltas bring the same token {token.text} with the same embedding.",
                    hint="Give every concept's delta once, each trained on its own on the base model.",
                )


def _renamed(delta: Delta, names: dict[str, str]) -> Delta:
    change = substitution(names)
    return replace(
        delta,
        tokens=tuple(replace(token, text=names[token.text]) for token in delta.tokens),
        prompts=tuple(change(prompt) for prompt in delta.prompts),
    )


def substitution(names: dict[str, str]) -> Callable[[str], str]:
    """A function that puts new words in place of old ones in a text, all at once, and only where they stand alone."""
    pattern, new = whole_words(*names), {same_word(name): text for name, text in names.items()}
    return lambda text: pattern.sub(lambda found: new[same_word(" ".join(found.group().split()))], text)
