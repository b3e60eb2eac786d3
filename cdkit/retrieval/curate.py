"""Curation: which of the images at hand are accepted, and why the others are not.

What an image is by itself is found out once, in worker processes; how images stand to one another is decided in
candidate order, so that of two near-duplicates the better-ranked one is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.errors import InputError
from cdkit.core.formatting import json_text
from cdkit.core.protocols import Progress, SilentProgress
from cdkit.fetching.job import FetchedImage
from cdkit.pictures.folder import shown
from cdkit.pictures.picture import NEAR, NearHashes, Picture, mirrored_hash, perceptual_hash
from cdkit.pictures.reading import read_pictures
from cdkit.pictures.regularization_set import GENERATED
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.decisions import BY_HAND, Decisions
from cdkit.retrieval.inspect import Inspection, Inspectors

if TYPE_CHECKING:
    from cdkit.retrieval.picture_checks import PictureChecks, SemanticDuplicates

JOURNAL_NAME = "inspected.jsonl"
PLACEHOLDER = "placeholder"
# As large as downloads are when they are hashed, unless they are told otherwise.
TARGET_SIDE = 1024


@dataclass(frozen=True)
class CurationRules:
    """How images must stand to others. distance: bits of the perceptual hash up to which two are near-duplicates.

    targets: perceptual hashes of the concept's own photos and of their mirror images. decisions: whose rejected
    pictures, and what looks like them, do not come in.
    """

    distance: int = NEAR
    targets: tuple[int, ...] = ()
    decisions: Decisions = field(default_factory=Decisions)


class Curator:
    """The judge of a download: inspects images as they come, and remembers what they are in `store`."""

    def __init__(
        self,
        inspectors: Inspectors,
        store: Path,
        rules: CurationRules,
        *,
        checks: PictureChecks | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.store = store
        self._inspectors = inspectors
        self._rules = rules
        self.checks = checks
        self._progress = progress or SilentProgress()
        self._inspections = dict(_read_journal(store))

    def prepare(self, images: Sequence[tuple[Candidate, FetchedImage]]) -> None:
        """Inspect those that were not inspected yet, also in an earlier run."""
        fresh = {identity(image): image for _, image in images if identity(image) not in self._inspections}
        names = list(fresh)
        contents = [fresh[name].content for name in names]
        with (
            self._progress.task("curate", len(names), unit="images") as task,
            (self.store / JOURNAL_NAME).open("a", encoding="utf-8") as journal,
        ):
            for place, inspection in self._inspectors.inspect(contents):
                self._inspections[names[place]] = inspection
                journal.write(json_text({"image": names[place]} | asdict(inspection)) + "\n")
                journal.flush()
                task.advance()
        if self.checks is not None:
            inspected = [(candidate.caption, self.inspection(image)) for candidate, image in images]
            self.checks.prepare([(caption, self.path(known)) for caption, known in inspected if known.reason is None])

    def inspection(self, image: FetchedImage) -> Inspection:
        """What is known of an image that was prepared."""
        return self._inspections[identity(image)]

    def path(self, inspection: Inspection) -> Path:
        """Where the picture is stored."""
        return self.store / inspection.name

    def admission(self) -> CurationAdmission:
        return CurationAdmission(self, self._rules)


def identity(image: FetchedImage) -> str:
    """What names an image across runs: the hash of its bytes, or where they lie."""
    return image.sha256 or repr(image.content)


def _read_journal(store: Path) -> dict[str, Inspection]:
    """What earlier runs saw; what they did not finish writing is left out."""
    inspections: dict[str, Inspection] = {}
    try:
        lines = (store / JOURNAL_NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return inspections
    for line in lines:
        try:
            entry = json.loads(line)
            name = entry.pop("image")
            inspection = Inspection(**entry)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        stored = store / inspection.name
        if inspection.reason is not None or (stored.is_file() and stored.stat().st_size == inspection.size):
            inspections[name] = inspection
    # A line cut short must not swallow the next one.
    if lines and not (store / JOURNAL_NAME).read_bytes().endswith(b"\n"):
        with (store / JOURNAL_NAME).open("a", encoding="utf-8") as journal:
            journal.write("\n")
    return inspections


@dataclass
class CurationAdmission:
    """One walk over the images in candidate order."""

    curator: Curator
    rules: CurationRules
    _accepted: NearHashes = field(init=False)
    _targets: NearHashes = field(init=False)
    _rejected: NearHashes = field(init=False)
    _semantic: SemanticDuplicates | None = field(init=False)
    _captions: dict[str, int] = field(default_factory=dict)
    _placeholders: set[str] = field(default_factory=set)
    _withdrawn: dict[int, str] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._accepted = NearHashes(self.rules.distance)
        self._targets = NearHashes(self.rules.distance, self.rules.targets)
        self._rejected = NearHashes(self.rules.distance, self.rules.decisions.perceptual)
        checks = self.curator.checks
        self._semantic = checks.duplicates() if checks is not None else None

    def admit(self, place: int, candidate: Candidate, image: FetchedImage) -> str | None:
        """None when the image is accepted, else the reason why it is not."""
        inspection = self.curator.inspection(image)
        if inspection.reason is not None:
            return inspection.reason
        if inspection.sha256 in self.rules.decisions.hashes or inspection.phash in self._rejected:
            return BY_HAND
        if candidate.source != GENERATED and self._is_placeholder(inspection.sha256, candidate.caption_id):
            return PLACEHOLDER
        if inspection.phash in self._targets:
            return "target_photo"
        if inspection.phash in self._accepted:
            return "near_duplicate"
        reason = self._seen(candidate.caption, self.curator.path(inspection))
        if reason is not None:
            return reason
        self._accepted.add(inspection.phash)
        self._places[inspection.sha256] = place
        return None

    def _seen(self, caption: str, path: Path) -> str | None:
        """What an image encoder has against a picture, by itself or beside the photos and those accepted."""
        if self.curator.checks is None or self._semantic is None:
            return None
        reason = self.curator.checks.reason(caption, path) or self._semantic.reason(path)
        if reason is None:
            self._semantic.add(path)
        return reason

    def withdrawn(self) -> Mapping[int, str]:
        """Places whose images turned out to be placeholders since this was asked last."""
        withdrawn, self._withdrawn = self._withdrawn, {}
        return withdrawn

    def _is_placeholder(self, sha256: str, caption_id: int) -> bool:
        """Whether the same bytes came behind another caption before: then no caption belongs to them."""
        if sha256 in self._placeholders:
            return True
        if self._captions.setdefault(sha256, caption_id) == caption_id:
            return False
        self._placeholders.add(sha256)
        if sha256 in self._places:
            self._withdrawn[self._places.pop(sha256)] = PLACEHOLDER
        return True


def target_hashes(sources: Sequence[str], note: Callable[[str], None]) -> tuple[int, ...]:
    """Perceptual hashes of the photos in folders or of `embedded:NAME` concepts, and of their mirror images.

    Raises InputError when a source holds no image, or one that does not decode: it could not be kept out.
    """
    hashes: dict[int, None] = {}
    for source in sources:
        folder = read_pictures(source)
        if not folder.pictures:
            raise InputError(
                f"{folder.source} holds no photos to exclude.", hint="Give the folder of the concept's own photos."
            )
        for sentence in folder.left_out_notes():
            note(sentence)
        hashes |= dict.fromkeys(_mirrored_hashes(folder.pictures))
    return tuple(hashes)


def _mirrored_hashes(photos: Sequence[Picture]) -> list[int]:
    from cdkit.pictures.decoding import Undecodable, decode, is_blank

    hashes, broken = [], []
    for photo in photos:
        try:
            picture = decode(photo.content.read(), TARGET_SIDE).picture
        except Undecodable as error:
            broken.append(f"{photo.name} ({error.reason})")
            continue
        # One colour is like any other picture of one colour, and none of those gets into a set.
        if not is_blank(picture):
            hashes += [perceptual_hash(picture), mirrored_hash(picture)]
    if broken:
        raise InputError(
            f"{len(broken)} of the photos to exclude do not decode: {shown(broken)}.",
            hint="Mend or remove them: a photo that cannot be read cannot be kept out.",
        )
    return hashes
