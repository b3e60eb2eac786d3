"""Others' collections against our readers and guards: nothing crashes, hangs, is run, or gets through.

The short form takes a part of each; `-m slow` all of it, and fetches it where it is not there.
"""

from __future__ import annotations

import ipaddress
import random
import time
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cdkit.core.config import parse_config
from cdkit.core.errors import CdkitError
from cdkit.embedded.pool import write_pool
from cdkit.execute import execute
from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.fetch import GuardedOpener
from cdkit.fetching.urls import host_of, parse_url
from cdkit.pictures.decoding import Undecodable, decode
from cdkit.retrieval.config import RetrieveConfig
from cdkit.training.config import TrainConfig
from tests.faults.audit_watch import AuditWatch
from tests.faults.corpora import GUARDS, addresses, places, sdist
from tests.faults.counts import count
from tests.faults.scenarios import stage
from tests.fetching.test_fetch import opener
from tests.support.hostile_server import Canary, HostileServer

LONGEST = 20.0
PART = 60


def some(items: list[Any], every: bool) -> list[Any]:
    return items if every or len(items) <= PART else random.Random(0).sample(items, PART)


both_forms = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["some", "all"]
)


# Pictures


@both_forms
def test_pillows_own_pictures_through_the_decoder(every: bool) -> None:
    folder = sdist("pillow", fetch=every) / "Tests" / "images"
    outcomes: Counter[str] = Counter()
    for path in some(sorted(path for path in folder.rglob("*") if path.is_file()), every):
        clock = time.process_time()
        try:
            decoded = decode(path.read_bytes(), 256)
            outcomes["decoded"] += 1
            assert decoded.picture.mode == "RGB"
            assert 0 < max(decoded.picture.size) <= 256
        except Undecodable as error:
            outcomes[error.reason] += 1
        assert time.process_time() - clock < LONGEST, path
    kinds = {"decoded": outcomes["decoded"], "refused": outcomes.total() - outcomes["decoded"]}
    count("Pillow's pictures through the decoder", kinds, reasons=outcomes)
    assert outcomes["decoded"] > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_pillows_own_pictures_as_photos_and_as_images(tmp_path: Path) -> None:
    """`retrieve --images` counts what it leaves out, `train` names a picture it cannot take, and takes the rest."""
    files = sorted(path for path in (sdist("pillow", fetch=True) / "Tests" / "images").rglob("*") if path.is_file())
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, path in enumerate(files):
        copy = folder / f"{number:04d}-{path.name}"
        copy.write_bytes(path.read_bytes())
        copy.with_suffix(".txt").write_text(f"a photo of a star number {number}")
    write_pool(tmp_path / "pool", rows=60)
    stage("index", captions=[str(tmp_path / "pool")], workers=1, threads=1).run(tmp_path / "index")
    values = {"index": str(tmp_path / "index"), "images": str(folder), "prompts": ["a photo of a star"], "count": 2000}
    values |= {"min_similarity": -1, "min_side": 1, "workers": 1, "threads": 1, "max_aspect_ratio": 1e9}
    found = execute("retrieve", parse_config(RetrieveConfig, values), tmp_path / "set")
    counts = found.manifest.counts
    left_out = {"kept": counts["kept"], "refused": counts["in"] - counts["kept"]}
    count("Pillow's pictures in retrieve --images", left_out, reasons=counts)
    assert found.manifest.counts["kept"] > 100
    trained = {"concepts": {"star": str(folder)}, "steps": 1, "batch_size": 1, "device": "cpu", "enlarge": True}
    refused = 0
    while True:
        try:
            execute("train", parse_config(TrainConfig, trained), tmp_path / "tuned")
            break
        except CdkitError as error:
            named = [path for path in folder.iterdir() if path.name in error.message]
            assert named, error
            assert error.hint
            refused += len(named)
            for path in named:
                path.unlink()
    count("Pillow's pictures as photos in train", {"taken": len(files) - refused, "refused": refused})


# Addresses

