"""The sample of caption rows: seeded, without replacement, by rows, the same however the captions lie."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.core.errors import InputError
from cdkit.core.protocols import Context
from cdkit.core.text import caption_id
from cdkit.engines import create_engine
from cdkit.tokens import sample as module
from cdkit.tokens.sample import SampledCaptions, captions_folder, sample_rows
from tests.tokens.conftest import IndexMaker, write_index

CONTEXT = Context(create_engine("local", 1))


def draw(index: Path, number: int, seed: int = 0) -> dict[str, int]:
    return table(sample_rows(index / "captions", number, seed, CONTEXT))


def table(drawn: SampledCaptions) -> dict[str, int]:
    captions = drawn.captions.to_pylist()
    assert len(set(captions)) == len(captions)
    return dict(zip(captions, drawn.rows.tolist(), strict=True))


def test_rows_not_captions_are_drawn(index_of: IndexMaker) -> None:
    captions = {f"caption {number}": 1 + number % 7 for number in range(200)}
    drawn = draw(index_of(captions, shards=3), 300)
    assert sum(drawn.values()) == 300
    assert all(1 <= rows <= captions[caption] for caption, rows in drawn.items())


def test_everything_when_there_is_less_than_asked_for(index_of: IndexMaker) -> None:
    captions = {"a": 3, "b": 1, "c": 12}
    drawn = sample_rows(index_of(captions) / "captions", 200_000, 0, CONTEXT)
    assert table(drawn) == captions
    assert (drawn.available, drawn.sampled) == (16, 16)


def test_same_rows_whatever_the_shards_and_blocks(index_of: IndexMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = {f"caption {number}": 1 + number % 5 for number in range(500)}
    whole = draw(index_of(captions, shards=1), 400, seed=3)
    split = draw(index_of(captions, shards=7, name="other"), 400, seed=3)
    assert whole == split
    monkeypatch.setattr(module, "_BLOCK", 13)
    assert draw(index_of(captions, shards=7, name="third"), 400, seed=3) == whole
    assert draw(index_of(captions), 400, seed=4) != whole


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1), st.integers(1, 9), min_size=1), st.integers(1, 40), st.integers())
def test_never_more_than_there_is(
    tmp_path_factory: pytest.TempPathFactory, captions: dict[str, int], number: int, seed: int
) -> None:
    index = write_index(tmp_path_factory.mktemp("index"), captions, shards=2)
    drawn = draw(index, number, seed)
    assert sum(drawn.values()) == min(number, sum(captions.values()))
    assert not Counter(drawn) - Counter(captions)


def test_every_row_is_as_likely(index_of: IndexMaker) -> None:
    """Over many seeds each of 100 rows (10 captions of 10) is drawn with probability 0.3; 5 sigma around it."""
    captions = {f"caption {number}": 10 for number in range(10)}
    folder = index_of(captions) / "captions"
    seeds = 200
    total: Counter[str] = Counter()
    for seed in range(seeds):
        total.update(table(sample_rows(folder, 30, seed, CONTEXT)))
    rows = np.array([total[caption] for caption in captions])
    assert rows.sum() == 30 * seeds
    # The number of a caption's rows among 30 of 100 is hypergeometric: variance 30*.1*.9*70/99.
    assert np.abs(rows - 3 * seeds).max() < 5 * (30 * 0.1 * 0.9 * 70 / 99 * seeds) ** 0.5


def splitmix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def test_splitmix64_is_the_published_one() -> None:
    """The first outputs of Vigna's splitmix64.c from seed 1234567."""
    states = [(1234567 + step * 0x9E3779B97F4A7C15) % 2**64 for step in range(3)]
    assert [splitmix64(state) for state in states] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 7, -3, 2**70])
def test_the_draw_never_changes(index_of: IndexMaker, seed: int) -> None:
    """The same rows on every machine and library version: those of lowest keyed hash, in plain integers."""
    captions = {f"caption {number}": 1 + number % 3 for number in range(40)}
    rows = [(caption, copy) for caption, number in captions.items() for copy in range(number)]
    key = splitmix64(seed % 2**64)

    def priority(row: tuple[str, int]) -> int:
        return splitmix64((splitmix64(caption_id(row[0]) ^ key) + row[1] * 0x9E3779B97F4A7C15) % 2**64)

    lowest = Counter(caption for caption, _ in sorted(rows, key=priority)[:25])
    assert draw(index_of(captions, shards=2), 25, seed) == lowest


def test_no_rows_at_all(index_of: IndexMaker) -> None:
    with pytest.raises(InputError, match="no caption rows"):
        draw(index_of({}), 5)


def test_a_folder_that_is_no_index(tmp_path: Path, index_of: IndexMaker) -> None:
    with pytest.raises(InputError, match="not an index"):
        captions_folder(tmp_path)
    index = index_of({"a": 1})
    assert captions_folder(index) == index / "captions"
    (index / "started.json").write_text("{}")
    with pytest.raises(InputError, match="not finished"):
        captions_folder(index)
