from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors import safe_open

from cdkit.core.errors import InputError
from cdkit.core.shards import (
    finished_facts,
    merge_counts,
    part_name,
    parts,
    read_parts,
    schema,
    write_shard,
    write_tensors,
)


def test_a_shard_knows_what_it_was_made_from(tmp_path: Path) -> None:
    path = tmp_path / part_name(0)
    assert finished_facts(path, "f") is None
    write_shard(path, pa.table({"caption_id": [1]}), fingerprint="f", facts={"rows": 1})
    assert finished_facts(path, "f") == {"rows": 1}
    assert finished_facts(path, "g") is None
    path.write_bytes(path.read_bytes()[:-7])
    assert finished_facts(path, "f") is None
    with pytest.raises(InputError, match="damaged"):
        list(read_parts(tmp_path))


def test_parts_are_read_in_order_and_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no shards"):
        list(read_parts(tmp_path))
    for index in (1, 0, 10):
        write_shard(tmp_path / part_name(index), pa.table({"n": [index], "m": [0]}), fingerprint="f")
    assert [table["n"][0].as_py() for table in read_parts(tmp_path, ["n"])] == [0, 1, 10]
    assert len(parts(tmp_path)) == 3


def test_schemas_are_the_documented_ones() -> None:
    assert schema("captions").names == ["caption_id", "caption", "rows"]
    assert schema("image_rows").field("punsafe").type == pa.float32()
    with pytest.raises(KeyError):
        schema("unknown")


def test_counts_add_up_without_zeros() -> None:
    assert merge_counts([{"empty": 1, "nsfw": 0}, {"empty": 2}]) == {"empty": 3}


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    """Header texts come out of safetensors in a random order."""
    tensors = {f"unet.{number}": torch.full((2, 3), float(number)) for number in range(4)}
    header = {f"text {number}": f'ä "quoted" \\ \n {number}' for number in range(12)}
    for number in range(6):
        write_tensors(tmp_path / str(number), tensors, header)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(6)}) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == header
        assert all(file.get_tensor(name).equal(tensor) for name, tensor in tensors.items())
