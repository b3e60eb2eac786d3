"""Whole files with some bytes changed: weights, tables, FAISS indexes are read or refused with words; nothing crashes.

A seeded mutation for each number, so that a failure can be had again. `-m slow` tries a thousand of each.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cdkit.core.errors import CdkitError
from cdkit.core.manifest import MANIFEST_NAME
from cdkit.core.shards import read_shard, read_tensors
from cdkit.deltas.delta import load_delta
from cdkit.deltas.importing import read_foreign
from cdkit.index.caption_index import INDEX_NAME
from cdkit.retrieval.decisions import read_decisions
from tests.faults.counts import count
from tests.faults.scenarios import COMPRESSED, few_training_points, stage, write_captions
from tests.support.pretend_run import write_trained

LONGEST, LONGEST_SEARCH = 20.0, 2.0
# Of a compressed index, this one says that a list of numbers has some thousand million, for which FAISS made room.
HUGE = 950
FEW = 12
# Of the wall's clock, on machines with more to do, and with the libraries to load.
HANGS = 120.0
amounts = pytest.mark.parametrize(
    "amount", [40, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["some", "thousand"]
)


def mutated(content: bytes, seed: int) -> bytes:
    """A file with bytes flipped, cut out, doubled, cut off, or replaced by large numbers; mostly near its ends."""
    chance = random.Random(seed)
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        near = min(len(changed) - 1, 4096)
        place = chance.choice((chance.randrange(near), len(changed) - 1 - chance.randrange(near)))
        kind = chance.randrange(6)
        if kind == 0:
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[place : place + 8] = chance.choice((b"\xff" * 8, b"\0" * 8, b"\xff" * 7 + b"\x7f"))
        elif kind == 2:
            del changed[place : place + chance.randrange(1, 64)]
        elif kind == 3:
            changed[place:place] = changed[place : place + chance.randrange(1, 64)]
        elif kind == 4:
            del changed[place:]
        else:
            changed[place] = chance.randrange(256)
        if len(changed) < 2:
            return bytes(changed)
    return bytes(changed)


def read_all(
    what: str, path: Path, content: bytes, amount: int, readers: list[Callable[[Path], object]]
) -> Counter[str]:
    """Read so many mutations of a file, each by all readers; how that ended."""
    outcomes: Counter[str] = Counter()
    for seed in range(amount):
        path.write_bytes(mutated(content, seed))
        for reader in readers:
            clock = time.process_time()
            try:
                reader(path)
                outcomes["read"] += 1
            except CdkitError as error:
                assert error.exit_code in (2, 3), (seed, error)
                assert error.hint, (seed, error)
                outcomes["refused"] += 1
            assert time.process_time() - clock < LONGEST, seed
    count(f"{what} with changed bytes", outcomes, files=amount)
    return outcomes


@amounts
def test_mutated_weight_files(tmp_path: Path, amount: int) -> None:
    write_trained(tmp_path / "trained")
    stage("export", delta=str(tmp_path / "trained"), to="kohya-lora", rank=1, threads=1).run(tmp_path / "lora")
    [lora] = (tmp_path / "lora" / "loras").glob("*.safetensors")
    outcomes = read_all(
        "weights of other tools",
        tmp_path / "lora.safetensors",
        lora.read_bytes(),
        amount,
        [read_foreign, read_tensors],
    )
    delta = (tmp_path / "trained" / "delta.safetensors").read_bytes()
    outcomes += read_all("deltas", tmp_path / "delta.safetensors", delta, amount, [load_delta])
    assert outcomes["refused"] > amount


@amounts
def test_mutated_tables(tmp_path: Path, amount: int) -> None:
    captions = write_captions(tmp_path / "captions.csv", 0, 60)
    stage("import", captions=[captions], workers=1, threads=1).run(tmp_path / "out")
    outcomes: Counter[str] = Counter()
    for kind in ("captions", "image_rows"):
        content = (tmp_path / "out" / kind / "part-00000.parquet").read_bytes()
        readers: list[Callable[[Path], object]] = [lambda path, kind=kind: read_shard(path, kind=kind)]
        outcomes += read_all(
            f"Parquet files of {kind}", tmp_path / f"{kind}.parquet", content, amount, [*readers, read_decisions]
        )
    assert outcomes["refused"] > amount


@amounts
def test_mutated_pools(tmp_path: Path, amount: int) -> None:
    """Imported, they give rows or a refusal."""
    captions = write_captions(tmp_path / "captions.csv", 0, 60)
    stage("import", captions=[captions], workers=1, threads=1).run(tmp_path / "out")
    content = (tmp_path / "out" / "captions" / "part-00000.parquet").read_bytes()

    def imported(path: Path) -> object:
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        return stage("import", captions=[str(path)], workers=1, threads=1).run(tmp_path / "again")

    read_all("pools", tmp_path / "pool.parquet", content, amount // 4, [imported])


def _searches(folder: Path, contents: list[bytes], told: bool, said: Connection) -> None:
    """In a process of its own: search an index whose FAISS file is each of these in turn."""
    from cdkit import encoders
    from cdkit.index.search import search

    encoders.load_text_encoder = cache(encoders.load_text_encoder)
    manifest = (folder / MANIFEST_NAME).read_text()
    # Libraries and model are loaded before the clock is looked at.
    search(folder, ["a red star"], min_similarity=0.5, limit=10)
    for content in contents:
        (folder / INDEX_NAME).write_bytes(content)
        if told:
            # Somebody else's index, whose manifest names the file that it has.
            details = json.loads(manifest)
            details["details"]["index"] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            (folder / MANIFEST_NAME).write_text(json.dumps(details))
        clock = time.process_time()
        try:
            search(folder, ["a red star"], min_similarity=0.5, limit=10)
            outcome = "read"
        except CdkitError as error:
            outcome = "refused" if error.hint else f"no hint: {error}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        said.send(outcome if time.process_time() - clock < LONGEST_SEARCH else "slow")


@amounts
@pytest.mark.parametrize("kind", ["exact", "compressed"])
@pytest.mark.parametrize("told", [False, True], ids=["damaged", "hostile"])
def test_mutated_faiss_files(tmp_path: Path, amount: int, kind: str, told: bool) -> None:
    values = COMPRESSED if kind == "compressed" else {}
    captions = write_captions(tmp_path / "captions.csv", 0, 1000)
    with few_training_points():
        stage("index", captions=[captions], workers=1, threads=1, **values).run(tmp_path / "index")
    whole = (tmp_path / "index" / "caption.index").read_bytes()
    contents = [mutated(whole, seed) for seed in (range(amount) if amount > 100 else (*range(FEW), HUGE))]
    outcomes = searched(tmp_path / "index", contents, told)
    what = "fitting to their manifest" if told else "not as their manifest says"
    count(f"FAISS files with changed bytes, {what}, {kind}", outcomes)
    assert set(outcomes) <= {"read", "refused"}
    assert outcomes["refused"] > 0


def searched(folder: Path, contents: list[bytes], told: bool) -> Counter[str]:
    """How searches ended, in a process of their own; a new one goes on after the file that ended one."""
    outcomes: Counter[str] = Counter()
    kept = {folder / name: (folder / name).read_bytes() for name in (INDEX_NAME, MANIFEST_NAME)}
    done = 0
    while done < len(contents):
        for path, content in kept.items():
            path.write_bytes(content)
        hearing, saying = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=_searches, args=(folder, contents[done:], told, saying), daemon=True
        )
        process.start()
        saying.close()
        try:
            while done < len(contents):
                if not hearing.poll(HANGS):
                    outcomes[f"hung at {done}"] += 1
                    break
                outcomes[hearing.recv()] += 1
                done += 1
        except EOFError:
            process.join(30)
            outcomes[f"exit code {process.exitcode} at {done}"] += 1
        process.kill()
        process.join()
        done += done < len(contents)
    return outcomes
