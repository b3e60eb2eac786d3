"""The train stage end to end on tiny pipelines of the real classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from cdkit.core.protocols import Context
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import load_delta
from cdkit.deltas.low_rank import matrix
from cdkit.deltas.methods import METHODS, selected_names
from cdkit.execute import execute
from cdkit.training.base_facts import read_base
from cdkit.training.plan import make_plan
from cdkit.training.processes import Team, accelerated
from cdkit.training.setup import set_up
from tests.support.progress import Notes
from tests.training.running import Material, assert_same_training, delta_tensors, losses, run

CPU = torch.device("cpu")


def _predict(pipeline: StableDiffusionPipeline, prompts: list[str]) -> torch.Tensor:
    hidden, _ = pipeline.encode_prompt(prompts, CPU, 1, False)
    noise = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return pipeline.unet(noise, torch.tensor(500), encoder_hidden_states=hidden).sample


@pytest.mark.parametrize("method", METHODS)
def test_exactly_the_selected_parameters_differ(material: Material, tmp_path: Path, method: str) -> None:
    result = run(material.config(method=method), tmp_path / "out")
    base = load_base_model(str(material.root / "base"), device=CPU)
    selected = set(selected_names(base.unet, METHODS[method]))
    tensors = delta_tensors(tmp_path / "out")
    delta = load_delta(tmp_path / "out")
    changes = {name: change for part in delta.all_changes for name, change in part.items()}
    assert {name for name, change in changes.items() if matrix(change).any()} == selected
    assert set(changes) == selected
    has_tokens = METHODS[method].word == "modifier"
    assert ("token.0.text_encoder" in tensors) == has_tokens
    fixed = METHODS[method].change == "orthogonal"
    numbers = sum(value.numel() for name, value in tensors.items() if not (fixed and name.endswith(".down")))
    assert result.manifest.details["parameters"] == numbers
    assert [token["text"] for token in result.manifest.details["tokens"]] == ["<new1>" if has_tokens else "sks"]


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_every_modifier_row_moves_and_every_other_stays(material: Material, tmp_path: Path, number: int) -> None:
    folders = {f"cat{index}": str(material.root / "cat") for index in range(number)}
    config = material.config(concepts=folders, regularization={}, steps=2, batch_size=max(2, number))
    run(config, tmp_path / "out")
    base = load_base_model(config.base, device=CPU)
    table = base.text_encoder.get_input_embeddings().weight.clone()
    delta = load_delta(tmp_path / "out")
    assert [token.text for token in delta.tokens] == [f"<new{index}>" for index in range(1, number + 1)]
    entries = base.tokenizer.get_vocab()
    for token in delta.tokens:
        start = table[entries.get(f"{token.initializer}</w>", entries.get(token.initializer))]
        moved = (token.rows["text_encoder"][0] - start).abs()
        assert (moved > 0).any(), token.text
        assert moved.max() < 0.1, "it started from its initializer"
    with apply_deltas(base, [delta]):
        extended = base.text_encoder.get_input_embeddings().weight
        assert extended[: len(table)].equal(table)
        assert len(extended) == len(table) + number


@pytest.mark.parametrize("model", ["base", "velocity"])
def test_the_delta_makes_of_the_base_what_was_trained(material: Material, tmp_path: Path, model: str) -> None:
    config = material.config(base=str(material.root / model))
    run(config, tmp_path / "out")
    pipeline = load_base_model(config.base, device=CPU)
    before = _predict(pipeline, ["photo of a cat"])
    state = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    delta = load_delta(tmp_path / "out")
    with apply_deltas(pipeline, [delta]):
        after = _predict(pipeline, ["photo of a <new1> cat", "photo of a cat"])
        weights = dict(pipeline.unet.named_parameters())
        for name, change in delta.changes.items():
            assert weights[name].equal(state[name] + change)
    assert (after[1:] - before).abs().max() > 1e-5, "the weights changed"
    assert (after[0] - after[1]).abs().max() > 1e-5, "the token says something"
    assert all(pipeline.unet.state_dict()[name].equal(value) for name, value in state.items())
    assert _predict(pipeline, ["photo of a cat"]).equal(before)


def test_the_trained_pipeline_and_the_reloaded_one_predict_the_same(material: Material, tmp_path: Path) -> None:
    config = material.config()
    plan = make_plan(config, read_base(config.base), print)
    pipeline = load_base_model(config.base, device=CPU)
    from cdkit.deltas.delta import Delta
    from cdkit.training.trainables import trained_tokens

    with accelerated(Team(), device=CPU, precision="no"):
        ready = set_up(config, plan, pipeline, CPU, Context(None))  # type: ignore[arg-type]
        optimizer = ready.trainables.optimizer(1e-2, 1e-2, 1e-2)
        ready.denoising.losses(ready.batches.make(0, range(4))).mean().backward()
        optimizer.step()
    # Training lays convolutions out differently, which rounds differently.
    pipeline.unet.to(memory_format=torch.contiguous_format)
    trained = _predict(pipeline, ["photo of a <new1> cat"])
    rows = trained_tokens(plan.tokens, ready.trainables.rows)
    other = load_base_model(config.base, device=CPU)
    apply_deltas(other, [Delta("m", "b", "", ready.trainables.changes(), rows)])
    torch.testing.assert_close(_predict(other, ["photo of a <new1> cat"]), trained, rtol=1e-6, atol=1e-6)
    untouched = load_base_model(config.base, device=CPU)
    assert not torch.allclose(_predict(untouched, ["photo of a cat cat"]), trained, atol=1e-3)


def test_the_result_is_recorded(material: Material, tmp_path: Path) -> None:
    notes = Notes()
    config = material.config(steps=4, sample_every=2, checkpoint_every=1)
    out = tmp_path / "out"
    result = run(config, out, progress=notes)
    details = result.manifest.details
    assert details["steps"] == 4
    assert details["tokens"] == [{"text": "<new1>", "initializer": "cat", "category": "cat"}]
    assert details["prompts"] == ["photo of a <new1> cat"]
    assert details["seconds"] > 0
    rows = losses(out)
    assert rows[0] == "step,loss,target_loss,regularization_loss"
    last = [float(value) for value in rows[-1].split(",")]
    assert details["final_loss"] == last[1]
    assert last[1] == pytest.approx((last[2] + last[3]) / 2, rel=1e-5)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
    assert not [path for path in out.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    assert [path.name for path in sorted((out / "samples").iterdir())] == ["step-000002.png", "step-000004.png"]
    # Two prompts, four seeds.
    sheet = Image.open(out / "samples" / "step-000004.png")
    assert 4 * 128 < sheet.width < 5 * 128
    assert 2 * 128 < sheet.height < 3 * 128
    header = load_delta(out)
    assert header.settings["learning_rate"] == 1e-3
    assert header.prompts == ("photo of a <new1> cat",)
    assert json.loads((out / "manifest.json").read_text())["counts"] == {"in": 4, "kept": 4, "rejected": {}}


def test_drawing_samples_does_not_change_the_training(material: Material, tmp_path: Path) -> None:
    run(material.config(), tmp_path / "plain")
    run(material.config(sample_every=1), tmp_path / "drawn")
    _assert_same(delta_tensors(tmp_path / "plain"), delta_tensors(tmp_path / "drawn"))


def test_seeds_differ_and_repeat(material: Material, tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        run(material.config(seed=seed), tmp_path / name)
    first, again, other = (delta_tensors(tmp_path / name) for name in ("first", "again", "other"))
    _assert_same(first, again)
    assert any(not first[name].equal(other[name]) for name in first)


@pytest.mark.parametrize(
    ("values", "batch_size"), [({}, 2), ({"augmentation": False, "flip": True, "regularization": {}}, 1)]
)
def test_accumulation_equals_a_larger_batch(
    material: Material, tmp_path: Path, values: dict[str, Any], batch_size: int
) -> None:
    config = material.config(batch_size=8, **values)
    run(config, tmp_path / "whole")
    accumulated = material.config(batch_size=batch_size, gradient_accumulation=8 // batch_size, **values)
    run(accumulated, tmp_path / "parts")
    assert_same_training(tmp_path / "whole", tmp_path / "parts", config.base)


def test_a_template_that_no_photo_needs_is_said(material: Material, tmp_path: Path) -> None:
    values = {"steps": 1, "template": ["a picture of a {}"]}
    captioned, notes = {"star": "embedded:striped-star"}, Notes()
    config = material.config(concepts=captioned, regularization={}, token={"star": "<new1>=cat"}, **values)
    result = run(config, tmp_path / "captioned", progress=notes)
    said = "The template is not used for 'star': every photo has a caption of its own."
    assert said in notes.notes
    assert "in the sea we see a <new1> star" in result.manifest.details["prompts"]
    notes = Notes()
    run(material.config(**values), tmp_path / "without", progress=notes)
    assert not any("The template is not used" in note for note in notes.notes)


def test_joint_training_uses_every_concept_and_its_own_word(material: Material, tmp_path: Path) -> None:
    folders = {"cat": str(material.root / "cat"), "dog": str(material.root / "dog")}
    result = run(material.config(concepts=folders), tmp_path / "out")
    assert [token["text"] for token in result.manifest.details["tokens"]] == ["<new1>", "<new2>"]
    assert result.manifest.details["prompts"] == ["photo of a <new1> cat", "photo of a <new2> dog"]
    assert result.manifest.counts["kept"] == 7


def test_without_a_token_only_the_weights_change(material: Material, tmp_path: Path) -> None:
    result = run(material.config(no_token=True), tmp_path / "out")
    assert result.manifest.details["prompts"] == ["photo of a cat"]
    assert not load_delta(tmp_path / "out").tokens


def test_a_second_training_goes_on_top_of_a_first(material: Material, tmp_path: Path) -> None:
    run(material.config(), tmp_path / "first")
    config = material.config(
        concepts={"dog": str(material.root / "dog")},
        regularization={},
        token={"dog": "<new2>=dog"},
        delta=[str(tmp_path / "first")],
    )
    run(config, tmp_path / "second")
    first, second = load_delta(tmp_path / "first"), load_delta(tmp_path / "second")
    assert [token.text for token in second.tokens] == ["<new2>"]
    assert first.base_hash != second.base_hash
    pipeline = load_base_model(config.base, device=CPU)
    notes: list[str] = []
    apply_deltas(pipeline, [first, second], note=notes.append)
    assert not notes, "the second delta's base is the base with the first delta"


def test_sampling_takes_the_delta(material: Material, tmp_path: Path) -> None:
    from cdkit.sampling.config import SampleConfig

    run(material.config(), tmp_path / "out")
    config = SampleConfig(
        base=str(material.root / "base"),
        deltas=[str(tmp_path / "out")],
        prompts=["photo of a <new1> cat"],
        seeds=1,
        steps=2,
        device="cpu",
    )
    assert execute("sample", config, tmp_path / "samples").manifest.details["tokens"] == ["<new1>"]


def test_bf16_keeps_what_trains_in_fp32(material: Material, tmp_path: Path) -> None:
    config = material.config(precision="bf16")
    run(config, tmp_path / "out")
    weights = dict(load_base_model(config.base, device=CPU).unet.named_parameters())
    for name, change in load_delta(tmp_path / "out").changes.items():
        # A start from rounded weights would show as changes of up to 2⁻⁹ of each weight.
        limit = 3 * (1e-3 * 1.01 + 1e-5 * weights[name].abs())
        assert (change.abs() <= limit).all()
        assert change.any()


class _Casts(TorchDispatchMode):
    """Notes every tensor that is made fp32 of one of `frozen`."""

    def __init__(self, frozen: set[int]) -> None:
        super().__init__()
        self.frozen = frozen
        self.made: list[torch.Size] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        source = args[0] if args else None
        if isinstance(source, torch.Tensor) and source.data_ptr() in self.frozen and result.dtype == torch.float32:
            self.made.append(source.shape)
        return result


@pytest.mark.parametrize("method", ["custom-diffusion", "custom-diffusion-attention", "fine-tune-all"])
def test_in_bf16_no_frozen_weight_is_kept_or_made_fp32(material: Material, method: str) -> None:
    config = material.config(precision="bf16", batch_size=2, method=method)
    plan = make_plan(config, read_base(config.base), print)
    pipeline = load_base_model(config.base, device=CPU)
    ready = set_up(config, plan, pipeline, CPU, Context(None))  # type: ignore[arg-type]
    trained = {id(parameter) for parameter in ready.trainables.named().values()}
    models = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    frozen = [p for model in models for p in model.parameters() if id(p) not in trained]
    assert {p.dtype for p in ready.trainables.named().values()} == {torch.float32}
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    with _Casts({p.data_ptr() for p in frozen}) as casts:
        ready.denoising.losses(ready.batches.make(0, range(2))).sum().backward()
    assert not casts.made
    for name, parameter in ready.trainables.named().items():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32


def test_gradient_checkpointing_changes_nothing(material: Material, tmp_path: Path) -> None:
    config = material.config()
    run(config, tmp_path / "plain")
    run(material.config(gradient_checkpointing=True), tmp_path / "checkpointed")
    assert_same_training(tmp_path / "plain", tmp_path / "checkpointed", config.base)


def _assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
