"""Modifier rows beside the table, and the start token without a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cdkit.core.errors import ConfigError
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.delta import Delta
from cdkit.deltas.families.table import family_of
from cdkit.deltas.text_features import encode_ids, text_towers, token_ids
from cdkit.training.denoising import Conditioning
from cdkit.training.trainables import NewToken, RowsBesideTable, detach_first_token, install_tokens, trained_tokens
from tests.support.tiny_pipeline import tiny_pipeline


def test_only_the_rows_get_gradients() -> None:
    table = nn.Embedding(6, 3).requires_grad_(False)
    module = RowsBesideTable(table, [6, 9], torch.arange(6.0).view(2, 3))
    ids = torch.tensor([[0, 6, 5], [9, 6, 9]])
    found = module(ids)
    assert found[0, 0].equal(table.weight[0])
    assert found[1].equal(module.rows[[1, 0, 1]])
    found.sum().backward()
    assert module.rows.grad is not None
    assert module.rows.grad.tolist() == [[2, 2, 2], [2, 2, 2]]
    assert table.weight.grad is None


def test_rows_stay_fp32_over_a_half_precision_table() -> None:
    table = nn.Embedding(6, 3).requires_grad_(False).to(torch.bfloat16)
    fine = torch.full((1, 3), 1.0001)
    module = RowsBesideTable(table, [6], fine)
    found = module(torch.tensor([[6, 1]]))
    assert found.dtype == torch.bfloat16, "what the tower computes in"
    assert module.rows.equal(fine)
    assert found[0, 0].equal(fine[0].bfloat16())


def test_installed_tokens_encode_as_applied_ones_do(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path)
    start = pipeline.tokenizer.get_vocab()["dog</w>"]
    tokens = [NewToken("<new1>", "dog", {"text_encoder": start}), NewToken("<new2>", "3", {"text_encoder": 3})]
    rows = install_tokens(pipeline, tokens)
    assert rows["text_encoder"].rows[0].equal(pipeline.text_encoder.get_input_embeddings().table.weight[start])
    rows["text_encoder"].rows.data += torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    prompts = ["a <new2> cat", "<new1>", "photo of a dog"]
    found = _encode(pipeline, prompts)
    assert not found[1].allclose(found[2])
    plain = tiny_pipeline(tmp_path)
    with apply_deltas(plain, [Delta("m", "b", "", tokens=trained_tokens(tokens, rows))]):
        assert _encode(plain, prompts).equal(found)


def test_a_token_the_tokenizer_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocabulary already"):
        install_tokens(tiny_pipeline(tmp_path), [NewToken("cat</w>", "dog", {"text_encoder": 3})])


def _encode(pipeline: object, prompts: list[str]) -> torch.Tensor:
    towers = text_towers(pipeline)  # type: ignore[arg-type]
    return encode_ids(towers, token_ids(towers, prompts)).hidden.detach()


def test_conditioning_gives_each_prompt_its_own_features(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path)
    rows = install_tokens(pipeline, [NewToken("<new1>", "dog", {"text_encoder": 5})])
    pipeline.text_encoder.requires_grad_(False)
    rows["text_encoder"].rows.requires_grad_(True)
    conditioning = Conditioning(family_of(pipeline), text_towers(pipeline), rows)
    prompts = ["photo of a cat", "a <new1> dog", "dog", "<new1>"]
    conditioning.prepare(prompts)
    expected = dict(zip(prompts, _encode(pipeline, prompts), strict=True))
    batch = ["dog", "<new1>", "dog", "a <new1> dog", "<new1>", "photo of a cat"]
    found = conditioning.features(batch).hidden
    for prompt, features in zip(batch, found, strict=True):
        torch.testing.assert_close(features, expected[prompt], rtol=1e-5, atol=1e-6)
    found.sum().backward()
    first = rows["text_encoder"].rows.grad
    assert first is not None
    assert first.abs().sum() > 0
    # Kept features hold no graph: a second use, and prompts without a token, work alone.
    assert not conditioning.features(["dog", "photo of a cat"]).hidden.requires_grad
    assert conditioning.features(["<new1>"]).hidden.requires_grad


def test_the_towers_are_encoded_once_when_nothing_in_the_prompts_trains(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path)
    conditioning = Conditioning(family_of(pipeline), text_towers(pipeline), {})
    conditioning.prepare(["cat", "dog"])
    expected = _encode(pipeline, ["dog", "cat"])
    # Nothing asks the tower again.
    pipeline.text_encoder.get_input_embeddings().weight.data.fill_(float("nan"))
    torch.testing.assert_close(conditioning.features(["dog", "cat"]).hidden, expected)


@pytest.fixture
def unet(tmp_path: Path) -> Any:
    return tiny_pipeline(tmp_path).unet


def _predict(unet: Any, hidden: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    return unet(noise, torch.tensor(300), encoder_hidden_states=hidden).sample


def test_the_output_stays_and_the_first_token_gets_no_gradient(unet: Any) -> None:
    hidden = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    before = _predict(unet, hidden)
    before.square().sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 0].abs().sum() > 0
    handles = detach_first_token(unet)
    assert len(handles) == 8
    hidden.grad = None
    after = _predict(unet, hidden)
    assert after.equal(before)
    after.square().sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 0].abs().sum() == 0
    assert (hidden.grad[:, 1:].abs().sum(dim=-1) > 0).all()
    for handle in handles:
        handle.remove()
    hidden.grad = None
    _predict(unet, hidden).square().sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 0].abs().sum() > 0


def test_weights_learn_nothing_from_the_first_token(unet: Any) -> None:
    detach_first_token(unet)
    weight = dict(unet.named_parameters())["mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"]
    hidden = torch.zeros(2, 77, 32)
    hidden[:, 0] = 1.0
    _predict(unet, hidden).square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0, "only the first position is not zero"
