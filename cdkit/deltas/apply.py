"""Applies deltas to a loaded pipeline by adding to its plain weights, and takes them off again bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError
from cdkit.core.text import same_word
from cdkit.deltas.base_model import base_hash, refuse_earlier_edition
from cdkit.deltas.delta import Delta, ModifierToken
from cdkit.deltas.families.family import Family
from cdkit.deltas.families.table import denoiser_of, family_of
from cdkit.deltas.gating import check_gated, open_gates
from cdkit.deltas.low_rank import matrix
from cdkit.deltas.text_features import TextTower, text_towers, tokenizer_name

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

# transformers pools a tower with this end-of-text id at the largest id, which a new token's would be.
LEGACY_END = 2


@dataclass
class AppliedDeltas:
    """Deltas on a pipeline; `remove` (or leaving the `with` block) puts the base back bit for bit."""

    pipeline: DiffusionPipeline
    _weights: dict[str, torch.Tensor] = field(default_factory=dict)
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def remove(self) -> None:
        """Put the base model back."""
        parameters = dict(denoiser_of(self.pipeline).named_parameters())
        for name, original in self._weights.items():
            parameters[name].data.copy_(original)
        for undo in reversed(self._undo):
            undo()
        self._weights.clear()
        self._undo.clear()

    def __enter__(self) -> AppliedDeltas:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def apply_deltas(
    pipeline: DiffusionPipeline,
    deltas: Sequence[Delta],
    *,
    scale: float = 1.0,
    note: Callable[[str], None] = lambda message: None,
) -> AppliedDeltas:
    """Add the deltas' changes, times `scale`, to the pipeline's denoiser, and their tokens to its text towers.

    Gated changes stand beside the weights, which stay as they are.

    A delta made on other weights than those it is put on (another checkpoint, half precision) is noted and applied.
    Raises ConfigError, and changes nothing, when a delta does not fit the model or two bring the same token.
    """
    tokens = _distinct_tokens(deltas)
    for delta in deltas:
        check_fit(pipeline, delta)
    for token in tokens:
        check_written(family_of(pipeline), token.text)
    applied = AppliedDeltas(pipeline)
    try:
        _add_changes(applied, deltas, scale, note)
        for tower in text_towers(pipeline) if tokens else []:
            applied._undo.append(add_tokens(pipeline, tower, tokens))
        for delta in deltas:
            gates = open_gates(pipeline, text_towers(pipeline)[0], delta.gated, scale)
            applied._undo += [gate.remove for gate in gates]
    except BaseException:
        applied.remove()
        raise
    return applied


def _add_changes(applied: AppliedDeltas, deltas: Sequence[Delta], scale: float, note: Callable[[str], None]) -> None:
    parameters = dict(denoiser_of(applied.pipeline).named_parameters())
    totals: dict[str, torch.Tensor] = {}
    # Of the base, and of what a later delta was trained on when it was trained on top of the earlier ones.
    hashes = {base_hash(applied.pipeline)} if any(delta.base_hash for delta in deltas) else set()
    for position, delta in enumerate(deltas):
        if position and delta.base_hash and delta.base_hash not in hashes:
            hashes.add(base_hash(applied.pipeline))
        if delta.base_hash and delta.base_hash not in hashes:
            refuse_earlier_edition(f"The delta of {delta.base!r}", delta.base_hash)
            note(f"The delta of {delta.base!r} was made on other weights than these; the effect may differ.")
        for name, change in delta.changes.items():
            weight = parameters[name].data
            original = applied._weights.setdefault(name, weight.clone())
            total = totals.get(name, 0.0) + scale * matrix(change).float().to(weight.device)
            totals[name] = total
            # Always from the original: half-precision weights are rounded once, not once a delta.
            weight.copy_((original.float() + total).to(weight.dtype))


def check_fit(pipeline: DiffusionPipeline, delta: Delta) -> None:
    """Raise ConfigError unless every change and every token row has the place and shape the pipeline gives it."""
    parameters = dict(denoiser_of(pipeline).named_parameters())
    problems = []
    if delta.gated:
        check_gated(pipeline)
    for name, change in (entry for changes in delta.all_changes for entry in changes.items()):
        if name not in parameters:
            problems.append(f"the model has no parameter {name}")
        elif tuple(parameters[name].shape) != tuple(change.shape):
            problems.append(f"{name} is {tuple(parameters[name].shape)} here, {tuple(change.shape)} in the delta")
    towers = {tower.name: tower for tower in text_towers(pipeline)}
    for token in delta.tokens:
        if set(token.rows) != set(towers):
            problems.append(f"{token.text} has rows for {', '.join(token.rows)}, the model has {', '.join(towers)}")
            continue
        for name, rows in token.rows.items():
            width = towers[name].model.get_input_embeddings().weight.shape[1]
            if rows.shape[1] != width:
                problems.append(f"{token.text} has {rows.shape[1]} values for {name}, the model {width}")
    if problems:
        shown = [*problems[:4], *([f"and {len(problems) - 4} more"] if len(problems) > 4 else [])]
        raise ConfigError(
            f"The delta of {delta.base!r} does not fit this base model:",
            problems=shown,
            hint="A delta fits base models of the family it was trained on.",
        )


def check_written(family: Family, word: str) -> None:
    """Raise ConfigError for a modifier token that no prompt of a family's pipeline can hold."""
    if family.written(word) != word:
        raise ConfigError(
            f"{family.name}'s pipeline writes prompts as {family.written(word)!r}: it would never read {word!r}.",
            hint=f"Call the token {family.written(word)!r}.",
        )


