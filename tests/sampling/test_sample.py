from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdkit.captions.config import ImportConfig
from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError, InputError
from cdkit.deltas.config import ExportConfig
from cdkit.evaluation.samples import read_sample_set
from cdkit.execute import execute
from cdkit.sampling.config import SampleConfig
from cdkit.sampling.schedulers import SCHEDULERS, make_scheduler
from tests.support.progress import Notes
from tests.support.samples import read_samples
from tests.support.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny base")
    tiny_pipeline(folder)
    return str(folder)


def _config(base: str, **values: object) -> SampleConfig:
    defaults = {"base": base, "prompts": ["photo of a cat", "dog"], "seeds": 3, "steps": 4, "device": "cpu"}
    return parse_config(SampleConfig, {**defaults, **values})


def _pixels(out: Path) -> np.ndarray:
    images = [np.asarray(image, dtype=int) for _, image in read_samples(out)]
    return np.stack(images)


def test_every_prompt_with_every_seed(base: str, out: Path) -> None:
    result = execute("sample", _config(base), out)
    expected = {"samples": 6, "scheduler": "ddim", "steps": 4, "guidance": 6.0, "tokens": []}
    assert result.manifest.details == expected
    samples = [sample for sample, _ in read_samples(out)]
    assert [(sample.prompt, sample.seed) for sample in samples] == [
        (prompt, seed) for prompt in ("photo of a cat", "dog") for seed in (0, 1, 2)
    ]
    pixels = _pixels(out)
    assert pixels.shape == (6, 32, 32, 3)
    assert len(np.unique(pixels.reshape(6, -1), axis=0)) == 6, "seeds and prompts make different images"
    assert Image.open(out / "images" / "0000-2.png").text == {"prompt": "photo of a cat", "seed": "2"}  # type: ignore[attr-defined]
    sheet = Image.open(out / "grid.png")
    assert sheet.width > 3 * 128
    assert 2 * 128 < sheet.height < 3 * 128


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_batch_size_does_not_change_an_image(base: str, tmp_path: Path, scheduler: str) -> None:
    eta = 1.0 if scheduler == "ddim" else 0.0
    execute("sample", _config(base, scheduler=scheduler, eta=eta, batch_size=1), tmp_path / "one")
    execute("sample", _config(base, scheduler=scheduler, eta=eta, batch_size=4), tmp_path / "four")
    assert np.abs(_pixels(tmp_path / "one") - _pixels(tmp_path / "four")).max() <= 2


def test_schedulers_and_eta_are_honoured(base: str, tmp_path: Path) -> None:
    variants = [
        {"scheduler": "ddim"},
        {"scheduler": "ddim", "eta": 1.0},
        {"scheduler": "ddpm"},
        {"scheduler": "dpm++"},
    ]
    pixels = []
    for number, variant in enumerate(variants):
        execute("sample", _config(base, seeds=1, **variant), tmp_path / str(number))
        pixels.append(_pixels(tmp_path / str(number)))
    plain, noisy, ddpm, solver = pixels
    # DDIM with eta 1 is DDPM (Song et al. 2021, section 4.1); were eta ignored, it would be plain DDIM.
    assert np.abs(noisy - ddpm).max() <= 2
    for other in (noisy, solver):
        assert np.abs(plain - other).max() > 2
    assert np.abs(ddpm - solver).max() > 2


