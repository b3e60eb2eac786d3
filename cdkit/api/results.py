"""What calls return: a stage's folder with a short name, its tables, and its pictures, opened when looked at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cdkit.api.html import picture_grid, shown_table
from cdkit.api.places import Place, folder_of
from cdkit.api.tables import Table
from cdkit.core.errors import InputError
from cdkit.core.formatting import size_text
from cdkit.core.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

    from cdkit.index.search import SearchResult
    from cdkit.pictures.picture import Picture

State = Literal["cached", "done", "partial"]
PICTURES_SHOWN = 24
ROWS_SHOWN = 20


@dataclass(frozen=True, repr=False, eq=False)
class StageFolder:
    """What a stage made. It stands wherever a path may: as another call's input, too.

    state: done now, cached (found done), or partial (less than was asked for; `short` says why). notes: what was said
    while it was made.
    """

    folder: Path
    state: State
    manifest: Manifest
    notes: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        found = ", found done" if self.state == "cached" else f", short: {self.short}" if self.short else ""
        return f"<{type(self).__name__} {self._summary()}{found}: {self.folder}>"

    @property
    def details(self) -> Mapping[str, Any]:
        """What the stage says of its result."""
        return self.manifest.details

    @property
    def short(self) -> str:
        """Why it is less than was asked for; empty when it is not."""
        return self.manifest.shortfall

    def _summary(self) -> str:
        return self.manifest.stage


class IndexFolder(StageFolder):
    """A caption index."""

    def _summary(self) -> str:
        return f"{len(self):,} captions, {self.encoder}, threshold {self.threshold:g}"

    def __len__(self) -> int:
        return int(self.details["captions"])

    @property
    def encoder(self) -> str:
        return str(self.details["encoder"]["spec"])

    @property
    def threshold(self) -> float:
        return float(self.details["encoder"]["default_threshold"])


class DeltaFolder(StageFolder):
    """What training or merging made: differences of weights, and new words."""

    def _summary(self) -> str:
        words = ", ".join(self.tokens) or "no new words"
        return f"{words} on {self.base}, {size_text(self.bytes)}"

    @property
    def file(self) -> Path:
        from cdkit.deltas.delta import delta_path

        return delta_path(self.folder)

    @property
    def bytes(self) -> int:
        return self.file.stat().st_size

    @property
    def tokens(self) -> list[str]:
        """The modifier tokens that prompts name."""
        from cdkit.deltas.delta import delta_tokens

        return delta_tokens([self.folder])

    @property
    def base(self) -> str:
        from cdkit.deltas.delta import read_header

        return read_header(self.folder).get("base", "")

    @property
    def prompts(self) -> list[str]:
        """Prompts it was trained with."""
        return [str(prompt) for prompt in self.details.get("prompts", [])]


class PicturesFolder(StageFolder, Sequence["Image.Image"]):
    """A folder of pictures, each decoded when it is asked for."""

    @property
    @abstractmethod
    def pictures(self) -> list[Picture]:
        """Where the pictures lie, with what is known of each."""

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Image.Image]:
        return (picture.open() for picture in self.pictures)

    def __getitem__(self, place: Any) -> Any:
        chosen = self.pictures[place]
        return [picture.open() for picture in chosen] if isinstance(place, slice) else chosen.open()

    def _repr_html_(self) -> str:
        shown = [(picture.open, picture.caption or "") for picture in self.pictures[:PICTURES_SHOWN]]
        return picture_grid(repr(self), shown, len(self))


class SetFolder(PicturesFolder):
    """A regularization set: pictures with captions that are like the concept's prompts."""

    def _summary(self) -> str:
        accepted, threshold = self.details["accepted"], self.details.get("threshold")
        return f"{accepted:,} images" + (f", threshold {threshold:g}" if threshold is not None else "")

    @cached_property
    def pictures(self) -> list[Picture]:
        from cdkit.pictures.reading import read_pictures

        return read_pictures(self.folder).pictures

    @property
    def table(self) -> Table:
        """One row for each image: caption, similarity, address, size, hashes, licence."""
        return Table(self._rows)

    @property
    def funnel(self) -> list[tuple[str, int]]:
        """How many were left at every step from captions to accepted images."""
        return [(str(entry["step"]), int(entry["count"])) for entry in self.details.get("funnel", [])]

    def _rows(self) -> pa.Table:
        import pyarrow as pa

        from cdkit.core.shards import read_shard
        from cdkit.pictures.regularization_set import set_shards

        tables = [read_shard(path) for path in set_shards(self.folder)]
        return pa.concat_tables([table.drop_columns(["image"]) for table in tables]).replace_schema_metadata(None)


