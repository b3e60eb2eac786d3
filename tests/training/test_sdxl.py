"""SDXL end to end on a tiny pipeline of the real classes: train, merge, export, load in diffusers, same output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from cdkit.core.config import parse_config
from cdkit.core.protocols import Context
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import load_delta
from cdkit.deltas.low_rank import LowRank, matrix
from cdkit.execute import Result, execute
from cdkit.stages import STAGES
from cdkit.training.base_facts import read_base
from cdkit.training.config import TrainConfig
from cdkit.training.plan import make_plan
from cdkit.training.processes import Team, accelerated
from cdkit.training.setup import Setup, set_up
from tests.support.diffusers_loading import load_embeddings
from tests.support.made_deltas import unet_output
from tests.support.progress import Notes
from tests.support.tiny_xl_pipeline import tiny_xl_pipeline
from tests.training.conftest import write_photos
from tests.training.running import Material, run

CPU = torch.device("cpu")
PROMPT = "photo of a <new1> cat"
# Height and width of the regularization images: no two alike.
SIZES = [(40, 48), (64, 40), (36, 90), (100, 34), (33, 33), (57, 71)]


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A tiny SDXL base whose second tower has the legacy end-of-text id that the real one has, and pictures."""
    root = tmp_path_factory.mktemp("sdxl material")
    tiny_xl_pipeline(root / "base")
    settings = root / "base" / "text_encoder_2" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": 2}))
    for number, (name, count) in enumerate([("cat", 4), ("dog", 3)]):
        write_photos(root / name, count, seed=number)
    rng = np.random.default_rng(7)
    (root / "images").mkdir()
    for number, (height, width) in enumerate(SIZES):
        small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        path = root / "images" / f"{number}.png"
        small.resize((width, height), Image.Resampling.BICUBIC).save(path)
        path.with_suffix(".txt").write_text(f"photo of a cat {number}")
    captions = [f"photo of a cat {number} x" for number in range(80)]
    (root / "captions.csv").write_text("caption\n" + "\n".join(captions))
    return Material(root)


@pytest.fixture(scope="module")
def first(xl: Material) -> Path:
    run(xl.config(learning_rate=1e-2), xl.root / "first")
    return xl.root / "first"


@pytest.fixture(scope="module")
def second(xl: Material) -> Path:
    """The other concept, trained apart on the same base: its token has the same name."""
    values = {"concepts": {"dog": str(xl.root / "dog")}, "regularization": {}, "token": {"dog": "<new1>=dog"}}
    run(xl.config(learning_rate=1e-2, **values), xl.root / "second")
    return xl.root / "second"


@pytest.fixture(scope="module")
def merged(xl: Material, first: Path, second: Path) -> Path:
    values = {"deltas": [str(first), str(second)], "captions": [str(xl.root / "captions.csv")], "device": "cpu"}
    result = _execute("merge", xl.root / "merged", base=str(xl.root / "base"), **values)
    assert result.manifest.details["constraint_residual"] < 1e-5
    return xl.root / "merged"


def _execute(stage: str, out: Path, notes: Notes | None = None, **values: Any) -> Result:
    return execute(stage, parse_config(STAGES[stage].config_class(), values), out, progress=notes)


def _base(xl: Material) -> StableDiffusionXLPipeline:
    return load_base_model(str(xl.root / "base"), device=CPU)


def _wanted(xl: Material, delta: Path) -> torch.Tensor:
    pipeline = _base(xl)
    apply_deltas(pipeline, [load_delta(delta)])
    return unet_output(pipeline, PROMPT)


def test_both_towers_learn_the_token_and_nothing_else_moves(xl: Material, first: Path) -> None:
    delta = load_delta(first)
    pipeline = _base(xl)
    assert {name for name, change in delta.changes.items() if matrix(change).any()} == set(delta.changes)
    assert {tuple(change.shape)[1] for change in delta.changes.values()} == {56}, "both towers' widths side by side"
    (token,) = delta.tokens
    tables = {}
    for name, tokenizer in (("text_encoder", pipeline.tokenizer), ("text_encoder_2", pipeline.tokenizer_2)):
        table = getattr(pipeline, name).get_input_embeddings().weight.detach().clone()
        start = table[tokenizer.get_vocab()["cat</w>"]]
        moved = (token.rows[name][0] - start).abs()
        assert (moved > 1e-4).float().mean() > 0.9, f"the row in {name} moved"
        assert moved.max() < 0.1, "it started from its initializer"
        tables[name] = table
    with apply_deltas(pipeline, [delta]):
        for name, table in tables.items():
            assert getattr(pipeline, name).get_input_embeddings().weight[: len(table)].equal(table)


