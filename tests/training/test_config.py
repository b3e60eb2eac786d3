from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cdkit.core.config import canonical
from cdkit.deltas.methods import METHODS, Recipe
from cdkit.training.config import ANY, PRESETS, TrainConfig


def _config(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({"base": "owner/model", "concepts": {"dog": "photos"}, **values})


def test_the_papers_settings_are_the_default() -> None:
    recipe = _config().recipe()
    assert recipe == Recipe(
        steps=250,
        batch_size=8,
        learning_rate=8e-5,
        token_learning_rate=8e-5,
        schedule="constant",
        prior_weight=1.0,
        template=("photo of a {}",),
        augmentation=True,
    )
    assert _config(concepts={"dog": "a", "cat": "b"}).steps == 500


@pytest.mark.parametrize("method", METHODS)
def test_every_method_brings_its_own_settings(method: str) -> None:
    assert _config(method=method).recipe() == METHODS[method].recipe


def test_the_embedded_model_has_a_preset_of_its_own_unless_another_is_asked_for() -> None:
    own = PRESETS["embedded"]["custom-diffusion"]
    chosen = _config(base="embedded")
    assert all(getattr(chosen, name) == value for name, value in own.items() if name != "steps")
    assert _config(base="embedded", preset="paper").recipe() == METHODS["custom-diffusion"].recipe
    assert _config(base="owner/model", preset="embedded").recipe() == chosen.recipe()


def test_what_the_user_sets_counts_first() -> None:
    given = {"learning_rate": 1e-3, "steps": 250, "augmentation": True, "template": ["a {}"]}
    for base, preset in (("embedded", None), ("owner/model", "face")):
        config = _config(base=base, preset=preset, **given)
        assert {name: getattr(config, name) for name in given} == given


def test_the_token_rate_follows_the_learning_rate_unless_a_preset_has_one() -> None:
    assert _config(learning_rate=1e-3).token_learning_rate == 1e-3
    assert _config(learning_rate=1e-3, token_learning_rate=2e-3).token_learning_rate == 2e-3
    own = PRESETS["embedded"]["custom-diffusion"]["token_learning_rate"]
    assert _config(base="embedded", learning_rate=1e-3).token_learning_rate == own


def test_faces_and_styles() -> None:
    face = _config(preset="face").recipe()
    assert (face.steps, face.learning_rate, face.augmentation) == (750, 5e-6, False)
    assert _config(preset="style").template == ["painting in the style of {}"]


def test_presets_set_nothing_that_is_no_setting_of_a_recipe() -> None:
    for preset in PRESETS.values():
        for method, values in preset.items():
            assert method == ANY or method in METHODS
            assert set(values) <= set(Recipe.__dataclass_fields__)


def test_the_fingerprint_holds_the_settings_in_force() -> None:
    assert canonical(_config()) == canonical(_config(steps=250, learning_rate=8e-5, batch_size=8))
    assert canonical(_config())["steps"] == 250
    assert canonical(_config(checkpoint_every=7, compile=True, device="cpu")) == canonical(_config())


def test_what_keeps_the_class_word_follows_from_what_is_given() -> None:
    assert _config().keep == "distil"
    for without in ({"no_token": True}, {"method": "textual-inversion"}, {"method": "custom-diffusion-gated"}):
        assert _config(**without).keep == "none"
    assert _config(regularization={"dog": "images"}).keep == "images"
    assert _config(regularization={"dog": "images"}, keep="none").keep == "none"
    assert _config(keep="distil").distils


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"keep": "images"}, "needs a regularization set"),
        ({"keep": "both"}, "needs a regularization set"),
        ({"keep": "distil", "no_token": True}, "no_token"),
        ({"keep": "distil", "method": "textual-inversion"}, "nothing to distil"),
        ({"template": ["a {}", "a dog"]}, "'a dog' has no {}"),
    ],
)
def test_ways_to_keep_that_cannot_work_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        _config(**values)


def test_templates_may_be_one_text_or_several() -> None:
    assert _config(template="a {}").recipe().template == ("a {}",)
    assert _config(template=["a {}", "{} here"]).recipe().template == ("a {}", "{} here")
