"""Captions per second of the trimmed text tower against open_clip's own encode_text at 77 tokens.

ViT-B-32 with random weights, fp32, the same threads, cleaning and tokenisation included on both sides, which take
turns chunk by chunk so that other load on the machine meets both. The embeddings must agree.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cdkit.core.formatting import json_text
from tests.support import material

SHORT_CAPTIONS = ("coco_val2017_captions", "cc3m_validation", "laion_img2dataset_10k", "flickr30k_multi30k_en")
TOLERANCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-file", type=int, default=1000, help="captions from each of the four short files")
    parser.add_argument("--draw", type=int, default=1000, help="captions drawn from all ten files by rows")
    parser.add_argument("--chunk", type=int, default=1000, help="captions each side embeds before the other's turn")
    parser.add_argument(
        "--padded-batch", type=int, default=32, help="open_clip's batch; larger ones are slower on a CPU"
    )
    parser.add_argument("--threads", type=int, default=0, help="torch threads on both sides [default: torch's own]")
    options = parser.parse_args()

    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    sides = Sides(options.padded_batch)
    generator = np.random.default_rng(0)
    short = [caption for name in SHORT_CAPTIONS for caption in _sample(name, options.per_file, generator)]
    result = {
        "threads": torch.get_num_threads(),
        "captions": len(short),
        **sides.compare(_shuffled(short, generator), options.chunk),
    }
    drawn = sides.compare(_draw(options.draw, generator), options.chunk)
    result |= {f"{key}_all_files": value for key, value in drawn.items()}
    print(json_text(result))


class Sides:
    """The same random ViT-B-32 text tower behind cdkit's encoder and behind open_clip's encode_text."""

    def __init__(self, padded_batch: int) -> None:
        import open_clip
        import torch

        from cdkit.encoders.open_clip import text_tower
        from cdkit.encoders.text_tower import TowerTextEncoder

        torch.manual_seed(0)
        self.padded_batch = padded_batch
        self.model = open_clip.create_model("ViT-B-32", load_weights=False).eval()
        self.tokenizer = open_clip.get_tokenizer("ViT-B-32")
        # A tokenizer each: both remember words.
        tower = text_tower(self.model, open_clip.get_tokenizer("ViT-B-32"), open_clip.get_model_config("ViT-B-32"))
        self.encoder = TowerTextEncoder("bench", tower, device="cpu", precision="fp32", threshold=0.85)
        assert self.encoder.trims
        self.trimmed(["warm up"])
        self.padded(["warm up"])

    def trimmed(self, captions: list[str]) -> np.ndarray:
        return self.encoder.encode(captions)

    def padded(self, captions: list[str]) -> np.ndarray:
        import torch

        found = []
        with torch.inference_mode():
            for start in range(0, len(captions), self.padded_batch):
                tokens = self.tokenizer(captions[start : start + self.padded_batch])
                found.append(self.model.encode_text(tokens, normalize=True).numpy())
        return np.concatenate(found)

    def compare(self, captions: list[str], chunk: int) -> dict[str, Any]:
        """Rates, their ratio, and the largest difference; AssertionError when the embeddings disagree."""

        seconds = {"trimmed": 0.0, "padded": 0.0}
        worst = 0.0
        for number, start in enumerate(range(0, len(captions), chunk)):
            part = captions[start : start + chunk]
            found = {}
            # Who begins changes too.
            for side in ("trimmed", "padded") if number % 2 == 0 else ("padded", "trimmed"):
                clock = time.perf_counter()
                found[side] = getattr(self, side)(part)
                seconds[side] += time.perf_counter() - clock
            worst = max(worst, float(np.abs(found["trimmed"] - found["padded"]).max()))
        assert worst < TOLERANCE, f"the two sides differ by {worst}"
        return {
            "speedup_vs_open_clip": round(seconds["padded"] / seconds["trimmed"], 2),
            "captions_per_second": round(len(captions) / seconds["trimmed"], 1),
            "open_clip_captions_per_second": round(len(captions) / seconds["padded"], 1),
            "mean_tokens": round(float(self.encoder.tokenize(captions).lengths.mean()), 2),
            "largest_difference": worst,
        }


def _captions(path: Path) -> list[str]:
    return [text for text in pq.read_table(path, columns=["TEXT"])["TEXT"].to_pylist() if text]


def _sample(name: str, count: int, generator: np.random.Generator) -> list[str]:
    distinct = sorted(set(_captions(material.path(f"captions/{name}.parquet"))))
    return [distinct[row] for row in generator.choice(len(distinct), min(count, len(distinct)), replace=False)]


def _shuffled(captions: list[str], generator: np.random.Generator) -> list[str]:
    return [captions[row] for row in generator.permutation(len(captions))]


def _draw(count: int, generator: np.random.Generator) -> list[str]:
    """Rows of all ten files, every row as likely as any other."""
    rows = [caption for path in material.caption_files() for caption in _captions(path)]
    return [rows[row] for row in generator.choice(len(rows), count, replace=False)]


if __name__ == "__main__":
    main()