def test_a_merge_exported_and_loaded_in_diffusers_draws_the_same(xl: Material, merged: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    wanted = _wanted(xl, merged)
    assert (unet_output(_base(xl), PROMPT) - wanted).norm() > 0.05 * wanted.norm()
    for to in ("diffusers-lora", "kohya-lora"):
        out = tmp_path / to
        notes = Notes()
        _execute("export", out, notes, delta=str(merged), to=to, base=str(xl.root / "base"))
        assert "text_encoder_2.text_model.eos_token_id = " in "".join(notes.notes)
        pipeline = _base(xl)
        pipeline.load_lora_weights(str(out if to == "diffusers-lora" else out / "loras" / f"{to}.safetensors"))
        load_embeddings(pipeline, out)
        # What the export's note says: with the legacy end-of-text id, diffusers alone would pool at the new token.
        assert (unet_output(pipeline, PROMPT) - wanted).norm() > 0.01 * wanted.norm()
        pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id
        torch.testing.assert_close(unet_output(pipeline, PROMPT), wanted, rtol=1e-4, atol=1e-5)
    _execute("export", tmp_path / "baked", delta=str(merged), to="diffusers-pipeline", base=str(xl.root / "base"))
    baked = StableDiffusionXLPipeline.from_pretrained(tmp_path / "baked")
    torch.testing.assert_close(unet_output(baked, PROMPT), wanted, rtol=1e-5, atol=1e-6)
    assert len(baked.tokenizer_2("<new1> <new2>", add_special_tokens=False).input_ids) == 2


def test_sampling_with_deltas_equals_the_baked_model(xl: Material, first: Path, tmp_path: Path) -> None:
    base = str(xl.root / "base")
    shared = {"prompts": [PROMPT, "photo of a dog"], "seeds": 2, "steps": 3, "device": "cpu"}
    result = _execute("sample", tmp_path / "applied", base=base, deltas=[str(first)], **shared)
    assert result.manifest.details["tokens"] == ["<new1>"]
    _execute("export", tmp_path / "baked", delta=str(first), to="diffusers-pipeline", base=base)
    _execute("sample", tmp_path / "from-baked", base=str(tmp_path / "baked"), **shared)
    _execute("sample", tmp_path / "plain", base=base, **shared)
    applied, baked, plain = (_pixels(tmp_path / name) for name in ("applied", "from-baked", "plain"))
    assert np.abs(applied - baked).max() <= 1
    assert (applied != plain).any(axis=(1, 2, 3)).all(), "every image changed"


def test_no_negative_prompt_is_sdxls_zeros(xl: Material, tmp_path: Path) -> None:
    base = str(xl.root / "base")
    _execute("sample", tmp_path / "ours", base=base, prompts=["photo"], seeds=1, steps=2, device="cpu")
    pipeline = _base(xl)
    from cdkit.sampling.schedulers import make_scheduler

    pipeline.scheduler = make_scheduler("ddim", pipeline.scheduler)
    random = torch.Generator().manual_seed(0)
    image = pipeline("photo", num_inference_steps=2, guidance_scale=6.0, generator=[random], output_type="np").images
    assert np.abs(_pixels(tmp_path / "ours") - np.asarray(image) * 255).max() <= 1


def _pixels(out: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path), dtype=int) for path in sorted((out / "images").glob("*.png"))])


def test_the_delta_stored_at_low_rank_does_the_same(xl: Material, first: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    _execute("delta-compress", small, delta=str(first), max_error=1e-4)
    # Few steps make changes of full rank; the point is that what is stored as products still fits and draws.
    _execute("delta-compress", tmp_path / "tiny", delta=str(first), rank=4)
    assert all(isinstance(change, LowRank) for change in load_delta(tmp_path / "tiny").changes.values())
    assert (tmp_path / "tiny" / "delta.safetensors").stat().st_size < 0.3 * (
        first / "delta.safetensors"
    ).stat().st_size
    torch.testing.assert_close(_wanted(xl, small), _wanted(xl, first), rtol=1e-3, atol=1e-4)


def _ready(config: TrainConfig, notes: Notes) -> Setup:
    plan = make_plan(config, read_base(config.base), notes.note)  # type: ignore[arg-type]
    pipeline = load_base_model(config.base, device=CPU)
    return set_up(config, plan, pipeline, CPU, Context(None, notes))  # type: ignore[arg-type]


def test_every_image_is_paired_with_its_own_prompt_and_size(xl: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published SDXL script repeats prompts in another order than images: half of a batch has wrong prompts."""
    config = xl.config(batch_size=8, augmentation=False)
    seen: dict[str, torch.Tensor] = {}
    with accelerated(Team(), device=CPU, precision="no"):
        ready = _ready(config, Notes())
        batch = ready.batches.make(0, range(8))
        forward = ready.pipeline.unet.forward

        def noting(noisy: torch.Tensor, times: torch.Tensor, **given: Any) -> Any:
            seen.update(given["added_cond_kwargs"], hidden=given["encoder_hidden_states"])
            return forward(noisy, times, **given)

        monkeypatch.setattr(ready.pipeline.unet, "forward", noting)
        ready.denoising.losses(batch).sum().backward()
    assert batch.is_regularization.tolist() == [False, True] * 4
    pictures = ready.batches.regularization[0]
    assert pictures is not None
    assert pictures.moments is not None
    for row, prompt in enumerate(batch.prompts):
        with torch.no_grad():
            hidden, _, pooled, _ = ready.pipeline.encode_prompt(prompt, device=CPU, do_classifier_free_guidance=False)
        torch.testing.assert_close(seen["hidden"][row], hidden[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(seen["text_embeds"][row], pooled[0], rtol=1e-5, atol=1e-5)
        sizes = seen["time_ids"][row].tolist()
        if not batch.is_regularization[row]:
            assert prompt == PROMPT
            assert sizes == [32, 32, 0, 0, 32, 32]
            continue
        number = int(prompt.rsplit(" ", 1)[1])
        distance = (pictures.moments.mean - batch.latents[row]).flatten(1).norm(dim=1)
        assert int(distance.argmin()) == number, "the latents are of the picture that the prompt describes"
        height, width = SIZES[number]
        scale = 32 / min(height, width)
        top, left = ((side - min(height, width)) // 2 * scale for side in (height, width))
        assert sizes == [height, width, round(top), round(left), 32, 32]
    assert len(set(batch.prompts)) == 5


def test_augmented_batches_keep_their_words(xl: Material) -> None:
    with accelerated(Team(), device=CPU, precision="no"):
        ready = _ready(xl.config(batch_size=8), Notes())
        batch = ready.batches.make(3, range(8))
        masks = batch.mask.mean(dim=(1, 2, 3))
    for prompt, share in zip(batch.prompts, masks.tolist(), strict=True):
        assert ("far away" in prompt or "very small" in prompt) == (share < 0.6**2)
