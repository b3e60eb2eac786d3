"""What a picture's Content Credentials say of training: the assertions of C2PA and CAWG, where they can be read.

C2PA specification 1.3 and CAWG Training and Data Mining Assertion 1.1: `notAllowed` forbids, and so does
`constrained`, whose conditions nobody here can meet. They are read by c2pa-python where it is installed (extra
`c2pa`). Whether the signature is trusted does not matter: to ask not to be trained on takes no proof.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

ASSERTIONS = ("c2pa.training-mining", "cawg.training-mining")
USES = frozenset(f"{owner}.{use}" for owner in ("c2pa", "cawg") for use in ("ai_generative_training", "ai_training"))
FORBIDDING = frozenset({"notAllowed", "constrained"})
# No file with credentials is without this: it is the name of the box that holds them.
_MARK = b"c2pa"
# Nothing is asked from anybody's server: neither a manifest that lies elsewhere nor whether a certificate holds.
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": False}}


def can_read_credentials() -> bool:
    """Whether c2pa-python is installed."""
    return _library() is not None


def forbidden_training(content: bytes) -> str | None:
    """What an image file's credentials forbid, as `cawg.ai_training: notAllowed`; None where they say nothing of it.

    Also what the credentials of pictures say that went into it.
    """
    library = _library() if _MARK in content else None
    if library is None:
        return None
    try:
        context = library.Context(library.Settings.from_dict(_OFFLINE))
        with library.Reader(None, io.BytesIO(content), context=context) as reader:
            store = json.loads(reader.json())
        return next(_forbidden(store), None)
    except (library.C2paError, ValueError, AttributeError, TypeError):
        # Damaged, or of a kind that the library does not know: nothing is said.
        return None


def _forbidden(store: Mapping[str, Any]) -> Iterator[str]:
    for manifest in store.get("manifests", {}).values():
        for assertion in manifest.get("assertions", ()):
            # A second assertion of a label is called `label__1`.
            if str(assertion.get("label")).partition("__")[0] in ASSERTIONS:
                for use, entry in assertion["data"].get("entries", {}).items():
                    if use in USES and entry.get("use") in FORBIDDING:
                        yield f"{use}: {entry['use']}"


@cache
def _library() -> Any:
    try:
        return import_module("c2pa")
    except ImportError:
        return None
