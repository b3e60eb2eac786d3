"""The stages that make regularization sets: retrieve finds their images, class-images draws them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import CdkitError, InputError
from cdkit.core.fingerprints import EMBEDDED, Input
from cdkit.core.machine import cpu_count
from cdkit.core.manifest import Counts, read_manifest
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset, finished_facts, part_name
from cdkit.core.storage import Folder
from cdkit.fetching.blocklist import Blocklist, read_blocklist
from cdkit.fetching.hub import came_from_hub
from cdkit.fetching.job import FailedFetch, FetchedImage, FetchSettings
from cdkit.fetching.urls import AllowedHosts
from cdkit.index.caption_index import open_index
from cdkit.pictures.content_credentials import can_read_credentials
from cdkit.pictures.regularization_set import GENERATED, SetRow, set_shards, stored_rows
from cdkit.retrieval.accept import Downloaded, Limits, select
from cdkit.retrieval.candidates import (
    CandidateSet,
    CandidateSettings,
    find_candidates,
    read_candidates,
    require_licences,
    require_urls,
    write_candidates,
)
from cdkit.retrieval.class_images import DRAWN, ClassImageDrawer, drawn_rows, fill, image_drawing
from cdkit.retrieval.config import ClassImagesConfig, DatasetConfig, RetrieveConfig
from cdkit.retrieval.curate import CurationRules, Curator, target_hashes
from cdkit.retrieval.decisions import read_all_decisions
from cdkit.retrieval.download import download
from cdkit.retrieval.funnel import Funnel, count_funnel, nearest_captions, similarity_histogram
from cdkit.retrieval.images import (
    files_at_hand,
    is_embedded_pool,
    local_candidates,
    match_candidates,
    read_images,
    rendered,
)
from cdkit.retrieval.inspect import InspectionRules, Inspectors
from cdkit.retrieval.matching import MatchedPhotos, find_matching, read_matched_photos
from cdkit.retrieval.picture_checks import load_picture_checks
from cdkit.retrieval.set_folder import (
    BUILDING,
    REJECTS,
    concept_beside,
    drawn_card,
    matched_images,
    retrieved_card,
    set_rows,
    write_layouts_beside,
    write_rejects,
    write_set,
)

if TYPE_CHECKING:
    from cdkit.core.protocols import TextEncoder


@dataclass(frozen=True)
class SearchResult:
    """Candidates, and for images at hand what is behind each; the least similarity that counted.

    search: looks for candidates again, with other settings; photos: those that are matched.
    """

    candidates: CandidateSet
    threshold: float
    encoder: TextEncoder
    search: Callable[[CandidateSettings], CandidateSet]
    images: dict[int, FetchedImage | FailedFetch] | None = None
    photos: MatchedPhotos | None = None


class RetrievalRun:
    """One retrieval on its way: candidates, images from the web or at hand, curation, and all that is written."""

    def __init__(self, config: RetrieveConfig, out: Folder, context: Context) -> None:
        self.config = config
        self.out = out
        self.context = context
        self.building = out.sub(BUILDING)
        self.decisions = read_all_decisions(config.decisions)
        self.concept = concept_beside(config.also_write, config.trained_photos(), config, config.prompts)

    def run(self) -> tuple[dict[str, Any], dict[str, float]]:
        """Everything but the manifest; the rejects are written last and carry the result."""
        config = self.config
        AllowedHosts.parse(config.allow_host)
        blocklist = read_blocklist(Path(config.blocklist)) if config.blocklist else Blocklist()
        targets = target_hashes(config.exclude_like, self.context.progress.note)
        clock = time.monotonic()
        result = self.find()
        for note in result.candidates.notes:
            self.context.progress.note(note)
        inspection = InspectionRules(
            config.min_side,
            config.max_aspect_ratio,
            config.max_side,
            blocklist,
            config.min_sharpness,
            config.max_flat,
            config.max_text,
        )
        rules = CurationRules(config.near_duplicate_bits, targets, self.decisions)
        checks = load_picture_checks(config, result.encoder, self.context.progress)
        store = self.building.sub("curated").path
        workers = self.context.engine.workers if config.engine == "local" else cpu_count()
        clocks = {"candidates_seconds": time.monotonic() - clock}
        with Inspectors(inspection, store, workers=workers) as inspectors:
            curator = Curator(inspectors, store, rules, checks=checks, progress=self.context.progress)
            done = self.gather(result, curator, blocklist)
            if config.fill:
                draw = image_drawing(config, self.building, self.context)
                done = fill(done, draw, wanted=config.count, judge=curator)
        clocks["gathering_seconds"] = time.monotonic() - clock - clocks["candidates_seconds"]
        clocks["waves_seconds"] = sum(wave.seconds for wave in done.waves)
        # As the seconds: of this run alone, not of one that was interrupted.
        clocks["urls_tried"] = sum(wave.urls for wave in done.waves)
        facts = self.write(result, done, curator)
        return facts, {name: round(value, 3) for name, value in clocks.items()}

    def find(self) -> SearchResult:
        """Candidates from the index, and images at hand where the config says so."""
        config, settings = self.config, CandidateSettings.of(self.config)
        settings.caption_limit(config.count)
        index = open_index(Path(config.index))
        threshold = index.default_threshold if config.min_similarity is None else config.min_similarity
        photos = self.photos(index.encoder)
        folder = self.building.sub("candidates").path
        candidates = read_candidates(folder, self.context.fingerprint)
        search = partial(find_candidates, index, self.asked(photos), config.count)
        if candidates is None:
            if photos is None:
                candidates = search(settings)
            else:
                candidates = find_matching(index, photos, config.prompts, config.count, settings)
            require_licences(candidates)
            write_candidates(folder, candidates, self.context.fingerprint)
        result = SearchResult(candidates, threshold, index.encoder, search, photos=photos)
        # An index from elsewhere may name any file of this machine.
        own = config.images is None and not came_from_hub(Path(config.index))
        files = files_at_hand(candidates.candidates) if own else None
        if files is not None:
            return replace(result, images=files)
        if config.images is None or config.images == EMBEDDED:
            return replace(result, images=self.embedded_images(candidates))

        stored = read_images(Path(config.images), candidates.candidates)
        for sentence in stored.all_notes():
            self.context.progress.note(sentence)
        matched = match_candidates(candidates.candidates, stored.pictures)
        if matched:
            return replace(result, images=dict(matched))
        stored = read_images(Path(config.images))
        self.context.progress.note(
            f"No image of {config.images} belongs to a caption of the index; the folder's own captions are compared."
        )
        local, images = local_candidates(stored.pictures, config.prompts, index.encoder, settings, photos)
        compare = partial(local_candidates, stored.pictures, self.asked(photos), index.encoder)
        return replace(result, candidates=local, search=lambda other: compare(other)[0], images=dict(images))

    def photos(self, encoder: TextEncoder) -> MatchedPhotos | None:
        """The photos to match."""
        config = self.config
        if config.match is None:
            return None
        return read_matched_photos(
            config.match, encoder, config.count, self.context.progress, prompted=bool(config.prompts)
        )

    def asked(self, photos: MatchedPhotos | None) -> list[str]:
        """What captions are compared with: the prompts, else the captions of the photos."""
        return self.config.prompts or (photos.captions if photos is not None else [])

    def embedded_images(self, candidates: CandidateSet) -> dict[int, FetchedImage | FailedFetch] | None:
        """The embedded world's images when they are asked for, or when the URLs are its own and nobody serves them."""
        if self.config.images == EMBEDDED:
            return rendered(candidates.candidates)
        require_urls(candidates)
        if not is_embedded_pool(candidates.candidates) or self.config.allow_host or self.config.proxy:
            return None
        self.context.progress.note(
            "The index is over the embedded pool, whose URLs lead nowhere: its images are drawn here, as with "
            "--images embedded."
        )
        return rendered(candidates.candidates)

    def gather(self, result: SearchResult, curator: Curator, blocklist: Blocklist) -> Downloaded:
        """Accept images: from the web, or from what is at hand."""
        config, candidates = self.config, result.candidates.candidates
        limits = Limits(config.count, config.per_caption, config.per_host)
        if result.images is not None:
            return select(
                candidates,
                result.images,
                limits=limits,
                judge=curator,
                blocklist=blocklist,
                decisions=self.decisions,
            )
        return download(
            candidates,
            self.building,
            self.context,
            limits=limits,
            settings=FetchSettings(
                threads=config.downloads,
                deadline=config.deadline,
                retries=config.retries,
                max_bytes=config.max_bytes,
                allow_hosts=tuple(config.allow_host),
                proxy=config.proxy,
                respect_robots=config.respect_robots,
            ),
            judge=curator,
            blocklist=blocklist,
            decisions=self.decisions,
        )

    def write(self, result: SearchResult, done: Downloaded, curator: Curator) -> dict[str, Any]:
        """Write the set in all its forms; returns what the manifest says of it."""
        config, fingerprint = self.config, self.context.fingerprint
        rows = set_rows(done, curator)
        counted = count_funnel(result.candidates, done, config.count, result.threshold)
        nearest = ""
        if not result.candidates.captions:
            nearest = nearest_captions(result.search, config.count, CandidateSettings.of(config))
        self.out.remove([REJECTS])
        subject = ", ".join(config.prompts) or f"the captions of {config.match}"
        title = f"{len(rows)} of {config.count}: {subject}"
        write_set(self.out, rows, fingerprint, title=title, card=retrieved_card([subject], counted, rows))
        note = self.context.progress.note
        layouts = write_layouts_beside(config.also_write, self.out, rows, self.concept, note)
        details = self.details(result, counted, done, rows) | {"layouts": layouts}
        if curator.checks is not None:
            details["picture_checks"] = curator.checks.as_json()
        facts = {"details": details, "shortfall": counted.shortfall(nearest)}
        write_rejects(self.out, done, curator, fingerprint, facts)
        return facts

    def details(
        self, result: SearchResult, counted: Funnel, done: Downloaded, rows: Sequence[SetRow]
    ) -> dict[str, Any]:
        similarities = [row.similarity for row in rows if row.source != GENERATED]
        return {
            "asked": counted.asked,
            "accepted": counted.accepted,
            "generated": counted.generated,
            "tried": counted.tried,
            "threshold": result.threshold,
            "prompts": self.asked(result.photos),
            "encoder": result.encoder.spec,
            "funnel": counted.steps(),
            "rejected": dict(counted.rejected),
            "similarities": similarity_histogram(similarities, result.threshold),
            "filtered": result.candidates.rejected,
            "content_credentials": can_read_credentials(),
            **({"matched": matched_images(result.photos, done, rows)} if result.photos is not None else {}),
        }


