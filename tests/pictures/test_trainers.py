"""The layouts of other trainers, read by their own loaders' rules: of the versions that cdkit.pictures.trainers names.

Every reader here is the rule of a loader written down anew; a file that it would pass over, or a caption that it would
cut, fails a test.
"""

from __future__ import annotations

import csv
import glob
import json
import math
import os
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.storage import Folder
from cdkit.pictures.layouts import write_trainer_layout
from cdkit.pictures.regularization_set import SetRow
from cdkit.pictures.trained_concept import TrainedConcept, class_of, trained_concept
from cdkit.pictures.trainers import (
    MOST_APART,
    TRAINERS,
    Trainer,
    TrainerLayout,
    solve_repeats,
)
from tests.support.photo_pool import picture

CAPTIONS = [
    "a dog",
    "a \"dog\" 'with' quotes",
    "two\nlines\r\nof a dog",
    "dog, sofa, süß",
    "next\x85line \u2028 dog",
    "# dog {a|b} (dog:1.2)",
    "dog [trigger]",
]


@dataclass(frozen=True)
class Subset:
    """What a trainer makes of one kind of picture: captions by file, in its order; how often it shows them."""

    captions: Mapping[str, str]
    shown: Counter[str]


def made_rows(store: Path, captions: Sequence[str]) -> list[SetRow]:
    store.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, caption in enumerate(captions):
        path = store / f"{number}.{'png' if number == 1 else 'jpg'}"
        path.write_bytes(picture(number, "PNG" if number == 1 else "JPEG"))
        rows.append(
            SetRow(f"{number:06d}", path, caption, 0.9, None, 200, 160, f"s{number}", "0" * 16, "pool", "a dog")
        )
    return rows


def made_photos(folder: Path) -> Path:
    """Photos as phones and scanners leave them: turned by EXIF, of a suffix few trainers know, with a caption."""
    folder.mkdir()
    turned = Image.Image.getexif(Image.new("RGB", (2, 2)))
    turned[0x0112] = 6
    Image.linear_gradient("L").resize((320, 160)).convert("RGB").save(folder / "turned.jpg", exif=turned)
    (folder / "scan.jfif").write_bytes(picture(101, "JPEG"))
    (folder / "drawing.tif").write_bytes(picture(102, "TIFF"))
    (folder / "drawing.txt").write_text("my toy car,\nat home", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[SetRow], TrainedConcept]:
    folder = tmp_path_factory.mktemp("my photos, sö")
    photos = trained_concept(str(made_photos(folder / "photos")), "ohwx", "toy car")
    return made_rows(folder / "store", CAPTIONS), photos


def _captions(folder: str, names: Sequence[str], first_line: bool) -> dict[str, str]:
    captions = {}
    for name in names:
        with open(os.path.join(folder, os.path.splitext(name)[0] + ".txt"), encoding="utf-8") as file:
            lines = [line.strip() for line in file]
        assert lines[:1] not in ([], [""]), "sd-scripts ends the run at an empty caption"
        assert first_line or len(lines) == 1, "every line would be a caption of its own"
        captions[name] = lines[0]
    return captions


def kohya(config: Path) -> tuple[Subset, Subset]:
    """DreamBoothDataset of one dataset: folders as they stand, captions' first lines, and its levelling of repeats."""
    values = tomllib.loads(config.read_text(encoding="utf-8"))
    assert values["general"]["caption_extension"] == ".txt"
    (dataset,) = values["datasets"]
    allowed = {"image_dir", "class_tokens", "num_repeats", "is_reg"}
    kinds: dict[bool, tuple[dict[str, str], int]] = {}
    for subset in dataset["subsets"]:
        assert set(subset) <= allowed
        suffixes = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
        paths = [
            path for end in suffixes for path in glob.glob(os.path.join(glob.escape(subset["image_dir"]), f"*{end}"))
        ]
        names = sorted(os.path.basename(path) for path in paths)
        repeats, _, words = os.path.basename(subset["image_dir"]).partition("_")
        assert (int(repeats), words) == (subset["num_repeats"], subset["class_tokens"]), "as --train_data_dir reads it"
        kinds[subset.get("is_reg", False)] = (_captions(subset["image_dir"], names, True), subset["num_repeats"])
    (photos, photo_repeats), (images, image_repeats) = kinds[False], kinds[True]
    trained = Counter(dict.fromkeys(photos, photo_repeats))
    shown: Counter[str] = Counter()
    first = True
    while shown.total() < trained.total():
        for name in images:
            shown[name] += image_repeats if first else 1
            if shown.total() >= trained.total():
                break
        first = False
    return Subset(photos, trained), Subset(images, shown)


