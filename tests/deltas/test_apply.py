from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.core.errors import ConfigError
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import EARLIER_EDITIONS, cross_attention_names
from cdkit.deltas.low_rank import LowRank, matrix
from cdkit.deltas.text_features import encode_ids, text_towers, token_ids
from tests.support.made_deltas import made_delta, unet_output


def _state(pipeline: Any) -> dict[str, torch.Tensor]:
    """Everything a delta may touch: U-Net weights, and the text towers' whole state."""
    states = {f"unet.{name}": value.clone() for name, value in pipeline.unet.state_dict().items()}
    for tower in text_towers(pipeline):
        states |= {f"{tower.name}.{name}": value.clone() for name, value in tower.model.state_dict().items()}
    return states


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.0, -2.0])
def test_the_change_is_added_times_the_scale(pipeline: Any, scale: float) -> None:
    delta = made_delta(pipeline)
    before = {name: value.clone() for name, value in pipeline.unet.named_parameters()}
    apply_deltas(pipeline, [delta], scale=scale)
    changed = set()
    for name, value in pipeline.unet.named_parameters():
        if name in delta.changes:
            assert torch.equal(value, before[name] + scale * matrix(delta.changes[name]))
        if not torch.equal(value, before[name]):
            changed.add(name)
    assert changed == (set(cross_attention_names(pipeline.unet)) if scale else set())


def test_removal_is_bit_exact(pipeline: Any) -> None:
    before, tokenizer = _state(pipeline), pipeline.tokenizer
    output = unet_output(pipeline)
    delta = made_delta(pipeline, tokens=("<new1>", "<b>"), rows=2)
    with apply_deltas(pipeline, [delta], scale=0.7):
        assert (unet_output(pipeline) - output).abs().max() > 1e-3, "the delta has an effect"
        assert not _same(_state(pipeline), before)
    assert _same(_state(pipeline), before)
    assert pipeline.tokenizer is tokenizer
    assert pipeline.text_encoder.config.vocab_size == len(pipeline.text_encoder.get_input_embeddings().weight)
    assert torch.equal(unet_output(pipeline), output)
    assert len(pipeline.tokenizer("<new1>").input_ids) > 3, "the token is not known any more"


def test_tokens_get_their_rows_and_change_the_text(pipeline: Any) -> None:
    delta = made_delta(pipeline, tokens=("<new1>", "<new2>"), rows=2)
    plain = unet_output(pipeline, "photo of a <new1> cat")
    with apply_deltas(pipeline, [delta], scale=0.0):
        for tower in text_towers(pipeline):
            for token in delta.tokens:
                ids = tower.tokenizer.convert_tokens_to_ids([token.text, f"{token.text}_1"])
                assert torch.equal(tower.model.get_input_embeddings().weight[ids], token.rows[tower.name])
        one = unet_output(pipeline, "photo of a <new1> cat")
        other = unet_output(pipeline, "photo of a <new2> cat")
    assert (one - other).abs().max() > 1e-5
    assert (one - plain).abs().max() > 1e-5


def test_factors_do_what_their_product_does(pipeline: Any) -> None:
    delta = made_delta(pipeline, rank=2)
    factors = {}
    for name, change in delta.changes.items():
        left, values, right = torch.linalg.svd(matrix(change).double(), full_matrices=False)
        factors[name] = LowRank((left[:, :2] * values[:2]).float(), right[:2].float())
    with apply_deltas(pipeline, [delta]):
        whole = unet_output(pipeline)
    with apply_deltas(pipeline, [replace(delta, changes=factors)]):
        assert torch.allclose(unet_output(pipeline), whole, atol=1e-5)


def test_several_deltas_add_up(pipeline: Any) -> None:
    first = made_delta(pipeline, seed=1, tokens=("<a>",))
    second = made_delta(pipeline, seed=2, tokens=("<b>",))
    notes: list[str] = []
    names = cross_attention_names(pipeline.unet)
    before = {name: value.clone() for name, value in pipeline.unet.named_parameters()}
    with apply_deltas(pipeline, [first, second], note=notes.append):
        for name, value in pipeline.unet.named_parameters():
            if name in names:
                total = matrix(first.changes[name]) + matrix(second.changes[name])
                assert torch.allclose(value, before[name] + total, atol=1e-6)
        assert len(pipeline.tokenizer("<a> <b>").input_ids) == 4
    assert notes == [], "both were made on this base"


