"""Gated keys and values: changes of cross-attention that act only where a concept's words stand.

This file stands on its own, with torch, safetensors and diffusers alone: an exported pipeline's folder holds a copy of
it as pipeline.py, so that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` needs nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from torch.nn import functional

CHANGES_NAME = "gated_changes.safetensors"
WORDS = "words"
# Rows of features that are remembered between the text encoder and the U-Net: two for each place of a concept.
MOST_ROWS = 4096


class Gate:
    """Changes of a U-Net's keys and values, (outputs, inputs) by parameter name, where some words stand.

    words: sequences of token ids. mask: where they stand in the prompts that the U-Net reads next, bool
    (n, positions); None: nowhere. Whoever calls the U-Net sets it, or `follow` does.
    """

    def __init__(self, words: Sequence[Sequence[int]], changes: Mapping[str, torch.Tensor]) -> None:
        self.words = [list(word) for word in words]
        self.changes = dict(changes)
        self.mask: torch.Tensor | None = None
        self._rows: torch.Tensor | None = None
        self._seen: torch.Tensor | None = None
        self._handles: list[Any] = []
        self._following: list[Any] = []
        self._owned: list[tuple[torch.nn.Module, str]] = []

    def places(self, ids: torch.Tensor) -> torch.Tensor:
        """Where the words stand in prompts' ids (n, positions): bool of the same shape."""
        found = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
        for word in self.words:
            last = ids.shape[1] - len(word) + 1
            begins = torch.ones(ids.shape[0], max(last, 0), dtype=torch.bool, device=ids.device)
            for offset, entry in enumerate(word):
                begins &= ids[:, offset : offset + last] == entry
            for offset in range(len(word)):
                found[:, offset : offset + last] |= begins
        return found

    def attach(self, unet: torch.nn.Module) -> None:
        """Change the keys and values of a U-Net from now on; the changes move with it, and are not saved with it."""
        for name, change in self.changes.items():
            module = unet.get_submodule(name.removesuffix(".weight"))
            number = sum(key.startswith("gated_change") for key in (*module._buffers, *module._parameters))
            key = f"gated_change_{number}"
            if isinstance(change, torch.nn.Parameter):
                module.register_parameter(key, change)
            else:
                weight = module.get_parameter("weight")
                module.register_buffer(key, change.to(weight.device, weight.dtype), persistent=False)
            self._owned.append((module, key))
            self._handles.append(module.register_forward_hook(self._changed(key)))

    def _changed(self, key: str) -> Any:
        def hook(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if self.mask is None:
                return output
            added = functional.linear(arguments[0], getattr(module, key).to(output.dtype))
            # Who looks at a guided batch's prompts alone takes its last rows.
            mask = self.mask[-len(output) :].unsqueeze(-1)
            # Chosen, not multiplied by zero: elsewhere the output stays as it is, bit for bit.
            return torch.where(mask, output + added, output)

        return hook

    def follow(self, pipeline: Any) -> None:
        """Set the mask from now on by what the pipeline's first text encoder reads.

        A position's features depend on the prompt up to there alone, and come to the U-Net as they are: those of the
        words are remembered, and recognised there, in whatever order prompts are batched or repeated.
        """
        # Stable Diffusion XL feeds the layer before the last, of both text encoders side by side.
        layer = -2 if getattr(pipeline, "text_encoder_2", None) is not None else None

        def remember(module: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            ids = arguments[0] if arguments else named["input_ids"]
            hidden = output[0] if layer is None else output.hidden_states[layer]
            new = torch.unique(hidden.detach()[self.places(ids)], dim=0)
            rows = new[:0] if self._rows is None else self._rows.to(new)
            unknown = [not (rows == row).all(dim=-1).any() for row in new]
            # The newest last: they are what is drawn next.
            self._rows, self._seen = torch.cat([rows, new[unknown]])[-MOST_ROWS:], None

        def recognise(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            text = arguments[2] if len(arguments) > 2 else named.get("encoder_hidden_states")
            if text is None or text is self._seen:
                return
            self._seen, self.mask = text, None
            if self._rows is None or not len(self._rows):
                return
            rows = self._rows.to(text)
            seen = text[..., : rows.shape[1]]
            mask = torch.isin(seen[..., 0], rows[:, 0])
            if mask.any():
                # Few positions have a first value in common: those are compared whole.
                mask[mask.clone()] = torch.stack([(rows == row).all(dim=-1).any() for row in seen[mask]])
                self.mask = mask

        self._following = [
            pipeline.text_encoder.register_forward_hook(remember, with_kwargs=True),
            pipeline.unet.register_forward_pre_hook(recognise, with_kwargs=True),
        ]

    def stop_following(self) -> None:
        """Leave the mask to whoever calls the U-Net."""
        for handle in self._following:
            handle.remove()
        self._following, self._rows, self._seen, self.mask = [], None, None, None

    def remove(self) -> None:
        """Take the changes off again."""
        self.stop_following()
        for handle in self._handles:
            handle.remove()
        for module, key in self._owned:
            delattr(module, key)
        self._handles, self._owned = [], []


def read_gates(path: str) -> list[Gate]:
    """The gates of a file of changes, `<number>.<parameter>` each; its metadata has the words' ids by number."""
    with safe_open(path, "pt") as file:
        words = json.loads(file.metadata()[WORDS])
        changes: list[dict[str, torch.Tensor]] = [{} for _ in words]
        for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
            number, _, name = key.partition(".")
            changes[int(number)][name] = file.get_tensor(key)
    return [Gate(*both) for both in zip(words, changes, strict=True)]


class _Gated:
    """A pipeline whose gates lie in the folder that its U-Net was loaded from."""

    def register_modules(self, **parts: Any) -> None:
        """Take the parts as every pipeline does, and put the gates on them."""
        super().register_modules(**parts)  # type: ignore[misc]
        folder = os.path.dirname(str(parts["unet"].config._name_or_path))
        for gate in read_gates(os.path.join(folder, CHANGES_NAME)):
            gate.attach(parts["unet"])
            gate.follow(self)


class GatedStableDiffusionPipeline(_Gated, StableDiffusionPipeline):
    """Stable Diffusion 1 or 2 with gated keys and values."""


class GatedStableDiffusionXLPipeline(_Gated, StableDiffusionXLPipeline):
    """Stable Diffusion XL with gated keys and values."""
