from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cdkit.core.errors import InputError
from cdkit.deltas.delta import (
    DELTA_NAME,
    Delta,
    ModifierToken,
    delta_path,
    delta_tokens,
    load_delta,
    read_header,
    save_delta,
)
from cdkit.deltas.low_rank import LowRank, matrix


def _delta() -> Delta:
    random = torch.Generator().manual_seed(1)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    return Delta(
        method="custom-diffusion",
        base="runway/sd",
        base_hash="ab" * 32,
        changes={
            "down.attn2.to_k.weight": values(8, 5),
            "down.attn2.to_v.weight": LowRank(values(8, 2), values(2, 5)),
            "mid.attn2.to_out.0.bias": values(8),
        },
        tokens=(
            ModifierToken("<new1>", "ktn", {"text_encoder": values(1, 6), "text_encoder_2": values(1, 7)}),
            ModifierToken("<köter/../x>", "", {"text_encoder": values(3, 6), "text_encoder_2": values(3, 7)}),
        ),
        prompts=("photo of a <new1> dog", "größer 犬"),
        settings={"steps": 250, "nested": {"rate": 1e-5}, "list": [1, None, True]},
        made_by="9.9",
    )


def test_everything_comes_back(tmp_path: Path) -> None:
    delta = _delta()
    save_delta(delta, tmp_path / "new folder" / DELTA_NAME)
    found = load_delta(tmp_path / "new folder")
    assert (found.method, found.base, found.base_hash, found.made_by) == (
        "custom-diffusion",
        "runway/sd",
        "ab" * 32,
        "9.9",
    )
    assert (found.prompts, found.settings) == (delta.prompts, delta.settings)
    assert set(found.changes) == set(delta.changes)
    for name, change in delta.changes.items():
        assert type(found.changes[name]) is type(change)
        assert torch.equal(matrix(found.changes[name]), matrix(change))
        assert tuple(found.changes[name].shape) == tuple(change.shape)
    for token, other in zip(found.tokens, delta.tokens, strict=True):
        assert (token.text, token.initializer) == (other.text, other.initializer)
        assert all(torch.equal(token.rows[name], other.rows[name]) for name in other.rows)
    assert delta_tokens([tmp_path / "new folder"]) == ["<new1>", "<köter/../x>"]
    low = found.changes["down.attn2.to_v.weight"]
    assert isinstance(low, LowRank)
    assert low.rank == 2


def test_half_precision_and_views_are_stored_as_fp32_of_their_own(tmp_path: Path) -> None:
    whole = torch.arange(10_000.0).reshape(100, 100).half()
    save_delta(replace(_delta(), changes={"a": whole[:2].T}, tokens=()), tmp_path / DELTA_NAME)
    found = load_delta(tmp_path)
    assert torch.equal(matrix(found.changes["a"]), whole[:2].T.float())
    assert (tmp_path / DELTA_NAME).stat().st_size < 4_000
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / DELTA_NAME).stat().st_mode == plain.stat().st_mode, "readable for whom other files are"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_numbers_are_not_written(tmp_path: Path, value: float) -> None:
    changes = {"a": torch.tensor([[1.0, value]])}
    with pytest.raises(InputError, match="NaN or infinite"):
        save_delta(replace(_delta(), changes=changes), tmp_path / DELTA_NAME)
    assert os.listdir(tmp_path) == []


def test_an_earlier_file_survives_a_failed_write(tmp_path: Path) -> None:
    save_delta(_delta(), tmp_path / DELTA_NAME)
    before = (tmp_path / DELTA_NAME).read_bytes()
    with pytest.raises(InputError):
        save_delta(replace(_delta(), changes={"a": torch.tensor([float("nan")])}), tmp_path / DELTA_NAME)
    assert (tmp_path / DELTA_NAME).read_bytes() == before


def test_a_path_without_a_delta_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"holds no {DELTA_NAME}"):
        delta_path(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_delta(tmp_path / "nothing.safetensors")


def _change_file(path: Path, **changes: Any) -> None:
    """Rewrite a delta file: `drop` and `add` tensors, `header` entries (None drops one)."""
    tensors, header = load_file(str(path)), read_header(path)
    for name in changes.get("drop", ()):
        del tensors[name]
    tensors |= changes.get("add", {})
    header |= changes.get("header", {})
    save_file(tensors, str(path), metadata={key: value for key, value in header.items() if value is not None})


_SHAPED = torch.ones(2, 6)
_TOKENS = [{"text": "<new1>", "initializer": ""}, {"text": "<köter/../x>", "initializer": ""}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"add": {"text_encoder.weight": _SHAPED}}, "no delta has: text_encoder.weight"),
        ({"add": {"token.2.text_encoder": _SHAPED}}, "no delta has: token.2"),
        ({"add": {"token.0.text_encoder_4": torch.ones(1, 6)}}, "text_encoder_4"),
        ({"drop": ["token.0.text_encoder", "token.0.text_encoder_2"]}, "has no rows"),
        ({"drop": ["unet.down.attn2.to_v.weight.up"]}, "only one of up and down"),
        ({"add": {"unet.down.attn2.to_v.weight.up": torch.ones(8, 3)}}, "do not fit"),
        ({"add": {"unet.down.attn2.to_v.weight": torch.ones(8, 5)}}, "both whole and as up and down"),
        ({"add": {"token.0.text_encoder": torch.ones(6)}}, r"rows \(6,\)"),
        ({"add": {"token.0.text_encoder": torch.ones(0, 6)}}, "rows"),
        ({"add": {"token.0.text_encoder": _SHAPED}}, "different numbers of rows"),
        ({"add": {"unet.down.attn2.to_k.weight": torch.full((8, 5), float("nan"))}}, "NaN"),
        ({"add": {"unet.down.attn2.to_k.weight": torch.ones(8, 5, dtype=torch.int64)}}, "int64"),
        ({"header": {"format": None}}, "no cdkit delta"),
        ({"header": {"format": "cdkit-delta-2"}}, "cdkit-delta-2"),
        ({"header": {"tokens": None}}, "damaged"),
        ({"header": {"tokens": "{"}}, "damaged"),
        ({"header": {"tokens": '["x"]'}}, "damaged"),
        ({"header": {"tokens": "7"}}, "damaged"),
        ({"header": {"tokens": json.dumps([_TOKENS[0], _TOKENS[0]])}}, "twice"),
        ({"header": {"tokens": json.dumps([{"text": " "}, _TOKENS[1]])}}, "cannot be a token"),
        ({"header": {"settings": "[1]"}}, "damaged"),
        ({"header": {"prompts": "1"}}, "damaged"),
        ({"header": {"base_hash": None}}, "damaged"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    save_delta(_delta(), tmp_path / DELTA_NAME)
    _change_file(tmp_path / DELTA_NAME, **changes)
    with pytest.raises(InputError, match=words):
        load_delta(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    save_delta(_delta(), tmp_path / DELTA_NAME)
    whole = (tmp_path / DELTA_NAME).read_bytes()
    (tmp_path / DELTA_NAME).write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(InputError, match=r"is empty|no weight file|cut short"):
        load_delta(tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "huge header.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    torch.save({"a": torch.ones(3)}, tmp_path / "pickle.safetensors")
    save_file({"a": torch.ones(3)}, str(tmp_path / "plain.safetensors"))
    cases = (("huge header", "no weight file"), ("pickle", "no safetensors"), ("plain", "no cdkit delta"))
    for name, words in cases:
        with pytest.raises(InputError, match=words):
            load_delta(tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="damaged"):
        delta_tokens([tmp_path / "plain.safetensors"])
