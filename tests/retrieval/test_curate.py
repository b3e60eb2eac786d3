"""Curation: what is accepted follows the candidate order, whatever is known first; nothing is inspected twice."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.fetching.job import FailedFetch, FetchedImage
from cdkit.pictures.picture import Content, FileContent
from cdkit.retrieval.accept import Limits, Standing, select, stand
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.class_images import top_up
from cdkit.retrieval.curate import JOURNAL_NAME, CurationRules, Curator
from cdkit.retrieval.inspect import Inspection, InspectionRules, Inspectors
from tests.support.photo_pool import picture


def candidate(number: int, caption_id: int | None = None) -> Candidate:
    return Candidate(
        "q", number if caption_id is None else caption_id, f"c{number}", 0.9, f"http://h{number % 3}/{number}"
    )


class KnownInspectors:
    """Stands where worker processes do, for images whose facts are their names: `sha/phash/reason`."""

    def inspect(self, contents: Sequence[Content]) -> Iterator[tuple[int, Inspection]]:
        for place, content in enumerate(contents):
            assert isinstance(content, FileContent)
            sha256, phash, reason = content.path.parts
            yield place, Inspection(sha256, reason if reason != "-" else None, phash=int(phash))


def image(sha256: str, phash: int, reason: str = "-") -> FetchedImage:
    return FetchedImage(None, FileContent(Path(sha256, str(phash), reason)))


def curator_of(store: Path, rules: CurationRules | None = None) -> Curator:
    return Curator(KnownInspectors(), store, rules or CurationRules(distance=0))  # type: ignore[arg-type]


def walk(curator: Curator, images: Sequence[FetchedImage], captions: Sequence[int], wanted: int) -> Standing:
    candidates = [candidate(number, caption) for number, caption in enumerate(captions)]
    curator.prepare(list(zip(candidates, images, strict=True)))
    return stand(candidates, dict(enumerate(images)), curator.admission(), Limits(wanted))


def test_the_better_ranked_of_two_near_duplicates_is_kept(tmp_path: Path) -> None:
    images = [image("a", 0b0), image("b", 0b111), image("c", 0b11111), image("d", 0b11111111)]
    standing = walk(curator_of(tmp_path, CurationRules(distance=2)), images, range(4), 10)
    # c is near b, and d is near c but not near b.
    assert standing.accepted == [0, 1, 3]
    assert standing.turned_down == {2: "near_duplicate"}


def test_the_same_bytes_behind_different_captions_are_a_placeholder_from_the_first_on(tmp_path: Path) -> None:
    images = [image("gone", 1), image("a", 2), image("gone", 1), image("gone", 1), image("b", 3)]
    standing = walk(curator_of(tmp_path), images, [0, 1, 2, 3, 0], 10)
    # Its caption is free again for the image that comes later.
    assert standing.accepted == [1, 4]
    assert standing.turned_down == {0: "placeholder", 2: "placeholder", 3: "placeholder"}
    same = walk(curator_of(tmp_path), [image("x", 7), image("x", 7)], [0, 0], 10)
    assert same.accepted == [0]


def test_the_own_photos_never_enter(tmp_path: Path) -> None:
    rules = CurationRules(distance=2, targets=(0b1111,))
    images = [image("a", 0b1100), image("b", 0b1000000000), image("c", 0b1, "blank")]
    standing = walk(curator_of(tmp_path, rules), images, range(3), 10)
    assert standing.accepted == [1]
    assert standing.turned_down == {0: "target_photo", 2: "blank"}


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 5), st.sampled_from(["-", "-", "-", "blank", "dead"])),
        max_size=24,
    ),
    st.integers(1, 8),
    st.integers(0, 10_000),
)
def test_the_result_does_not_depend_on_what_is_known_first(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, int, str]], wanted: int, seed: int
) -> None:
    draw = random.Random(seed)
    candidates = [candidate(number, caption) for number, (_, caption, _) in enumerate(drawn)]
    behind: dict[int, FetchedImage | FailedFetch] = {
        place: FailedFetch(None, "http_404") if reason == "dead" else image(sha256, ord(sha256), reason)
        for place, (sha256, _, reason) in enumerate(drawn)
    }
    curator = curator_of(tmp_path_factory.getbasetemp() / "none")
    curator.store.mkdir(exist_ok=True)
    curator.prepare([(candidates[place], found) for place, found in behind.items() if isinstance(found, FetchedImage)])
    limits = Limits(wanted, per_host=5)
    settled = stand(candidates, behind, curator.admission(), limits)
    assert settled.complete
    known: dict[int, FetchedImage | FailedFetch] = {}
    while not (standing := stand(candidates, known, curator.admission(), limits)).complete:
        for place in draw.sample(standing.undecided, draw.randint(1, len(standing.undecided))):
            known[place] = behind[place]
    assert standing == settled
    hashes = [drawn[place][0] for place in standing.accepted]
    assert len(hashes) == len(set(hashes))


def write_pictures(folder: Path, seeds: Sequence[int]) -> list[FetchedImage]:
    folder.mkdir(exist_ok=True)
    found = []
    for number, seed in enumerate(seeds):
        path = folder / f"{number}.jpg"
        path.write_bytes(picture(seed))
        found.append(FetchedImage(None, FileContent(path)))
    return found


def test_nothing_is_inspected_twice_and_what_was_cut_short_is(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    images = write_pictures(tmp_path / "in", range(4))
    pairs = [(candidate(number), found) for number, found in enumerate(images)]
    with Inspectors(InspectionRules(), store, workers=1) as inspectors:
        first = Curator(inspectors, store, CurationRules())
        first.prepare(pairs[:3])
        names = [first.inspection(found).name for found in images[:3]]
    # As a kill leaves it: a line half written, and a stored file that a crash of the machine emptied.
    lines = (store / JOURNAL_NAME).read_text().splitlines(keepends=True)
    (store / JOURNAL_NAME).write_text("".join(lines[:2]) + lines[2][:40])
    (store / names[0]).write_bytes(b"")
    second = Curator(KnownInspectors(), store, CurationRules())  # type: ignore[arg-type]
    assert second.inspection(images[1]) == first.inspection(images[1])
    for lost in (images[0], images[2]):
        with pytest.raises(KeyError):
            second.inspection(lost)
    with Inspectors(InspectionRules(), store, workers=1) as inspectors:
        third = Curator(inspectors, store, CurationRules())
        third.prepare(pairs)
        assert [third.inspection(found) for found in images[:3]] == [first.inspection(found) for found in images[:3]]
    assert len((store / JOURNAL_NAME).read_text().splitlines()) == 6


def test_images_made_by_a_model_fill_up_and_pass_the_same_curation(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "in", [0, 1, 1, 0, 5, 6, 7])
    found, made = images[:2], [(entry.content, "A photo of a dog") for entry in images[2:]]
    candidates = [candidate(number) for number in range(3)]
    with Inspectors(InspectionRules(), tmp_path, workers=1) as inspectors:
        curator = Curator(inspectors, tmp_path, CurationRules())
        known: dict[int, FetchedImage | FailedFetch] = dict(enumerate(found))
        done = select(candidates, known, limits=Limits(4), judge=curator)
        assert [failure.kind for _, failure in done.failed] == ["missing"]
        filled = top_up(done, made, wanted=4, judge=curator)
        short = top_up(done, made, wanted=9, judge=curator)
    assert [entry.source for entry, _ in filled.accepted] == [None, None, "generated", "generated"]
    assert filled.accepted[:2] == done.accepted
    assert filled.accepted[2][0].caption == "A photo of a dog", "as it is written"
    assert filled.accepted[2][1].content == made[2][0]
    assert not filled.exhausted
    assert len(short.accepted) == 5
    assert short.exhausted
    assert short.failed == done.failed
