"""Presets: settings that differ from a method's own for faces, for styles, and for the embedded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from cdkit.weights.select import METHODS

PresetName = Literal["paper", "face", "style", "embedded"]
ANY = "any method"

# Preset → method → what it sets. Only what stands here differs from the method's recipe in cdkit.weights.select;
# what the user sets counts before both. "paper" is the method's own recipe.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {},
    # Slow and long, for many photos of one face; zooming in and out would teach wrong proportions.
    "face": {ANY: {"steps": 750, "learning_rate": 5e-6, "token_learning_rate": 5e-6, "augmentation": False}},
    # Photos are paintings; a style has no size in the picture.
    "style": {ANY: {"template": "painting in the style of {}", "augmentation": False}},
    # The embedded model's rows are large (deviation 0.25), so that a row needs a rate of its own to move at all. Its
    # pictures are 32 pixels wide: shrunk to 0.4 of that, a pattern is gone, and only confuses. Rates that fall to 0
    # leave less of the optimizer's noise in the weights, which shows as drift of everything else. A concept is learned
    # by 120 steps; its word goes on growing, and drowns out the other concept's in one prompt; keys and values at a
    # higher rate do the same.
    "embedded": {
        ANY: {"augmentation": False, "schedule": "linear", "prior_weight": 2.0},
        "custom-diffusion": {"steps": 120, "learning_rate": 3e-4, "token_learning_rate": 5e-2},
        "custom-diffusion-attention": {"steps": 120, "learning_rate": 3e-4, "token_learning_rate": 5e-2},
        "fine-tune-all": {"steps": 250, "learning_rate": 1e-4, "token_learning_rate": 1e-1},
        "dreambooth": {"steps": 250, "learning_rate": 2e-4},
        "textual-inversion": {"steps": 250, "learning_rate": 1e-1, "token_learning_rate": 1e-1},
    },
}


def fill_in(values: Mapping[str, Any], *, base: str) -> dict[str, Any]:
    """`values` of a training configuration with every setting of a recipe that is missing or None filled in.

    The modifier rows' rate follows the learning rate when the user gives only that and no preset has one of its own.
    """
    given = {key: value for key, value in values.items() if value is not None}
    method = METHODS.get(str(given.get("method", "custom-diffusion")))
    preset = PRESETS.get(str(given.get("preset", "embedded" if base == "embedded" else "paper")))
    if method is None or preset is None:
        return dict(values)
    own = {**preset.get(ANY, {}), **preset.get(method.name, {})}
    recipe = {**asdict(method.recipe), **own}
    concepts = given.get("concepts")
    recipe["steps"] *= max(1, len(concepts) if isinstance(concepts, Mapping) else 1)
    if "learning_rate" in given and "token_learning_rate" not in own:
        recipe["token_learning_rate"] = given["learning_rate"]
    return {**recipe, **given}