def _distinct_tokens(deltas: Sequence[Delta]) -> list[ModifierToken]:
    tokens: dict[str, ModifierToken] = {}
    for token in (token for delta in deltas for token in delta.tokens):
        if not tokens.setdefault(same_word(token.text), token).has_rows_of(token):
            raise ConfigError(
                f"Two deltas bring the modifier token {token.text}.",
                hint="cdkit merge renames colliding tokens; or train one with --token NAME='<new2>'.",
            )
        tokens[same_word(token.text)] = token
    return list(tokens.values())


def row_texts(token: ModifierToken) -> list[str]:
    """The tokenizer entries of a token's rows, named as diffusers names them: `<a>`, `<a>_1`, `<a>_2`, …"""
    number = len(next(iter(token.rows.values())))
    return [token.text if index == 0 else f"{token.text}_{index}" for index in range(number)]


def add_tokens(pipeline: DiffusionPipeline, tower: TextTower, tokens: Sequence[ModifierToken]) -> Callable[[], None]:
    """Give one text tower new tokens with their rows; returns what takes them off again.

    The old tokenizer and embedding stay untouched: copies with more entries take their place. Raises ConfigError when
    a token is in the vocabulary already.
    """
    import torch

    tokenizer = extended_tokenizer(tower.tokenizer, [text for token in tokens for text in row_texts(token)])
    old = tower.model.get_input_embeddings()
    rows = torch.cat([token.rows[tower.name] for token in tokens]).to(old.weight)
    # The new rows go where the tokenizer put them; a checkpoint's table may have spare rows behind its vocabulary.
    ids = tokenizer.convert_tokens_to_ids([text for token in tokens for text in row_texts(token)])
    size = max(old.weight.shape[0], max(ids) + 1)
    values = old.weight.new_zeros(size, old.weight.shape[1])
    values[: old.weight.shape[0]] = old.weight.data
    values[torch.tensor(ids)] = rows
    # A module of the same class: Gemma's scales what it gives.
    table = copy.copy(old)
    table._parameters = {"weight": torch.nn.Parameter(values, requires_grad=old.weight.requires_grad)}
    table.num_embeddings = size
    undo_end = mend_legacy_end(tower.model, tokenizer.eos_token_id)
    _install(pipeline, tower, tokenizer, table)

    def undo() -> None:
        undo_end()
        _install(pipeline, tower, tower.tokenizer, old)

    return undo


def extended_tokenizer(tokenizer: Any, texts: Sequence[str]) -> Any:
    """A copy of a tokenizer with new tokens; raises ConfigError for one that it knows already."""
    # The tables of merges are never written to, and copying their thousands of pairs takes longest.
    shared = {id(value): value for value in vars(tokenizer).values() if isinstance(value, list) and len(value) > 1000}
    extended = copy.deepcopy(tokenizer, shared)
    # add_tokens itself counts an entry of the vocabulary as new, and would let it share that entry's row.
    vocabulary = tokenizer.get_vocab()
    # And it would take <NEW1> beside <new1>, which no text could ever reach.
    added = {same_word(text) for text in tokenizer.get_added_vocab()}
    for text in texts:
        if text in vocabulary or same_word(text) in added or extended.add_tokens([text]) != 1:
            raise ConfigError(
                f"The modifier token {text!r} is in the vocabulary already.",
                hint="A new token takes a word that does not exist yet. If the delta was baked into this base model, "
                "leave it out, or give the base model it was trained on.",
            )
        added.add(same_word(text))
    return extended


def mend_legacy_end(model: Any, end_id: int) -> Callable[[], None]:
    """Make a tower of the legacy end-of-text id pool at the true one; returns what undoes it."""
    changed = [module for module in model.modules() if getattr(module, "eos_token_id", None) == LEGACY_END]
    for module in changed:
        module.eos_token_id = end_id
    configured = getattr(model.config, "eos_token_id", None)
    if configured == LEGACY_END:
        model.config.eos_token_id = end_id

    def undo() -> None:
        for module in changed:
            module.eos_token_id = LEGACY_END
        model.config.eos_token_id = configured

    return undo


def _install(pipeline: DiffusionPipeline, tower: TextTower, tokenizer: Any, table: Any) -> None:
    setattr(pipeline, tokenizer_name(tower.name), tokenizer)
    tower.model.set_input_embeddings(table)
    for config in (tower.model.config, getattr(tower.model.config, "text_config", None)):
        if config is not None and hasattr(config, "vocab_size"):
            config.vocab_size = table.weight.shape[0]
