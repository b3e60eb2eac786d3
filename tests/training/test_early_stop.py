"""A training ends early when its samples are but copies of the photos, and not when they only show the same thing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from cdkit.core.config import parse_config
from cdkit.execute import execute
from cdkit.pictures.embedding import nearest_photo
from cdkit.sampling.config import SampleConfig
from cdkit.training.early_stop import CHECKS, copying_from, is_checked
from tests.support.progress import Notes
from tests.training.running import Interrupted, Material, StopAfter, delta_tensors, losses, run


def test_copies_are_half_way_from_what_photos_have_among_themselves_to_one() -> None:
    # Two photos of cosine 0.8, and a third that has 0.6 with the nearer one.
    photos = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    limit = copying_from(photos)
    assert limit == pytest.approx((1 + (0.8 + 0.8 + 0.6) / 3) / 2)
    assert nearest_photo(photos[:2], photos).mean() >= limit
    between = torch.nn.functional.normalize(photos[:1] + photos[1:2])
    assert nearest_photo(between, photos) == pytest.approx(0.949, abs=0.001)
    assert nearest_photo(-photos[:1], photos) < limit


def test_a_training_is_looked_at_at_every_tenth_of_its_steps() -> None:
    assert [step for step in range(1, 251) if is_checked(step, 250)] == list(range(25, 251, 25))
    assert sum(is_checked(step, 7) for step in range(1, 8)) == 7 <= CHECKS


@pytest.fixture(scope="module")
def drawn(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the base model draws already for the subject: photos that an untrained model copies."""
    root = tmp_path_factory.mktemp("drawn")
    values = {"base": str(material.root / "base"), "prompts": ["photo of a cat cat"], "seeds": 4, "steps": 25}
    execute("sample", parse_config(SampleConfig, {**values, "device": "cpu"}), root / "samples")
    (root / "photos").mkdir()
    for number, path in enumerate(sorted((root / "samples" / "images").glob("*.png"))):
        Image.open(path).save(root / "photos" / f"{number}.png")
    return root / "photos"


def _values(photos: Path, **values: object) -> dict[str, object]:
    return {
        "concepts": {"cat": str(photos)},
        "early_stop": "embedded",
        "steps": 10,
        "batch_size": 2,
        "learning_rate": 1e-9,
        "checkpoint_every": 1,
        **values,
    }


def test_a_training_that_copies_ends_and_resumes_to_the_same(material: Material, drawn: Path, tmp_path: Path) -> None:
    notes = Notes()
    result = run(material.config(**_values(drawn)), tmp_path / "whole", progress=notes)
    assert result.manifest.details["steps"] == 2, "two checks in a row"
    assert any("the training ends: it only copies the photos" in note for note in notes.notes)
    assert len(losses(tmp_path / "whole")) == 1 + 2
    with pytest.raises(Interrupted):
        run(material.config(**_values(drawn)), tmp_path / "cut", progress=StopAfter(1))
    assert run(material.config(**_values(drawn)), tmp_path / "cut").manifest.details["steps"] == 2
    one, other = delta_tensors(tmp_path / "cut"), delta_tensors(tmp_path / "whole")
    assert all(one[name].equal(other[name]) for name in other)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_training_that_copies_nothing_goes_on_to_its_end(material: Material, out: Path) -> None:
    notes = Notes()
    result = run(material.config(**_values(material.root / "cat", steps=3)), out, progress=notes)
    assert result.manifest.details["steps"] == 3
    assert not [note for note in notes.notes if "nearest-photo" in note]
    assert len(list((out / "samples").glob("*.png"))) == 3
