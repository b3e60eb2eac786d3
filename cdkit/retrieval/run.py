"""One retrieval on its way: candidates, images from the web or at hand, curation, and everything that is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.protocols import Context
from cdkit.core.shards import part_name, schema, write_shard
from cdkit.core.storage import Folder
from cdkit.core.threads import cpu_count
from cdkit.fetching.blocklist import Blocklist, read_blocklist
from cdkit.fetching.outcomes import FailedFetch, FetchedImage
from cdkit.fetching.urls import AllowedHosts
from cdkit.index.caption_index import open_index
from cdkit.pictures.grid import write_contact_sheet
from cdkit.pictures.layouts import LAYOUTS, write_layout
from cdkit.pictures.regularization_set import GENERATED, SetRow, write_images
from cdkit.retrieval.accept import Downloaded, ImageMaker, fill, select
from cdkit.retrieval.candidates import (
    CandidateSet,
    find_candidates,
    nearest_captions,
    read_candidates,
    require_urls,
    write_candidates,
)
from cdkit.retrieval.config import CandidateSettings, RetrieveConfig
from cdkit.retrieval.curate import CurationRules, Curator, load_scorer
from cdkit.retrieval.download import download
from cdkit.retrieval.funnel import Funnel, funnel, rejected_rows, similarity_histogram, write_card
from cdkit.retrieval.images import is_embedded_pool, local_candidates, match_candidates, read_images, rendered
from cdkit.retrieval.inspect import InspectionRules, Inspectors
from cdkit.retrieval.target_photos import target_hashes

if TYPE_CHECKING:
    from cdkit.core.protocols import TextEncoder
    from cdkit.retrieval.accept import ImageMaker


@dataclass(frozen=True)
class Found:
    """Candidates, and for images at hand what is behind each; the least similarity that counted.

    find: looks for candidates again, with other settings.
    """

    candidates: CandidateSet
    threshold: float
    encoder: TextEncoder
    find: Callable[[CandidateSettings], CandidateSet]
    images: dict[int, FetchedImage | FailedFetch] | None = None


class RetrievalRun:
    """One retrieval on its way."""

    def __init__(self, config: RetrieveConfig, out: Folder, context: Context, make: ImageMaker | None = None) -> None:
        self.config = config
        self.make = make
        self.out = out
        self.context = context
        self.building = out.sub(BUILDING)

    def run(self) -> tuple[dict[str, Any], dict[str, float]]:
        """Everything but the manifest; the rejects are written last and carry the result."""
        config = self.config
        AllowedHosts.parse(config.allow_host)
        blocklist = read_blocklist(Path(config.blocklist)) if config.blocklist else Blocklist()
        targets = target_hashes(config.exclude_like, self.context.progress.note)
        clock = time.monotonic()
        found = self.find()
        for note in found.candidates.notes:
            self.context.progress.note(note)
        inspection = InspectionRules(config.min_side, config.max_aspect_ratio, config.max_side, blocklist)
        rules = CurationRules(config.near_duplicate_bits, targets, config.min_image_similarity)
        scorer = load_scorer(found.encoder) if config.min_image_similarity is not None else None
        store = self.building.sub("curated").path
        workers = self.context.engine.workers if config.engine == "local" else cpu_count()
        clocks = {"candidates_seconds": time.monotonic() - clock}
        with Inspectors(inspection, store, workers=workers) as inspectors:
            curator = Curator(inspectors, store, rules, scorer=scorer, progress=self.context.progress)
            done = self.gather(found, curator, blocklist)
            if self.make is not None:
                done = fill(done, self.make, wanted=config.count, judge=curator)
        clocks["gathering_seconds"] = time.monotonic() - clock - clocks["candidates_seconds"]
        clocks["waves_seconds"] = sum(wave.seconds for wave in done.waves)
        # As the seconds: of this run alone, not of one that was interrupted.
        clocks["urls_tried"] = sum(wave.urls for wave in done.waves)
        result = self.write(found, done, curator)
        return result, {name: round(value, 3) for name, value in clocks.items()}

    def find(self) -> Found:
        """Candidates from the index, and images at hand where the config says so."""
        config, settings = self.config, self.config.candidate_settings()
        settings.caption_limit(config.count)
        index = open_index(Path(config.index))
        threshold = index.default_threshold if config.min_similarity is None else config.min_similarity
        folder = self.building.sub("candidates").path
        candidates = read_candidates(folder, self.context.fingerprint)
        find = partial(find_candidates, index, config.prompts, config.count)
        if candidates is None:
            candidates = find(settings)
            write_candidates(folder, candidates, self.context.fingerprint)
        if config.images is None or config.images == EMBEDDED:
            return Found(candidates, threshold, index.encoder, find, self.rendered(candidates))

        stored = read_images(Path(config.images), candidates.candidates)
        for sentence in stored.notes:
            self.context.progress.note(sentence)
        matched = match_candidates(candidates.candidates, stored.images)
        if matched:
            return Found(candidates, threshold, index.encoder, find, dict(matched))
        stored = read_images(Path(config.images))
        self.context.progress.note(
            f"No image of {config.images} belongs to a caption of the index; the folder's own captions are compared."
        )
        compare = partial(local_candidates, stored.images, config.prompts, index.encoder)
        own, images = compare(settings)
        return Found(own, threshold, index.encoder, lambda other: compare(other)[0], dict(images))

    def rendered(self, found: CandidateSet) -> dict[int, FetchedImage | FailedFetch] | None:
        """The embedded world's images when they are asked for, or when the URLs are its own and nobody serves them."""
        if self.config.images == EMBEDDED:
            return rendered(found.candidates)
        require_urls(found)
        if not is_embedded_pool(found.candidates) or self.config.allow_host or self.config.proxy:
            return None
        self.context.progress.note(
            "The index is over the embedded pool, whose URLs lead nowhere: its images are drawn here, as with "
            "--images embedded."
        )
        return rendered(found.candidates)

    def gather(self, found: Found, curator: Curator, blocklist: Blocklist) -> Downloaded:
        """Accept images: from the web, or from what is at hand."""
        candidates, limits = found.candidates.candidates, self.config.limits()
        if found.images is not None:
            return select(candidates, found.images, limits=limits, judge=curator, blocklist=blocklist)
        return download(
            candidates,
            self.building,
            self.context,
            limits=limits,
            settings=self.config.fetch_settings(),
            judge=curator,
            blocklist=blocklist,
        )

    def write(self, found: Found, done: Downloaded, curator: Curator) -> dict[str, Any]:
        """Write the set in all its forms; returns what the manifest says of it."""

        rows = set_rows(done, curator)
        counted = funnel(found.candidates, done, self.config.count, found.threshold)
        nearest = ""
        if not found.candidates.captions:
            nearest = nearest_captions(found.find, self.config.count, self.config.candidate_settings()).sentence()
        result = {"details": self.details(found, counted, rows), "shortfall": counted.shortfall(nearest)}
        self.out.remove(["images", REJECTS])
        write_images(self.out, rows, self.context.fingerprint)
        title = f"{len(rows)} of {self.config.count}: {', '.join(self.config.prompts)}"
        write_contact_sheet(self.out / CONTACT_SHEET, rows, title)
        write_card(self.out / CARD, self.config.prompts, counted)
        for layout in LAYOUTS:
            if layout in self.config.also_write:
                write_layout(layout, self.out, rows)
        table = pa.Table.from_pylist(list(rejected_rows(done, curator)), schema=schema("retrieval_rejects"))
        write_shard(self.out / REJECTS / part_name(0), table, fingerprint=self.context.fingerprint, facts=result)
        return result

    def details(self, found: Found, counted: Funnel, rows: Sequence[SetRow]) -> dict[str, Any]:
        similarities = [row.similarity for row in rows if row.source != GENERATED]
        return {
            "asked": counted.asked,
            "accepted": counted.accepted,
            "generated": counted.generated,
            "tried": counted.tried,
            "threshold": found.threshold,
            "prompts": self.config.prompts,
            "funnel": counted.steps(),
            "rejected": dict(counted.rejected),
            "similarities": similarity_histogram(similarities, found.threshold),
            "filtered": found.candidates.rejected,
        }


def set_rows(done: Downloaded, curator: Curator) -> list[SetRow]:
    """The accepted images in their order, as rows about to be written."""
    rows = []
    for number, (candidate, image) in enumerate(done.accepted):
        found = curator.inspection(image)
        rows.append(
            SetRow(
                key=f"{number:06d}",
                path=curator.store / found.name,
                caption=candidate.caption,
                similarity=candidate.similarity,
                url=candidate.url,
                width=found.width,
                height=found.height,
                sha256=found.sha256,
                phash=f"{found.phash:016x}",
                source=candidate.source,
                query=candidate.query,
            )
        )
    return rows


BUILDING = "building"
REJECTS = "rejects"
CONTACT_SHEET = "contact_sheet.png"
CARD = "README.md"
