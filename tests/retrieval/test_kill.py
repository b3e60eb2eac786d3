"""SIGKILL in the middle of a wave: what is finished stays, nothing goes on in secret, nothing is fetched twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cdkit.core.protocols import Context
from cdkit.core.storage import Folder
from cdkit.fetching.job import FetchSettings, read_wave
from cdkit.retrieval.accept import Limits
from cdkit.retrieval.download import download
from tests.retrieval.conftest import candidates_of
from tests.support.accept_all import AcceptAll
from tests.support.hashing_encoder import HashingEncoder
from tests.support.hostile_server import HostileServer, picture
from tests.support.photo_pool import PoolPicture, index_of
from tests.support.photo_pool import picture as photo

URLS = 60
RUN = """
import sys
from pathlib import Path
from cdkit.engines.local import LocalEngine
from cdkit.core.protocols import Context
from cdkit.retrieval.accept import Limits
from cdkit.retrieval.download import download
from cdkit.fetching.job import FetchSettings
from cdkit.core.storage import Folder
from tests.support.accept_all import AcceptAll
from tests.retrieval.conftest import candidates_of
place, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
urls = [f"http://{place}/slow/{number}" for number in range(count)]
settings = FetchSettings(allow_hosts=(place,))
context, limits = Context(LocalEngine(1)), Limits(count)
download(candidates_of(urls), Folder(folder), context, limits=limits, settings=settings, judge=AcceptAll())
"""


def test_a_killed_download_goes_on_and_fetches_nothing_twice(tmp_path: Path, context: Context) -> None:
    with HostileServer() as server:
        command = [sys.executable, "-c", RUN, server.place, str(tmp_path), str(URLS)]
        running = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        while len(server.hits) < URLS // 3:
            assert running.poll() is None
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        time.sleep(1.0)
        hits = dict(server.hits)
        time.sleep(1.0)
        assert dict(server.hits) == hits, "the killed run still fetches"
        finished = {attempt.url for attempt in read_wave(tmp_path / "waves" / "00000")}
        assert 0 < len(finished) < URLS

        urls = [server.url(f"slow/{number}") for number in range(URLS)]
        settings = FetchSettings(allow_hosts=(server.place,))
        limits = Limits(URLS)
        done = download(
            candidates_of(urls), Folder(tmp_path), context, limits=limits, settings=settings, judge=AcceptAll()
        )
        assert [candidate.url for candidate, _ in done.accepted] == urls
        assert all(image.content.read() == picture(f"/slow/{place}") for place, (_, image) in enumerate(done.accepted))
        twice = {path for path, number in server.hits.items() if number > 1}
        assert not {server.url(path.lstrip("/")) for path in twice} & finished
        # Nothing but what was on its way at the kill was asked for again.
        assert len(twice) <= settings.per_host * 2


RETRIEVE = """
import sys
from cdkit import encoders
from cdkit.cli.app import execute_command
from tests.support.hashing_encoder import HashingEncoder
if __name__ == "__main__":
    encoders.load_text_encoder = lambda *_, **__: HashingEncoder(threshold=0.6)
    sys.exit(execute_command(["retrieve", *sys.argv[1:]]))
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a finished set by its name; the manifest without its clocks."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = json.loads(found.pop("manifest.json"))
    del manifest["run"], manifest["details"]["clocks"], found[".lock"]
    return found | {"manifest": json.dumps(manifest).encode()}


def test_a_killed_retrieval_gives_the_same_set_byte_for_byte(tmp_path: Path) -> None:
    with HostileServer() as server:
        rows = []
        for number in range(70):
            server.files[f"/file/{number}"] = photo(number // 2)
            dead = number % 5 == 0
            place = server.url(f"404/{number}" if dead else f"file/{number}")
            rows.append(PoolPicture(f"a photo of a dog {number}", place))
        index = index_of(tmp_path / "index", rows, HashingEncoder(threshold=0.6))
        (tmp_path / "run.py").write_text(RETRIEVE)
        command = [sys.executable, str(tmp_path / "run.py"), str(index), "a photo of a dog", "--count", "30"]
        command += ["--allow-host", server.place, "--also-write", "webdataset", "--retries", "0", "--downloads", "4"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

        whole, killed = tmp_path / "whole", tmp_path / "killed"
        assert subprocess.run([*command, "--out", str(whole)], env=environment, check=False).returncode in (0, 5)
        # Killed while it fetches, and while it writes.
        for moment in ("building/waves/*/images/*/*", "images/part-*"):
            running = subprocess.Popen([*command, "--out", str(killed)], env=environment)
            while running.poll() is None and not any(killed.glob(moment)):
                time.sleep(0.005)
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
            assert moment.startswith("images") or not (killed / "manifest.json").exists()
        assert subprocess.run([*command, "--out", str(killed)], env=environment, check=False).returncode in (0, 5)
        assert contents(killed) == contents(whole)
