"""What other trainers read: a concept's photos and its regularization images, captioned, shown equally often.

Written by the rules of their own loaders, as they were read at:

- sd-scripts (kohya-ss/sd-scripts 48d368f, 2026-02-16; library/config_util.py, train_util.py). A subset is one folder
  without its subfolders; the first line of a caption file counts, and an empty file ends the run; pictures are not
  turned by EXIF. Regularization images are repeated, or cut off, to as many as there are photos with repeats.
- ai-toolkit (ostris/ai-toolkit 27a03a9, 2026-08-21; toolkit/data_loader.py, jobs/process/BaseSDTrainProcess.py). A
  dataset is a folder with its subfolders; every second step is one of the `is_reg` datasets, whatever the repeats.
- OneTrainer (Nerogar/OneTrainer 23df383, 2026-08-19, with mgds 3a6994a; modules/util/config/ConceptConfig.py). Every
  line of a caption file is a caption of its own; a concept that is balanced by SAMPLES is drawn so often an epoch. Its
  JSON is read in the system's own encoding.
- SimpleTuner (bghira/SimpleTuner bc8e6ab, 2026-08-22; documentation/DATALOADER.md, helpers/data_backend). A dataset is
  seen `repeats` + 1 times an epoch; every line of a caption file is a caption of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.formatting import command_line, json_text
from cdkit.core.storage import write_csv
from cdkit.core.text import one_line
from cdkit.pictures.regularization_set import SetRow
from cdkit.pictures.trained_concept import TrainedConcept

Trainer = Literal["kohya", "ai-toolkit", "onetrainer", "simpletuner"]
TRAINERS: tuple[Trainer, ...] = ("kohya", "ai-toolkit", "onetrainer", "simpletuner")
PHOTOS, REGULARIZATION = "photos", "regularization"
# Of what is shown in an epoch, where repeats are whole numbers.
MOST_APART = 0.02
SOURCES_NAME = "sources.csv"
SOURCE_FACTS = ("url", "source", "licence", "attribution", "sha256")
_LONGEST_FOLDER = 60
_REPLACED_BY_AI_TOOLKIT = ("${", "[name]")
_NOT_IN_NAMES = re.compile(r"[\\/:*?\"<>|\x00-\x1f\x7f]+")


@dataclass(frozen=True)
class Repeats:
    """How often each photo and each regularization image is shown in an epoch."""

    photos: int
    images: int


def solve_repeats(photos: int, images: int) -> Repeats:
    """The smallest repeats with which both are shown equally often, give or take 2 %; raises ValueError for none."""
    if min(photos, images) < 1:
        raise ValueError(f"repeats of {photos} photos and {images} images")
    few, many = sorted((photos, images))
    of_many = 1
    while True:
        of_few = round(of_many * many / few)
        if abs(of_few * few - of_many * many) <= MOST_APART * of_many * many:
            return Repeats(of_few, of_many) if photos == few else Repeats(of_many, of_few)
        of_many += 1


@dataclass(frozen=True)
class TrainerLayout:
    """A layout that was written: its configuration, what is shown of each kind in an epoch, and how it is used."""

    config: Path
    photos_shown: int
    images_shown: int
    use: str

    def as_json(self) -> dict[str, object]:
        return {
            "config": str(self.config),
            "photos_shown": self.photos_shown,
            "images_shown": self.images_shown,
            "use": self.use,
        }


def write_trainer(
    trainer: Trainer, folder: Path, final: Path, rows: Sequence[SetRow], concept: TrainedConcept
) -> TrainerLayout:
    """Write a trainer's layout into `folder`, which will be called `final`; its configuration names absolute paths.

    Raises InputError for a set without images, or a photo that does not decode.
    """
    if not rows:
        raise InputError(
            "The set holds no image, so that nothing can be shown as often as the photos.",
            hint="Make a larger one: lower --min-similarity, ask with more prompts, or add --fill generated.",
        )
    written = _WRITERS[trainer](folder, final.resolve(), rows, concept)
    # Beside what the trainer reads: whose the images are, for who passes them or the model on.
    facts = ([getattr(row, name) for name in ("file_name", *SOURCE_FACTS)] for row in rows)
    write_csv(folder / SOURCES_NAME, ("file", *SOURCE_FACTS), facts)
    return written


def _kohya(folder: Path, final: Path, rows: Sequence[SetRow], concept: TrainedConcept) -> TrainerLayout:
    """img/REPEATS_WORDS and reg/1_WORDS, as the folders alone are read too, and dataset.toml.

    As many repeats as use every regularization image: sd-scripts makes both equal by itself.
    """
    photos = len(concept.photos)
    repeats = -(-len(rows) // photos)
    own, others = f"img/{repeats}_{_folder_name(concept.subject)}", f"reg/1_{_folder_name(concept.class_word)}"
    _write_photos(folder / own, concept)
    _write_images(folder / others, rows, concept.class_word)
    subsets = [
        (final / own, concept.subject, repeats, False),
        (final / others, concept.class_word, 1, True),
    ]
    lines = [
        f"# {photos} photos × {repeats}, and {len(rows)} regularization images: {photos * repeats} of each kind in an",
        "# epoch (where there are fewer of the images, sd-scripts starts again with the first).",
        "[general]",
        'caption_extension = ".txt"',
        "enable_bucket = true",
        "",
        "[[datasets]]",
    ]
    for path, words, number, is_reg in subsets:
        lines += ["", "[[datasets.subsets]]", f"image_dir = {_quoted(str(path))}", f"class_tokens = {_quoted(words)}"]
        lines += [f"num_repeats = {number}", *(["is_reg = true"] if is_reg else [])]
    _write(folder / "dataset.toml", "\n".join(lines) + "\n")
    config = final / "dataset.toml"
    start = ("accelerate", "launch", "train_network.py", "--dataset_config", config, "--resolution", "512")
    return TrainerLayout(config, photos * repeats, photos * repeats, command_line(*start))


def _ai_toolkit(folder: Path, final: Path, rows: Sequence[SetRow], concept: TrainedConcept) -> TrainerLayout:
    """Two folders and the `datasets` of a job: it takes turns between them, one step of each kind."""
    if any(replaced in str(final) for replaced in _REPLACED_BY_AI_TOOLKIT):
        raise ConfigError(
            f"ai-toolkit would read {str(final)!r} as another path: it replaces ${{NAME}} and [name].",
            hint="Choose a folder without these in its path.",
        )
    _write_both(folder, rows, concept)
    repeats = solve_repeats(len(concept.photos), len(rows))
    lines = [
        "# The datasets of a job's process. Every second step is of the regularization images.",
        "# Trained at 512 unless both name another: resolution: [512, 768, 1024]",
        "datasets:",
        f"  - folder_path: {_quoted(str(final / PHOTOS))}",
        '    caption_ext: "txt"',
        f"    num_repeats: {repeats.photos}",
        f"  - folder_path: {_quoted(str(final / REGULARIZATION))}",
        '    caption_ext: "txt"',
        f"    num_repeats: {repeats.images}",
        "    is_reg: true",
    ]
    _write(folder / "datasets.yaml", "\n".join(lines) + "\n")
    config = final / "datasets.yaml"
    use = "Put its datasets into the process of a job, then: python run.py JOB.yaml"
    return _balanced(config, repeats, rows, concept, use)


def _onetrainer(folder: Path, final: Path, rows: Sequence[SetRow], concept: TrainedConcept) -> TrainerLayout:
    """Two folders and concepts.json: of each concept as many samples an epoch as the larger one has."""
    _write_both(folder, rows, concept)
    samples = max(len(concept.photos), len(rows))
    concepts = [
        {
            "__version": 2,
            "name": name,
            "path": str(final / part),
            "seed": seed,
            "enabled": True,
            "type": "STANDARD",
            "include_subdirectories": False,
            "balancing": float(samples),
            "balancing_strategy": "SAMPLES",
            "loss_weight": 1.0,
            "text": {"prompt_source": "sample"},
        }
        for seed, (part, name) in enumerate([(PHOTOS, concept.subject), (REGULARIZATION, concept.class_word)])
    ]
    _write(folder / "concepts.json", json_text(concepts, indent=2, ascii_only=True) + "\n")
    config = final / "concepts.json"
    use = "Name it as concept_file_name (the list of the Concepts tab), then: python scripts/train.py --config-path …"
    return TrainerLayout(config, samples, samples, use)


def _simpletuner(folder: Path, final: Path, rows: Sequence[SetRow], concept: TrainedConcept) -> TrainerLayout:
    """Two folders and multidatabackend.json, the same number of samples in both by whole repeats."""
    _write_both(folder, rows, concept)
    repeats = solve_repeats(len(concept.photos), len(rows))
    backends: list[dict[str, object]] = [
        {
            "id": part,
            "type": "local",
            "dataset_type": "image",
            "instance_data_dir": str(final / part),
            "caption_strategy": "textfile",
            "metadata_backend": "discovery",
            "minimum_image_size": 0,
            "cache_dir_vae": str(final / "cache" / f"vae-{part}"),
            "repeats": number - 1,
        }
        for part, number in ((PHOTOS, repeats.photos), (REGULARIZATION, repeats.images))
    ]
    backends.append(
        {
            "id": "text-embeds",
            "type": "local",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": str(final / "cache" / "text"),
        }
    )
    _write(folder / "multidatabackend.json", json_text(backends, indent=2, ascii_only=True) + "\n")
    config = final / "multidatabackend.json"
    use = "Name it as data_backend_config in config/config.json, then: simpletuner train"
    return _balanced(config, repeats, rows, concept, use)


def _balanced(
    config: Path, repeats: Repeats, rows: Sequence[SetRow], concept: TrainedConcept, use: str
) -> TrainerLayout:
    return TrainerLayout(config, repeats.photos * len(concept.photos), repeats.images * len(rows), use)


def _write_both(folder: Path, rows: Sequence[SetRow], concept: TrainedConcept) -> None:
    _write_photos(folder / PHOTOS, concept)
    _write_images(folder / REGULARIZATION, rows, concept.class_word)


def _write_photos(folder: Path, concept: TrainedConcept) -> None:
    """The photos upright and without metadata, each with its caption: not every trainer turns or reads them all."""
    from cdkit.pictures.decoding import decode, encode

    folder.mkdir(parents=True)
    for number, photo in enumerate(concept.photos):
        content, suffix = encode(decode(photo.content.read()))
        (folder / f"{number:06d}.{suffix}").write_bytes(content)
        _write(folder / f"{number:06d}.txt", f"{concept.caption_of(photo)}\n")


def _write_images(folder: Path, rows: Sequence[SetRow], class_word: str) -> None:
    folder.mkdir(parents=True)
    for row in rows:
        (folder / row.file_name).write_bytes(row.path.read_bytes())
        _write(folder / f"{row.key}.txt", f"{one_line(row.caption) or class_word}\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _folder_name(words: str) -> str:
    """Words as sd-scripts reads them back from a folder's name, as far as file systems take them."""
    return one_line(_NOT_IN_NAMES.sub(" ", words))[:_LONGEST_FOLDER].strip(" .")


def _quoted(text: str) -> str:
    """A string of TOML and of YAML: JSON's is both."""
    return json_text(text)


_WRITERS: Mapping[Trainer, Callable[[Path, Path, Sequence[SetRow], TrainedConcept], TrainerLayout]] = {
    "kohya": _kohya,
    "ai-toolkit": _ai_toolkit,
    "onetrainer": _onetrainer,
    "simpletuner": _simpletuner,
}