def retrieve(config: RetrieveConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Find `count` images, or as many as there are, and draw the rest where `fill` says so.

    Killed at any moment, the same call gives the same set. Raises InputError when the pool has no URLs and no images
    are given, for a blocklist that cannot be read, and for photos to exclude that do not decode; NetworkError when
    nothing can be fetched; OutputError when the disk is full.
    """
    finished = finished_facts(out / REJECTS / part_name(0), context.fingerprint)
    clocks: dict[str, float] = {}
    if finished is None:
        try:
            finished, clocks = RetrievalRun(config, out, context).run()
        except CdkitError:
            # What failed before an image was there must not stand in the way of the mended command.
            if not any(path.is_file() for path in (out / BUILDING).glob("*/*") if path.parent.name != "candidates"):
                out.remove([BUILDING])
            raise
    out.remove([BUILDING])
    details = finished["details"] | {"clocks": clocks}
    decided = details["accepted"] + sum(details["rejected"].values())
    counts = Counts(decided, details["accepted"], details["rejected"])
    return Dataset("regularization_set", out.path, counts, details, finished["shortfall"])


def class_images(config: ClassImagesConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Draw `count` images into a regularization set; killed, the same call draws what is missing.

    Raises ConfigError when the model draws nothing but blank images.
    """
    concept = concept_beside(config.also_write, config.photos, config, config.prompts)
    folder = out.sub(BUILDING).sub(DRAWN).path
    rows, rejected = drawn_rows(config, ClassImageDrawer(config.sampling(), config.seed, folder, context))
    title = f"{len(rows)} images drawn by {config.base}: {', '.join(config.prompts)}"
    card = drawn_card(config.prompts, len(rows), str(config.base))
    write_set(out, rows, context.fingerprint, title=title, card=card)
    layouts = write_layouts_beside(config.also_write, out, rows, concept, context.progress.note)
    out.remove([BUILDING])
    details: dict[str, Any] = {
        "asked": config.count,
        "accepted": len(rows),
        "generated": len(rows),
        "tried": len(rows) + sum(rejected.values()),
        "rejected": rejected,
        "prompts": config.prompts,
        "base": config.base,
        "steps": config.steps,
        "guidance": config.guidance,
        "layouts": layouts,
    }
    return Dataset("regularization_set", out.path, Counts(details["tried"], len(rows), rejected), details)


def dataset(config: DatasetConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write a finished set in other programs' layouts.

    Raises InputError for a set that is not there, not finished or empty, and for photos that cannot be used;
    ConfigError where nothing says what the set shows.
    """
    folder = Path(config.folder)
    manifest = read_manifest(folder)
    prompts = list(manifest.details.get("prompts") or []) if manifest is not None else []
    concept = concept_beside(config.to, config.photos, config, prompts)
    # Before anything is written: what fails here must not stand in the way of the mended command.
    set_shards(folder)
    rows = list(stored_rows(folder, out.sub(BUILDING).path))
    if not rows:
        out.remove([BUILDING])
        raise InputError(f"{folder} holds no image.", hint="Make a larger set: see the funnel of cdkit retrieve.")
    layouts = write_layouts_beside(config.to, out, rows, concept, context.progress.note)
    out.remove([BUILDING])
    details = {"images": len(rows), "written": config.to, "layouts": layouts}
    return Dataset("layouts", out.path, Counts(len(rows), len(rows), {}), details)
