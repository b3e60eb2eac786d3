"""The local engine: processes on this machine, one outcome per item even when a worker dies."""

from __future__ import annotations

import ast
import multiprocessing
import os
import sys
import threading
import tokenize
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, ResourceError
from cdkit.core.protocols import Item, Outcome, Value
from cdkit.core.startup import claim_process
from cdkit.core.threads import set_threads, thread_count

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor


class LocalEngine:
    """Runs work in spawned processes (fork is not safe beside DuckDB's and torch's threads)."""

    name = "local"

    def __init__(self, workers: int) -> None:
        self.workers = max(1, workers)

    @property
    def gpus(self) -> int:
        import torch

        return torch.cuda.device_count()

    def map(
        self, work: Callable[[Item], Value], items: Sequence[Item], *, label: str, gpu: bool = False
    ) -> Iterator[Outcome[Item, Value]]:
        """Yield one outcome per item, in order; with one worker or one item it runs in this process."""
        devices = visible_gpus(self.gpus) if gpu else []
        workers = min(self.workers, len(items), len(devices) or self.workers)
        if workers <= 1:
            for item in items:
                yield _attempt(work, item)
            return
        yield from self._map_in_processes(work, items, label, workers, devices)

    def _map_in_processes(
        self, work: Callable[[Item], Value], items: Sequence[Item], label: str, workers: int, devices: Sequence[str]
    ) -> Iterator[Outcome[Item, Value]]:
        pool = _pool(workers, devices, share=max(1, thread_count() // workers))
        try:
            futures = [pool.submit(work, item) for item in items]
            for item, future in zip(items, futures, strict=True):
                outcome = _outcome(item, future)
                if _has_died(outcome):
                    # One dead worker breaks the whole pool; alone in a process, only the guilty item fails again.
                    outcome = _attempt_alone(work, item, label, devices)
                yield outcome
        finally:
            # Reached on an error or ctrl-C too: what has not started is dropped, what runs is stopped.
            for process in list((pool._processes or {}).values()):
                if any(not future.done() for future in futures):
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


def visible_gpus(count: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the `count` GPUs of this process."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (chosen.split(",") if chosen else [str(number) for number in range(count)])[:count]


def _attempt_alone(
    work: Callable[[Item], Value], item: Item, label: str, devices: Sequence[str]
) -> Outcome[Item, Value]:
    with _pool(1, devices, share=thread_count()) as pool:
        outcome = _outcome(item, pool.submit(work, item))
    if _has_died(outcome):
        error = ResourceError(
            f"A worker process of {label!r} died (killed, or out of memory).",
            hint="Run again with fewer --workers; finished shards are kept.",
        )
        return Outcome(item, error=error)
    return outcome


def _pool(workers: int, devices: Sequence[str], *, share: int) -> ProcessPoolExecutor:
    """Processes that use `share` threads each, and a GPU each where `devices` names some."""
    from concurrent.futures import ProcessPoolExecutor

    require_main_guard()
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for device in devices[:workers]:
        free.put(device)
    return ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(free if devices else None, share)
    )


def _start_worker(free: Any, share: int) -> None:
    claim_process()
    set_threads(share)
    if free is not None:
        # Before CUDA is looked at for the first time in this process.
        os.environ["CUDA_VISIBLE_DEVICES"] = free.get()
    end_with_parent()


def end_with_parent() -> None:
    """Workers of a killed run would wait for work for ever: end when the parent process does."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    from multiprocessing.connection import wait

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _attempt(work: Callable[[Item], Value], item: Item) -> Outcome[Item, Value]:
    try:
        return Outcome(item, value=work(item))
    except Exception as error:
        return Outcome(item, error=error)


def _has_died(outcome: Outcome[Item, Value]) -> bool:
    """Whether the worker process is gone, rather than its work having raised an error."""
    from concurrent.futures.process import BrokenProcessPool

    return isinstance(outcome.error, BrokenProcessPool)


def _outcome(item: Item, future: Future[Value]) -> Outcome[Item, Value]:
    try:
        return Outcome(item, value=future.result())
    except Exception as error:
        return Outcome(item, error=error)


_HINT = 'Put what runs stages under `if __name__ == "__main__":`, or use one worker (--workers 1, workers=1).'


def refuse_in_worker() -> None:
    """Raise ConfigError in a worker process that has only come here because it runs the script from its start."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError("A worker process has run the main script from its start.", hint=_HINT)


def require_main_guard() -> None:
    """Raise ConfigError when processes started now would run the main script again from its start.

    To be called before processes are spawned. What stands under any `if` of the script counts as guarded.
    """
    refuse_in_worker()
    main = sys.modules.get("__main__")
    path, module = getattr(main, "__file__", None), str(getattr(getattr(main, "__spec__", None), "name", ""))
    line = _line_of_main(main)
    # A console and `python -c` have no file, and `python -m package` is not run again.
    if path is None or line is None or module.endswith(".__main__"):
        return
    try:
        with tokenize.open(path) as file:
            statements = ast.parse(file.read()).body
    except (OSError, SyntaxError, ValueError):
        return
    under_way = [statement for statement in statements if statement.lineno <= line <= (statement.end_lineno or 0)]
    if under_way and not any(isinstance(statement, ast.If) for statement in under_way):
        raise ConfigError(
            f"{path} starts worker processes in line {line}, and each of them would run the script from its start.",
            hint=_HINT,
        )


def _line_of_main(main: object) -> int | None:
    """The line at which the main script is; None when it is not, or no more, under way."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    line = None
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals is getattr(main, "__dict__", None):
            line = frame.f_lineno
        frame = frame.f_back
    return line
