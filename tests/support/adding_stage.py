"""A tiny real stage for tests of the machinery: adds numbers shard by shard, resumably."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cdkit.core.config import ParallelConfig, setting
from cdkit.core.errors import InputError
from cdkit.core.fingerprints import Input
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset, finished_facts, part_name, write_shard
from cdkit.core.storage import Folder
from cdkit.stages import Stage


class AddingConfig(ParallelConfig):
    """Numbers to add to; `source` is the folder of an earlier adding step."""

    numbers: list[int] = setting([1, 2, 3], "The numbers.", flag="--number")
    plus: int = setting(1, "What to add.", ge=0)
    label: str = setting("", "A word that changes nothing.", execution=True)
    source: str | None = setting(None, "A folder to take numbers from.", input="folder")
    fail_at: int | None = setting(None, "Fail at this number.", execution=True)
    wanted: int = setting(0, "Fall short below this many.")


ADDING = Stage(
    name="adding",
    summary="add numbers",
    config="tests.support.adding_stage:AddingConfig",
    function="tests.support.adding_stage:add",
    version=1,
    owns=("sums",),
)


def add(config: AddingConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """One shard per number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = list(config.numbers)
    if config.source:
        shards = sorted(Path(config.source).glob("sums/*.parquet"))
        numbers += [value for shard in shards for value in pq.read_table(shard)["sum"].to_pylist()]
    folder = out.sub("sums")
    with context.progress.task("adding", len(numbers)) as task:
        for index, number in enumerate(numbers):
            path = folder / part_name(index)
            mark = f"{number}+{config.plus}"
            if finished_facts(path, mark) is None:
                if number == config.fail_at:
                    raise InputError(f"cannot add to {number}", hint="Choose another number.")
                write_shard(path, pa.table({"sum": [number + config.plus]}), fingerprint=mark, facts={"n": 1})
            task.advance()
    short = f"{len(numbers)} of {config.wanted} numbers" if len(numbers) < config.wanted else ""
    return Dataset("sums", out.path, Counts(len(numbers), len(numbers)), shortfall=short)
