"""Goes on training the embedded model from the weights in the package, in a given time, by one command.

    python -m cdkit.embedded.pretraining --out DIR --seconds 230 --device cuda

Three phases: clip (both towers), autoencoder, unet. Each has its share of the time, and its learning rate falls as
that share runs out. Processes make the scenes meanwhile. OUT/weights holds what a package needs, written anew at each
checkpoint; OUT/log.jsonl the figures, printed as well. The same command again goes on from the state folder.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.embedded import weight_files
from cdkit.embedded.pretraining.scenes import HELD_OUT_SEED, Scenes, SceneSource

if TYPE_CHECKING:
    from cdkit.embedded.pretraining.training import Length, TrainingLog

PHASES = ("clip", "autoencoder", "unet")
# Parts of the time by whose end a phase is over; the rest is for measuring.
ENDS = {"clip": 0.14, "autoencoder": 0.33, "unet": 0.97}
HELD_OUT_SCENES = 512


@dataclass(frozen=True)
class Run:
    """Where and how long; `first_scenes` are what the first two phases learn from, all are for the U-Net."""

    out: Path
    state: Path
    start: Path
    device: str
    seconds: float
    scenes: int
    first_scenes: int
    workers: int | None
    batches: dict[str, int]
    steps: int | None
    graphs: bool
    began: float = field(default_factory=time.monotonic)

    def length(self, phase: str) -> Length:
        """The steps asked for, or the time until the phase's end."""
        from cdkit.embedded.pretraining.training import Length

        left = self.began + ENDS[phase] * self.seconds - time.monotonic()
        return Length(self.steps, max(0.01 * self.seconds, left))


