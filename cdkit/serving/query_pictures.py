"""Pictures as queries: decoded in a process with limits, or fetched through the guard before, then embedded."""

from __future__ import annotations

import base64
import binascii
import tempfile
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.errors import CdkitError, ConfigError, NetworkError
from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.job import FetchSettings, Job, Journal
from cdkit.pictures.picture import BytesContent, open_file
from cdkit.retrieval.inspect import InspectionRules, Inspectors

if TYPE_CHECKING:
    import numpy as np

    from cdkit.core.protocols import ImageEncoder
    from cdkit.fetching.fetch import GuardedOpener
    from cdkit.serving.shared_encoder import SharedEncoder

# An encoder sees 224 to 512 pixels.
LONGEST_SIDE = 1024


class QueryPictures:
    """Embeds pictures that requests bring; one at a time, as every one is a stranger's. Close it at the end.

    allow_hosts: `HOST[:PORT]` that pictures may be fetched from though they are not public.
    """

    def __init__(self, allow_hosts: tuple[str, ...] = ()) -> None:
        self._settings = FetchSettings(threads=1, retries=0, allow_hosts=allow_hosts)
        self._settings.check()
        self._store = tempfile.TemporaryDirectory(prefix="cdkit-pictures-")
        self._inspectors = Inspectors(InspectionRules(max_side=LONGEST_SIDE), Path(self._store.name), workers=1)
        self._towers: dict[str, ImageEncoder] = {}
        self._turn = threading.Lock()

    def close(self) -> None:
        """End the process that decodes, and delete what it wrote."""
        with self._turn, self._inspectors:
            self._store.cleanup()

    def embed_base64(self, text: str, encoder: SharedEncoder) -> np.ndarray:
        """float32 [dimension] of a picture file in base64; raises ConfigError when it is none, or no encoder fits."""
        try:
            content = base64.b64decode(text.partition("base64,")[2] or text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ConfigError("image must be a picture file in base64.") from error
        with self._turn:
            return self._embed(content, encoder)

    def embed_url(self, url: str, encoder: SharedEncoder) -> np.ndarray:
        """The same of the picture at a URL; raises NetworkError when the guard refuses it or nothing comes."""
        with self._turn:
            self._tower(encoder)
            return self._embed(self._fetch(url), encoder)

    def _embed(self, content: bytes, encoder: SharedEncoder) -> np.ndarray:
        tower = self._tower(encoder)
        [(_, inspection)] = self._inspectors.inspect([BytesContent(content)])
        if inspection.reason is not None:
            raise ConfigError(f"The picture cannot be used: {inspection.reason} {inspection.detail}".rstrip() + ".")
        path = Path(self._store.name) / inspection.name
        try:
            vector: np.ndarray = tower.encode_images([open_file(path)])[0]
        finally:
            path.unlink(missing_ok=True)
        return vector

    def _tower(self, encoder: SharedEncoder) -> ImageEncoder:
        """The picture tower of the index's own CLIP; raises ConfigError where it has none in the same space."""
        if encoder.spec not in self._towers:
            from cdkit.encoders.image_towers import load_image_encoder

            problem = f"This index takes no pictures: its encoder {encoder.spec!r} has no picture tower"
            try:
                tower = load_image_encoder(encoder.spec)
            except CdkitError as error:
                raise ConfigError(f"{problem} that can be loaded ({error.message})", hint="Ask by text.") from error
            if tower.dimension != encoder.dimension:
                raise ConfigError(f"{problem} in the space of its captions.", hint="Ask by text.")
            self._towers[encoder.spec] = tower
        return self._towers[encoder.spec]

    def _fetch(self, url: str) -> bytes:
        try:
            with self._opener.open(f"{url.partition('#')[0]}#0") as response:
                content: bytes = response.read()
        except FetchFailure as failure:
            raise NetworkError(f"image_url was not fetched: {failure.kind} {failure.detail}".rstrip()) from failure
        return content

    @cached_property
    def _opener(self) -> GuardedOpener:
        from cdkit.fetching.fetch import GuardedOpener

        return GuardedOpener(Job(self._settings, ()), Journal(Path(self._store.name)))