def test_a_delta_trained_on_top_of_another_is_at_home_there(tiny_base: Path) -> None:
    from tests.deltas.conftest import loaded

    pipeline = loaded(tiny_base)
    first = made_delta(pipeline, seed=1, tokens=("<a>",))
    with apply_deltas(pipeline, [first]):
        second = made_delta(pipeline, seed=2, tokens=("<b>",))
    assert second.base_hash != first.base_hash
    notes: list[str] = []
    with apply_deltas(pipeline, [first, second], note=notes.append):
        assert notes == []
    with apply_deltas(pipeline, [second], note=notes.append):
        assert len(notes) == 1


def test_a_delta_of_the_embedded_models_first_edition_is_refused_by_name(pipeline: Any) -> None:
    before = {name: value.clone() for name, value in pipeline.unet.named_parameters()}
    delta = replace(made_delta(pipeline, seed=1, tokens=()), base_hash=next(iter(EARLIER_EDITIONS)))
    with pytest.raises(ConfigError, match="first edition of the embedded model") as caught:
        apply_deltas(pipeline, [delta])
    assert "Train its concept again" in caught.value.hint
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.named_parameters())


def test_half_precision_takes_the_rounded_sum(pipeline: Any) -> None:
    first, second = made_delta(pipeline, seed=1, tokens=()), made_delta(pipeline, seed=2, tokens=())
    half = pipeline.to(dtype=torch.float16)
    before = {name: value.clone() for name, value in half.unet.named_parameters()}
    notes: list[str] = []
    applied = apply_deltas(half, [first, second], note=notes.append)
    assert len(notes) == 2, "a base in half precision has other weights"
    for name, value in half.unet.named_parameters():
        assert value.dtype == torch.float16
        if name in first.changes:
            exact = before[name].float() + (matrix(first.changes[name]) + matrix(second.changes[name]))
            assert torch.equal(value, exact.half())
    applied.remove()
    assert all(torch.equal(value, before[name]) for name, value in half.unet.named_parameters())


def test_deltas_that_do_not_fit_are_refused_and_change_nothing(pipeline: Any) -> None:
    delta, before = made_delta(pipeline), _state(pipeline)
    name = next(iter(delta.changes))
    row = delta.tokens[0].rows["text_encoder"]
    wrong = [
        (replace(delta, changes={**delta.changes, "elsewhere.weight": torch.ones(2, 2)}), "no parameter elsewhere"),
        (replace(delta, changes={name: torch.ones(3, 3)}), r"\(3, 3\) in the delta"),
        (replace(delta, changes={name: LowRank(torch.ones(3, 1), torch.ones(1, 9))}), r"\(3, 9\) in the delta"),
        (replace(delta, tokens=(replace(delta.tokens[0], rows={"text_encoder_2": row}),)), "has rows for"),
        (
            replace(
                delta, tokens=(replace(delta.tokens[0], rows=dict.fromkeys(delta.tokens[0].rows, torch.ones(1, 5))),)
            ),
            "5 values",
        ),
        (replace(delta, tokens=(replace(delta.tokens[0], text="cat</w>"),)), "vocabulary already"),
    ]
    for broken, words in wrong:
        with pytest.raises(ConfigError, match=words):
            apply_deltas(pipeline, [made_delta(pipeline, tokens=("<other>",)), broken])
        assert _same(_state(pipeline), before)


def test_one_token_from_two_deltas_is_refused_unless_it_is_the_same(pipeline: Any) -> None:
    one, other = made_delta(pipeline, seed=1), made_delta(pipeline, seed=2)
    with pytest.raises(ConfigError, match="Two deltas bring the modifier token <new1>"):
        apply_deltas(pipeline, [one, other])
    apply_deltas(pipeline, [one, replace(other, tokens=one.tokens)]).remove()


def test_new_tokens_do_not_move_the_pooled_text(tiny_xl_base: Path) -> None:
    """Towers with the legacy end-of-text id pool at the largest id, which would be a new token's."""
    from tests.deltas.conftest import loaded

    pipeline = loaded(tiny_xl_base)
    end = pipeline.tokenizer.eos_token_id
    for module in pipeline.text_encoder_2.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = 2
    pipeline.text_encoder_2.config.eos_token_id = 2
    delta = made_delta(pipeline)
    with apply_deltas(pipeline, [delta], scale=0.0):
        towers = text_towers(pipeline)
        ids = token_ids(towers, ["photo of a <new1> cat"])
        found = encode_ids(towers, ids)
        position = ids[1][0].tolist().index(end)
        hidden = towers[1].model(ids[1], output_hidden_states=True).last_hidden_state[0, position]
        assert torch.allclose(found.pooled[0], towers[1].model.text_projection(hidden), atol=1e-5)
    assert pipeline.text_encoder_2.config.eos_token_id == 2
    assert {m.eos_token_id for m in pipeline.text_encoder_2.modules() if hasattr(m, "eos_token_id")} == {2}
