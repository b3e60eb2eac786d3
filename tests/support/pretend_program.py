"""Stands in for the guarded program in tests of what is around it: no img2dataset, no network, the same files.

A URL's path says what happens to it; the number of the wave's folder is how often there was a wave before.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from cdkit.fetching.job import IMAGES_NAME, SHARD_NAME, Job, Journal

OFFLINE = "gaierror: [Errno -3] Temporary failure in name resolution"
FAILURES = {"offline": ("dns", None), "404": ("http_404", 404), "500": ("http_5xx", 500), "reset": ("reset", None)}


def main() -> None:
    folder = Path.cwd()
    job, journal = Job.read(folder), Journal(folder)
    images = folder / IMAGES_NAME / SHARD_NAME
    images.mkdir(parents=True)
    wave = int(folder.name) if folder.name.isdigit() else 0
    names = [urlsplit(url).path.split("/")[1] for url in job.urls]
    if "crash-at-once" in names:
        sys.exit("ImportError: no such thing")
    if "hungry" in names:
        sys.exit("RuntimeError: can't start new thread")
    for key, (name, url) in enumerate(zip(names, job.urls, strict=True)):
        if name == "skipped":
            continue
        journal.write(key, "started")
        # Servers that know one spelling of a URL only.
        unknown = name in ("plain", "written", "neither") and name != ("written" if "amp;" in url else "plain")
        if unknown or name in FAILURES or (name == "flaky" and wave == 0):
            kind, status = FAILURES["404"] if unknown else FAILURES.get(name, ("timeout", None))
            journal.write(key, kind, status=status, detail=OFFLINE if kind == "dns" else "", retry_after=0.0)
        elif name not in ("hang", "crash", "full", "large"):
            content = url.encode()
            digest = hashlib.sha256(content).hexdigest()
            journal.write(key, "fetched", status=200, sha256=digest, bytes=len(content), final_url=url)
            if name != "swallowed":
                torn = content[:5] if name == "torn" else content
                (images / f"{key:09d}.jpg").write_bytes(torn)
    if "full" in names:
        print("OSError: [Errno 28] No space left on device", flush=True)
    if "large" in names:
        print("OSError: [Errno 27] File too large", flush=True)
    if "crash" in names and wave < 2:
        os._exit(1)
    if "hang" in names and wave == 0:
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / "sleeper").write_text(str(sleeper.pid))
        time.sleep(600)
    (folder / IMAGES_NAME / f"{SHARD_NAME}_stats.json").write_text("{}")


if __name__ == "__main__":
    main()
