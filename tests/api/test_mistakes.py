"""Whatever a call is given by mistake, it ends with an error of ours that names it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cdkit
from cdkit.core.errors import ConfigError

# Every call is typed; these are what somebody without a type checker writes.
calls: Any = cdkit
PHOTO = Image.new("RGB", (8, 8), "red")

MISTAKES: dict[str, Callable[[], object]] = {
    "int is no mapping": lambda: calls.train(3),
    "str is no mapping": lambda: calls.train("photos/dog"),
    "list is no mapping": lambda: calls.train({"dog": [PHOTO]}, regularization=["sets/dog"]),
    r"Give \{'dog': '<new1>', …\}": lambda: calls.train({"dog": [PHOTO]}, token="<new1>"),
    r"Give \{'dog': 'animal', …\}": lambda: calls.train({"dog": [PHOTO]}, categories=["animal"]),
    "token.dog: input should be a valid string": lambda: calls.train({"dog": [PHOTO]}, token={"dog": 3}),
    "There are no photos in the list": lambda: calls.train({"dog": []}),
    "A mapping is no list of photos": lambda: calls.train({"dog": {"a": PHOTO}}),
    "NoneType is no list of photos": lambda: calls.train({"dog": None}),
    "steps: input should be a valid integer": lambda: calls.train({"dog": [PHOTO]}, steps=np.ones(3)),
    "int is no text": lambda: calls.sample(prompts=4),
    "NoneType is no text": lambda: calls.sample(prompts=None),
    "int is no path": lambda: calls.sample(prompts="a dog", out=3),
    "A folder's name is empty": lambda: calls.sample(prompts="a dog", out=""),
    r"progress: True, False, or a function of an event \(got array": lambda: calls.sample(
        prompts="a dog", progress=np.zeros(3)
    ),
    "list is no mapping.": lambda: calls.evaluate("samples", concepts=["dog"]),
    "NoneType is no path": lambda: calls.make_report(None),
    "float is no path": lambda: calls.load(1.5),
    "bytes is no path": lambda: calls.load(b"folder"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_what_no_call_takes_is_named(message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        MISTAKES[message]()
    assert re.search(message, f"{raised.value} {raised.value.hint}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": 3}, "text: input should be a valid string"),
        ({"text": ["a star"]}, "text: input should be a valid string"),
        ({"text": "a star", "limit": 2.5}, "limit: input should be a valid integer"),
        ({"text": "a star", "threshold": "high"}, "threshold: input should be a valid number"),
        ({"text": "a star", "encoder": 4}, "encoder: input should be a valid string"),
    ],
)
def test_a_search_names_what_it_cannot_take(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        calls.search(tmp_path, **arguments)
