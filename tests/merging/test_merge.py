"""The merge stage on tiny models: what each concept's own model does at its words, the merged one does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.cli.app import execute_command
from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError, InputError
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.delta import DELTA_NAME, Delta, load_delta, save_delta
from cdkit.deltas.low_rank import LowRank, matrix
from cdkit.execute import Result, execute
from cdkit.merging.config import MergeConfig
from tests.merging.conftest import loaded
from tests.support.made_deltas import made_delta
from tests.support.progress import Notes

# So heavy that words behind another concept are met like exact ones.
FIRM = 1e8


def _save(folder: Path, *deltas: Delta) -> list[str]:
    for number, delta in enumerate(deltas):
        save_delta(delta, folder / str(number) / DELTA_NAME)
    return [str(folder / str(number)) for number in range(len(deltas))]


def _merge(
    deltas: list[str], base: Path, out: Path, captions: Path, notes: Notes | None = None, **values: Any
) -> Result:
    settings = {"deltas": deltas, "base": str(base), "captions": [str(captions)], "captions_count": 100, **values}
    return execute("merge", parse_config(MergeConfig, settings), out, progress=notes)


@torch.no_grad()
def _keys_and_values(pipeline: Any, prompt: str, last: int) -> torch.Tensor:
    """What every cross-attention matrix gives at the last `last` positions of a prompt, end-of-text included."""
    written = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
    length = len(pipeline.tokenizer(written).input_ids)
    encoded = pipeline.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    hidden = encoded[0][0, length - last : length]
    modules = [module for name, module in pipeline.unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    return torch.cat([module(hidden) for module in modules], dim=1)


def test_each_concept_keeps_its_words(base: Path, captions: Path, tmp_path: Path) -> None:
    pipeline = loaded(base)
    deltas = [made_delta(pipeline, seed=1, category="cat"), made_delta(pipeline, seed=2, category="dog", rows=2)]
    alone = []
    for delta, category, last in zip(deltas, ("cat", "dog"), (3, 4), strict=True):
        with apply_deltas(pipeline, [delta]):
            alone.append(_keys_and_values(pipeline, f"photo of a <new1> {category}", last))
    result = _merge(_save(tmp_path, *deltas), base, tmp_path / "out", captions)
    details = result.manifest.details
    assert details["constraint_residual"] < 1e-5
    assert 0 < details["drift"] < 1
    assert details["rank"] <= details["constraints"] == 19
    assert details["tokens"] == [
        {"token": "<new1>", "was": "<new1>", "delta": "0"},
        {"token": "<new2>", "was": "<new1>", "delta": "1"},
    ]
    merged = load_delta(tmp_path / "out")
    assert all(isinstance(change, LowRank) and change.rank <= 19 for change in merged.changes.values())
    assert merged.prompts == ("photo of a <new1> cat", "photo of a <new2> dog")
    assert merged.settings["concepts"] == {"cat": "photos", "dog": "photos"}
    apply_deltas(pipeline, [merged])
    prompts = (("photo of a <new1> cat", 3), ("photo of a <new2> dog", 4))
    for (prompt, last), wanted in zip(prompts, alone, strict=True):
        found = _keys_and_values(pipeline, prompt, last)
        assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_a_concept_behind_another_looks_as_behind_the_plain_word(base: Path, captions: Path, tmp_path: Path) -> None:
    pipeline = loaded(base)
    deltas = [made_delta(pipeline, seed=1, category="cat"), made_delta(pipeline, seed=2, category="dog")]
    names = _save(tmp_path, *deltas)
    wanted = []
    for delta, prompt in zip(deltas, ("a dog and a <new1> cat", "a cat and a <new1> dog"), strict=True):
        with apply_deltas(pipeline, [delta]):
            wanted.append(_keys_and_values(pipeline, f"photo of {prompt}", 3)[:2])
    off = {}
    ways: dict[Any, dict[str, Any]] = {True: {}, False: {}, "firm": {"near_weight": FIRM}}
    for apart, settings in ways.items():
        result = _merge(names, base, tmp_path / str(apart), captions, apart=bool(apart), **settings)
        assert result.manifest.details["constraints"] == (16 if apart else 12)
        assert result.manifest.details["constraint_residual"] < 1e-5
        merged = load_delta(tmp_path / str(apart))
        assert merged.settings["apart"] is bool(apart)
        with apply_deltas(pipeline, [merged]):
            found = [
                _keys_and_values(pipeline, f"photo of {prompt}", 3)[:2]
                for prompt in ("a <new2> dog and a <new1> cat", "a <new1> cat and a <new2> dog")
            ]
        off[apart] = max(float((one - two).norm() / two.norm()) for one, two in zip(found, wanted, strict=True))
    assert off["firm"] < 1e-4
    # By default what stands behind another concept is met nearly: the exact words come first.
    assert off[True] < 0.5 * off[False]
    assert off[False] > 0.1


@pytest.mark.parametrize("way", ["fusion", "average", "sum"])
def test_other_ways_of_merging(bases: dict[str, Path], captions: Path, tmp_path: Path, way: str) -> None:
    pipeline = loaded(bases["one"])
    deltas = [made_delta(pipeline, seed=seed, tokens=(token,)) for seed, token in ((1, "<a>"), (2, "<b>"))]
    result = _merge(_save(tmp_path, *deltas), bases["one"], tmp_path / "out", captions, way=way)
    merged = load_delta(tmp_path / "out")
    assert merged.settings["way"] == way
    assert result.manifest.details["constraint_residual"] > 1e-3, "no word is kept exactly"
    layer = next(iter(merged.changes))
    one, other = (matrix(delta.changes[layer]) for delta in deltas)
    wanted = {"average": (one + other) / 2, "sum": one + other}
    if way in wanted:
        assert torch.allclose(matrix(merged.changes[layer]), wanted[way], atol=1e-6)
    else:
        assert matrix(merged.changes[layer]).norm() > 0


def test_more_words_than_dimensions_are_met_as_far_as_the_exact_ones_allow(
    bases: dict[str, Path], captions: Path, tmp_path: Path
) -> None:
    pipeline = loaded(bases["one"])
    width = pipeline.unet.config.cross_attention_dim
    forms = [
        f"{words} a {{}} {place}" for words in ("photo of", "here is", "this is") for place in ("at night", "there")
    ]
    deltas = []
    for number in range(1, 5):
        delta = made_delta(pipeline, seed=number, tokens=(f"<new{number}>",), size=0.05)
        prompts = (*delta.prompts, *(form.format(f"<new{number}> cat") for form in forms))
        deltas.append(replace(delta, prompts=prompts))
    details = _merge(_save(tmp_path, *deltas), bases["one"], tmp_path / "out", captions).manifest.details
    assert details["constraints"] > width
    assert details["constraint_residual"] < 1e-3


def test_deltas_that_change_nothing_merge_into_nothing(bases: dict[str, Path], captions: Path, tmp_path: Path) -> None:
    pipeline = loaded(bases["one"])
    names = _save(tmp_path, *(made_delta(pipeline, seed=seed, size=0.0) for seed in (1, 2)))
    _merge(names, bases["one"], tmp_path / "out", captions)
    merged = load_delta(tmp_path / "out")
    assert [token.text for token in merged.tokens] == ["<new1>", "<new2>"]
    assert not any(matrix(change).any() for change in merged.changes.values())


def test_the_order_of_deltas_does_not_matter(bases: dict[str, Path], captions: Path, tmp_path: Path) -> None:
    pipeline = loaded(bases["one"])
    names = _save(
        tmp_path, made_delta(pipeline, seed=1, tokens=("<a>",)), made_delta(pipeline, seed=2, tokens=("<b>",))
    )
    _merge(names, bases["one"], tmp_path / "one", captions)
    _merge(names[::-1], bases["one"], tmp_path / "other", captions)
    one, other = load_delta(tmp_path / "one"), load_delta(tmp_path / "other")
    for name, change in one.changes.items():
        whole = matrix(change)
        assert (matrix(other.changes[name]) - whole).norm() < 1e-4 * whole.norm()


def test_three_concepts_and_a_merged_one_merge_again(bases: dict[str, Path], captions: Path, tmp_path: Path) -> None:
    pipeline = loaded(bases["one"])
    names = _save(tmp_path, *(made_delta(pipeline, seed=seed, size=0.05) for seed in (1, 2, 3)))
    _merge(names[:2], bases["one"], tmp_path / "two", captions)
    result = _merge([str(tmp_path / "two"), names[2]], bases["one"], tmp_path / "three", captions)
    # <new1> collides; <new2>, which only the merged one has, stays.
    assert [entry["token"] for entry in result.manifest.details["tokens"]] == ["<new1>", "<new2>", "<new3>"]
    assert result.manifest.details["constraint_residual"] < 1e-4
    assert (
        load_delta(tmp_path / "three")
        .tokens[2]
        .rows["text_encoder"]
        .equal(load_delta(names[2]).tokens[0].rows["text_encoder"])
    )


def test_contradicting_words_are_named_and_refused_or_met_softly(
    bases: dict[str, Path], captions: Path, tmp_path: Path
) -> None:
    pipeline = loaded(bases["one"])
    names = _save(
        tmp_path,
        made_delta(pipeline, seed=1, tokens=(), category="cat"),
        made_delta(pipeline, seed=2, tokens=(), category="cat"),
    )
    with pytest.raises(ConfigError, match="contradict") as refused:
        _merge(names, bases["one"], tmp_path / "hard", captions)
    assert any("cat in 'photo of a cat' and cat in 'photo of a cat'" in problem for problem in refused.value.problems)
    assert "--soft" in refused.value.hint
    assert not (tmp_path / "hard" / DELTA_NAME).exists()
    notes = Notes()
    # Into the same folder: a refusal leaves nothing in the way.
    result = _merge(names, bases["one"], tmp_path / "hard", captions, notes, soft=1.0)
    assert result.manifest.details["constraint_residual"] > 1e-3
    assert result.manifest.details["conflicts"][0]["similarity"] == pytest.approx(1.0, abs=1e-4)
    assert any("different targets" in note for note in notes.notes)


def test_captions_that_are_too_few_are_refused(bases: dict[str, Path], captions: Path, tmp_path: Path) -> None:
    pipeline = loaded(bases["one"])
    names = _save(tmp_path, made_delta(pipeline, seed=1), made_delta(pipeline, seed=2))
    with pytest.raises(InputError, match="too few"):
        _merge(names, bases["one"], tmp_path / "out", captions, captions_count=20)
    empty = tmp_path / "empty.csv"
    empty.write_text("caption\n")
    with pytest.raises(InputError):
        _merge(names, bases["one"], tmp_path / "out", empty)
    same = tmp_path / "same.csv"
    same.write_text("caption\n" + "a cat\n" * 500)
    with pytest.raises(InputError, match="too few"):
        _merge(names, bases["one"], tmp_path / "out", same)


def test_deltas_that_cannot_be_merged_are_refused(bases: dict[str, Path], captions: Path, tmp_path: Path) -> None:
    pipeline, other = loaded(bases["one"]), loaded(bases["two"])
    one, two = made_delta(pipeline, seed=1), made_delta(pipeline, seed=2)
    wide = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight": torch.ones(64, 64)}
    cases = [
        ((one, made_delta(other, seed=2)), {}, "different families"),
        ((one, one), {}, "same token <new1>"),
        ((one, replace(two, changes={**two.changes, **wide})), {}, "more than the cross-attention"),
        ((one, two), {"base": bases["two"]}, "does not fit"),
    ]
    for number, (deltas, values, words) in enumerate(cases):
        names = _save(tmp_path / str(number), *deltas)
        with pytest.raises(ConfigError, match=words):
            _merge(names, values.get("base", bases["one"]), tmp_path / f"out {number}", captions)
        assert not (tmp_path / f"out {number}" / DELTA_NAME).exists()
    with pytest.raises(ConfigError, match="deltas"):
        parse_config(MergeConfig, {"deltas": ["one"], "captions": ["x"]})
    with pytest.raises(ConfigError, match="captions"):
        parse_config(MergeConfig, {"deltas": ["one", "two"], "captions": ["x"], "index": "y"})


def test_another_checkpoint_is_noted(bases: dict[str, Path], captions: Path, tmp_path: Path) -> None:
    pipeline = loaded(bases["one"])
    other = replace(made_delta(pipeline, seed=2), base_hash="0" * 64)
    notes = Notes()
    _merge(_save(tmp_path, made_delta(pipeline, seed=1), other), bases["one"], tmp_path / "out", captions, notes)
    assert [note for note in notes.notes if "other weights" in note] == [
        "1 was made on other weights than this base model's; the merge may differ."
    ]


def test_the_command(
    bases: dict[str, Path], captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = loaded(bases["one"])
    names = _save(tmp_path, made_delta(pipeline, seed=1), made_delta(pipeline, seed=2, category="dog"))
    command = [
        "merge",
        *names,
        "--base",
        str(bases["one"]),
        "--captions",
        str(captions),
        "--out",
        str(tmp_path / "out"),
    ]
    assert execute_command([*command, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"constraint_residual", "drift", "seconds", "out"} <= set(found)
    assert execute_command(command) == 0
    shown = capsys.readouterr()
    assert "<new2>" in shown.out
    assert "nothing to do" in shown.err
    assert execute_command(["delta", "inspect", str(tmp_path / "out"), "--format", "json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    assert [token["token"] for token in inspected["tokens"]] == ["<new1>", "<new2>"]
    assert inspected["method"] == "merge"
    layer = inspected["layers"][0]
    assert layer["norm"] == pytest.approx(float(matrix(load_delta(tmp_path / "out").changes[layer["layer"]]).norm()))
    assert execute_command(["delta", "inspect", str(tmp_path / "out")]) == 0
    assert "norm of the change" in capsys.readouterr().out
    assert execute_command(["merge", names[0], "--captions", str(captions), "--out", str(tmp_path / "one")]) == 2
    exporting = [
        "export",
        str(tmp_path / "out"),
        "--to",
        "kohya-lora",
        "--out",
        str(tmp_path / "pets"),
        "--format",
        "json",
    ]
    assert execute_command(exporting) == 0
    exported = json.loads([line for line in capsys.readouterr().out.splitlines() if line.startswith("{")][-1])
    assert exported["error"] < 1e-5
    importing = [
        "delta",
        "import",
        str(tmp_path / "pets"),
        "--base",
        str(bases["one"]),
        "--out",
        str(tmp_path / "back"),
    ]
    assert execute_command(importing) == 0
    squeezing = ["delta", "compress", str(tmp_path / "back"), "--rank", "3", "--out", str(tmp_path / "small")]
    assert execute_command(squeezing) == 0
    assert "largest error" in capsys.readouterr().out