class SampleFolder(PicturesFolder):
    """Drawn pictures: every prompt with every seed."""

    def _summary(self) -> str:
        prompts = dict.fromkeys(self.prompts)
        return f"{len(self.prompts):,} images of {len(prompts):,} prompt{'s' if len(prompts) > 1 else ''}"

    @cached_property
    def pictures(self) -> list[Picture]:
        from cdkit.pictures.picture import FileContent, Picture

        return [
            Picture(row["path"], str(self.folder / row["path"]), FileContent(self.folder / row["path"]), row["prompt"])
            for row in self.table.to_arrow().to_pylist()
        ]

    @property
    def prompts(self) -> list[str]:
        """The prompt of each picture."""
        return [str(row["prompt"]) for row in self.table.to_arrow().select(["prompt"]).to_pylist()]

    @property
    def table(self) -> Table:
        """One row for each picture: prompt, seed, path, delta."""
        return Table.of_file(self.folder / "samples.parquet")


class ScoreFolder(StageFolder):
    """Scores of samples, with intervals."""

    def _summary(self) -> str:
        return f"{len(self.metrics)} scores"

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """Of the main samples, by name of the score: value, low, high, n."""
        return dict(self.details["metrics"])

    @property
    def table(self) -> Table:
        """One row for each picture and score."""
        return Table.of_file(self.folder / "scores.parquet")

    def _repr_html_(self) -> str:
        rows = [
            (name, f"{score['value']:.4f}", _interval(score), str(score["n"])) for name, score in self.metrics.items()
        ]
        return shown_table(repr(self), ("score", "value", "95 % interval", "n"), rows)


class ReportFolder(StageFolder):
    """The page of a run."""

    def _summary(self) -> str:
        return "page of a run"

    @property
    def page(self) -> Path:
        return self.folder / "report.html"


@dataclass(frozen=True, repr=False)
class FoundCaptions:
    """The answer to a search, best first."""

    result: SearchResult

    def __repr__(self) -> str:
        found = self.result
        more = " or more" if found.more else ""
        first = f", first {found.results[0].caption!r}" if found.results else ""
        return f"<{len(found.results)}{more} captions like {found.query!r}, threshold {found.min_similarity:g}{first}>"

    def __len__(self) -> int:
        return len(self.result.results)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return ((match.caption, match.similarity) for match in self.result.results)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self.result.notes)

    @property
    def table(self) -> Table:
        """One row for each caption: caption_id, caption, similarity, images, url of the first."""
        return Table(self._rows)

    def _rows(self) -> pa.Table:
        import pyarrow as pa

        fields = [
            *(("caption_id", pa.int64()), ("caption", pa.string()), ("similarity", pa.float64())),
            *(("images", pa.int64()), ("url", pa.string())),
        ]
        rows = [
            {
                **{"caption_id": match.caption_id, "caption": match.caption, "similarity": match.similarity},
                **{"images": len(match.rows), "url": match.as_json()["rows"][0].get("url") if match.rows else None},
            }
            for match in self.result.results
        ]
        return pa.Table.from_pylist(rows, schema=pa.schema(fields))

    def _repr_html_(self) -> str:
        rows = [(f"{match.similarity:.4f}", str(len(match.rows)), match.caption) for match in self.result.results]
        return shown_table(repr(self), ("similarity", "images", "caption"), rows[:ROWS_SHOWN])


KINDS: dict[str, type[StageFolder]] = {
    **{"index": IndexFolder, "retrieve": SetFolder, "class-images": SetFolder, "sample": SampleFolder},
    **dict.fromkeys(("train", "merge", "delta-import", "delta-compress"), DeltaFolder),
    **{"evaluate": ScoreFolder, "report": ReportFolder},
}


def load(folder: Place) -> StageFolder:
    """What lies in a folder that cdkit made, as the call that made it returned it.

    Raises InputError when nothing finished lies there, ConfigError for what is no path.
    """
    folder = folder_of(folder)
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        raise InputError(f"{folder} holds no finished result.", hint="Give a folder that cdkit made.")
    kind = KINDS.get(manifest.stage, StageFolder)
    return kind(folder, "partial" if manifest.shortfall else "cached", manifest)


def _interval(score: Mapping[str, Any]) -> str:
    return "" if score.get("low") is None else f"{score['low']:.4f} to {score['high']:.4f}"
