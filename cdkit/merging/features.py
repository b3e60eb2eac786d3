"""Text features for a merge: rows of ordinary captions, and the places whose values every concept must keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdkit.errors import ConfigError
from cdkit.merging.tokens import substitution
from cdkit.weights.apply import row_texts
from cdkit.weights.delta import Delta, ModifierToken
from cdkit.weights.text_features import TextTower, encode_ids

if TYPE_CHECKING:
    import torch

BATCH = 64


@dataclass(frozen=True)
class Place:
    """One constraint: a word of a prompt, and the concept (by the position of its delta) whose value it keeps."""

    concept: int
    prompt: str
    word: str

    @property
    def label(self) -> str:
        return f"{self.word} in {self.prompt!r}"


@dataclass(frozen=True)
class Constraints:
    """Places and their text features (places, width), fp32."""

    places: tuple[Place, ...]
    features: torch.Tensor


def caption_rows(
    towers: Sequence[TextTower],
    captions: Sequence[str],
    counts: Sequence[int],
    *,
    edge_weight: float,
    advance: Callable[[int], None] = lambda number: None,
) -> torch.Tensor:
    """Rows (n, width): features of every word and end-of-text of the captions, scaled by the roots of their weights.

    A caption weighs its count. The start token, the same in every caption, is one row, and the first padding after
    every end-of-text another; they weigh edge_weight per caption.
    """
    import torch

    ids, lengths = _tokenised(towers, captions)
    order = sorted(range(len(captions)), key=lambda index: lengths[index])
    rows, start = [], None
    with torch.no_grad():
        for begin in range(0, len(order), BATCH):
            batch = order[begin : begin + BATCH]
            # Causal attention: what stands behind the padding that is asked for cannot change it.
            longest = min(max(lengths[index] for index in batch) + 1, ids[0].shape[1])
            hidden = encode_ids(towers, [one[batch, :longest] for one in ids]).hidden.float().cpu()
            start = hidden[0, 0]
            for index, features in zip(batch, hidden, strict=True):
                end = lengths[index]
                rows.append(features[1:end] * counts[index] ** 0.5)
                if edge_weight and end < len(features):
                    rows.append(features[end : end + 1] * (edge_weight * counts[index]) ** 0.5)
            advance(len(batch))
    if edge_weight and start is not None:
        rows.append(start[None] * (edge_weight * sum(counts)) ** 0.5)
    return torch.cat(rows)


def _tokenised(towers: Sequence[TextTower], prompts: Sequence[str]) -> tuple[list[torch.Tensor], list[int]]:
    """Ids per tower (prompts, context) and each prompt's length with start and end."""
    encoded = [
        tower.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tower.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
            return_attention_mask=True,
        )
        for tower in towers
    ]
    return [one.input_ids for one in encoded], encoded[0].attention_mask.sum(dim=1).tolist()


def concept_constraints(
    towers: Sequence[TextTower], deltas: Sequence[Delta], *, end_of_text: bool = True
) -> Constraints:
    """The places of every concept: modifier token, category words and end-of-text of its prompts, with features.

    The towers hold all the deltas' tokens. A prompt is taken whole ("photo of a <new1> cat") and from the modifier on
    ("<new1> cat"); the words before it belong to no concept. Raises ConfigError for a delta without a word of its own.
    """
    import torch

    places, found = [], []
    for number, delta in enumerate(deltas):
        for prompt, words in _wordings(delta):
            ids, lengths = _tokenised(towers, [prompt])
            row = ids[0][0].tolist()[: lengths[0]]
            first, last = _position(row, _word_ids(towers[0].tokenizer, words), prompt)
            last = last if not delta.tokens else len(row) - 1
            taken = [*range(first, last), *([len(row) - 1] if end_of_text else [])]
            with torch.no_grad():
                hidden = encode_ids(towers, [one[:, : lengths[0]] for one in ids]).hidden[0].float().cpu()
            found.append(hidden[taken])
            pieces = towers[0].tokenizer.convert_ids_to_tokens([row[position] for position in taken])
            ends = [*([""] * (last - first)), *(["end of text"] if end_of_text else [])]
            places += [
                Place(number, prompt, end or piece.removesuffix("</w>"))
                for piece, end in zip(pieces, ends, strict=True)
            ]
    return Constraints(tuple(places), torch.cat(found))


def _wordings(delta: Delta) -> list[tuple[str, str]]:
    """Each text to constrain with the words of it that are the concept's first."""
    found: dict[str, str] = {}
    for token in delta.tokens:
        own = [prompt for prompt in delta.prompts if _stands_in(token, prompt)] or [f"photo of a {token.text}"]
        for prompt in own:
            for text in (prompt, prompt[prompt.index(token.text) :]):
                written = _written_out(token, text)
                found.setdefault(written, " ".join(row_texts(token)))
    if not delta.tokens:
        categories = delta.settings.get("concepts") or {}
        for category in categories if isinstance(categories, dict) else ():
            for prompt in [*(one for one in delta.prompts if category in one), category]:
                found.setdefault(prompt, category)
    if not found:
        raise ConfigError(
            f"A delta of {delta.base!r} has neither a modifier token nor a category: there is no word to merge it by.",
            hint="Import it again with --category NAME.",
        )
    return list(found.items())


def _stands_in(token: ModifierToken, prompt: str) -> bool:
    return substitution({token.text: ""})(prompt) != prompt


def _written_out(token: ModifierToken, text: str) -> str:
    """The text with the token as all its rows' words, as diffusers writes a token of several embeddings."""
    return substitution({token.text: " ".join(row_texts(token))})(text)


def _word_ids(tokenizer: Any, words: str) -> list[int]:
    return list(tokenizer(words, add_special_tokens=False).input_ids)


def _position(row: Sequence[int], wanted: Sequence[int], prompt: str) -> tuple[int, int]:
    """Where the wanted ids stand in a row of ids, as first and one past the last."""
    size = len(wanted)
    for start in range(1, len(row) - size):
        if list(row[start : start + size]) == list(wanted):
            return start, start + size
    raise ConfigError(
        f"The concept's words are not within the text encoder's context in {prompt!r}.", hint="Use a shorter prompt."
    )
