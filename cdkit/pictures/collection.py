"""A folder of pictures as a pool: a table of their captions and where each lies; the pictures stay where they are.

An address is a `file:` URL; what lies in a tar file or in a column of Parquet has its key behind `#`. Only tables made
here may hold such addresses: a pool from elsewhere could name any file of this machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from cdkit.captions.pools import KNOWN_NAMES, STATED, stated
from cdkit.core.errors import InputError
from cdkit.core.storage import atomic_path
from cdkit.pictures.captions import METADATA_NAMES
from cdkit.pictures.descriptions import Description, read_description
from cdkit.pictures.folder import Listing
from cdkit.pictures.picture import CellContent, Content, FileContent, Picture
from cdkit.pictures.reading import archived_pictures, has_picture_column, read_img2dataset, read_pictures

SCHEME = "file:"
# Counts up whenever a folder would give another table than before.
COLLECTION_RULES = "2"
_BATCH_ROWS = 4096
# Metadata stand before the pixels in all but a few TIFF files.
_HEADER_BYTES = 4 << 20


def is_collection(listing: Listing, tables: Sequence[str]) -> bool:
    """Whether a folder is one of pictures, and no pool of tables that has some pictures beside them.

    tables: those of its files that could be a pool's. Raises InputError for a shard of img2dataset that is damaged.
    """
    shards = [name for name in tables if _is_shard(name)]
    if any(PurePosixPath(name).name.lower() not in METADATA_NAMES for name in tables if name not in shards):
        return False
    archived = bool(listing.pictures) or any(name.lower().endswith(".tar") for name in listing.others)
    if not shards:
        return archived
    if not archived and not has_picture_column(listing.root / shards[0]):
        return False
    output = read_img2dataset(listing.root, str(listing.root))
    return output is not None and bool(output.pictures)


def _is_shard(name: str) -> bool:
    """Whether a file is called like a shard of img2dataset's output."""
    path = PurePosixPath(name)
    return path.suffix.lower() == ".parquet" and path.stem.isdigit()


def _lies_in_file(content: Content) -> bool:
    return isinstance(content, FileContent | CellContent)


def write_collection(folder: Path, path: Path) -> None:
    """Write the table of a folder's pictures: caption, url (its address), size, licence, attribution and ratings.

    Pictures without a caption are rows too, which import counts as empty. Raises InputError for a damaged caption
    file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = [picture for picture in read_pictures(folder).pictures if _lies_in_file(picture.content)]
    said = dict.fromkeys(name for picture in pictures for name in picture.said)
    rights = {name for meaning in STATED for name in KNOWN_NAMES[meaning]}
    # Each under its own name: of several ratings the worst counts.
    ratings = [name for name in said if name not in rights]
    text = pa.string()
    schema = pa.schema(
        [
            *(("caption", text), ("url", text), ("width", pa.int32()), ("height", pa.int32())),
            *(("licence", text), ("attribution", text)),
            *((name, text) for name in ratings),
        ]
    )
    rows = (_row(picture) for picture in pictures)
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _row(picture: Picture) -> dict[str, Any]:
    content, described = picture.content, Description()
    if isinstance(content, FileContent):
        described = read_description(content.read_at_most(_HEADER_BYTES if content.size is None else content.size))
    return {
        **picture.said,
        "caption": picture.caption or described.caption,
        "url": address_of(picture),
        "width": described.width,
        "height": described.height,
        "licence": stated(picture.said, "licence") or described.licence,
        # Where it was fetched from says whose it is where nothing else does.
        "attribution": stated(picture.said, "attribution") or described.attribution or picture.url,
    }


def address_of(picture: Picture) -> str:
    """The address of a picture in a file, or in a part of one."""
    content = picture.content
    if isinstance(content, FileContent) and content.size is None:
        return content.path.absolute().as_uri()
    if not isinstance(content, FileContent | CellContent):
        raise InputError(f"{picture.name} lies in no file.", hint="Give a folder of pictures.")
    return f"{content.path.absolute().as_uri()}#{quote(picture.key.removeprefix(f'{content.path.stem}/'))}"


def at_address(address: str) -> Content | None:
    """What is behind an address: a file, or a part of one; None where it is no address, or nothing is there now."""
    if not is_address(address):
        return None
    name, _, part = address.partition("#")
    path = Path(unquote(name.removeprefix(SCHEME).removeprefix("//")))
    if not part:
        return FileContent(path) if path.is_file() else None
    return _parts_of(path).get(unquote(part)) if path.is_file() else None


@lru_cache(maxsize=256)
def _parts_of(path: Path) -> dict[str, Content]:
    return dict(archived_pictures(path))


def is_address(url: str | None) -> bool:
    """Whether a URL is an address of this machine's files, which means nothing elsewhere."""
    return url is not None and url.startswith(SCHEME)


def iterate_addresses(addresses: Sequence[str | None]) -> Iterator[tuple[int, Content | None]]:
    """What is behind each of several addresses, by its place; those that are none are left out."""
    for place, address in enumerate(addresses):
        if address is not None and is_address(address):
            yield place, at_address(address)
