"""Cross-attention maps: where in the image each prompt token was looked at, and a strip of pictures that shows it.

Custom Diffusion's Figure 16, after Hertz et al. 2022. The probabilities are computed beside the model's own attention
by hooks, so that the picture drawn is exactly the one drawn without them, whatever attention processor runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


@dataclass
class AttentionRecord:
    """Sums of attention probabilities (positions, tokens) by the number of positions, and how many went into each."""

    sums: dict[int, Tensor] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, probabilities: Tensor) -> None:
        """One layer's (positions, tokens) at one step."""
        positions = probabilities.shape[0]
        summed = self.sums.get(positions)
        self.sums[positions] = probabilities if summed is None else summed + probabilities
        self.counts[positions] = self.counts.get(positions, 0) + 1

    def maps(self, aspect: float) -> Tensor:
        """The mean over layers and steps: float32 (tokens, height, width) at the finest layer's size.

        aspect: height over width of the image. Every layer counts the same. Raises ValueError when nothing was seen.
        """
        if not self.sums:
            raise ValueError("no cross-attention was recorded")
        height, width = grid_of(max(self.sums), aspect)
        total = torch.zeros(next(iter(self.sums.values())).shape[1], height, width)
        for positions, summed in self.sums.items():
            rows, columns = grid_of(positions, aspect)
            grid = summed.T.reshape(1, -1, rows, columns)
            total += F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)[0]
        return total / sum(self.counts.values())


def grid_of(positions: int, aspect: float) -> tuple[int, int]:
    """Height and width of a layer with that many positions: height over width as near `aspect` as it divides."""
    height = min(
        (rows for rows in range(1, positions + 1) if positions % rows == 0),
        key=lambda rows: abs(rows * rows / positions - aspect),
    )
    return height, positions // height


@contextmanager
def recorded_attention(unet: Any) -> Iterator[AttentionRecord]:
    """Record every cross-attention of `unet` while the block runs; of a guided batch the last, conditional, image."""
    record = AttentionRecord()
    handles = [
        module.register_forward_pre_hook(_hook(record), with_kwargs=True)
        for name, module in unet.named_modules()
        if name.endswith("attn2")
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _hook(record: AttentionRecord) -> Any:
    def see(attention: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = arguments[0] if arguments else named["hidden_states"]
        text = arguments[1] if len(arguments) > 1 else named.get("encoder_hidden_states")
        if text is not None:
            record.add(cross_attention(attention, hidden[-1:], text[-1:]).float().cpu())

    return see


@torch.no_grad()
def cross_attention(attention: Any, hidden: Tensor, text: Tensor) -> Tensor:
    """Attention probabilities of one image, mean over heads: hidden (1, positions, d), to (positions, tokens)."""
    if attention.norm_cross:
        text = attention.norm_encoder_hidden_states(text)
    query = attention.head_to_batch_dim(attention.to_q(hidden))
    key = attention.head_to_batch_dim(attention.to_k(text))
    probabilities: Tensor = attention.get_attention_scores(query, key)
    return probabilities.mean(dim=0)


IMAGE_NAME, STRIP_NAME, MAPS_NAME, ATTENTION_NAME = "image.png", "attention.png", "maps.safetensors", "attention.json"
TILE, GAP, CAPTION, PER_ROW = 192, 8, 26, 6
# A dark-to-bright ramp that keeps its order in greyscale, at equal steps from no attention to the most.
RAMP = ((13, 8, 60), (110, 20, 120), (200, 50, 90), (250, 130, 40), (252, 230, 120))


def prompt_tokens(tokenizer: Any, prompt: str) -> list[str]:
    """The tokens of a prompt as the text encoder sees them, without start and end; inner pieces end in `-`."""
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids[1:-1]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    added = set(tokenizer.get_added_vocab())
    return [
        piece if piece in added else piece.removesuffix("</w>") if piece.endswith("</w>") else f"{piece}-"
        for piece in pieces
    ]


def draw_strip(image: Image.Image, tokens: Sequence[str], maps: Tensor) -> Image.Image:
    """The image, then the image under each token's map (tokens, h, w); every map is scaled to its own range."""
    height = max(round(TILE * image.height / image.width), 1)
    method = Image.Resampling.NEAREST if image.width < TILE else Image.Resampling.LANCZOS
    picture = image.convert("RGB").resize((TILE, height), method)
    tiles = [("image", picture)]
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    for token, map_ in zip(tokens, maps, strict=True):
        heat = _heat(map_.numpy(), (TILE, height))
        tiles.append((token, Image.fromarray((0.35 * grey + 0.65 * heat).clip(0, 255).astype(np.uint8))))
    rows = -(-len(tiles) // PER_ROW)
    columns = -(-len(tiles) // rows)
    step_x, step_y = TILE + GAP, height + CAPTION + GAP
    sheet = Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), "white")
    writer, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for place, (label, tile) in enumerate(tiles):
        left, top = GAP + place % columns * step_x, GAP + place // columns * step_y
        sheet.paste(tile, (left, top))
        writer.text((left + TILE / 2, top + height + 4), label, fill=(30, 30, 30), font=font, anchor="ma")
    return sheet


def _heat(values: Any, size: tuple[int, int]) -> Any:
    """A map as RGB float32 (height, width, 3) in 0 to 255 by the ramp, from its least to its largest value."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    smooth = np.asarray(Image.fromarray(scaled.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    stops = np.linspace(0, 1, len(RAMP))
    ramp = np.asarray(RAMP, dtype=np.float32)
    return np.stack([np.interp(smooth, stops, ramp[:, channel]) for channel in range(3)], axis=-1)
