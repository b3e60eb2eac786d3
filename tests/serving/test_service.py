"""The service as a whole: names, the queue that sends requests away, figures, the command, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from cdkit.core.errors import ConfigError
from cdkit.serving import endpoints
from cdkit.serving.catalogue import Catalogue, open_catalogue
from cdkit.serving.work_queue import BusyError, WorkQueue
from tests.cli.running import ran
from tests.support.hashing_encoder import HashingEncoder
from tests.support.served import Running, Service
from tests.support.small_index import grammar_captions, make_index


def test_a_name_means_one_index(tmp_path: Path) -> None:
    encoder = HashingEncoder(32)
    first, second = (make_index(tmp_path / name, grammar_captions(9, seed), encoder) for seed, name in enumerate("ab"))
    catalogue = open_catalogue([first], {"laion_400m": second}, encoder=encoder)
    assert [catalogue.named(name)[0] for name in ("a", "laion_400m", "laion5B-L-14", None, "")] == [
        *("a", "laion_400m", "a", "a", "a")
    ]
    with pytest.raises(ConfigError, match="no index 'c'"):
        catalogue.named("c")
    assert Catalogue({"a": catalogue.indexes["a"]}).named("whatever")[0] == "a"
    assert catalogue.indexes["a"].encoder is catalogue.indexes["laion_400m"].encoder
    with pytest.raises(ConfigError, match="called 'a'"):
        open_catalogue([first], {"a": second}, encoder=encoder)


def test_a_full_queue_says_when_to_come_again() -> None:
    async def overrun() -> tuple[list[Any], int]:
        queue, gate = WorkQueue(threads=1, longest=3), threading.Event()
        queue.mean_seconds = 4.0
        running = [asyncio.create_task(queue.run(lambda: gate.wait(30))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as refused:
            await queue.run(lambda: True)
        gate.set()
        done = await asyncio.gather(*running)
        assert await queue.run(lambda: "room again") == "room again"
        queue.close()
        return done, refused.value.retry_after

    assert asyncio.run(overrun()) == ([True] * 3, 12)


def test_too_many_requests_are_answered_with_429(index_folder: Path) -> None:
    made = Service(open_catalogue([index_folder], {}), threads=1, longest=2)
    with made.run() as service:
        params = {"q": "a star"}
        # As if two requests were under way.
        made.queue.pending = 2
        refused = service.client.get("/search", params=params)
        made.queue.pending = 0
        assert service.client.get("/search", params=params).status_code == 200
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "busy"


def test_without_its_extra_the_command_names_it(index_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for command in ("serve", "review"):
        refused = ran([command, index_folder, "--format", "json"])
        assert refused.code == 4
        assert "[serve]" in refused.data["error"]["hint"]


def test_figures_are_prometheus_text(service: Running) -> None:
    service.client.get("/search", params={"q": "a star"})
    service.client.get("/search")
    lines = service.client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert int(values['cdkit_requests_total{path="/search",status="200"}']) >= 1
    assert int(values['cdkit_requests_total{path="/search",status="400"}']) >= 1
    assert (
        values['cdkit_request_seconds_bucket{path="/search",le="+Inf"}']
        == (values['cdkit_request_seconds_count{path="/search"}'])
    )
    assert float(values["cdkit_encoder_batches"]) >= 1


def test_the_command_refuses_the_network_without_a_token(index_folder: Path, tmp_path: Path) -> None:
    refused = ran(["serve", index_folder, "--host", "0.0.0.0", "--format", "json"])
    assert refused.code == 2
    assert "--token" in refused.data["error"]["hint"]
    assert ran(["serve"]).code == 2
    assert ran(["serve", tmp_path / "nowhere"]).code == 3
    assert ran(["serve", "--name", "laion_400m", index_folder]).code == 2


@pytest.fixture
def started(index_folder: Path) -> Iterator[subprocess.Popen[str]]:
    words = ["serve", str(index_folder), "--name", f"laion_400m={index_folder}", "--port", "0", "--format", "json"]
    with subprocess.Popen([sys.executable, "-m", "cdkit", *words], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_the_command_serves_until_it_is_told_to_stop(started: subprocess.Popen[str]) -> None:
    stdout: IO[str] = started.stdout  # type: ignore[assignment]
    told = json.loads(stdout.readline())
    assert set(told["indexes"]) == {"scenes", "laion_400m"}
    with httpx.Client(base_url=told["url"], trust_env=False, timeout=60) as client:
        body = {"text": "a star", "indice_name": "laion_400m", "num_images": 3}
        assert len(client.post("/knn-service", content=json.dumps(body)).json()) == 3
        taken = ran(["serve", "--name", "x=y", "--port", "1"])
        assert taken.code == 3
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait(30) == 0
    assert stdout.read() == ""


def test_pictures_that_do_not_come_hold_up_no_search(index_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        made = Service(open_catalogue([index_folder], {}), threads=1, allow_hosts=(place,))
        with made.run() as service, ThreadPoolExecutor(1) as pool:
            service.client.get("/search", params={"q": "a star"})
            body = json.dumps({"image_url": f"http://{place}/x.png"})
            waiting = pool.submit(service.client.post, "/knn-service", content=body)
            connection, _ = silent.accept()
            with connection:
                # One thread searches, and the picture's server says nothing.
                answer = httpx.get(f"{service.url}search", params={"q": "a ball"}, timeout=5, trust_env=False)
                assert not waiting.done()
            assert waiting.result(30).status_code == 502
    assert answer.status_code == 200


def test_a_body_that_does_not_arrive_is_given_up(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "BODY_SECONDS", 0.2)
    host = httpx.URL(service.url).netloc
    with socket.create_connection((httpx.URL(service.url).host, httpx.URL(service.url).port), timeout=10) as client:
        client.sendall(b"POST /knn-service HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 100\r\n\r\n{")
        told = b""
        while block := client.recv(1 << 16):
            told += block
    assert told.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive" in told
