"""A folder of pictures with captions: a `.txt` beside each, `metadata.jsonl`, or `caption.txt`, a line per picture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from cdkit.errors import InputError
from cdkit.retrieval.content import FileContent
from cdkit.retrieval.images import IMAGE_SUFFIXES, StoredImage, StoredImages

METADATA_NAME = "metadata.jsonl"
CAPTIONS_NAME = "caption.txt"
PATHS_NAME = "images.txt"
URLS_NAME = "urls.txt"
_CAPTION_KEYS = ("text", "caption")


def read_captioned_folder(folder: Path) -> StoredImages:
    """The pictures of `folder` that have a caption; raises InputError when its caption file does not fit them."""
    pictures = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    }
    urls: Mapping[str, str] = {}
    if (folder / METADATA_NAME).exists():
        layout, captions = "imagefolder", dict(_metadata(folder / METADATA_NAME))
    elif (folder / CAPTIONS_NAME).exists():
        names = _listed(folder, pictures)
        layout, captions = "diffusers", _paired(folder / CAPTIONS_NAME, names)
        urls = _paired(folder / URLS_NAME, names) if (folder / URLS_NAME).exists() else {}
    else:
        layout, captions = "text files", dict(_beside(pictures))
    rejected: Counter[str] = Counter()
    images = []
    for name, path in pictures.items():
        caption = captions.get(name, "").strip()
        if caption:
            images.append(StoredImage(name, FileContent(path), caption, urls.get(name)))
        else:
            rejected["no_caption"] += 1
    rejected["missing"] = len(captions.keys() - pictures.keys())
    return StoredImages(layout, images, {reason: number for reason, number in rejected.items() if number})


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="It must be a UTF-8 text file.") from error


def _metadata(path: Path) -> Iterator[tuple[str, str]]:
    """(file name, caption) of every line of Hugging Face's metadata.jsonl."""
    # A JSON string may hold other characters that end lines elsewhere.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}", hint="Every line must be a JSON object.") from error
        name = values.get("file_name") if isinstance(values, dict) else None
        caption = next((values[key] for key in _CAPTION_KEYS if isinstance(values.get(key), str)), "") if name else ""
        if not isinstance(name, str):
            raise InputError(f"{path}, line {number}: no file_name.", hint="Every line must name its image.")
        yield Path(name).as_posix(), caption


def _listed(folder: Path, pictures: Mapping[str, Path]) -> list[str]:
    """The pictures that caption.txt is about, in its order: as images.txt lists them, else sorted by name.

    images.txt holds paths from wherever it was written; the longest end of each that is a picture here counts.
    """
    if not (folder / PATHS_NAME).exists():
        return sorted(pictures)
    names = []
    for line in _lines(folder / PATHS_NAME):
        parts = Path(line.strip()).parts
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        names.append(next((end for end in ends if end in pictures), line.strip()))
    return names


def _paired(path: Path, names: list[str]) -> dict[str, str]:
    lines = _lines(path)
    if len(lines) != len(names):
        raise InputError(
            f"{path} has {len(lines)} lines for {len(names)} images.",
            hint=f"Give one line per image, in the order of {PATHS_NAME} or of the sorted file names.",
        )
    return dict(zip(names, lines, strict=True))


def _beside(pictures: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    for name, path in pictures.items():
        text = path.with_suffix(".txt")
        if text.is_file():
            yield name, " ".join(_lines(text))
