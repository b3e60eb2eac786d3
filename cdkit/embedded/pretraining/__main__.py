"""Makes the embedded model's weights: `python -m cdkit.embedded.pretraining --work DIR`.

Parts, in order: clip (the text tower), autoencoder, unet; then decoder and pictures (the autoencoder's second half and
the CLIP picture tower go on learning), which the U-Net does not depend on; export writes the weights. Every part goes
on from its checkpoint in the work folder. A changed text tower or encoder makes the U-Net's checkpoint worthless.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cdkit.embedded import weight_files
from cdkit.embedded.pretraining.autoencoder import AutoencoderTraining, train_autoencoder
from cdkit.embedded.pretraining.clip import ClipTraining, train_clip
from cdkit.embedded.pretraining.export import export_weights
from cdkit.embedded.pretraining.scene_store import (
    HELD_OUT_SEED,
    TRAINING_SEED,
    TrainingLog,
    real_caption_tokens,
    scene_store,
)
from cdkit.embedded.pretraining.unet import UnetTraining, train_unet

PARTS = ("clip", "autoencoder", "unet", "decoder", "pictures", "export")


@dataclass(frozen=True)
class Plan:
    """Everything a pre-training depends on."""

    pairs: int = 50_000
    held_out_pairs: int = 1_000
    workers: int = 2
    clip: ClipTraining = field(default_factory=ClipTraining)
    autoencoder: AutoencoderTraining = field(default_factory=AutoencoderTraining)
    unet: UnetTraining = field(default_factory=UnetTraining)
    decoder: AutoencoderTraining = field(
        default_factory=lambda: AutoencoderTraining(steps=2000, decoder_only=True, rate=1e-3)
    )
    pictures: ClipTraining = field(default_factory=lambda: ClipTraining(steps=1200, pictures=True, real_captions=0))

    @classmethod
    def smoke(cls) -> Plan:
        """A few steps of every part, for a test."""
        return cls(
            pairs=40,
            held_out_pairs=8,
            workers=1,
            clip=ClipTraining(steps=3, pairs=4, real_captions=2, every=2),
            autoencoder=AutoencoderTraining(steps=3, batch=4, every=2),
            unet=UnetTraining(steps=3, batch=4, every=2),
            decoder=AutoencoderTraining(steps=2, batch=4, every=2, decoder_only=True),
            pictures=ClipTraining(steps=2, pairs=4, pictures=True, real_captions=0, every=2),
        )

    def with_steps(self, part: str, steps: int) -> Plan:
        """The same with another length of one part."""
        changed: Plan = dataclasses.replace(self, **{part: dataclasses.replace(getattr(self, part), steps=steps)})
        return changed


def run(plan: Plan, parts: tuple[str, ...], work: Path, weights: Path, real: Path | None, device: str) -> None:
    """Runs the parts asked for; each reads what earlier parts left in the work folder."""
    log = TrainingLog(work / "log.jsonl", lambda line: print(line, file=sys.stderr, flush=True))
    store = scene_store(work, plan.pairs, TRAINING_SEED, plan.workers)
    held_out = scene_store(work, plan.held_out_pairs, HELD_OUT_SEED, plan.workers)
    captions = real_caption_tokens(real)
    if "clip" in parts:
        train_clip(store, captions, plan.clip, work, log, device)
    if "autoencoder" in parts:
        train_autoencoder(store, held_out, plan.autoencoder, work, log, device)
    if "unet" in parts:
        train_unet(store, held_out, plan.unet, work, log, device)
    if "decoder" in parts:
        train_autoencoder(store, held_out, plan.decoder, work, log, device)
    if "pictures" in parts:
        train_clip(store, captions[:0], plan.pictures, work, log, device)
    if "export" in parts:
        export_weights(store, held_out, work, weights, device)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m cdkit.embedded.pretraining", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, renders and the log")
    parser.add_argument("--out", type=Path, default=weight_files.FOLDER, help="folder for the weights")
    parser.add_argument("--part", action="append", choices=PARTS, help="run this part only (repeatable)")
    parser.add_argument("--steps", type=int, help="another length of the one part asked for")
    parser.add_argument("--real-captions", type=Path, help="parquet with URL and TEXT: five captions a picture (COCO)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--smoke", action="store_true", help="a few steps of every part")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    plan = Plan.smoke() if chosen.smoke else Plan()
    parts = tuple(part for part in PARTS if not chosen.part or part in chosen.part)
    if chosen.steps:
        if len(parts) != 1 or parts[0] == "export":
            parser.error("--steps needs exactly one --part that trains")
        plan = plan.with_steps(parts[0], chosen.steps)
    run(plan, parts, chosen.work, chosen.out, chosen.real_captions, chosen.device)


if __name__ == "__main__":
    main()