def test_an_interrupted_run_draws_only_what_is_missing(base: str, out: Path, tmp_path: Path) -> None:
    execute("sample", _config(base), out)
    whole = _pixels(out)
    times = {path.name: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    (out / "images" / "0001-1.png").unlink()
    (out / "manifest.json").rename(out / "started.json")
    again = execute("sample", _config(base), out)
    assert again.state == "done"
    run = again.manifest.run
    assert run["drawn"] == 1
    assert 0 < run["drawing_seconds"] < run["seconds"]
    # Seconds of this run over images of this run, not over all there are.
    assert read_sample_set(out).facts["seconds_per_image"] == run["drawing_seconds"]
    after = {path.name: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    assert {name for name in times if times[name] != after[name]} == {"0001-1.png"}
    assert np.abs(_pixels(out) - whole).max() <= 2


def test_where_nothing_was_left_to_draw_no_time_is_given(base: str, out: Path) -> None:
    first = execute("sample", _config(base, seeds=1), out)
    assert read_sample_set(out).facts["seconds_per_image"] == first.manifest.run["drawing_seconds"] / 2
    (out / "manifest.json").rename(out / "started.json")
    assert execute("sample", _config(base, seeds=1), out).manifest.run["drawn"] == 0
    assert "seconds_per_image" not in read_sample_set(out).facts


def test_a_file_of_prompts_and_a_prompt_beyond_the_context(base: str, out: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffcat\n\n  dog \ncat\n" + "dog " * 100 + "\n", encoding="utf-8")
    progress = Notes()
    execute("sample", _config(base, prompts=[], prompts_file=str(file), seeds=1), out, progress=progress)
    assert [sample.prompt for sample, _ in read_samples(out)][:2] == ["cat", "dog"]
    assert [note for note in progress.notes if "context" in note]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"first_seed": -1}, "first_seed"),
        ({"first_seed": 2**63 - 2, "seeds": 5}, "largest seed"),
        ({"seeds": 0}, "seeds"),
        ({"eta": 1.0, "scheduler": "ddpm"}, "eta is a setting of ddim"),
        ({"preset": "paper", "steps": 5}, "preset"),
    ],
)
def test_settings_that_cannot_work_are_refused(base: str, values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _config(base, **values)


def test_no_prompt_is_an_error(base: str, out: Path) -> None:
    with pytest.raises(ConfigError, match="no prompt"):
        execute("sample", _config(base, prompts=[" "]), out)


def test_a_folder_that_is_no_pipeline_is_named(out: Path, tmp_path: Path) -> None:
    (tmp_path / "not a model").mkdir()
    (tmp_path / "not a model" / "readme.txt").write_text("x")
    with pytest.raises(InputError, match=r"model_index\.json"):
        execute("sample", _config(str(tmp_path / "not a model")), out)


def test_broken_weights_are_told_from_a_picture(base: str, out: Path, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path / "broken")
    pipeline.unet.conv_out.weight.data.fill_(float("nan"))
    pipeline.save_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match="NaN"):
        execute("sample", _config(str(tmp_path / "broken")), out)
    assert not list(out.rglob("*.png"))


def test_schedulers_keep_the_base_models_noise_and_prediction_type(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path, prediction_type="v_prediction")
    for name in SCHEDULERS:
        made = make_scheduler(name, pipeline.scheduler)
        assert made.config.prediction_type == "v_prediction"
        assert (made.config.beta_start, made.config.beta_schedule) == (0.00085, "scaled_linear")


def _save_delta(base: str, folder: Path, token: str, seed: int = 0) -> str:
    """A delta that changes every cross-attention key and value a little, and brings one token."""
    import torch

    from cdkit.deltas.base_model import base_hash, cross_attention_names, load_base_model
    from cdkit.deltas.delta import DELTA_NAME, Delta, ModifierToken, save_delta

    pipeline = load_base_model(base, device=torch.device("cpu"))
    random = torch.Generator().manual_seed(seed)
    shapes = {name: pipeline.unet.get_parameter(name).shape for name in cross_attention_names(pipeline.unet)}
    changes = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    rows = {"text_encoder": torch.randn(1, 32, generator=random)}
    delta = Delta("custom-diffusion", base, base_hash(pipeline), changes, (ModifierToken(token, "", rows),))
    folder.mkdir()
    save_delta(delta, folder / DELTA_NAME)
    return str(folder)