def train(run: Run, log: TrainingLog, source: SceneSource) -> None:
    """All phases in order; each leaves its weights in the out folder."""
    from cdkit.embedded.models import build_autoencoder, build_unet
    from cdkit.embedded.pretraining.scenes import Vocabulary, make_scenes

    # Libraries are loaded while processes make scenes.
    build_autoencoder(), build_unet()
    held_out = make_scenes(range(HELD_OUT_SEED, HELD_OUT_SEED + HELD_OUT_SCENES // 2), Vocabulary())
    scenes = source.first(run.first_scenes)
    log.write("scenes", made=len(scenes))
    clip = train_clip(run, log, scenes, held_out)
    autoencoder = train_autoencoder(run, log, scenes, held_out)
    scenes = source.made()
    log.write("scenes", made=len(scenes))
    train_unet(run, log, scenes, held_out, clip, autoencoder)


def train_clip(run: Run, log: TrainingLog, scenes: Scenes, held_out: Scenes) -> Any:
    """The CLIP, in evaluation mode."""
    from cdkit.embedded.pretraining.calibration import clip_figures
    from cdkit.embedded.pretraining.clip import ClipTrainee, ClipTraining, split_clip
    from cdkit.embedded.pretraining.training import Checkpoint, train_phase

    pairs = run.batches["clip"] // 2
    plan = ClipTraining(pairs=pairs, random_rows=pairs)
    trainee = ClipTrainee(scenes, held_out, plan, run.start, run.device)
    checkpoint = Checkpoint(run.state / "clip.pt")
    train_phase("clip", trainee, run.length("clip"), plan.rate, checkpoint, log, run.device)
    text, pictures = split_clip(trainee.clip.state_dict())
    weight_files.write_tensors(weight_files.TEXT_ENCODER, text, run.out / "weights")
    weight_files.write_tensors(weight_files.PICTURE_ENCODER, pictures, run.out / "weights")
    clip = trainee.clip.eval().requires_grad_(False)
    figures = clip_figures(clip, run.device)
    weight_files.update_record(figures, run.out / "weights")
    log.write("clip", threshold=figures["threshold"], **figures["zero_shot"])
    return clip


def train_autoencoder(run: Run, log: TrainingLog, scenes: Scenes, held_out: Scenes) -> Any:
    """The autoencoder with standardised latents."""
    from cdkit.embedded.pretraining.autoencoder import (
        AutoencoderTrainee,
        AutoencoderTraining,
        reconstruction_quality,
        standardise,
    )
    from cdkit.embedded.pretraining.training import Checkpoint, train_phase

    plan = AutoencoderTraining(batch=run.batches["autoencoder"])
    trainee = AutoencoderTrainee(scenes, held_out, plan, run.start, run.device)
    trainee.graphed = run.graphs
    checkpoint = Checkpoint(run.state / "autoencoder.pt")
    train_phase("autoencoder", trainee, run.length("autoencoder"), plan.rate, checkpoint, log, run.device)
    model = trainee.model.eval().requires_grad_(False)
    standardise(model, trainee.pictures[:4096])
    weight_files.write_tensors(weight_files.AUTOENCODER, model.state_dict(), run.out / "weights")
    quality = round(reconstruction_quality(model, held_out.pictures), 2)
    weight_files.update_record({"autoencoder_psnr": quality}, run.out / "weights")
    return model


def train_unet(run: Run, log: TrainingLog, scenes: Scenes, held_out: Scenes, clip: Any, autoencoder: Any) -> None:
    """The U-Net; its averaged weights are written at each checkpoint."""
    from cdkit.embedded.pretraining.training import Checkpoint, train_phase
    from cdkit.embedded.pretraining.unet import LatentCaptions, UnetTrainee, UnetTraining

    plan = UnetTraining(batch=run.batches["unet"])
    parts = [
        LatentCaptions.of(some, captions, clip, autoencoder, run.device)
        for some, captions in ((scenes, plan.captions), (held_out, 1))
    ]
    trainee = UnetTrainee(parts[0], parts[1], clip, plan, run.start, run.device)
    trainee.graphed = run.graphs

    def write() -> None:
        weight_files.write_tensors(weight_files.UNET, trainee.average.state_dict(), run.out / "weights")

    log.write("unet", text_features=len(parts[0].text))
    checkpoint = Checkpoint(run.state / "unet.pt")
    train_phase("unet", trainee, run.length("unet"), plan.rate, checkpoint, log, run.device, write)
    write()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m cdkit.embedded.pretraining", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder for weights/ and log.jsonl")
    parser.add_argument("--state", type=Path, help="folder for checkpoints [default: OUT-state beside it]")
    parser.add_argument("--from", dest="start", type=Path, default=weight_files.FOLDER, help="weights to go on from")
    parser.add_argument("--device", help="cpu or cuda [default: cuda where there is one]")
    parser.add_argument("--seconds", type=float, default=14_400.0, help="time for everything [default: four hours]")
    parser.add_argument(
        "--scenes", type=int, help="scenes the U-Net sees [default: 400000 with --device cuda, or 60000]"
    )
    parser.add_argument("--workers", type=int, help="processes that make scenes [default: all cores but two]")
    parser.add_argument("--batch", type=int, help="pictures in a batch [default: 512 on a GPU, 32 elsewhere]")
    parser.add_argument("--no-graphs", action="store_true", help="launch every kernel of a step by itself")
    parser.add_argument("--tiny", action="store_true", help="three steps of every phase on 40 scenes")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    chosen = parser().parse_args(arguments)
    # Text features of 400,000 scenes take 16 GB where the U-Net trains.
    many = 400_000 if (chosen.device or "").startswith("cuda") else 60_000
    scenes = 40 if chosen.tiny else chosen.scenes or many
    # Scenes are under way before torch is imported.
    source = SceneSource(scenes, 0 if chosen.tiny else chosen.workers)
    try:
        import torch

        from cdkit.embedded.pretraining.training import TrainingLog

        device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.enable_cudnn_sdp(False)
        batch = 4 if chosen.tiny else chosen.batch or (512 if device.startswith("cuda") else 32)
        run = Run(
            out=chosen.out,
            state=chosen.state or chosen.out.absolute().with_name(f"{chosen.out.absolute().name}-state"),
            start=chosen.start,
            device=device,
            seconds=chosen.seconds,
            scenes=scenes,
            first_scenes=min(scenes, 80_000),
            workers=chosen.workers,
            batches={"clip": batch, "autoencoder": max(4, batch // 2), "unet": batch},
            steps=3 if chosen.tiny else None,
            graphs=not chosen.no_graphs,
        )
        with torch.random.fork_rng():
            train(run, TrainingLog(run.out / "log.jsonl", lambda line: print(line, flush=True)), source)
    finally:
        source.close()


if __name__ == "__main__":
    main()
