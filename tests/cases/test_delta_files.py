"""Delta and LoRA files whose parts say what cannot be, or stand for more than a model has: refused, and said why."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cdkit.core.errors import InputError
from cdkit.deltas.delta import DELTA_NAME, Delta, load_delta, save_delta
from cdkit.deltas.importing import read_foreign
from cdkit.deltas.low_rank import LowRank, norm
from tests.cli.running import ran

KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
KOHYA = "lora_unet_" + KEY.replace(".", "_")
HEADER = {
    "format": "cdkit-delta-1",
    "method": "custom-diffusion",
    "base": "embedded",
    "base_hash": "",
    "tokens": "[]",
    "prompts": "[]",
    "settings": "{}",
    "made_by": "0",
}


def _outer(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((outputs, 1), 1e-3), torch.full((1, inputs), 1e-3)


def _bomb_delta(path: Path, number: int, side: int) -> Path:
    up, down = _outer(side, side)
    names = [f"unet.{KEY.replace('blocks.0', f'blocks.{index}', 1)}.weight" for index in range(number)]
    tensors = {f"{name}.up": up.clone() for name in names} | {f"{name}.down": down.clone() for name in names}
    save_file(tensors, str(path), metadata=HEADER)
    return path


# Case 19: 480 KB that stand for 14.4 GB; then many of a size that each alone would pass, and a long thin one.
@pytest.mark.parametrize(("number", "side"), [(1, 60_000), (60, 8_000), (1, 9_000)])
def test_factors_that_stand_for_more_than_a_model_are_refused(tmp_path: Path, number: int, side: int) -> None:
    delta = _bomb_delta(tmp_path / "bomb.safetensors", number, side)
    out = tmp_path / "out"
    for command in (
        ["delta", "inspect", delta],
        ["delta", "compress", delta, "--rank", 1, "--out", out],
        ["export", delta, "--to", "webui-diff", "--out", out],
        ["export", delta, "--to", "kohya-lora", "--out", out],
        ["export", delta, "--to", "diffusers-lora", "--out", out],
    ):
        done = ran(command)
        assert done.code == 3, done.err
        assert "values" in done.err


def test_a_lora_of_factors_that_stand_for_too_much_is_refused(tmp_path: Path) -> None:
    up, down = _outer(60_000, 60_000)
    tensors = {f"{KOHYA}.lora_up.weight": up, f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.alpha": torch.tensor(1.0)}
    save_file(tensors, str(tmp_path / "lora.safetensors"))
    torch.save({"unet": {f"{KEY}.weight": {"u": up, "v": down}}}, tmp_path / "adobe.bin")
    save_file({f"unet.{KEY}.lora_A.weight": down, f"unet.{KEY}.lora_B.weight": up}, str(tmp_path / "peft.safetensors"))
    for name in ("lora.safetensors", "adobe.bin", "peft.safetensors"):
        done = ran(["delta", "import", tmp_path / name, "--base", "embedded", "--out", tmp_path / "o"])
        assert done.code == 3, done.err
        assert "3,600,000,000 values" in done.err


def test_large_but_possible_factors_are_described_without_their_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = _bomb_delta(tmp_path / "large.safetensors", 12, 8_000)
    monkeypatch.setattr("cdkit.deltas.low_rank.matrix", lambda change: pytest.fail("multiplied"))
    done = ran(["delta", "inspect", delta, "--format", "json"])
    assert done.code == 0
    assert done.data["layers"][0]["norm"] == pytest.approx(8_000 * 1e-6, rel=1e-5)
    assert ran(["export", delta, "--to", "kohya-lora", "--out", tmp_path / "lora"]).code == 0
    # Nobody knows whether a model has such matrices: 3 GB are written only with a base model that says so.
    done = ran(["export", delta, "--to", "webui-diff", "--out", tmp_path / "whole"])
    assert (done.code, "--base" in done.err) == (2, True)


def test_norms_come_from_the_factors() -> None:
    random = torch.Generator().manual_seed(0)
    for outputs, rank, inputs in ((30, 4, 20), (5, 40, 6), (1, 1, 1), (64, 16, 16)):
        up, down = torch.randn(outputs, rank, generator=random), torch.randn(rank, inputs, generator=random)
        assert norm(LowRank(up, down)) == pytest.approx(float((up.double() @ down.double()).norm()), rel=1e-6)


def _header(path: Path, **changes: str) -> Path:
    save_file({f"unet.{KEY}.weight": torch.ones(4, 4)}, str(path), metadata={**HEADER, **changes})
    return path


# Case 20, and others that no header of a delta has.
HEADERS: list[tuple[dict[str, str], str]] = [
    ({"settings": '{"a":' * 50_000 + "1" + "}" * 50_000}, "nested too deeply"),
    ({"tokens": "[" * 100_000 + "]" * 100_000}, "nested too deeply"),
    ({"prompts": "[" * 500 + "]" * 500}, "nested too deeply"),
    ({"settings": '{"a":' * 25 + "1" + "}" * 25}, "nested too deeply"),
    ({"tokens": json.dumps([{"text": f"<t{n}>", "initializer": ""} for n in range(20_000)])}, "20,000 tokens"),
    ({"settings": '{"rate": NaN}'}, "NaN"),
    ({"settings": '{"rate": -Infinity}'}, "Infinity"),
    ({"prompts": '["\\ud800"]'}, "damaged"),
    ({"tokens": '[{"text": "\\ud800"}]'}, "damaged"),
    ({"tokens": '[{"text": "a\\u001b[2Jb"}]'}, "cannot be a token"),
    ({"base": "a\nb"}, "no line of text"),
    ({"method": "\x1b[2J"}, "no line of text"),
]


@pytest.mark.parametrize(("changes", "words"), HEADERS, ids=range(len(HEADERS)))
def test_headers_that_no_delta_has(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    path = _header(tmp_path / "delta.safetensors", **changes)
    started = time.monotonic()
    done = ran(["delta", "inspect", path])
    assert done.code == 3, done.err
    assert words in done.err
    assert str(path) in done.err
    assert time.monotonic() - started < 20


PRODUCT = {f"{KOHYA}.lora_up.weight": torch.ones(4, 2), f"{KOHYA}.lora_down.weight": torch.ones(2, 4)}
ABSURD: list[tuple[dict[str, Any], str]] = [
    ({f"{KOHYA}.alpha": torch.ones(0)}, "alpha"),
    ({f"{KOHYA}.alpha": torch.ones(3)}, "alpha"),
    ({f"{KOHYA}.alpha": "four"}, "alpha"),
    ({f"{KOHYA}.alpha": True}, "alpha"),
    ({f"{KOHYA}.alpha": 3e38, f"{KOHYA}.lora_up.weight": torch.full((4, 2), 1e30)}, "absurd alpha"),
    ({f"{KOHYA}.alpha": torch.tensor(float("nan"))}, "NaN"),
    ({f"{KOHYA}.lora_up.weight": "up"}, "only one of its two"),
    ({f"{KOHYA}.lora_up.weight": torch.ones(4, 2, dtype=torch.int64)}, "int64"),
    ({f"{KOHYA}.lora_up.weight": torch.ones(4, 0), f"{KOHYA}.lora_down.weight": torch.ones(0, 4)}, "do not fit"),
    ({f"{KOHYA}.lora_up.weight": torch.ones(4, 3)}, "do not fit"),
    ({f"{KOHYA}.diff": torch.ones(4, 4)}, "whole change and factors"),
    ({f"{KOHYA}.diff_b": 7}, "no tensor"),
]


@pytest.mark.parametrize(("changes", "words"), ABSURD, ids=range(len(ABSURD)))
def test_loras_with_absurd_parts(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    torch.save({**PRODUCT, **changes}, tmp_path / "lora.bin")
    with pytest.raises(InputError, match=words):
        read_foreign(tmp_path / "lora.bin")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a b", "a\x1b[2Jb", "", "a..b"])
def test_a_delta_names_only_parameters(tmp_path: Path, name: str) -> None:
    save_file({f"unet.{name}": torch.ones(2, 2)}, str(tmp_path / DELTA_NAME), metadata=HEADER)
    with pytest.raises(InputError, match="no change of a parameter"):
        load_delta(tmp_path)


def test_a_lora_that_names_one_matrix_twice_is_refused(tmp_path: Path) -> None:
    from cdkit.embedded import load_pipeline

    width = load_pipeline().unet.config.cross_attention_dim
    spellings = ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",)
    spellings += ("lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k",)
    save_file({f"{name}.diff": torch.ones(64, width) for name in spellings}, str(tmp_path / "lora.safetensors"))
    done = ran(["delta", "import", tmp_path / "lora.safetensors", "--base", "embedded", "--out", tmp_path / "o"])
    assert done.code == 3, done.err
    assert "twice" in done.err


def test_what_a_delta_holds_is_still_read(tmp_path: Path) -> None:
    """A thousand tokens and a rank as large as a matrix are unusual, and sound."""
    from cdkit.deltas.delta import ModifierToken

    tokens = tuple(
        ModifierToken(f"<t{n}>", "ktn", {"text_encoder": torch.full((1, 4), float(n))}) for n in range(1000)
    )
    changes = {f"{KEY}.weight": LowRank(torch.ones(6, 40), torch.ones(40, 5))}
    save_delta(Delta("custom-diffusion", "embedded", "", changes=changes, tokens=tokens), tmp_path / DELTA_NAME)
    found = load_delta(tmp_path)
    assert [float(token.rows["text_encoder"][0, 0]) for token in found.tokens] == list(range(1000))
    assert norm(found.changes[f"{KEY}.weight"]) == pytest.approx(40 * 30**0.5)
