"""Lookups by caption id: what is remembered of the files is what they hold, within its bounds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cdkit.core.errors import InputError
from cdkit.core.text import caption_id
from cdkit.index.records import GroupMemory, Records


def test_remembered_rows_are_those_of_the_files(exact_folder: Path, captions: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "index"
    shutil.copytree(exact_folder, folder)
    ids = np.array([caption_id(caption) for caption in captions[:300]], dtype=np.int64)
    plain, keeping = Records(folder), Records(folder, GroupMemory(1 << 30))
    for records in (keeping, keeping):
        assert records.captions(ids) == plain.captions(ids)
        assert records.image_rows(ids) == plain.image_rows(ids)
    before = keeping.captions(ids[:50])
    for path in (folder / "captions").iterdir():
        path.unlink()
    assert keeping.captions(ids[:50]) == before
    with pytest.raises(InputError, match="part-"):
        plain.captions(ids)


def test_the_memory_of_rows_stays_within_its_bounds(exact_folder: Path, captions: list[str]) -> None:
    ids = np.array([caption_id(caption) for caption in captions[:300]], dtype=np.int64)
    whole = GroupMemory(1 << 30)
    expected = Records(exact_folder, whole).image_rows(ids)
    memory = GroupMemory(whole._bytes // 2)
    records = Records(exact_folder, memory)
    assert records.image_rows(ids) == records.image_rows(ids) == expected
    assert 0 < memory._bytes <= memory.most_bytes
    assert memory._bytes == sum(table.nbytes for table in memory._groups.values())
    none = GroupMemory(0)
    assert Records(exact_folder, none).image_rows(ids) == expected
    assert none._bytes == len(none._groups) == 0
