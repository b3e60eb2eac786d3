"""A stage's version and the entries it owns stand in the table alone; what a stage is comes to it from there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cdkit.captions.config import ImportConfig
from cdkit.core.config import canonical
from cdkit.core.manifest import Identity
from cdkit.core.shards import FINGERPRINT_KEY, parts
from cdkit.execute import execute
from cdkit.index.config import IndexConfig
from cdkit.inputs import resolve_inputs
from cdkit.pictures.layouts import LAYOUTS
from cdkit.pictures.regularization_set import IMAGES
from cdkit.stages import STAGES
from cdkit.tokens.config import TokenCountsConfig


def _marks(folder: Path) -> set[str]:
    return {pq.read_metadata(path).metadata[FINGERPRINT_KEY.encode()].decode() for path in parts(folder)}


@pytest.fixture
def captions(tmp_path: Path) -> str:
    path = tmp_path / "captions.csv"
    path.write_text("caption\n" + "".join(f"a red star number {number}\n" for number in range(30)))
    return str(path)


def test_shards_carry_the_version_of_the_table(captions: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ImportConfig(captions=[captions])
    marks = {name: given.fingerprint for name, given in resolve_inputs(config).items()}
    for version in (1, 7):
        monkeypatch.setitem(STAGES, "import", replace(STAGES["import"], version=version))
        result = execute("import", config, out, replace_other=True)
        expected = Identity("import", version, canonical(config), marks).fingerprint
        assert result.state == "done", "another version is another result"
        assert {result.manifest.fingerprint} == _marks(out / "captions") == _marks(out / "rejects") == {expected}


def test_work_done_for_a_longer_stage_carries_the_earlier_stages_mark(captions: str, out: Path) -> None:
    imported = execute("import", ImportConfig(captions=[captions]), out)
    times = [path.stat().st_mtime_ns for path in parts(out / "captions")]
    built = execute("index", IndexConfig(captions=[captions]), out)
    assert {built.manifest.steps["import"]} == _marks(out / "captions") == {imported.manifest.fingerprint}
    assert [path.stat().st_mtime_ns for path in parts(out / "captions")] == times
    counted = execute("token-counts", TokenCountsConfig(index=str(out)), out.parent / "counts")
    assert _marks(counted.out / "token_counts") == {counted.manifest.fingerprint}


def test_every_layout_of_a_set_is_owned_by_the_stages_that_make_sets() -> None:
    assert {*LAYOUTS, IMAGES} < set(STAGES["retrieve"].owns) & set(STAGES["class-images"].owns)


def test_no_stage_makes_up_its_own_identity() -> None:
    package = Path(__file__).parents[1] / "cdkit"
    makers = [path.name for path in package.rglob("*.py") if "Identity(" in path.read_text(encoding="utf-8")]
    assert sorted(set(makers) - {"open_clip.py", "causal_tower.py"}) == ["execute.py", "manifest.py"]
