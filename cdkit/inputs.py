"""Inputs of a stage: pool files, folders, models and what is on the hub, resolved and fingerprinted by content."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import cdkit
from cdkit.core.config import InputKind, StageConfig, field_settings
from cdkit.core.errors import CdkitError, ConfigError, InputError, OutputError, writing
from cdkit.core.file_kinds import require_file
from cdkit.core.fingerprints import EMBEDDED, REPORT_STAGE, Input, cache_folder, content_fingerprint
from cdkit.core.formatting import json_text
from cdkit.core.manifest import STARTED_NAME, read_manifest
from cdkit.core.storage import SourceFile, atomic_path, find_files, waiting_for
from cdkit.core.text import is_text
from cdkit.fetching.hub import HUB, Repository, RepositoryKind
from cdkit.pictures.collection import COLLECTION_RULES, is_collection, write_collection
from cdkit.pictures.folder import list_folder

Config = TypeVar("Config", bound=StageConfig)
# The kinds of input that `hub:USER/NAME` may stand for, and what kind of repository it names then.
ON_THE_HUB: Mapping[InputKind, RepositoryKind] = {
    "model": "model",
    "delta": "model",
    "index": "dataset",
    "set": "dataset",
}

POOL_SUFFIXES = tuple(
    f".{kind}{compression}"
    for kind in ("parquet", "csv", "tsv", "jsonl", "ndjson")
    for compression in (("",) if kind == "parquet" else ("", ".gz", ".zst"))
)


def resolve_inputs(config: StageConfig, planned: Mapping[Path, str] | None = None) -> dict[str, Input]:
    """Resolve every input field of `config`.

    `planned` maps folders that an earlier stage of the same pipeline will make to the fingerprints they will have.
    Raises InputError that names every input that is missing or unreadable.
    """
    found: dict[str, Input] = {}
    problems: list[CdkitError] = []
    for name, extra in field_settings(type(config)).items():
        value = getattr(config, name)
        if extra.input is None or value in (None, [], {}):
            continue
        try:
            found[name] = _resolve(name, extra.input, value, planned or {})
        except CdkitError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise InputError("\n".join(problem.message for problem in problems), hint=problems[0].hint)
    return found


def with_local_copies(config: Config, inputs: Mapping[str, Input] | None = None) -> Config:
    """A config in which what is on this machine stands in place of every `hub:USER/NAME`, fetched where it is not.

    inputs: the config's own, whose commits are taken; without them what main is now. Raises HubError when something
    cannot be fetched.
    """

    def replaced(kind: InputKind, value: Any, commits: Mapping[str, str]) -> Any:
        if isinstance(value, Mapping):
            return {key: replaced(kind, inner, commits) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [replaced(kind, inner, commits) for inner in value]
        return local_copy(kind, value, commits.get(value)) if isinstance(value, str) else value

    remote = {}
    for name, extra in field_settings(type(config)).items():
        value = getattr(config, name)
        if extra.input is not None and any(text.startswith(HUB) for text in _values(value)):
            commits = inputs[name].commits if inputs is not None else {}
            remote[name] = replaced(extra.input, value, commits)
    return config.model_copy(update=remote) if remote else config


def local_copy(kind: InputKind, value: str, commit: str | None = None) -> str:
    """The folder that holds what `hub:USER/NAME` names, or a base model's hub id; any other value as it is."""
    if not value.startswith(HUB):
        return value
    repository = _repository(kind, value)
    return repository.name if kind == "model" else str(repository.folder(commit))


def _repository(kind: InputKind, value: str) -> Repository:
    if kind not in ON_THE_HUB:
        raise ConfigError(
            f"{value} cannot be used here: only {', '.join(ON_THE_HUB)} may come from the hub.",
            hint="Give a path on this machine.",
        )
    return Repository.parse(value, ON_THE_HUB[kind])


def check_apart(inputs: Mapping[str, Input], folder: Path) -> None:
    """Raise OutputError when an input is `folder` or lies in it, or `folder` lies in an input.

    The first would delete the input when the folder is made anew, the second change what the input is next time.
    Links count as what they lead to. Raises it too for a name that the libraries that write there cannot take.
    """
    if not is_text(str(folder)):
        hint = "Choose another --out: its name has bytes that are not UTF-8."
        raise OutputError(f"--out {folder} cannot be written to by every library.", hint=hint)
    for item in inputs.values():
        places = {os.path.dirname(source.url): source.url for source in item.files if source.is_local}
        for place, url in places.items():
            if _lies_in(Path(place), folder):
                raise _not_apart(f"would overwrite the input {url}", folder)
        for value in _values(item.value):
            path = Path(value)
            if value == EMBEDDED or not path.exists():
                continue
            if _lies_in(path, folder):
                raise _not_apart(f"would overwrite the input {value}", folder)
            # A run's report stands in the run's folder, and does not count as a part of it.
            steps = (entry for entry in path.iterdir() if _step_mark(entry)) if item.kind == "run" else (path,)
            if any(_lies_in(folder, inner) for inner in steps):
                raise _not_apart(f"lies in the input {value}, which it would change", folder)
        for pattern in _values(item.value) if item.kind == "files" else []:
            if _matches_folder(pattern, folder):
                raise _not_apart(f"lies where the input {pattern} is looked for", folder)


