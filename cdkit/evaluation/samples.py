"""Samples to score: a folder that `sample` made, or CustomConcept101's layout. Prompts without modifier tokens."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from cdkit.core.errors import CdkitError, InputError
from cdkit.core.manifest import MANIFEST_NAME, read_manifest
from cdkit.core.storage import read_json
from cdkit.core.text import MODIFIER_TOKEN, whole_words
from cdkit.deltas.delta import delta_path, delta_tokens
from cdkit.pictures.folder import list_folder
from cdkit.pictures.picture import FileContent, Picture

_SPACE_BEFORE_MARK = re.compile(r"\s+([.,;:!?])")


def find_tokens(prompt: str, tokens: Sequence[str] = ()) -> list[str]:
    """The modifier tokens in a prompt: those named, as whole words, and any word in angle brackets."""
    named = [token for token in tokens if whole_words(token).search(prompt)]
    return list(dict.fromkeys([*named, *MODIFIER_TOKEN.findall(prompt)]))


def without_tokens(prompt: str, tokens: Sequence[str] = ()) -> str:
    """The prompt with its modifier tokens taken out (Custom Diffusion, appendix D): `a <new1> dog` is `a dog`."""
    plain = " ".join(MODIFIER_TOKEN.sub(" ", whole_words(*tokens).sub(" ", prompt)).split())
    return _SPACE_BEFORE_MARK.sub(r"\1", plain)


TABLE_NAME = "samples.parquet"
PROMPTS_NAME = "prompts.json"
# Between the paths of several deltas, where version 0.1 wrote them as one text.
FORMER_SEPARATOR = ", "


@dataclass(frozen=True)
class ScoredSample:
    """One image with its prompt, the prompt without modifier tokens, and whether it had any."""

    picture: Picture
    path: str
    prompt: str
    plain_prompt: str
    seed: int
    of_concept: bool


@dataclass(frozen=True)
class SampleSet:
    """The samples of one folder. facts: delta_bytes, train_seconds and seconds_per_image where they are known."""

    folder: Path
    samples: tuple[ScoredSample, ...]
    tokens: tuple[str, ...]
    facts: dict[str, float]
    drawn_with: dict[str, Any]

    def about_concept(self) -> list[int]:
        """Places of the samples that show the concept: those with a modifier token, or all where none has one."""
        places = [place for place, sample in enumerate(self.samples) if sample.of_concept]
        return places or list(range(len(self.samples)))

    def about_class(self) -> list[int]:
        """Places of the samples of class prompts: those without a modifier token."""
        return [place for place, sample in enumerate(self.samples) if not sample.of_concept]


def read_sample_set(folder: Path, tokens: Sequence[str] = ()) -> SampleSet:
    """Read a samples folder. tokens: modifier tokens besides those its deltas bring and words in angle brackets.

    Raises InputError when it holds no samples or one of its images is missing.
    """
    rows = _table_rows(folder) if (folder / TABLE_NAME).exists() else _prompt_file_rows(folder)
    if not rows:
        raise InputError(f"{folder} holds no samples.", hint="Run cdkit sample with a prompt first.")
    deltas = list(dict.fromkeys(Path(path) for row in rows for path in delta_paths(row["delta"])))
    manifest = read_manifest(folder)
    details = manifest.details if manifest is not None else {}
    named = details.get("tokens", [])
    if not isinstance(named, list) or not all(isinstance(token, str) for token in named):
        hint = "Restore it from a copy, or run the same cdkit sample again, with --force."
        raise InputError(f"{folder / MANIFEST_NAME} is damaged: details.tokens is no list of words.", hint=hint)
    words = list(dict.fromkeys([*tokens, *named]))
    with suppress(CdkitError):  # a delta that is no longer where the samples say
        words = list(dict.fromkeys([*words, *delta_tokens(deltas)]))
    missing = [row["path"] for row in rows if not (folder / row["path"]).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(rows)} images of {folder} are missing, the first {missing[0]}.",
            hint="Run the same cdkit sample again: it draws what is missing.",
        )
    samples = tuple(
        ScoredSample(
            picture=Picture(row["path"], str(folder / row["path"]), FileContent(folder / row["path"])),
            path=row["path"],
            prompt=row["prompt"],
            plain_prompt=without_tokens(row["prompt"], words),
            seed=int(row["seed"]),
            of_concept=bool(find_tokens(row["prompt"], words)),
        )
        for row in rows
    )
    facts = _facts(deltas)
    if manifest is not None and manifest.run.get("drawn") and manifest.run.get("drawing_seconds"):
        facts["seconds_per_image"] = float(manifest.run["drawing_seconds"]) / int(manifest.run["drawn"])
    return SampleSet(folder, samples, tuple(words), facts, dict(details))


def delta_paths(written: Any) -> list[str]:
    """The deltas' paths that a samples table names: a list, or the one text of former tables, None for none.

    A text is taken apart at its commas only where the parts, and not the longer names, are there.
    """
    if not isinstance(written, str):
        return [str(path) for path in written] if isinstance(written, list) else []
    parts, paths = written.split(FORMER_SEPARATOR), list[str]()
    while parts:
        for length in range(len(parts), 0, -1):
            path = FORMER_SEPARATOR.join(parts[:length])
            if length == 1 or os.path.exists(path):
                paths.append(path)
                del parts[:length]
                break
    return paths


def _table_rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(folder / TABLE_NAME)
        rows: list[dict[str, Any]] = table.select(["prompt", "seed", "path", "delta"]).to_pylist()
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise InputError(f"{folder / TABLE_NAME} is damaged: {error}", hint="Run cdkit sample again.") from error
    return rows


def _prompt_file_rows(folder: Path) -> list[dict[str, Any]]:
    """CustomConcept101's layout: the n-th image of a prompt counts as its seed n."""
    if not (folder / PROMPTS_NAME).exists():
        raise InputError(
            f"{folder} holds no samples: neither {TABLE_NAME} nor {PROMPTS_NAME}.",
            hint="Give a folder that cdkit sample made, or CustomConcept101's samples/*.png with prompts.json.",
        )
    prompts = read_json(folder / PROMPTS_NAME)
    if not isinstance(prompts, dict):
        raise InputError(f"{folder / PROMPTS_NAME} is no mapping of file stems to prompts.", hint="{stem: prompt}")
    images = [Path(name) for name in list_folder(folder / "samples").pictures]
    unnamed = [str(path) for path in images if path.stem not in prompts]
    if unnamed:
        raise InputError(
            f"{PROMPTS_NAME} has no prompt for {len(unnamed)} images, the first {unnamed[0]}.",
            hint="Every image needs {stem: prompt}.",
        )
    seeds: defaultdict[str, Iterator[int]] = defaultdict(count)
    named = [(path, str(prompts[path.stem])) for path in images]
    return [
        {"prompt": prompt, "seed": next(seeds[prompt]), "path": f"samples/{path.as_posix()}", "delta": None}
        for path, prompt in named
    ]


def _facts(deltas: Sequence[Path]) -> dict[str, float]:
    """What the deltas weigh on disk and took to train, where that is known of all of them."""
    facts: dict[str, float] = {}
    try:
        files = [delta_path(delta) for delta in deltas]
        manifests = [read_manifest(file.parent) for file in files]
    except CdkitError:
        return facts
    if files:
        facts["delta_bytes"] = float(sum(file.stat().st_size for file in files))
        seconds = [made.details.get("seconds", made.run.get("seconds")) for made in manifests if made is not None]
        trained = [float(value) for value in seconds if value is not None]
        if len(trained) == len(files):
            facts["train_seconds"] = sum(trained)
    return facts
