"""Captions read and tokenised ahead of the encoder, in processes of their own where that is worth starting them."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.errors import ResourceError
from cdkit.core.shards import open_shard, require_keys

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from cdkit.encoders.tokenizing import Tokenizer, Tokens

IMPORT_AGAIN = "Import the captions again with --force."
# Captions of one message from a tokeniser: a second of work, a megabyte of tokens.
PIECE_ROWS = 1 << 14
# A process that tokenises starts in seconds, in which one that has started does this many.
WORTH_PROCESSES = 1 << 16
MOST_PROCESSES = 8
MOST_DEATHS = 3
# Seconds for one piece, which takes one or two.
PATIENCE = 300.0


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one shard of captions."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True)
class TokenisedCaptions:
    """caption_id int64 [n], and the tokens of their captions."""

    ids: np.ndarray
    tokens: Tokens


def pieces(path: Path, start: int, stop: int) -> list[Piece]:
    """Rows of a shard in pieces for one tokeniser each."""
    return [Piece(path, row, min(row + PIECE_ROWS, stop)) for row in range(start, stop, PIECE_ROWS)]


class TokenFeed:
    """Tokenises pieces in order, so many of them ahead; with no processes each when it is asked for.

    A process that dies takes only time with it: what it had not delivered is done again, up to MOST_DEATHS times.
    """

    def __init__(self, tokenizer: Tokenizer, processes: int, *, ahead: int) -> None:
        self._tokenizer = tokenizer
        self._processes = processes if processes and _travels(tokenizer) else 0
        self._ahead = ahead + 2 * processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> TokenFeed:
        if self._processes:
            self._pool = self._start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            _stop(self._pool)

    def tokenised(self, asked: Iterable[Piece]) -> Iterator[TokenisedCaptions]:
        """Ids and tokens of each piece; raises InputError for a damaged shard."""
        if self._pool is None:
            for piece in asked:
                yield tokenise(piece, self._tokenizer)
            return
        rest = iter(asked)
        waiting: deque[tuple[Piece, Future[TokenisedCaptions]]] = deque()
        deaths = 0
        while True:
            for piece in islice(rest, self._ahead - len(waiting)):
                waiting.append((piece, self._submit(piece)))
            if not waiting:
                return
            try:
                captions = waiting[0][1].result(timeout=PATIENCE)
            except TimeoutError as error:
                piece = waiting[0][0]
                raise ResourceError(
                    f"The encoder has waited {PATIENCE} seconds for the captions {piece.start:,} to {piece.stop:,} of "
                    f"{piece.path}, which {self._processes} processes are to tokenise.",
                    hint="Look whether they are stopped or out of memory; run again with --workers 1 to do without.",
                ) from error
            except BrokenProcessPool as error:
                deaths += 1
                if deaths > MOST_DEATHS:
                    raise ResourceError(
                        "Processes that tokenise captions died again and again (killed, or out of memory).",
                        hint="Run again with fewer --workers; finished shards are kept.",
                    ) from error
                _stop(self._pool)
                self._pool = self._start()
                waiting = deque((piece, self._submit(piece)) for piece, _ in waiting)
                continue
            waiting.popleft()
            yield captions

    def _submit(self, piece: Piece) -> Future[TokenisedCaptions]:
        assert self._pool is not None
        try:
            return self._pool.submit(_tokenise_here, piece)
        except BrokenProcessPool as error:
            broken: Future[TokenisedCaptions] = Future()
            broken.set_exception(error)
            return broken

    def _start(self) -> ProcessPoolExecutor:
        from cdkit.engines.local import require_main_guard

        require_main_guard()
        return ProcessPoolExecutor(
            self._processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self._tokenizer,),
        )


def tokeniser_count(captions: int, threads: int, *, on_gpu: bool) -> int:
    """Processes that keep a device fed; none for little work, or where this process is to be the only one."""
    if threads < 2 or captions < WORTH_PROCESSES:
        return 0
    return min(MOST_PROCESSES, threads - 1) if on_gpu else 1


def tokenise(piece: Piece, tokenizer: Tokenizer) -> TokenisedCaptions:
    """Read a piece of a shard and tokenise it; raises InputError when the shard is damaged."""
    table = _read(piece)
    return TokenisedCaptions(table["caption_id"].to_numpy(), tokenizer(table["caption"].to_pylist()))


def _read(piece: Piece) -> pa.Table:
    import pyarrow as pa

    slices, first = [], 0
    with open_shard(piece.path, "captions", hint=IMPORT_AGAIN) as file:
        for number in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            low, high = max(piece.start - first, 0), min(piece.stop - first, rows)
            if low < high:
                group = file.read_row_group(number, columns=["caption_id", "caption"], use_threads=False)
                slices.append(group.slice(low, high - low))
            first += rows
    return require_keys(pa.concat_tables(slices).combine_chunks(), piece.path, hint=IMPORT_AGAIN)


_tokenizers: list[Tokenizer] = []


def _begin(tokenizer: Tokenizer) -> None:
    from cdkit.core.startup import claim_process
    from cdkit.core.threads import set_threads
    from cdkit.engines.local import end_with_parent

    claim_process()
    set_threads(1)
    end_with_parent()
    _tokenizers[:] = [tokenizer]


def _tokenise_here(piece: Piece) -> TokenisedCaptions:
    return tokenise(piece, _tokenizers[0])


def _travels(tokenizer: Tokenizer) -> bool:
    """Whether another process can be given the tokenizer; one of a library may hold what cannot be sent."""
    with suppress(Exception):
        ForkingPickler.dumps(tokenizer)
        return True
    return False


def _stop(pool: ProcessPoolExecutor) -> None:
    running: Sequence[multiprocessing.process.BaseProcess] = list((pool._processes or {}).values())
    for process in running:
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)