def _not_apart(what: str, folder: Path) -> OutputError:
    return OutputError(f"--out {folder} {what}.", hint="Choose another --out.")


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or in it, by the names it has or by what they lead to."""
    named, real = Path(os.path.abspath(path)), path.resolve()
    above = {*(named, *named.parents), *(real, *real.parents)}
    return folder.exists() and any(place.exists() and place.samefile(folder) for place in above)


def _matches_folder(pattern: str, folder: Path) -> bool:
    """Whether files in `folder` may match a glob of folders, such as `pools/*/*.parquet` or `pools/**`."""
    words = Path(os.path.abspath(pattern)).parts[:-1]
    fixed = next((place for place, word in enumerate(words) if glob.has_magic(word)), len(words))
    if fixed == len(words):
        return False
    wanted, parts = (*Path(*words[:fixed]).resolve().parts, *words[fixed:]), folder.resolve().parts
    for part, word in zip(parts, wanted, strict=False):
        if word == "**":
            return True
        if not fnmatchcase(part, word):
            return False
    return len(parts) <= len(wanted)


def _values(value: Any) -> list[str]:
    """The paths and names in a config field: one, several, several by name; without the library of an encoder."""
    if isinstance(value, Mapping):
        return [name for item in value.values() for name in _values(item)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [name for item in value for name in _values(item)]
    return [_location(str(value))]


def _location(spec: str) -> str:
    """Where a model is: what stands behind the library in `open_clip:FOLDER` and `transformers:FOLDER`."""
    return spec.split(":", 1)[1] if spec.startswith(("open_clip:", "transformers:")) else spec


def _resolve(name: str, kind: InputKind, value: Any, planned: Mapping[Path, str]) -> Input:
    if kind == "files":
        patterns = [str(_embedded_pool()) if item == EMBEDDED else str(item) for item in value]
        found = [_collection(pattern) or find_files([pattern], POOL_SUFFIXES) for pattern in patterns]
        files = tuple({source.url: source for sources in found for source in sources}.values())
        marks = [(source.name, content_fingerprint(source)) for source in files]
        return Input(name, kind, value, _digest(marks), files)
    on_the_hub = dict.fromkeys(text for text in _values(value) if text.startswith(HUB))
    commits = {text: _repository(kind, text).commit() for text in on_the_hub}
    return Input(name, kind, value, _mark(kind, value, planned, commits), commits=commits)


def _collection(pattern: str) -> list[SourceFile] | None:
    """The table of a folder of pictures, made when it is not there yet; None for anything else.

    It counts by the names and contents of the folder's files, and by where the folder lies.
    """
    folder = Path(pattern)
    if "://" in pattern or not folder.is_dir():
        return None
    listing = list_folder(folder)
    tables = [name for name in listing.others if name.lower().endswith(POOL_SUFFIXES)]
    if not is_collection(listing, tables):
        return None
    marks = [("collection", str(folder.absolute())), ("rules", COLLECTION_RULES), *_listing(folder)]
    path = cache_folder() / "collections" / f"{_digest(marks)}.parquet"
    if not path.exists():
        write_collection(folder, path)
    return [SourceFile(str(path), folder.absolute().name, path.stat().st_size, collection=True)]


def _mark(kind: InputKind, value: Any, planned: Mapping[Path, str], commits: Mapping[str, str]) -> str:
    """The fingerprint of one value, or of all in a list or mapping of them."""
    if isinstance(value, Mapping):
        return _digest([(key, _mark(kind, item, planned, commits)) for key, item in sorted(value.items())])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _digest([(str(index), _mark(kind, item, planned, commits)) for index, item in enumerate(value)])
    text = str(value)
    return _digest([(text, kind), ("commit", commits[text])]) if text in commits else _one(kind, text, planned)


def _one(kind: InputKind, value: str, planned: Mapping[Path, str]) -> str:
    if value == EMBEDDED or value.startswith(f"{EMBEDDED}:"):
        return _embedded_fingerprint(kind, value)
    if kind in ("model", "encoder"):
        return planned.get(Path(value).resolve()) or _model_fingerprint(value)
    if kind == "run":
        return _run_fingerprint(Path(value), planned)
    return _folder_fingerprint(Path(value), planned)


def _folder_fingerprint(path: Path, planned: Mapping[Path, str]) -> str:
    """A cdkit folder counts by its manifest, any other by the names and contents of its files."""
    there = Path(os.path.realpath(path))  # a loop of links is no error here
    if there in planned:
        return planned[there]
    if not path.exists():
        raise InputError(f"{path} does not exist.", hint="Check the path, or run the stage that makes it first.")
    if path.is_dir():
        manifest = read_manifest(path)
        if manifest is not None:
            return manifest.fingerprint
    return _digest(_listing(path))


def _run_fingerprint(path: Path, planned: Mapping[Path, str]) -> str:
    """A run folder counts by what its steps made or will make; reports are made from it and do not count."""
    marks = {folder.name: mark for folder, mark in planned.items() if folder.parent == path.resolve()}
    for entry in sorted(path.iterdir()) if path.is_dir() else ():
        mark = _step_mark(entry)
        if mark:
            marks.setdefault(entry.name, mark)
    if not marks:
        raise InputError(f"{path} holds no cdkit run.", hint="Give a folder that cdkit run wrote, such as runs/NAME.")
    return _digest(sorted(marks.items()))


def _step_mark(folder: Path) -> str:
    """The fingerprint of what one step made, or is making; empty for other folders and for reports."""
    try:
        found, done = read_manifest(folder), True
        if found is None:
            found, done = read_manifest(folder, STARTED_NAME), False
    except CdkitError:
        return "damaged"
    if found is None or found.stage == REPORT_STAGE:
        return ""
    return found.fingerprint if done else f"started {found.fingerprint}"


def _model_fingerprint(spec: str) -> str:
    """A model that a stage made counts by its manifest, one in another local folder by its files, a hub or listed
    model by its name (its commit when cached)."""
    location = _location(spec)
    path = Path(location)
    if path.exists():
        manifest = read_manifest(path) if path.is_dir() else None
        return manifest.fingerprint if manifest is not None else _digest(_listing(path))
    if location.startswith((".", "/", "~")):
        raise InputError(f"{location} does not exist.", hint="Give a model folder, a hub id, or 'embedded'.")
    return _digest([("hub", location), ("commit", Repository(location, "model").cached_commit())])


def _embedded_fingerprint(kind: InputKind, value: str) -> str:
    """The embedded model counts by its weights, an embedded concept by its pictures."""
    from cdkit import embedded

    if kind == "encoder":
        return embedded.text_encoder_hash()
    if kind == "model":
        return embedded.weights_hash()
    if value == EMBEDDED:
        # The images of the embedded pool are drawn from its URLs by this version's renderer.
        return _digest([(value, cdkit.__version__), ("edition", str(embedded.WORLD_EDITION))])
    photos = embedded.concept_photos(value.removeprefix(f"{EMBEDDED}:"))
    digests = [hashlib.sha256(photo.tobytes()).hexdigest() for photo in photos]
    return _digest([(value, ""), *zip(embedded.concept_captions(), digests, strict=True)])


def _embedded_pool() -> Path:
    """The embedded world's caption pool as a folder of Parquet files, written once into the cache."""
    from cdkit import embedded

    folder = cache_folder() / f"embedded-pool-{embedded.WORLD_EDITION}-{cdkit.__version__}"
    if not folder.is_dir():
        # Two first runs at once: one writes it, the other waits.
        with writing(folder), waiting_for(folder.parent):
            if not folder.is_dir():
                with atomic_path(folder) as temporary:
                    embedded.write_pool(temporary)
    return folder


def _listing(path: Path) -> list[tuple[str, str]]:
    if not path.is_dir():
        require_file(path)
    try:
        files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}.", hint="Check its names and permissions."
        ) from error
    visible = [item for item in files if not item.name.startswith(".")]
    if not visible:
        raise InputError(f"{path} is empty.", hint="Put the files there, or give another folder.")
    return [
        (str(item.relative_to(path)), content_fingerprint(SourceFile(str(item), item.name, item.stat().st_size)))
        for item in visible
    ]


def _digest(marks: Sequence[tuple[str, str]]) -> str:
    return hashlib.sha256(json_text([list(mark) for mark in marks], ascii_only=True).encode()).hexdigest()