def test_a_delta_changes_what_is_drawn_and_scale_0_only_adds_the_word(base: str, tmp_path: Path) -> None:
    delta = _save_delta(base, tmp_path / "delta", "<new1>")
    plain = execute("sample", _config(base), tmp_path / "plain")
    tuned = execute("sample", _config(base, deltas=[delta]), tmp_path / "tuned")
    none = execute("sample", _config(base, deltas=[delta], scale=0.0), tmp_path / "none")
    assert plain.manifest.fingerprint != tuned.manifest.fingerprint
    assert tuned.manifest.details["tokens"] == ["<new1>"]
    difference = np.abs(_pixels(tmp_path / "plain") - _pixels(tmp_path / "tuned"))
    assert difference.max() > 20
    assert np.array_equal(_pixels(tmp_path / "plain"), _pixels(tmp_path / "none"))
    assert none.manifest.details["samples"] == 6
    execute("sample", _config(base, deltas=[delta], prompts=["<new1> cat"], scale=0.0), tmp_path / "word")
    execute("sample", _config(base, prompts=["cat"]), tmp_path / "no word")
    assert not np.array_equal(_pixels(tmp_path / "word"), _pixels(tmp_path / "no word")), "the token has a meaning"


def test_a_delta_of_another_shape_is_refused_before_anything_is_drawn(base: str, tmp_path: Path) -> None:
    delta = _save_delta(base, tmp_path / "delta", "<new1>")
    with pytest.raises(ConfigError, match="does not fit"):
        execute("sample", _config("embedded", deltas=[delta]), tmp_path / "out")
    assert not list((tmp_path / "out" / "images").glob("*.png"))


def test_two_deltas_with_one_token_are_refused(base: str, tmp_path: Path) -> None:
    deltas = [_save_delta(base, tmp_path / name, "<new1>", seed) for seed, name in enumerate(("one", "two"))]
    with pytest.raises(ConfigError, match="Two deltas bring"):
        execute("sample", _config(base, deltas=deltas), tmp_path / "out")


def test_words_that_no_delta_brings_are_named() -> None:
    from cdkit.sampling.drawing import unknown_tokens

    assert unknown_tokens(["a <new1> cat and <new2>", "<new2> 3 < 4 > 2"], ["<new1>"]) == ["<new2>"]


def test_the_words_of_a_baked_in_delta_are_known(base: str, tmp_path: Path) -> None:
    delta = _save_delta(base, tmp_path / "delta", "<new1>")
    values = {"delta": delta, "to": "diffusers-pipeline", "base": base}
    execute("export", parse_config(ExportConfig, values), tmp_path / "baked")
    progress = Notes()
    config = _config(str(tmp_path / "baked"), prompts=["a <new1> cat and a <new2>"], seeds=1)
    execute("sample", config, tmp_path / "out", progress=progress)
    assert [note for note in progress.notes if "No delta brings" in note] == [
        "No delta brings the word <new2>: the prompt is read without it. Give --delta."
    ]


def test_captions_of_an_index_are_prompts_unless_they_name_the_concept(base: str, tmp_path: Path) -> None:
    captions = [
        f"a {colour} {shape}" for colour in ("red", "blue", "white") for shape in ("star", "Stars", "mug", "box")
    ]
    (tmp_path / "captions.csv").write_text("caption\n" + "\n".join(captions) + "\n")
    execute("import", parse_config(ImportConfig, {"captions": [str(tmp_path / "captions.csv")]}), tmp_path / "index")
    drawn = {
        "prompts": ["dog"],
        "index": str(tmp_path / "index"),
        "captions_count": 4,
        "without": ["star"],
        "seeds": 1,
    }
    prompts = {}
    for name in ("one", "again"):
        execute("sample", _config(base, **drawn), tmp_path / name)
        prompts[name] = [sample.prompt for sample, _ in read_samples(tmp_path / name)]
    assert prompts["one"] == prompts["again"]
    assert prompts["one"][0] == "dog"
    assert len(prompts["one"]) == 5
    assert set(prompts["one"][1:]) < {caption for caption in captions if "star" not in caption.lower()}
    with pytest.raises(InputError, match=r"only 6 have none of the words star; 7 are wanted"):
        execute("sample", _config(base, **{**drawn, "captions_count": 7}), tmp_path / "more")
    with pytest.raises(ConfigError) as refused:
        _config(base, without=["star"])
    assert "index" in refused.value.problems[0]
