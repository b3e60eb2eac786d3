"""What keeps the class word as it was, and where in a sentence a concept works, on held-out concepts.

    python -m tests.bench.bench_keep [--variants images distil …] [--concepts striped-star …] [--seeds 0 1 2]
                                     [--work FOLDER]

A variant is a way to keep (images, generated, distil, both, none), or one with another weight or method. Per
concept, training seed and variant: how often the attribute probe sees the concept with the token (alone in four
places; named first, second, and behind another object), with the class word alone (leak) and with the base model; how
far the class prompt's samples moved (drift: 1 − cosine of the embedded CLIP's features at the same seeds) and how far
they are from the retrieved set (KID); likeness to the photos and alignment with the prompt where the token is left
out; seconds of training by the clock and of CPU. Every finished row is added to FOLDER/rows.jsonl; a run goes on
behind the rows that are there. The last line sums up.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cdkit.core.formatting import json_text
from cdkit.embedded.concepts import CONCEPTS, concept, concept_photos
from cdkit.encoders import load_text_encoder
from cdkit.evaluation.estimates import kernel_distance, unit_features
from cdkit.pictures.reading import read_pictures
from tests.embedded.quality import GUIDANCE, PLACES, STEPS
from tests.support.concept_measures import drift, image_features, pictures, share, stage

VARIANTS: dict[str, dict[str, Any]] = {
    **{keep: {"keep": keep} for keep in ("images", "generated", "distil", "both", "none")},
    # The embedded preset weighs what keeps the class twice; the paper once.
    "images-once": {"keep": "images", "prior_weight": 1.0},
    "distil-once": {"keep": "distil", "prior_weight": 1.0},
    "gated": {"keep": "none", "method": "custom-diffusion-gated"},
    "orthogonal": {"keep": "images", "method": "custom-diffusion-orthogonal"},
    "all-weights": {"keep": "images", "method": "fine-tune-all"},
}
# Settings are chosen on the first five.
CHOSEN_ON = [entry.name for entry in CONCEPTS[:5]]
FIRST_SEED = 7_000


class Bench:
    """A folder of stages, made when they are asked for."""

    def __init__(self, work: Path, samples: int) -> None:
        self.work, self.samples = work, samples

    def draw(self, name: str, prompts: list[str], deltas: Sequence[Path] = ()) -> list[Image.Image]:
        """As many samples of all prompts together as were asked for, in the prompts' order."""
        values = {"prompts": prompts, "seeds": self.samples // len(prompts), "first_seed": FIRST_SEED}
        folder = self.work / name
        chosen = [str(path) for path in deltas]
        stage("sample", folder, deltas=chosen, steps=STEPS, guidance=GUIDANCE, batch_size=32, **values)
        return pictures(folder)

    def regularization(self, category: str) -> Path:
        """The class word's 200 images out of the embedded pool."""
        index, folder = self.work / "index", self.work / f"{category}-set"
        if not (folder / "manifest.json").exists():
            stage("index", index, captions=["embedded"], encoder="embedded")
            prompts = [f"a photo of a {category}", f"a picture of a {category}"]
            stage("retrieve", folder, index=str(index), images="embedded", prompts=prompts, count=200)
        return folder

    def row(self, name: str, seed: int, variant: str) -> dict[str, Any]:
        """Train one concept one way, and measure it."""
        word = concept(name).category
        settings = VARIANTS[variant]
        of_set = str(self.regularization(word))
        with_set = settings["keep"] in ("images", "both")
        out = self.work / f"{name}-{seed}-{variant}"
        clocks = time.monotonic(), time.process_time()
        values = {"concepts": {word: f"embedded:{name}"}, "regularization": {word: of_set} if with_set else {}}
        stage("train", out, seed=seed, checkpoint_every=0, **values, **settings)
        seconds, cpu = time.monotonic() - clocks[0], time.process_time() - clocks[1]
        plain = [f"a photo of a {word} {place}" for place in PLACES.values()]
        own = [prompt.replace(f"a {word}", f"a <new1> {word}") for prompt in plain]
        before = self.draw(f"{word}-base", plain)
        of_class, of_token = self.draw(f"{out.name}-class", plain, [out]), self.draw(f"{out.name}-token", own, [out])
        features = image_features(of_token)
        photos = image_features(concept_photos(name))
        each = len(of_token) // len(plain)
        texts = np.repeat(load_text_encoder("embedded").encode(plain), each, axis=0)
        row = {
            "concept": name,
            "seed": seed,
            "variant": variant,
            "shown": share(of_token, name),
            "leak": share(of_class, name),
            "base": share(before, name),
            "drift": drift(of_class, before),
            "kid": self.distance(of_class, of_set),
            "likeness": float((features @ photos.T).mean()),
            "text": float((features * texts).sum(axis=1).mean()),
            "seconds": seconds,
            "cpu_seconds": cpu,
            **self.anywhere(out, name, word),
        }
        for folder in (out, *self.work.glob(f"{out.name}-*")):
            shutil.rmtree(folder)
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}

    def anywhere(self, out: Path, name: str, word: str) -> dict[str, float]:
        """How often the concept shows beside another object, named first, second, and behind it."""
        other = "a blue box" if word != "box" else "a blue ball"
        forms = {
            "first": f"a <new1> {word} and {other}",
            "second": f"{other} and a <new1> {word}",
            "behind": f"a <new1> {word} behind {other}",
        }
        images = self.draw(f"{out.name}-beside", list(forms.values()), [out])
        each = len(images) // len(forms)
        parts = (images[place * each : (place + 1) * each] for place in range(len(forms)))
        return {place: share(part, name) for place, part in zip(forms, parts, strict=True)}

    def distance(self, images: Sequence[Image.Image], of_set: str) -> float:
        """KID × 10³ of images and the retrieved set."""
        real = [picture.open() for picture in read_pictures(of_set).pictures]
        sides = (unit_features(torch.from_numpy(image_features(side))) for side in (images, real))
        return 1000 * kernel_distance(*sides, resamples=0).value


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Every figure's mean over a variant's rows, the worst concept's rate, and how many rows there are."""
    by_variant: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_variant[row["variant"]].append(row)
    summed = {}
    for variant, some in by_variant.items():
        numbers = [key for key, value in some[0].items() if isinstance(value, float)]
        summed[variant] = {key: round(float(np.mean([row[key] for row in some])), 4) for key in numbers}
        shown = {row["concept"]: [] for row in some}
        for row in some:
            shown[row["concept"]].append(row["shown"])
        summed[variant] |= {"worst_shown": round(min(map(np.mean, shown.values())), 4), "rows": len(some)}
    return summed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS)[:5], choices=list(VARIANTS))
    parser.add_argument("--concepts", nargs="+", default=CHOSEN_ON)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--samples", type=int, default=16, help="for each measure")
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        bench, file = Bench(work, arguments.samples), work / "rows.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        there = {(row["concept"], row["seed"], row["variant"]) for row in rows}
        for seed in arguments.seeds:
            for name in arguments.concepts:
                for variant in arguments.variants:
                    if (name, seed, variant) not in there:
                        rows.append(bench.row(name, seed, variant))
                        with file.open("a") as lines:
                            lines.write(json_text(rows[-1]) + "\n")
                        print(json_text(rows[-1]), flush=True)
    asked = [row for row in rows if row["variant"] in arguments.variants and row["concept"] in arguments.concepts]
    print(json_text({"benchmark": "keep", "samples": arguments.samples, "variants": summary(asked)}))


if __name__ == "__main__":
    main()
