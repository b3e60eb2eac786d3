"""A merged change is held against its deltas and the weights: near-singular captions do not pass in silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import DELTA_NAME, Delta, ModifierToken, save_delta
from cdkit.deltas.low_rank import LowRank, matrix
from cdkit.execute import Result, execute
from cdkit.merging.config import MergeConfig
from cdkit.merging.constraints import substitution
from cdkit.merging.problem import ChangeSize, change_size, check_size
from cdkit.merging.stage import rename_tokens
from tests.support.made_deltas import made_delta
from tests.support.progress import Notes
from tests.support.small_index import grammar_captions


@pytest.fixture(scope="module")
def deltas(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two deltas of the size that trainings on the embedded model have."""
    folder = tmp_path_factory.mktemp("deltas")
    pipeline = load_base_model("embedded", device=torch.device("cpu"))
    for name, category in (("one", "star"), ("two", "heart")):
        delta = made_delta(pipeline, seed=len(category), category=category, size=0.07)
        save_delta(delta, folder / name / DELTA_NAME)
    return [str(folder / "one"), str(folder / "two")]


def _merge(deltas: list[str], captions: list[str], folder: Path, notes: Notes, **values: Any) -> Result:
    folder.mkdir(exist_ok=True)
    (folder / "captions.csv").write_text("caption\n" + "\n".join(captions) + "\n")
    settings = {"deltas": deltas, "captions": [str(folder / "captions.csv")], "captions_count": 200, **values}
    return execute("merge", parse_config(MergeConfig, settings), folder / "out", progress=notes)


@pytest.mark.parametrize("ridge", [0.1, 0.01])
def test_ordinary_captions_give_an_ordinary_change(deltas: list[str], tmp_path: Path, ridge: float) -> None:
    notes = Notes()
    result = _merge(deltas, grammar_captions(200), tmp_path, notes, ridge=ridge)
    assert 1 < result.manifest.details["growth"] < 20
    assert not any("times as large" in note for note in notes.notes)


DIGITS = [str(number) for number in range(60)]
ONE_WORD = [f"star {'a ' * number}" for number in range(60)]


@pytest.mark.parametrize(("ridge", "edge_weight"), [(1e-6, 0.0)])
def test_a_large_change_is_named(deltas: list[str], tmp_path: Path, ridge: float, edge_weight: float) -> None:
    notes = Notes()
    result = _merge(deltas, DIGITS, tmp_path, notes, ridge=ridge, edge_weight=edge_weight)
    assert result.manifest.details["growth"] > 20
    [note] = [note for note in notes.notes if "times as large" in note]
    assert f"{result.manifest.details['growth']:.0f} times" in note
    assert "--ridge" in note


@pytest.mark.parametrize(("ridge", "edge_weight"), [(1e-6, 60.0), (1e-9, 0.0)])
def test_an_absurd_change_is_refused(
    deltas: list[str], tmp_path: Path, ridge: float, edge_weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On the embedded model these captions make a change grow 70 to 78 times; real ones grow further.
    monkeypatch.setattr("cdkit.merging.problem.ABSURD_GROWTH", 50.0)
    notes = Notes()
    with pytest.raises(ConfigError, match="times as large") as refused:
        _merge(deltas, ONE_WORD, tmp_path, notes, ridge=ridge, edge_weight=edge_weight)
    assert "--captions-count" in refused.value.hint
    assert not (tmp_path / "out" / DELTA_NAME).exists()
    # The same with the default ridge is a merge like others.
    assert _merge(deltas, ONE_WORD, tmp_path, notes, edge_weight=edge_weight).manifest.details["growth"] < 20


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_sizes_are_those_of_the_matrices() -> None:
    weights = {name: _random(number, 6, 5) for number, name in enumerate("ab")}
    parts = [Delta("m", "b", "", {name: _random(seed, 6, 5) for name in "ab"}) for seed in (3, 4)]
    merged = {"a": LowRank(_random(7, 6, 2), _random(8, 2, 5)), "b": _random(9, 6, 5)}
    found = change_size(merged, parts, weights)
    whole = torch.cat([matrix(change).flatten() for change in merged.values()]).norm()
    own = torch.cat([part.changes[name].flatten() for part in parts for name in "ab"]).norm()  # type: ignore[union-attr]
    base = torch.cat([weights[name].flatten() for name in "ab"]).norm()
    assert found.growth == pytest.approx(float(whole / own), rel=1e-5)
    assert found.share == pytest.approx(float(whole / base), rel=1e-5)
    assert change_size({}, [], weights) == ChangeSize(0.0, 0.0)


@pytest.mark.parametrize(
    ("growth", "share", "outcome"),
    [
        (10.0, 0.9, "silent"),
        # Deltas that hardly changed anything are outgrown by what tells their tokens apart.
        (1e6, 0.1, "silent"),
        (25.0, 0.3, "noted"),
        (250.0, 0.9, "noted"),
        (90.0, 9.0, "noted"),
        (250.0, 9.0, "refused"),
    ],
)
def test_what_is_said_of_a_size(growth: float, share: float, outcome: str) -> None:
    said: list[str] = []
    if outcome == "refused":
        with pytest.raises(ConfigError):
            check_size(ChangeSize(growth, share), said.append)
    else:
        check_size(ChangeSize(growth, share), said.append)
    assert bool(said) is (outcome == "noted")


def _delta(*texts: str, seed: int = 0) -> Delta:
    random = torch.Generator().manual_seed(seed)
    tokens = tuple(ModifierToken(text, "ktn", {"text_encoder": torch.randn(1, 4, generator=random)}) for text in texts)
    return Delta(
        "custom-diffusion", "tiny", "", tokens=tokens, prompts=tuple(f"photo of a {text} cat" for text in texts)
    )


def _texts(deltas: list[Delta]) -> list[list[str]]:
    return [[token.text for token in one.delta.tokens] for one in rename_tokens(deltas)]


def test_only_tokens_that_collide_are_renamed() -> None:
    assert _texts([_delta("<new1>", seed=1), _delta("<new1>", seed=2)]) == [["<new1>"], ["<new2>"]]
    assert _texts([_delta("<a>", seed=1), _delta("<b>", seed=2)]) == [["<a>"], ["<b>"]]
    assert _texts([_delta("<new2>", seed=1), _delta("<x>", seed=2), _delta("<x>", seed=3)]) == [
        ["<new2>"],
        ["<new1>"],
        ["<new3>"],
    ]
    joint = _texts([_delta("<new1>", "<new2>", seed=1), _delta("<new2>", "<new1>", seed=2), _delta(seed=3)])
    assert joint == [["<new1>", "<new2>"], ["<new3>", "<new4>"], []]


def test_prompts_follow_their_tokens_all_at_once() -> None:
    first, second = rename_tokens([_delta("<new1>", "<new2>", seed=1), _delta("<new2>", "<new1>", seed=2)])
    assert first.delta.prompts == ("photo of a <new1> cat", "photo of a <new2> cat")
    assert second.delta.prompts == ("photo of a <new3> cat", "photo of a <new4> cat")
    assert second.former == {"<new3>": "<new2>", "<new4>": "<new1>"}
    swap = substitution({"sks": "pll", "pll": "sks", "<a>": "<b>"})
    assert swap("asks sks, pll and <a> but not <a>_1") == "asks pll, sks and <b> but not <a>_1"


def test_the_same_token_twice_is_refused() -> None:
    delta = _delta("<new1>")
    with pytest.raises(ConfigError, match="same token <new1>"):
        rename_tokens([delta, replace(delta, prompts=("another",))])
