"""Presets: settings that differ from a method's own for faces, for styles, and for the embedded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal

from pydantic import model_validator

from cdkit.core.config import ModelConfig, setting
from cdkit.core.fingerprints import EMBEDDED
from cdkit.deltas.methods import METHODS, Method, MethodName, Recipe, ScheduleName

PresetName = Literal["paper", "face", "style", "embedded"]
Keep = Literal["images", "generated", "distil", "both", "none"]
Fit = Literal["8GB", "12GB", "16GB", "24GB", "auto"]
ANY = "any method"
# Photos of one concept: fewer than the least teach nothing, and between few and many work best.
LEAST_PHOTOS, FEW_PHOTOS, MANY_PHOTOS = 2, 4, 20
BEST_NUMBER = f"{FEW_PHOTOS} to {MANY_PHOTOS}"
# Preset → method → what it sets. Only what stands here differs from the method's recipe in cdkit.deltas.methods;
# what the user sets counts before both. "paper" is the method's own recipe.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {},
    # Slow and long, for many photos of one face; zooming in and out would teach wrong proportions.
    "face": {ANY: {"steps": 750, "learning_rate": 5e-6, "token_learning_rate": 5e-6, "augmentation": False}},
    # Photos are paintings; a style has no size in the picture.
    "style": {ANY: {"template": ("painting in the style of {}",), "augmentation": False}},
    # The embedded model's rows are large (deviation 0.25), so that a row needs a rate of its own to move at all. Its
    # pictures are 32 pixels wide: shrunk to 0.4 of that, a pattern is gone, and only confuses. Rates that fall to 0
    # leave less of the optimizer's noise in the weights, which shows as drift of everything else. A concept is learned
    # by 120 steps; its word goes on growing, and drowns out the other concept's in one prompt; keys and values at a
    # higher rate do the same.
    "embedded": {
        ANY: {"augmentation": False, "schedule": "linear", "prior_weight": 2.0},
        "custom-diffusion": {"steps": 120, "learning_rate": 3e-4, "token_learning_rate": 5e-2},
        "custom-diffusion-orthogonal": {"steps": 120, "learning_rate": 1e-3, "token_learning_rate": 5e-2},
        "custom-diffusion-gated": {"steps": 120, "learning_rate": 3e-4, "token_learning_rate": 5e-2},
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
    chosen = {key: value for key, value in values.items() if value is not None}
    method = METHODS.get(str(chosen.get("method", "custom-diffusion")))
    preset = PRESETS.get(str(chosen.get("preset", "embedded" if base == "embedded" else "paper")))
    if method is None or preset is None:
        return dict(values)
    changes = {**preset.get(ANY, {}), **preset.get(method.name, {})}
    recipe = {**asdict(method.recipe), **changes}
    concepts = chosen.get("concepts")
    recipe["steps"] *= max(1, len(concepts) if isinstance(concepts, Mapping) else 1)
    if "learning_rate" in chosen and "token_learning_rate" not in changes:
        recipe["token_learning_rate"] = chosen["learning_rate"]
    if "fit" in chosen and chosen.get("device") != "cpu":
        recipe["precision"] = "bf16"
    written = chosen.get("template")
    templates = {"template": [written]} if isinstance(written, str) else {}
    return {**recipe, "keep": _default_keep(chosen, method), **chosen, **templates}


def _default_keep(chosen: Mapping[str, Any], method: Method) -> Keep:
    """Images where there is a set; else the base's predictions, which keep the class as well (docs/results.md)."""
    if method.change == "gated":
        return "none"
    if chosen.get("regularization"):
        return "images"
    return "none" if _no_distilling(method, no_token=bool(chosen.get("no_token"))) else "distil"


def _no_distilling(method: Method, *, no_token: bool) -> str:
    """Why nothing can be trained towards the base's own predictions; empty where it can."""
    if no_token:
        return "it keeps the word that no_token teaches: give images, or keep none"
    if method.name == "textual-inversion":
        return "textual-inversion changes no weights, there is nothing to distil"
    return ""