def ai_toolkit(config: Path) -> tuple[Subset, Subset]:
    """AiToolkitDataset, and the training loop's turns over two epochs of the longer dataset."""
    datasets = yaml.safe_load(config.read_text(encoding="utf-8"))["datasets"]
    found: dict[bool, tuple[dict[str, str], list[str]]] = {}
    for dataset in datasets:
        names = []
        for root, folders, files in os.walk(dataset["folder_path"]):
            assert not folders
            names += [name for name in files if name.lower().endswith((".jpg", ".jpeg", ".png", ".webp"))]
            captions = _captions(root, sorted(names), False)
        found[dataset.get("is_reg", False)] = (captions, names * dataset["num_repeats"])
    (photos, trained), (images, others) = found[False], found[True]
    steps = 2 * max(len(trained), len(others))
    shown_photos, shown_images = (Counter(islice(cycle(files), steps)) for files in (trained, others))
    return Subset(photos, shown_photos), Subset(images, shown_images)


def onetrainer(config: Path) -> tuple[Subset, Subset]:
    """ConceptConfig read in ASCII, CollectPaths, LoadMultipleTexts and VariationSorting's samples of one epoch."""
    kinds = []
    for concept in json.loads(config.read_text(encoding="ascii")):
        assert concept["__version"] == 2, "without it `balancing` is renamed by a migration"
        assert (concept["type"], concept["text"]["prompt_source"]) == ("STANDARD", "sample")
        suffixes = (".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".avif")
        names = sorted(name for name in os.listdir(concept["path"]) if os.path.splitext(name)[1].lower() in suffixes)
        number = int(concept["balancing"])
        if concept["balancing_strategy"] == "REPEATS":
            number = math.floor(len(names) * concept["balancing"])
        shown = Counter(names[index % len(names)] for index in range(number))
        kinds.append(Subset(_captions(concept["path"], names, False), shown))
    return kinds[0], kinds[1]


def simpletuner(config: Path) -> tuple[Subset, Subset]:
    """The local backend with captions in text files: every file `repeats` + 1 times an epoch."""
    kinds = []
    backends = json.loads(config.read_text(encoding="utf-8"))
    assert len({backend["id"] for backend in backends}) == len(backends)
    assert [backend.get("default") for backend in backends if backend["dataset_type"] == "text_embeds"] == [True]
    for backend in backends:
        if backend["dataset_type"] == "image":
            assert (backend["type"], backend["caption_strategy"]) == ("local", "textfile")
            folder = backend["instance_data_dir"]
            known = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
            names = sorted(name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in known)
            times = backend.get("repeats", 0) + 1
            kinds.append(Subset(_captions(folder, names, False), Counter(dict.fromkeys(names, times))))
    return kinds[0], kinds[1]


READERS: dict[Trainer, Callable[[Path], tuple[Subset, Subset]]] = {
    "kohya": kohya,
    "ai-toolkit": ai_toolkit,
    "onetrainer": onetrainer,
    "simpletuner": simpletuner,
}


@pytest.fixture(scope="module")
def written(
    material: tuple[list[SetRow], TrainedConcept], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[Trainer, TrainerLayout]:
    out = Folder(tmp_path_factory.mktemp("läyouts of a set") / "out [1]")
    return {trainer: write_trainer_layout(trainer, out, *material) for trainer in TRAINERS}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_reads_every_picture_with_its_whole_caption(
    trainer: Trainer, written: Mapping[Trainer, TrainerLayout]
) -> None:
    photos, images = READERS[trainer](written[trainer].config)
    assert list(images.captions.values()) == [" ".join(caption.split()) for caption in CAPTIONS]
    assert sorted(photos.captions.values()) == [
        "my ohwx toy car, at home",
        "photo of a ohwx toy car",
        "photo of a ohwx toy car",
    ]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_photos_and_images_are_shown_equally_often(trainer: Trainer, written: Mapping[Trainer, TrainerLayout]) -> None:
    photos, images = READERS[trainer](written[trainer].config)
    shown = (photos.shown.total(), images.shown.total())
    assert abs(shown[0] - shown[1]) <= (MOST_APART * max(shown) if trainer == "simpletuner" else 0)
    assert set(images.shown) == set(images.captions)
    if trainer != "ai-toolkit":  # counts steps, not epochs
        assert shown == (written[trainer].photos_shown, written[trainer].images_shown)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_photos_stand_upright_and_say_nothing_else(trainer: Trainer, written: Mapping[Trainer, TrainerLayout]) -> None:
    folder = written[trainer].config.parent
    sizes = set()
    for path in (path for path in folder.rglob("*") if path.suffix in (".jpg", ".png")):
        with Image.open(path) as image:
            assert not image.getexif()
            sizes.add(image.size)
    assert (160, 320) in sizes, "sd-scripts does not turn pictures"


def _pairs() -> Iterator[tuple[int, int]]:
    yield from [(5, 200), (7, 200), (20, 7), (1, 1), (200, 1), (19, 6)]


@pytest.mark.parametrize(("photos", "images"), list(_pairs()))
def test_sd_scripts_shows_both_equally_often_for_any_numbers(photos: int, images: int, tmp_path: Path) -> None:
    own = trained_concept(str(made_photos(tmp_path / "photos")), "ohwx", "toy car")
    concept = TrainedConcept(list(islice(cycle(own.photos), photos)), "ohwx", "toy car")
    one = made_rows(tmp_path / "store", ["a car"])[0]
    rows = [SetRow(f"{number:06d}", one.path, "a car", *one_facts(one)) for number in range(images)]
    layout = write_trainer_layout("kohya", Folder(tmp_path), rows, concept)
    trained, others = kohya(layout.config)
    assert trained.shown.total() == others.shown.total() == layout.photos_shown == layout.images_shown
    assert set(others.shown) == set(others.captions), "no image is left out"


def one_facts(row: SetRow) -> tuple[float, None, int, int, str, str, str | None, str]:
    return row.similarity, None, row.width, row.height, row.sha256, row.phash, row.source, row.query


@given(st.integers(1, 60), st.integers(1, 3000))
def test_repeats_are_the_smallest_that_are_fair(photos: int, images: int) -> None:
    repeats = solve_repeats(photos, images)
    shown = (photos * repeats.photos, images * repeats.images)
    assert abs(shown[0] - shown[1]) <= MOST_APART * max(shown)
    assert min(repeats.photos, repeats.images) <= math.ceil(1 / MOST_APART)
    assert solve_repeats(images, photos) == type(repeats)(repeats.images, repeats.photos) or photos == images


def test_the_same_set_is_the_same_bytes(material: tuple[list[SetRow], TrainedConcept], tmp_path: Path) -> None:
    for trainer in TRAINERS:
        contents = []
        for _ in range(2):
            write_trainer_layout(trainer, Folder(tmp_path), *material)
            files = sorted(path for path in (tmp_path / trainer).rglob("*") if path.is_file())
            contents.append([(path.name, path.read_bytes()) for path in files])
        assert contents[0] == contents[1]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_whose_the_images_are_stands_beside_them(trainer: Trainer, written: Mapping[Trainer, TrainerLayout]) -> None:
    with (written[trainer].config.parent / "sources.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(CAPTIONS)
    assert (rows[0]["file"], rows[0]["source"], rows[0]["licence"]) == ("000000.jpg", "pool", "")


def test_a_path_that_ai_toolkit_would_change(material: tuple[list[SetRow], TrainedConcept], tmp_path: Path) -> None:
    for name in ("${HOME}", "a [name]"):
        with pytest.raises(ConfigError, match="another path"):
            write_trainer_layout("ai-toolkit", Folder(tmp_path / name), *material)
        assert not (tmp_path / name / "ai-toolkit").exists()


def test_an_empty_set_and_strange_words(material: tuple[list[SetRow], TrainedConcept], tmp_path: Path) -> None:
    rows, concept = material
    with pytest.raises(InputError, match="no image"):
        write_trainer_layout("kohya", Folder(tmp_path), [], concept)
    assert not (tmp_path / "kohya").exists()
    uncaptioned = [photo for photo in concept.photos if photo.caption is None]
    strange = TrainedConcept(uncaptioned, "<new1>", 'AC/DC: "toy" car')
    layout = write_trainer_layout("kohya", Folder(tmp_path), rows, strange)
    values = tomllib.loads(layout.config.read_text(encoding="utf-8"))
    folders = [Path(subset["image_dir"]) for subset in values["datasets"][0]["subsets"]]
    assert [folder.parent.parent for folder in folders] == [layout.config.parent] * 2
    assert values["datasets"][0]["subsets"][0]["class_tokens"] == '<new1> AC/DC: "toy" car'


def test_a_caption_that_names_neither_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    folder = made_photos(tmp_path / "photos")
    with pytest.raises(InputError, match=r"drawing\.tif.*names neither 'ohwx' nor 'dog'") as caught:
        trained_concept(str(folder), "ohwx", "dog")
    assert "'ohwx dog'" in caught.value.hint


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of a dog", "dog"),
        ("Photo of the toy car", "toy car"),
        ("a close-up of my cat", "cat"),
        ("a black and white photograph of an owl", "owl"),
        ("a puppy", "puppy"),
        ("dog", "dog"),
        ("a photo of a bowl of fruit", "bowl of fruit"),
    ],
)
def test_what_a_prompt_is_a_photo_of(prompt: str, expected: str) -> None:
    assert class_of(prompt) == expected