SPELLINGS = """
127.0.0.1 127.1 127.0.1 0 0.0.0.0 0x7f.1 0x7f000001 0177.0.0.1 017700000001 2130706433 127.000.000.001 127.0.0.1.
[::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [64:ff9b::7f00:1] [2002:7f00:1::]
[fe80::1%25eth0] [fd00::1] [fc00::] [ff02::1] 10.0.0.1 172.16.0.1 192.168.0.1 169.254.169.254 100.64.0.1 198.18.0.1
192.0.0.1 192.0.2.1 198.51.100.1 203.0.113.1 224.0.0.1 240.0.0.1 255.255.255.255 ①②⑦.⓪.⓪.① 127。0。0。1 １２７.0.0.1
localhost LOCALHOST localhost. localtest.me 127.0.0.1.nip.io a@127.0.0.1 127.0.0.1@example.com example.com@127.0.0.1
example.com:80@127.0.0.1 127.0.0.1:80 127.0.0.1:22 127.0.0.1:443 127.0.0.1%00.example.com 127.0.0.1%2f.example.com
127.0.0.1#@example.com 127.0.0.1?@example.com 127.0.0.1\\@example.com example.com\\@127.0.0.1 instance-data
metadata.google.internal 3232235521 0xc0a80001 0xA9FEA9FE 2852039166 425.510.425.510 7147006462 0251.0376.0251.0376
[::ffff:a9fe:a9fe]
"""


class Dialled(AuditWatch):
    """Sees every connection that is about to be made, and lets those to this machine's own server through alone."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.addresses: list[str] = []
        super().__init__()

    def happened(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            host, port = arguments[1][:2]
            if f"{host}:{port}" != self.place:
                self.addresses.append(str(host))
                raise ConnectionRefusedError(f"{host} is not dialled in a test")


def is_private(address: str) -> bool:
    """By Python's own tables, also for an IPv4 address that stands in an IPv6 one."""
    place = ipaddress.ip_address(address.partition("%")[0])
    inner = [place, *(getattr(place, name, None) for name in ("ipv4_mapped", "sixtofour"))]
    return any(each is not None and (not each.is_global or each.is_multicast) for each in inner)


# Some other machine's, which no test dials.
PUBLIC = "93.184.215.14"


@both_forms
def test_addresses_that_other_guards_were_tried_with(every: bool, tmp_path: Path) -> None:
    """Asked for, redirected to, and as what a name turns out to be, alone and beside a public address."""
    urls, numbers = [f"http://{spelling}/" for spelling in SPELLINGS.split()], ["127.0.0.1", "10.0.0.1", "fe80::1"]
    if every:
        folders = [sdist(name, fetch=True) for name in GUARDS]
        urls += [url for folder in folders for url in addresses(folder)]
        numbers += [number for folder in folders for number in places(folder) if is_private(number)]
        assert len(numbers) > 50
    # Whatever is a name of its own leads here.
    names: dict[str, list[list[str]]] = {host: [["127.0.0.1"]] for url in urls if (host := _host(url))}
    named = {f"alone-{place}.example": [[number]] for place, number in enumerate(dict.fromkeys(numbers))}
    named |= {f"beside-{place}.example": [[PUBLIC, number]] for place, number in enumerate(dict.fromkeys(numbers))}
    with HostileServer() as server, Canary("127.0.0.1", 0) as canary:
        guarded = opener(tmp_path, server, deadline=1.0, names=names | named)
        dialled = Dialled(server.place)
        redirected = [server.url("redirect?to=") + urllib.parse.quote(url, safe="") for url in dict.fromkeys(urls)]
        for what, asked in (
            ("asked for", list(dict.fromkeys(urls))),
            ("redirected to", redirected),
            ("as what a name turns out to be", [f"http://{name}/" for name in named]),
        ):
            outcomes: Counter[str] = Counter()
            for url in asked:
                clock = time.monotonic()
                with dialled.watching():
                    outcomes[kind_of(guarded, url)] += 1
                assert time.monotonic() - clock < 5, url
            fetched = outcomes["fetched"]
            assert fetched == 0
            count(f"spellings of addresses, {what}", {"refused": len(asked), "fetched": fetched}, reasons=outcomes)
        assert not [address for address in dialled.addresses if is_private(address)]
        assert canary.connections == 0


def kind_of(guarded: GuardedOpener, url: str) -> str:
    try:
        with guarded.open(f"{url}#0") as response:
            response.read()
            return "fetched"
    except FetchFailure as failure:
        return failure.kind


def _host(url: str) -> str:
    try:
        return parse_url(url).host
    except FetchFailure:
        return host_of(url)
