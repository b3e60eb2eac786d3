"""`cdkit publish` dies at every request to the hub, before and after it: nothing is seen half, nothing is sent twice.

What it has done is kept by the hub alone, so that requests are to it what effects on the disk are to other commands.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import _http

from cdkit.encoders import load_text_encoder
from tests.cli.running import ran
from tests.faults.counts import count
from tests.support.fake_hub import FakeHub, hub_of_this_process
from tests.support.made_sets import made_set, rated
from tests.support.pretend_run import write_trained
from tests.support.small_index import grammar_captions, make_index

SOME = 4
KINDS = ("set", "delta", "index")


class DiedError(BaseException):
    """Stands for the end of the process: nothing catches it."""


@contextmanager
def dying(alive: int, *, answered: bool) -> Iterator[list[str]]:
    """Die when so many requests have been answered: before the next is sent, or before its answer is seen.

    Gives the requests that were made.
    """
    made: list[str] = []

    def client() -> Any:
        one = _http.default_client_factory()
        send = one.send

        def sent(request: Any, **options: Any) -> Any:
            made.append(f"{request.method} {request.url.path}")
            if len(made) > alive:
                if answered and len(made) == alive + 1:
                    send(request, **options).read()
                raise DiedError
            return send(request, **options)

        one.send = sent
        return one

    _http.set_client_factory(client)
    try:
        yield made
    finally:
        _http.set_client_factory(_http.default_client_factory)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind."""
    root = tmp_path_factory.mktemp("published")
    encoder = load_text_encoder("embedded", precision="fp32")
    return {
        "set": rated(made_set(root / "set")),
        "delta": write_trained(root / "delta"),
        "index": rated(
            make_index(root / "index", grammar_captions(60), encoder, shards=2), "UNLIKELY", rows="image_rows"
        ),
    }


@contextmanager
def hub_for(folder: Path) -> Iterator[FakeHub]:
    with pytest.MonkeyPatch.context() as patched, hub_of_this_process(patched, folder / "hub-cache") as hub:
        yield hub


def seen(hub: FakeHub) -> dict[str, bytes]:
    """What the repository shows."""
    [repository] = hub.repositories.values() or [None]
    return {} if repository is None else {k: v for k, v in repository.files.items() if k != ".gitattributes"}


def publish(folder: Path) -> None:
    done = ran(["publish", folder, "--repo", "me/made"])
    assert done.code == 0, done.err


def whole(folder: Path, scratch: Path) -> tuple[dict[str, bytes], int]:
    """What a publication that nothing befalls shows, and how many requests it makes."""
    with hub_for(scratch) as hub, dying(10**6, answered=False) as made:
        publish(folder)
        return seen(hub), len(made)


def die_and_go_on(folder: Path, scratch: Path, alive: int, answered: bool, files: dict[str, bytes]) -> None:
    with hub_for(scratch) as hub:
        with pytest.raises(DiedError), dying(alive, answered=answered):
            publish(folder)
        assert seen(hub) in ({}, files), "all or nothing is seen"
        publish(folder)
        assert seen(hub) == files
        [repository] = hub.repositories.values()
        assert len(repository.commits) == 2, "the hub's own, and one"
        sent = Counter(request for request in hub.requests if request.startswith("PUT "))
        assert max(sent.values()) == 1, "what had arrived is not sent again"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_request_may_be_the_last(published: dict[str, Path], tmp_path: Path, kind: str, every: bool) -> None:
    files, requests = whole(published[kind], tmp_path / "whole")
    assert len(files) > 2
    points = [(alive, answered) for alive in range(requests) for answered in (False, True)]
    for alive, answered in points if every else random.Random(kind).sample(points, SOME):
        die_and_go_on(published[kind], tmp_path / f"{alive}-{answered}", alive, answered, files)
    count(f"deaths at a request of publish, {kind}", {"survived": len(points) if every else SOME}, requests=requests)
