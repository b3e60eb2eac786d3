"""The whole download against the hostile server, img2dataset doing the fetching: every candidate ends exactly once."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cdkit.core.protocols import Context
from cdkit.core.storage import Folder
from cdkit.fetching.batches import wave_bound
from cdkit.fetching.failures import FAILURE_KINDS
from cdkit.fetching.job import LOG_NAME, USER_AGENT, FetchSettings
from cdkit.retrieval.accept import Limits
from cdkit.retrieval.download import download
from tests.retrieval.conftest import candidates_of
from tests.support.accept_all import AcceptAll, failures_of
from tests.support.hostile_server import Canary, HostileServer, SilentListener, picture

PRIVATE = "127.0.0.9"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n\r\n"


def hostile_urls(server: HostileServer, canary: Canary, stalled_tls: str, bad_tls: str) -> dict[str, str]:
    """URL → how it must end: `fetched` or a failure kind."""
    port = server.place.split(":")[1]
    redirect = server.url("redirect?to=")
    return {
        **{server.url(f"ok/{number}"): "fetched" for number in range(20)},
        server.url("ok/grüße aus köln.jpg"): "fetched",
        server.url("404"): "http_404",
        server.url("403"): "http_403",
        server.url("410"): "http_4xx",
        server.url("429"): "fetched",
        server.url("429-long"): "http_4xx",
        server.url("500-then-ok"): "fetched",
        server.url("503"): "http_5xx",
        server.url("reset"): "reset",
        server.url("garbage"): "reset",
        server.url("never"): "timeout",
        server.url("drip-body"): "timeout",
        server.url("drip-headers"): "timeout",
        f"https://{stalled_tls}/stall": "timeout",
        f"https://{bad_tls}/ok/self-signed": "tls",
        "http://stalled.test/dns": "timeout",
        "http://nowhere.invalid/": "dns",
        server.url("endless"): "too_large",
        server.url("huge"): "too_large",
        server.url("long"): "fetched",
        server.url("short"): "reset",
        server.url("empty"): "reset",
        server.url("loop"): "redirect",
        server.url("chain/5"): "fetched",
        server.url("chain/6"): "redirect",
        f"{redirect}http://{PRIVATE}/": "blocked_address",
        f"{redirect}http://[::1]/": "blocked_address",
        f"{redirect}http://private.test/": "blocked_address",
        f"{redirect}file:///etc/passwd": "scheme",
        f"{redirect}http://127.0.0.1:{canary.port}/": "port",
        f"{redirect}http://{PRIVATE}:{canary.port}/": "port",
        f"{redirect}http://2130706442/": "blocked_address",  # 127.0.0.10 as one number
        f"http://private.test:{port}/ok/other-name": "port",
        f"http://localhost:{port}/ok/other-name": "port",
        "http://private.test/": "blocked_address",
        # Allowed by name; its second answer would be the canary's address.
        f"http://changing.test:{port}/redirect?to=http://changing.test:{port}/ok/changing": "fetched",
        server.url("gzip"): "fetched",
        server.url("gzip-bomb"): "too_large",
        server.url("wire/chunk-of-minus-one"): "protocol",
        server.url("wire/early-hints"): "fetched",
        server.url("wire/compress"): "encoding",
        server.url("noai"): "opt_out",
        server.url("noai-for-others"): "fetched",
        server.url("tdm"): "opt_out",
        server.url("plain?a=1&amp;b=2"): "fetched",
        server.url("plain?a=1&#038;b=2"): "fetched",
        server.url("plain?a=1&amp;amp;b=2"): "fetched",
        server.url("written?a=1&amp;b=2"): "fetched",
        server.url("404?a=1&amp;b=2"): "http_404",
        server.url("ok/right-hash"): "fetched",
        server.url("ok/wrong-hash"): "hash_mismatch",
        "file:///etc/passwd": "scheme",
        "data:image/png;base64,AAAA": "scheme",
        "ftp://127.0.0.1/": "scheme",
        "": "scheme",
        "http://127.0.0.1:22/": "port",
        "http://exa mple/": "dns",
        "http://[photo.jpg": "dns",
        "http://a.test:port/": "port",
        "http:////a.test/": "dns",
    }


def test_every_candidate_ends_once_and_the_canary_is_never_asked(
    tmp_path: Path, context: Context, certificate: Path
) -> None:
    with (
        HostileServer() as server,
        HostileServer(certificate=certificate) as bad_tls,
        SilentListener("127.0.0.1") as silent,
        Canary(PRIVATE) as canary,
        Canary(PRIVATE, int(server.place.split(":")[1])) as same_port,
    ):
        server.wire = {
            "/wire/chunk-of-minus-one": (CHUNKED + b"-1\r\n", b"." * 65536),
            "/wire/early-hints": (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + picture("/early"), b""),
            "/wire/compress": (OK[:-2] + b"Content-Encoding: compress\r\n\r\n\x1f\x9d", b""),
        }
        port = server.place.split(":")[1]
        expected = hostile_urls(server, canary, f"127.0.0.1:{silent.port}", bad_tls.place)
        urls = list(expected)
        md5 = {
            urls.index(server.url("ok/right-hash")): hashlib.md5(picture("/ok/right-hash")).hexdigest(),
            urls.index(server.url("ok/wrong-hash")): "0" * 32,
        }
        settings = FetchSettings(
            threads=16,
            deadline=4.0,
            max_bytes=1 << 20,
            allow_hosts=(server.place, bad_tls.place, f"127.0.0.1:{silent.port}", f"changing.test:{port}"),
            names={
                "stalled.test": [],
                "private.test": [[PRIVATE]],
                "changing.test": [["127.0.0.1"], [PRIVATE]],
            },
        )
        candidates = candidates_of(urls, md5)
        limits = Limits(wanted=len(urls))
        done = download(
            candidates, Folder(tmp_path / "fetch"), context, limits=limits, settings=settings, judge=AcceptAll()
        )
        hits = dict(server.hits)
        assert canary.connections == same_port.connections == 0

        ended = {candidate.url: "fetched" for candidate, _ in done.accepted}
        ended |= {candidate.url: failure.kind for candidate, failure in done.failed}
        assert len(done.accepted) + len(done.failed) == len(urls)
        assert ended == expected
        assert set(failures_of(done)) <= set(FAILURE_KINDS)
        assert all(end.seconds <= end.bound + 5 for end in done.waves)
        assert {end.cause for end in done.waves} == {"finished"}
        assert all(end.bound == wave_bound(end.urls, 16, 4.0) for end in done.waves)
        contents = {candidate.url: image.content.read() for candidate, image in done.accepted}
        assert contents[server.url("ok/3")] == picture("/ok/3")
        assert contents[server.url("gzip")] == picture("/gzip")
        assert all(hashlib.sha256(image.content.read()).hexdigest() == image.sha256 for _, image in done.accepted)
        assert server.agents == {USER_AGENT}
        # Only what can change is asked again.
        assert hits["/404"] == hits["/noai"] == hits["/ok/1"] == hits["/429-long"] == 1
        assert hits["/404?a=1&b=2"] == hits["/404?a=1&amp;b=2"] == 1
        assert hits["/429"] == hits["/500-then-ok"] == hits["/503"] == hits["/drip-headers"] == 2

        again = download(
            candidates, Folder(tmp_path / "fetch"), context, limits=limits, settings=settings, judge=AcceptAll()
        )
        assert dict(server.hits) == hits
        assert [candidate for candidate, _ in again.accepted] == [candidate for candidate, _ in done.accepted]
        assert failures_of(again) == failures_of(done)
        log = "".join(path.read_text() for path in (tmp_path / "fetch").rglob(LOG_NAME))
        assert "albumentations" not in log
        assert "wandb" not in log
