"""SIGKILL in the middle of a wave: what is finished stays, nothing goes on in secret, nothing is fetched twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cdkit.protocols import Context
from cdkit.retrieval.acceptance import Limits
from cdkit.retrieval.download import download
from cdkit.retrieval.fetch_job import FetchSettings
from cdkit.retrieval.wave_outcomes import read_wave
from cdkit.storage import Folder
from tests.retrieval.conftest import candidates_of
from tests.support.hostile_server import HostileServer, picture

URLS = 60
RUN = """
import sys
from pathlib import Path
from cdkit.engines.local import LocalEngine
from cdkit.protocols import Context
from cdkit.retrieval.acceptance import Limits
from cdkit.retrieval.download import download
from cdkit.retrieval.fetch_job import FetchSettings
from cdkit.storage import Folder
from tests.retrieval.conftest import candidates_of
place, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
urls = [f"http://{place}/slow/{number}" for number in range(count)]
settings = FetchSettings(allow_hosts=(place,))
download(candidates_of(urls), Folder(folder), Context(LocalEngine(1)), limits=Limits(count), settings=settings)
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
        done = download(candidates_of(urls), Folder(tmp_path), context, limits=limits, settings=settings)
        assert [candidate.url for candidate, _ in done.accepted] == urls
        assert all(image.content.read() == picture(f"/slow/{place}") for place, (_, image) in enumerate(done.accepted))
        twice = {path for path, number in server.hits.items() if number > 1}
        assert not {server.url(path.lstrip("/")) for path in twice} & finished
        # Nothing but what was on its way at the kill was asked for again.
        assert len(twice) <= settings.per_host * 2
