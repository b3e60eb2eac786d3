"""Methods of customising a base model: one row each, saying what trains and the settings it was published with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from cdkit.core.errors import ConfigError
from cdkit.deltas.families.family import TRANSFORMER_BLOCK
from cdkit.deltas.families.table import family_of_denoiser

# What of a denoiser is meant; which parameters that is stands in its family.
KEYS_AND_VALUES = "keys and values"
CROSS_ATTENTION = "cross-attention"
EVERYTHING = r""
NOTHING = r"(?!)"
MethodName = Literal[
    "custom-diffusion",
    "custom-diffusion-orthogonal",
    "custom-diffusion-gated",
    "custom-diffusion-attention",
    "fine-tune-all",
    "dreambooth",
    "textual-inversion",
]
ScheduleName = Literal["constant", "linear"]


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train. steps: per concept; the others as the options of `cdkit train` name them.

    schedule: constant, or linear, which brings both rates down to 0 at the last step. template: the forms of captions
    of photos without one.
    """

    steps: int = 250
    batch_size: int = 8
    learning_rate: float = 8e-5
    token_learning_rate: float = 8e-5
    schedule: ScheduleName = "constant"
    prior_weight: float = 1.0
    template: tuple[str, ...] = ("photo of a {}",)
    augmentation: bool = True


@dataclass(frozen=True)
class Method:
    """One way to customise. unet: a regular expression that finds, in a parameter's name, what of the U-Net trains.

    word: what stands before the category in prompts: `modifier`, a new token whose embedding trains, or `rare`, an
    existing word that does not. detaches_first_token: no gradient passes the keys and values of the start token.
    change: `whole`, every value of a matrix trains; `orthogonal`, a matrix changes only along directions of the text's
    features that are the concept's own, and stay as they are; `gated`, what trains acts where the concept's words
    stand, and nowhere else.
    """

    name: MethodName
    summary: str
    unet: str
    word: Literal["modifier", "rare"] = "modifier"
    detaches_first_token: bool = False
    change: Literal["whole", "orthogonal", "gated"] = "whole"
    recipe: Recipe = Recipe()


# Learning rates are per step as they stand: nothing multiplies them by the batch size or the number of devices.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "custom-diffusion",
            "cross-attention keys and values, and the modifier tokens",
            unet=KEYS_AND_VALUES,
            detaches_first_token=True,
        ),
        # Po et al. 2024, on keys and values: concepts whose directions are at right angles add up undisturbed.
        Method(
            "custom-diffusion-orthogonal",
            "cross-attention keys and values along directions of the concept's own, and the modifier tokens",
            unet=KEYS_AND_VALUES,
            detaches_first_token=True,
            change="orthogonal",
            recipe=Recipe(learning_rate=2e-4, token_learning_rate=8e-5),
        ),
        # Prompts without the concept's word stay the base model's bit for bit: nothing else has to keep them.
        Method(
            "custom-diffusion-gated",
            "cross-attention keys and values where the concept's words stand, and the modifier tokens",
            unet=KEYS_AND_VALUES,
            change="gated",
        ),
        Method(
            "custom-diffusion-attention",
            "all of cross-attention, and the modifier tokens (for faces)",
            unet=CROSS_ATTENTION,
            detaches_first_token=True,
        ),
        # The paper's ablation "ours with fine-tune all" (appendix C).
        Method(
            "fine-tune-all",
            "the whole U-Net, and the modifier tokens",
            unet=EVERYTHING,
            detaches_first_token=True,
            recipe=Recipe(steps=500, learning_rate=8e-6, token_learning_rate=8e-6),
        ),
        # Ruiz et al. 2023 with the settings of the paper's comparison.
        Method(
            "dreambooth",
            "the whole U-Net; a rare word in the prompt stays as it is",
            unet=EVERYTHING,
            word="rare",
            recipe=Recipe(steps=2500, learning_rate=1e-6, augmentation=False),
        ),
        # Gal et al. 2023: 0.005 for each of a batch of 8.
        Method(
            "textual-inversion",
            "the modifier tokens only",
            unet=NOTHING,
            recipe=Recipe(steps=5000, learning_rate=0.04, token_learning_rate=0.04, augmentation=False),
        ),
    )
}


def selected_names(denoiser: Any, method: Method, blocks: str | None = None) -> list[str]:
    """The denoiser's parameters that train, in the model's order.

    blocks: which of a transformer's blocks, as `chosen_blocks` takes them. Raises ConfigError when the method looks
    for some and the model has none.
    """
    if method.unet == NOTHING:
        return []
    family = family_of_denoiser(denoiser)
    pattern = {KEYS_AND_VALUES: family.keys_and_values, CROSS_ATTENTION: family.cross_attention}.get(
        method.unet, method.unet
    )
    names = [name for name, _ in denoiser.named_parameters() if re.search(pattern, name)]
    of_block = {name: match for name in names if (match := re.match(TRANSFORMER_BLOCK, name))}
    if method.unet in (KEYS_AND_VALUES, CROSS_ATTENTION) and of_block:
        number = len(denoiser.transformer_blocks)
        taken = chosen_blocks(blocks or ("middle" if family.merge == "sampled" else "all"), number)
        names = [name for name in names if int(of_block[name][1]) in taken]
    elif blocks is not None:
        raise ConfigError(
            f"--blocks does not fit: {method.name} does not choose among a transformer's blocks here.",
            hint="Leave it out.",
        )
    if not names:
        raise ConfigError(
            f"The method {method.name} does not fit this base model: nothing in its denoiser reads text.",
            hint="Use a Stable Diffusion 1, 2 or XL model, or another --method.",
        )
    return names


def chosen_blocks(text: str, number: int) -> set[int]:
    """The blocks that `all`, `middle` (the middle half) or numbers from 0 (`4-11,15`) name, of so many.

    Raises ConfigError for what names none.
    """
    if text == "all":
        return set(range(number))
    if text == "middle":
        quarter = number // 4
        return set(range(quarter, number - quarter))
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise ConfigError(f"--blocks {text!r} names no blocks.", hint="Give all, middle, or numbers: 4-11,15.")
        chosen |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not chosen or max(chosen) >= number:
        raise ConfigError(
            f"--blocks {text!r}: this model has blocks 0 to {number - 1}.",
            hint="Give all, middle, or numbers: 4-11,15.",
        )
    return chosen
