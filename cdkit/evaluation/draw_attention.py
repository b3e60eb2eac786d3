"""Stage `attention`: draws one image, and where each token of its prompt was looked at, as a strip of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cdkit.config import ModelConfig, setting
from cdkit.datasets import Dataset
from cdkit.devices import choose_device
from cdkit.inputs import Input
from cdkit.manifest import Counts
from cdkit.protocols import Context
from cdkit.sampling.prompts import notes_on_prompts
from cdkit.sampling.sample import LARGEST_SEED, Sample, SampleConfig, draw
from cdkit.sampling.schedulers import SchedulerName, make_scheduler
from cdkit.storage import Folder, atomic_path, write_json
from cdkit.weights.apply import apply_deltas
from cdkit.weights.base_model import load_base_model
from cdkit.weights.delta import delta_tokens, load_delta
from cdkit.weights.tensor_file import write_tensors

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

IMAGE_NAME, STRIP_NAME, MAPS_NAME, SUMMARY_NAME = "image.png", "attention.png", "maps.safetensors", "attention.json"
TILE, GAP, CAPTION, PER_ROW = 192, 8, 26, 6
# A dark-to-bright ramp that keeps its order in greyscale, at equal steps from no attention to the most.
RAMP = ((13, 8, 60), (110, 20, 120), (200, 50, 90), (250, 130, 40), (252, 230, 120))


class AttentionConfig(ModelConfig):
    """What to draw, and with what."""

    deltas: list[str] = setting([], "A delta: a folder or file. Repeatable.", flag="--delta", input="folder")
    prompt: str = setting(help="The prompt whose tokens to look at.", min_length=1)
    seed: int = setting(0, "The image's seed.", ge=0, le=LARGEST_SEED)
    scheduler: SchedulerName = setting("ddim", "The sampler.")
    steps: int = setting(25, "Denoising steps.", ge=1, le=1000)
    guidance: float = setting(6.0, "Classifier-free guidance scale.", ge=0)

    def as_sampling(self) -> SampleConfig:
        """The same drawing as a sampling config."""
        return SampleConfig(
            base=self.base,
            deltas=self.deltas,
            prompts=[self.prompt],
            seeds=1,
            first_seed=self.seed,
            scheduler=self.scheduler,
            steps=self.steps,
            guidance=self.guidance,
        )


def attention_maps(config: AttentionConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write image.png, attention.png (the strip), maps.safetensors (one map per token) and attention.json."""
    from cdkit.evaluation.attention_maps import recorded_attention

    deltas = [load_delta(path) for path in config.deltas]
    pipeline = load_base_model(config.base, device=choose_device(config.device))
    apply_deltas(pipeline, deltas, note=context.progress.note)
    for note in notes_on_prompts([config.prompt], delta_tokens(config.deltas), pipeline):
        context.progress.note(note)
    pipeline.scheduler = make_scheduler(config.scheduler, pipeline.scheduler)
    entry = Sample(config.prompt, config.seed, IMAGE_NAME)
    with (
        context.progress.task("drawing", config.steps, unit="steps") as task,
        recorded_attention(pipeline.unet) as record,
    ):
        image = draw(pipeline, [entry], config.as_sampling(), on_step=task.advance)[0]
    tokens = prompt_tokens(pipeline.tokenizer, config.prompt)
    maps = record.maps(image.height / image.width)[1 : 1 + len(tokens)]
    with atomic_path(out / IMAGE_NAME) as temporary:
        image.save(temporary, format="PNG")
    with atomic_path(out / STRIP_NAME) as temporary:
        draw_strip(image, tokens, maps).save(temporary, format="PNG")
    write_tensors(out / MAPS_NAME, {f"{place:02d}": map_ for place, map_ in enumerate(maps)}, {})
    details = {
        "prompt": config.prompt,
        "seed": config.seed,
        "tokens": [
            {"token": token, "share": round(float(map_.mean()), 6)} for token, map_ in zip(tokens, maps, strict=True)
        ],
    }
    write_json(out / SUMMARY_NAME, details)
    return Dataset("attention", out.path, Counts(len(tokens), len(tokens)), details)


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
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

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
    import numpy as np
    from PIL import Image

    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    smooth = np.asarray(Image.fromarray(scaled.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    stops = np.linspace(0, 1, len(RAMP))
    ramp = np.asarray(RAMP, dtype=np.float32)
    return np.stack([np.interp(smooth, stops, ramp[:, channel]) for channel in range(3)], axis=-1)
