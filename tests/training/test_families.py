"""Every transformer family end to end on tiny pipelines of its own classes: train, kill, merge, export, sample."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError, InputError
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import load_delta
from cdkit.deltas.exporting import loading_hints
from cdkit.deltas.families.family import Family
from cdkit.deltas.families.table import all_families, denoiser_of, family_of
from cdkit.deltas.low_rank import matrix
from cdkit.deltas.methods import METHODS, chosen_blocks, selected_names
from cdkit.deltas.text_features import text_towers
from cdkit.execute import Result, execute
from cdkit.publishing.deltas import delta_publication
from cdkit.sampling.drawing import notes_on_prompts
from cdkit.stages import STAGES
from cdkit.training.base_facts import read_base
from cdkit.training.memory import estimate_memory
from cdkit.training.plan import make_plan
from cdkit.training.schedule import flow_shift, flow_table
from cdkit.training.trainables import NewToken, install_tokens
from tests.support.tiny_pipeline import tiny_pipeline
from tests.support.tiny_transformers import BUILDERS, t5_tokenizer, tiny_transformer
from tests.training.conftest import write_photos
from tests.training.running import Interrupted, Material, StopAfter, delta_tensors, losses, run

CPU = torch.device("cpu")
CAPTIONS = [
    f"photo of a {size} {animal} and the {other}, {number}"
    for number, size in enumerate(("very small", "large", "small"))
    for animal in ("cat", "dog", "star")
    for other in ("dog", "star", "cat", "photo", "far away dog", "small cat")
]


@dataclass(frozen=True)
class Made:
    """A family's tiny base, and two concepts trained on it."""

    family: str
    material: Material
    first: Path
    second: Path

    @property
    def base(self) -> str:
        return str(self.material.root / "base")


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("a family")
    tiny_transformer(request.param, root / "base")
    for seed, name in enumerate(("cat", "dog", "images")):
        write_photos(root / name, 4, seed=seed)
    material = Material(root)
    for number, name in enumerate(("cat", "dog"), 1):
        run(_config(material, name, f"<new{number}>={name}"), root / f"tuned {name}")
    return Made(request.param, material, root / "tuned cat", root / "tuned dog")


def _config(material: Material, name: str, token: str, **values: Any) -> Any:
    photos = {name: str(material.root / name)}
    images = {name: str(material.root / "images")}
    given = {"batch_size": 2, "resolution": 32, "learning_rate": 1e-2, "regularization_count": 4}
    return material.config(concepts=photos, regularization=images, token={name: token}, **{**given, **values})


def _stage(name: str, out: Path, values: Mapping[str, Any]) -> Result:
    return execute(name, parse_config(STAGES[name].config_class(), values), out)


def _drawn(pipeline: Any, prompt: str) -> torch.Tensor:
    """Latents of one prompt after two steps."""
    with torch.inference_mode():
        drawn: torch.Tensor = pipeline(
            prompt=[prompt],
            num_inference_steps=2,
            width=32,
            height=32,
            generator=[torch.Generator("cpu").manual_seed(0)],
            output_type="latent",
            **family_of(pipeline).draw_options(2.0, None),
        )[0]
    return drawn.clone()


def _with(made: Made, delta: Path) -> Any:
    pipeline = load_base_model(made.base, device=CPU)
    apply_deltas(pipeline, [load_delta(delta)])
    return pipeline


def test_exactly_what_is_selected_trains(made: Made) -> None:
    pipeline = load_base_model(made.base, device=CPU)
    delta = load_delta(made.first)
    assert delta.part == "transformer"
    assert set(delta.changes) == set(selected_names(pipeline.transformer, METHODS["custom-diffusion"]))
    assert all(matrix(change).any() for change in delta.changes.values())
    (token,) = delta.tokens
    assert set(token.rows) == {tower.name for tower in text_towers(pipeline)}
    assert all(len(rows) == 1 for rows in token.rows.values())
    blocks = {int(name.split(".")[1]) for name in delta.changes}
    sampled = family_of(pipeline).merge == "sampled"
    assert blocks == ({1, 2} if sampled else {0, 1})


