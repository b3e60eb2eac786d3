"""The guarded program: img2dataset fetching one batch, in a process of its own.

    python -m cdkit.fetching.program      (in the batch's folder)

Run by cdkit.fetching.batches; img2dataset spawns its workers, which import this module again and so run under the
same guard. Importing it as anything but the main module does nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import types
import urllib.request
from multiprocessing.connection import wait
from pathlib import Path

from cdkit.core.machine import limit_memory
from cdkit.fetching.fetch import GuardedOpener
from cdkit.fetching.guard import install_audit_hook
from cdkit.fetching.job import IMAGES_NAME, PROXY_VARIABLE, URLS_NAME, FetchSettings, Job, Journal

# What img2dataset imports at start and does not use to fetch and store bytes; together it takes seconds.
_EMPTY_MODULES = (
    "wandb",  # img2dataset's logging to a web service: nothing here calls home
    "albumentations",  # resizing and blurring, which are off; its import asks the web for a newer version
    "cv2",  # resizing too: without it nothing here can decode what a server sent
    "fire",  # the command line
    "pandas",  # lists of URLs in JSON
)
_ABSENT_MODULES = (
    "torch",  # webdataset takes it along where it is installed: seconds, and much address space
    "ray",  # img2dataset's own ray distributor, which would leave the guard
)
# Address space of the program beyond what it takes to start, and beyond two bodies for each thread.
MEMORY_BYTES = 1 << 30
STACK_BYTES = 1 << 20
# Of img2dataset's shards; every batch is one.
SHARD_SIZE = 10_000


class _EmptyModule(types.ModuleType):
    """Stands in for a module that is imported and not used; its constants are all 0."""

    def __getattr__(self, name: str) -> int:
        if name.startswith("__"):
            raise AttributeError(name)
        return 0


def install() -> FetchSettings:
    """Put this process under the guard for good; returns the job's settings."""
    folder = Path.cwd()
    install_audit_hook()
    job = Job.read(folder).through(os.environ.get(PROXY_VARIABLE))
    urllib.request.install_opener(GuardedOpener(job, Journal(folder)))
    return job.settings


def bound_memory(settings: FetchSettings) -> None:
    """Bound the address space by what the threads may hold: whatever a server sends, no more can be taken."""
    threading.stack_size(STACK_BYTES)
    limit_memory(MEMORY_BYTES + 2 * settings.threads * settings.max_bytes)


def import_img2dataset() -> None:
    """Import img2dataset without what it does not need here; with everything, where this version needs more."""
    for name in _EMPTY_MODULES:
        sys.modules[name] = _EmptyModule(name)
    # An entry of None makes the import an ImportError, which img2dataset and pyarrow are prepared for.
    for name in _ABSENT_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import img2dataset.main
    except Exception:
        for name in [name for name in sys.modules if name.partition(".")[0] == "img2dataset"]:
            del sys.modules[name]
        for name in (*_EMPTY_MODULES, *_ABSENT_MODULES):
            del sys.modules[name]
        import img2dataset.main  # noqa: F401
    else:
        # pyarrow asks whether pandas is loaded, and would take this one for real.
        del sys.modules["pandas"]


def end_with_parent() -> None:
    """A killed run must not leave fetches behind: the program ends with its parent, a worker with the program."""
    program = multiprocessing.parent_process()

    def watch() -> None:
        if program is not None:
            wait([program.sentinel])
            os._exit(1)
        while os.read(0, 1):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def fetch() -> None:
    """Fetch every URL of the job with img2dataset; images and its own table appear under images/."""
    from img2dataset import download

    # The folder must not be made first, and paths are relative: img2dataset reads odd characters in them as patterns.
    download(
        url_list=URLS_NAME,
        input_format="parquet",
        url_col="url",
        output_folder=IMAGES_NAME,
        output_format="files",
        processes_count=1,
        thread_count=Job.read(Path.cwd()).settings.threads,
        number_sample_per_shard=SHARD_SIZE,
        resize_mode="no",
        disable_all_reencoding=True,
        extract_exif=False,
        compute_hash=None,
        retries=0,
        max_shard_retry=0,
        enable_wandb=False,
        distributor="multiprocessing",
        incremental_mode="incremental",
        # Opt-out headers are read before the body, by the opener.
        disallowed_header_directives=[],
    )


if __name__ in ("__main__", "__mp_main__"):
    end_with_parent()
    chosen = install()
    import_img2dataset()
    bound_memory(chosen)

if __name__ == "__main__":
    fetch()