class TrainConfig(ModelConfig):
    """What to teach which model, and how."""

    concepts: dict[str, str] = setting(
        ..., "A concept: its category and the folder of its photos. Repeatable.", flag="--concept", input="folder"
    )
    regularization: dict[str, str] = setting(
        {}, "A concept's regularization set, or any folder of images. Repeatable.", input="set"
    )
    token: dict[str, str] = setting(
        {},
        "A concept's modifier token and, if wanted, its initializer: dog='<new1>'=ktn. [default: <new1>, <new2>, …]",
    )
    keep: Keep | None = setting(
        None,
        "What keeps the class word as it is: a regularization set's images, images that the base model draws first, "
        "the base model's predictions (distil), images and distil by turns (both), or nothing "
        "[default: images where there is a set, else distil].",
    )
    no_token: bool = setting(False, "Train without modifier tokens: prompts name the category alone.")
    tokens: str | None = setting(
        None, "Picks that cdkit tokens rare made, as initializers; <new2> takes the second.", input="folder"
    )
    categories: dict[str, str] = setting(
        {}, "The word prompts use for a concept, where its name is not that word.", flag="--category"
    )
    template: list[str] | None = setting(
        None, "Caption of photos without one; of several, each use draws one. Repeatable [default: 'photo of a {}']."
    )
    method: MethodName = setting("custom-diffusion", "What trains.")
    blocks: str | None = setting(
        None,
        "Which of a transformer's blocks train: all, middle, or numbers from 0 such as 4-11,15 [default: all; middle "
        "where text and picture share one attention].",
    )
    preset: PresetName | None = setting(
        None, "Settings for faces, for styles or for the embedded model [default: that of the base, or paper]."
    )
    delta: list[str] = setting([], "A delta to train on top of. Repeatable.", input="delta")
    steps: int | None = setting(None, "Optimizer steps [default: 250 for each concept].", ge=1)
    batch_size: int | None = setting(
        None, "Samples at once per process, half of them regularization [default: 8].", ge=1
    )
    gradient_accumulation: int = setting(1, "Batches per optimizer step.", ge=1)
    learning_rate: float | None = setting(None, "Learning rate as it is: never scaled [default: 8e-5].", gt=0)
    token_learning_rate: float | None = setting(
        None, "Learning rate of the modifier tokens' rows [default: the learning rate].", gt=0
    )
    schedule: ScheduleName | None = setting(
        None, "Learning rates: constant, or linear, down to 0 at the last step [default: constant]."
    )
    prior_weight: float | None = setting(
        None, "Weight of regularization samples [default: 1; 0.25 is what diffusers' example calls 1].", ge=0
    )
    resolution: int | None = setting(None, "Side of the pictures in pixels [default: the base model's].", ge=16)
    augmentation: bool | None = setting(
        None, "Show photos larger and smaller, and say so in the prompt [default: where the preset does]."
    )
    flip: bool = setting(False, "Mirror half of the pictures; not for texts, logos or faces.")
    enlarge: bool = setting(False, "Enlarge photos smaller than the resolution instead of refusing them.")
    regularization_count: int | None = setting(None, "Use so many regularization images [default: all].", ge=1)
    max_grad_norm: float = setting(1.0, "Clip the gradient to this norm; 0 does not.", ge=0)
    precision: Literal["no", "bf16", "fp16"] = setting("no", "Compute type of what is frozen; no is fp32.")
    seed: int = setting(0, "Seed of everything random.", ge=0)
    processes: int = setting(1, "Processes to train with, one per GPU; each has its own batches.", ge=1)
    sample_every: int = setting(0, "Draw samples/step-*.png every so many steps; 0 does not.", execution=True, ge=0)
    checkpoint_every: int = setting(100, "Steps between checkpoints; 0 writes none.", execution=True, ge=0)
    compile: bool = setting(False, "Compile the U-Net: minutes at the start, faster steps.", execution=True)
    gradient_checkpointing: bool = setting(False, "Less memory, slower steps.", execution=True)
    fit: Fit | None = setting(
        None,
        "Choose batches, accumulation and checkpointing for a card of this size, or for what is free; the same "
        "result. Frozen weights are bf16 then, unless --precision says otherwise.",
        execution=True,
    )
    early_stop: str | None = setting(
        None,
        "A CLIP, as embedded or open_clip:ViT-L-14/openai: end when samples, drawn at every tenth of the steps, are "
        "but copies of the photos twice in a row.",
        input="encoder",
    )
    tensorboard: bool = setting(False, "Also write the metrics for TensorBoard.", execution=True)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return fill_in(values, base=str(values.get("base", EMBEDDED)))

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if not self.concepts:
            raise ValueError("concepts is empty: give --concept NAME=FOLDER")
        for setting_name in ("regularization", "token", "categories"):
            unknown = sorted(set(getattr(self, setting_name)) - set(self.concepts))
            if unknown:
                raise ValueError(f"{setting_name} names {unknown[0]!r}, which is none of the concepts")
        if self.no_token and (self.token or self.tokens):
            raise ValueError("no_token trains without modifier tokens; leave token and tokens out")
        method = METHODS[self.method]
        if self.no_token and (method.word == "rare" or method.change == "gated" or self.method == "textual-inversion"):
            raise ValueError(f"the method {self.method} needs a token; leave no_token out")
        for template in self.template or ():
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no {{}} where the concept's name goes")
        self._check_keep()
        return self

    def _check_keep(self) -> None:
        if METHODS[self.method].change == "gated" and self.keep != "none":
            raise ValueError(f"keep {self.keep}: prompts without the token stay as they are with {self.method} anyway")
        if self.keep in ("images", "both") and not self.regularization:
            raise ValueError(f"keep {self.keep} needs a regularization set: give --regularization NAME=DIR")
        why_not = _no_distilling(METHODS[self.method], no_token=self.no_token)
        if self.keep in ("distil", "both") and why_not:
            raise ValueError(f"keep {self.keep}: {why_not}")

    def recipe(self) -> Recipe:
        """The settings in force, presets and defaults filled in."""
        values = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        return Recipe(**{**values, "template": tuple(values["template"])})

    @property
    def distils(self) -> bool:
        """Whether the base model's own predictions are trained towards."""
        return self.keep in ("distil", "both")