def test_a_killed_training_goes_on_bit_for_bit(made: Made, tmp_path: Path) -> None:
    config = _config(made.material, "cat", "<new1>=cat", checkpoint_every=1)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "out", progress=StopAfter(2))
    run(config, tmp_path / "out")
    whole, again = delta_tensors(made.first), delta_tensors(tmp_path / "out")
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert losses(made.first) == losses(tmp_path / "out")


def test_a_delta_changes_what_is_drawn_and_comes_off_bit_for_bit(made: Made) -> None:
    pipeline = load_base_model(made.base, device=CPU)
    before = _drawn(pipeline, "photo of a cat")
    weights = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    with apply_deltas(pipeline, [load_delta(made.first)]):
        assert not torch.equal(_drawn(pipeline, "photo of a <new1> cat"), before)
    assert torch.equal(_drawn(pipeline, "photo of a cat"), before)
    assert all(torch.equal(value, weights[name]) for name, value in pipeline.transformer.state_dict().items())


def test_merged_exported_and_loaded_again_it_draws_the_same(made: Made, tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("\n".join(["caption", *(f'"{each}"' for each in CAPTIONS)]))
    deltas = [str(made.first), str(made.second)]
    values = {"deltas": deltas, "base": made.base, "captions": [str(tmp_path / "captions.csv")], "resolution": 32}
    merged = _stage("merge", tmp_path / "merged", values).manifest
    if family_of(load_base_model(made.base, device=CPU)).merge == "exact":
        assert merged.details["constraint_residual"] <= 1e-6
    else:
        assert merged.details["constraint_residual"] < merged.details["average_residual"]
    _stage(
        "export", tmp_path / "out", {"delta": str(tmp_path / "merged"), "to": "diffusers-pipeline", "base": made.base}
    )
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["transformer"]
    prompt = "photo of a <new1> cat and a <new2> dog"
    wanted = _drawn(_with(made, tmp_path / "merged"), prompt)
    again = DiffusionPipeline.from_pretrained(str(tmp_path / "out"))
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(_drawn(again, prompt), wanted, rtol=1e-4, atol=1e-5)
    # And it is a base model again.
    torch.testing.assert_close(
        _drawn(load_base_model(str(tmp_path / "out"), device=CPU), prompt), wanted, rtol=1e-4, atol=1e-5
    )


def test_a_lora_through_the_pipelines_own_loader(made: Made, tmp_path: Path) -> None:
    values = {"delta": str(made.first), "to": "diffusers-lora", "rank": 64}
    if not family_of(load_base_model(made.base, device=CPU)).reads_lora:
        with pytest.raises(ConfigError, match="nothing would load it"):
            _stage("export", tmp_path / "lora", values)
        return
    _stage("export", tmp_path / "lora", values)
    loaded = load_base_model(made.base, device=CPU)
    loaded.load_lora_weights(str(tmp_path / "lora"))
    own = load_base_model(made.base, device=CPU)
    changed = load_delta(made.first)
    parameters = dict(denoiser_of(own).named_parameters())
    for name, change in changed.changes.items():
        parameters[name].data += matrix(change)
    torch.testing.assert_close(_drawn(loaded, "photo of a cat"), _drawn(own, "photo of a cat"), rtol=1e-3, atol=1e-4)
    for to in ("kohya-lora", "webui-diff"):
        with pytest.raises(ConfigError, match="nothing would load it"):
            _stage("export", tmp_path / to, {"delta": str(made.first), "to": to})


def test_text_is_read_as_the_pipeline_reads_it(made: Made) -> None:
    pipeline = load_base_model(made.base, device=CPU)
    family, towers = family_of(pipeline), text_towers(pipeline)
    prompts = ["photo of a cat", "a very small dog and the star"]
    with torch.no_grad():
        features = family.encode(towers, family.ids(towers, prompts)[0])
        if family.name == "Stable Diffusion 3 and 3.5":
            wanted = pipeline.encode_prompt(prompts, prompts, prompts, do_classifier_free_guidance=False)
            assert torch.equal(features.pooled, wanted[2])
        elif family.merge == "sampled":
            wanted = pipeline.encode_prompt(prompts)
        else:
            instruction = {"complex_human_instruction": family.prefix().split("\n")} if family.name == "Sana" else {}
            wanted = pipeline.encode_prompt(
                prompts, do_classifier_free_guidance=False, max_sequence_length=300, **instruction
            )
            assert torch.equal(features.mask, wanted[1])
    assert torch.equal(features.hidden, wanted[0])


def test_every_family_has_a_tiny_pipeline_here() -> None:
    assert {row.name for row in all_families() if row.denoiser == "transformer"} == set(BUILDERS)


def _edited(base: Path, target: Path, file: str, **values: Any) -> Path:
    """A copy of a base model's folder with other values in one of its JSON files."""
    shutil.copytree(base, target)
    path = target / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return target


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("model_index.json", {"_class_name": "SanaSprintPipeline"}, "SanaPipeline"),
        ("model_index.json", {"_class_name": "HunyuanDiTPipeline"}, "another kind"),
        ("model_index.json", {"transformer": ["diffusers", "SanaControlNetModel"]}, "another family"),
        ("transformer/config.json", {"quantization_config": {"quant_type": "nf4"}}, r"quantised \(nf4\)"),
        ("text_encoder/config.json", {"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
    ],
)
def test_what_no_row_knows_is_named(
    tmp_path: Path, file: str, values: dict[str, Any], words: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tiny_transformer("PixArt-Sigma", tmp_path / "base")
    with pytest.raises(ConfigError, match=words):
        read_base(str(_edited(tmp_path / "base", tmp_path / "edited", file, **values)))


@pytest.mark.parametrize("family", all_families(), ids=lambda family: family.name)
def test_configurations_that_say_nothing_are_named(family: Family) -> None:
    for read in (family.factor, family.latent_channels, family.taken_widths):
        with pytest.raises(InputError, match=r"config\.json has no"):
            read({})


def test_two_text_encoders_that_are_one_are_refused(tmp_path: Path) -> None:
    pipeline = tiny_transformer("Stable Diffusion 3 and 3.5", tmp_path / "base")
    pipeline.text_encoder_2 = pipeline.text_encoder
    ids = {"text_encoder": 5, "text_encoder_2": 5, "text_encoder_3": 5}
    with pytest.raises(ConfigError, match="same model"):
        install_tokens(pipeline, [NewToken("<new1>", "cat", ids)])


def test_a_token_within_other_words_is_refused(made: Made, tmp_path: Path) -> None:
    config = _config(made.material, "cat", "at=cat")
    with pytest.raises(ConfigError, match="change how other words are split"):
        run(config, tmp_path / "out")


def test_a_vocabulary_without_the_pick_starts_from_the_class_word(tmp_path: Path) -> None:
    tiny_transformer("PixArt-Sigma", tmp_path / "base")
    write_photos(tmp_path / "cat", 4, seed=0)
    shutil.copytree(tmp_path / "cat", tmp_path / "images")
    config = _config(Material(tmp_path), "cat", "<new1>")
    notes: list[str] = []
    (token,) = make_plan(config, read_base(str(tmp_path / "base")), notes.append).tokens
    assert token.ids == {"text_encoder": t5_tokenizer().get_vocab()["▁cat"]}
    assert any("PixArt-Sigma's text_encoder has no token 'ktn'" in note for note in notes)


def test_letters_that_a_pipeline_never_reads_are_refused(made: Made, tmp_path: Path) -> None:
    pipeline = load_base_model(made.base, device=CPU)
    family, delta = family_of(pipeline), load_delta(made.first)
    large = replace(delta, tokens=tuple(replace(token, text="<New1>") for token in delta.tokens))
    if family.written("<New1>") == "<New1>":
        with apply_deltas(pipeline, [large]):
            (note,) = notes_on_prompts(["a <new1> cat"], ["<New1>"], pipeline)
        assert note.startswith("<New1> is in other letters here, which text_encoder")
        shutil.copytree(made.material.root / "cat", tmp_path / "cat")
        (tmp_path / "cat" / "0.txt").write_text("a <NEW1> cat")
        shutil.copytree(made.material.root / "images", tmp_path / "images")
        config = _config(Material(tmp_path), "cat", "<new1>=cat")
        with pytest.raises(InputError, match="in other letters"):
            make_plan(config, read_base(made.base), print)
        return
    with pytest.raises(ConfigError, match="would never read '<New1>'"):
        apply_deltas(pipeline, [large])
    with pytest.raises(ConfigError, match="would never read '<New1>'"):
        run(_config(made.material, "cat", "<New1>"), tmp_path / "out")


def test_weights_of_eight_bits_are_refused(tmp_path: Path) -> None:
    tiny_transformer("PixArt-Sigma", tmp_path / "base")
    (path,) = (tmp_path / "base" / "transformer").glob("*.safetensors")
    small = {name: value.to(torch.float8_e4m3fn) for name, value in load_file(path).items()}
    save_file(small, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"quantised \(F8_E4M3\)"):
        load_base_model(str(tmp_path / "base"), device=CPU)


def test_how_it_is_loaded_fits_the_family(made: Made, tmp_path: Path) -> None:
    hints = "\n".join(loading_hints("diffusers-lora", tmp_path, ["<new1>"], made.family))
    assert "load_textual_inversion" not in hints
    assert "A1111" not in hints
    whole = "\n".join(loading_hints("diffusers-pipeline", tmp_path, ["<new1>"], made.family))
    assert ("clean_caption=False" in whole) == (made.family == "PixArt-Sigma")
    published = delta_publication(made.first, "me/x", licence="other", samples=None, scratch=tmp_path)
    card = Path(str(published.files["README.md"])).read_text()
    assert "--to diffusers-pipeline" in card
    assert "A1111" not in card


@pytest.mark.parametrize(
    ("text", "blocks"), [("all", {0, 1, 2, 3}), ("middle", {1, 2}), ("0,2-3", {0, 2, 3}), (" 1 - 1 ", {1})]
)
def test_blocks_are_chosen(text: str, blocks: set[int]) -> None:
    assert chosen_blocks(text, 4) == blocks


@pytest.mark.parametrize("text", ["", "some", "3-2", "4", "0-9", "-1", "1,,2"])
def test_blocks_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--blocks"):
        chosen_blocks(text, 4)


def test_blocks_of_a_unet_are_refused(tmp_path: Path) -> None:
    unet = tiny_pipeline(tmp_path).unet
    with pytest.raises(ConfigError, match="--blocks does not fit"):
        selected_names(unet, METHODS["custom-diffusion"], "middle")


def test_shares_of_noise_follow_the_shifted_logit_normal() -> None:
    plain, shifted = flow_table(1.0), flow_table(3.0)
    assert (plain.diff() > 0).all()
    torch.testing.assert_close(plain, 1 - plain.flip(0))
    torch.testing.assert_close(plain.logit().std(), torch.tensor(1.0), atol=0.01, rtol=0)
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))
    assert flow_shift({"shift": 3.0}, 64) == 3.0
    level = {"use_dynamic_shifting": True, "base_image_seq_len": 256, "max_image_seq_len": 256}
    for broken in ({"shift": -3.0}, {"shift": math.nan}, {"use_dynamic_shifting": True, "base_shift": None}, level):
        with pytest.raises(InputError, match=r"scheduler_config\.json"):
            flow_shift(broken, 64)
    dynamic = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    assert flow_shift(dynamic, 256) == pytest.approx(math.exp(0.5))
    assert flow_shift(dynamic, 4096) == pytest.approx(math.exp(1.15))


def test_memory_is_estimated_for_every_family(made: Made) -> None:
    config = _config(made.material, "cat", "<new1>=cat")
    facts = read_base(made.base)
    estimate = estimate_memory(config, make_plan(config, facts, print), facts, CPU)
    delta = load_delta(made.first)
    numbers = sum(matrix(change).numel() for change in delta.changes.values())
    numbers += sum(rows.numel() for token in delta.tokens for rows in token.rows.values())
    assert estimate.trained_weights == 4 * numbers
    assert estimate.activations > 0


def test_what_moved_is_counted_and_attention_maps_are_refused(made: Made, tmp_path: Path) -> None:
    values = {"base": made.base, "tuned": str(made.first), "device": "cpu"}
    groups = _stage("weight-change", tmp_path / "change", values).manifest.details["groups"]
    (moved,) = (group for group in groups if group["moved"])
    assert (moved["group"], moved["moved"]) == ("cross-attention", len(load_delta(made.first).changes))
    with pytest.raises(ConfigError, match="U-Nets alone"):
        _stage("attention", tmp_path / "maps", {"base": made.base, "prompt": "a cat", "device": "cpu"})
