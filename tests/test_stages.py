from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from cdkit.core.config import StageConfig
from cdkit.core.errors import ConfigError, InputError, OutputError
from cdkit.core.fingerprints import Input
from cdkit.core.manifest import STARTED_NAME, read_manifest
from cdkit.core.shards import parts
from cdkit.execute import execute
from cdkit.inputs import check_apart
from cdkit.stages import STAGES
from tests.support.adding_stage import AddingConfig

pytestmark = pytest.mark.usefixtures("adding")


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def _times(out: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in parts(out / "sums")]


@pytest.mark.parametrize("name", [name for name in STAGES if name != "adding"])
def test_every_stage_names_a_config_class_and_a_function(name: str) -> None:
    stage = STAGES[name]
    assert issubclass(stage.config_class(), StageConfig)
    assert callable(stage.run())
    assert stage.owns
    assert stage.extends is None or stage.extends in STAGES
    importlib.import_module(stage.config.split(":")[0])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("trian", "train"), ("retreive", "retrieve"), ("class_images", "class-images"), ("", None), ("zzz", None)],
)
def test_a_stage_that_is_not_there_is_a_configuration_error(name: str, nearest: str | None, out: Path) -> None:
    with pytest.raises(ConfigError, match=f"There is no stage {name!r}") as caught:
        execute(name, AddingConfig(), out)
    assert (f"did you mean {nearest!r}?" if nearest else "(known: ") in str(caught.value)


def test_an_output_that_is_an_input_or_holds_one_is_refused(out: Path) -> None:
    first, second = out / "one", out / "two"
    execute("adding", AddingConfig(), first)
    for target in (first, out):
        for force in (True, False):
            with pytest.raises(OutputError):
                execute("adding", AddingConfig(source=str(first)), target, force=force)
            assert _times(first)
    with pytest.raises(OutputError, match="would overwrite the input"):
        execute("adding", AddingConfig(source=str(first)), first, force=True)
    execute("adding", AddingConfig(source=str(first)), second)


def test_an_output_inside_an_input_is_refused(out: Path, tmp_path: Path) -> None:
    first = out / "one"
    execute("adding", AddingConfig(), first)
    (tmp_path / "link").symlink_to(first)
    (first / "deep").mkdir()
    (tmp_path / "inner").symlink_to(first / "deep")
    for source, target in (
        (first, first / "inner"),
        (first, first / "a" / "b" / "c"),
        (first, first / "sums"),
        (tmp_path / "link", first / "inner"),
        (first, tmp_path / "link" / "inner"),
        (first, tmp_path / "inner"),
        (first, tmp_path / "inner" / "new"),
        (f"{first}/", first / ".." / "one" / "inner"),
    ):
        before = listing(first)
        for force in (False, True):
            with pytest.raises(OutputError, match="lies in the input"):
                execute("adding", AddingConfig(source=str(source)), target, force=force)
        assert listing(first) == before


def test_an_output_among_the_pool_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pools/a.csv", "pools/x/b.csv", "pools/y/c.csv"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("text,url\na dog,http://a.test/1\n")
    Path("link").symlink_to("pools")
    config = STAGES["import"].config_class()
    for captions, target in (
        ("pools", "pools/index"),
        ("pools", "link/index"),
        ("link", "pools/deep/index"),
        ("pools/*/*.csv", "pools/index"),
        ("link/**/*.csv", "pools/z/index"),
        ("pools/x/b.csv", "pools/x"),
        ("pools/*.csv", "pools"),
        ("pools/*.csv", "."),
    ):
        with pytest.raises(OutputError, match=r"overwrite|lies"):
            execute("import", config(captions=[captions]), Path(target), force=True)
    assert not list(Path().rglob("*.json"))
    for captions, target in (("pools", "index"), ("pools/*.csv", "pools/index"), ("pools/x/b.csv", "pools/x/index")):
        assert execute("import", config(captions=[captions]), Path(target)).state == "done"


def test_every_shape_of_an_input_field_is_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "x.bin").touch()
    name = str(folder)
    for value in (name, [name], {"dog": name}, {"dog": [name, "b"]}, f"open_clip:{name}", f"transformers:{name}"):
        given = {"field": Input("field", "folder", value, "")}
        for target, words in ((folder, "overwrite"), (tmp_path, "overwrite"), (folder / "x", "lies in the input")):
            with pytest.raises(OutputError, match=words):
                check_apart(given, target)
        check_apart(given, tmp_path / "other")
    check_apart({"field": Input("field", "model", "a/hub-id", "")}, tmp_path / "a")


def test_a_folder_may_have_the_embedded_models_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        execute("adding", AddingConfig(source="embedded", fail_at=3), Path("embedded"))
    assert execute("adding", AddingConfig(source="embedded"), Path("embedded")).state == "done"


def test_a_refusal_leaves_nothing_that_was_begun(out: Path) -> None:
    with pytest.raises(InputError):
        execute("adding", AddingConfig(fail_at=1), out)
    assert read_manifest(out, STARTED_NAME) is None
    with pytest.raises(InputError):
        execute("adding", AddingConfig(fail_at=3), out)
    # Two numbers are done: that is kept, and known as this stage's.
    assert read_manifest(out, STARTED_NAME) is not None


def test_the_second_run_is_cached_and_execution_settings_do_not_matter(out: Path) -> None:
    first = execute("adding", AddingConfig(), out)
    times = _times(out)
    second = execute("adding", AddingConfig(workers=1, label="other"), out)
    assert (first.state, second.state) == ("done", "cached")
    assert _times(out) == times
    assert first.manifest.fingerprint == second.manifest.fingerprint
    assert read_manifest(out) == second.manifest


def test_the_config_of_another_stage_is_refused_before_anything_is_made(out: Path) -> None:
    with pytest.raises(ConfigError, match="does not take a StageConfig") as caught:
        execute("adding", StageConfig(), out)
    assert caught.value.hint.endswith("adding_stage.AddingConfig.")
    assert not out.exists()


def test_a_failed_run_keeps_its_shards_and_continues(out: Path) -> None:
    with pytest.raises(InputError, match="cannot add to 3"):
        execute("adding", AddingConfig(fail_at=3), out)
    assert read_manifest(out) is None
    kept = _times(out)
    assert len(kept) == 2
    assert execute("adding", AddingConfig(), out).state == "done"
    assert _times(out)[:2] == kept


def test_a_folder_with_another_result_is_refused_and_says_what_changed(out: Path) -> None:
    execute("adding", AddingConfig(), out)
    with pytest.raises(OutputError, match=r"holds something else: plus: 1 → 2\.") as caught:
        execute("adding", AddingConfig(plus=2), out)
    assert "--force" in caught.value.hint
    (out / "notes.txt").write_text("mine")
    assert execute("adding", AddingConfig(plus=2, numbers=[1]), out, force=True).state == "done"
    assert len(parts(out / "sums")) == 1
    assert (out / "notes.txt").exists(), "--force deletes only what the stage owns"


def test_an_unfinished_run_of_another_config_is_refused(out: Path) -> None:
    with pytest.raises(InputError):
        execute("adding", AddingConfig(fail_at=2), out)
    with pytest.raises(OutputError, match="plus"):
        execute("adding", AddingConfig(plus=5), out)
    assert execute("adding", AddingConfig(plus=5), out, replace_other=True).state == "done"


def test_a_run_that_failed_before_its_first_shard_is_in_nobodys_way(out: Path) -> None:
    with pytest.raises(InputError):
        execute("adding", AddingConfig(fail_at=1), out)
    assert execute("adding", AddingConfig(plus=5), out).state == "done"


@pytest.mark.parametrize("force", [False, True])
def test_a_foreign_folder_is_never_touched(out: Path, force: bool) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="was not made by cdkit"):
        execute("adding", AddingConfig(), out, force=force)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_an_output_error(out: Path) -> None:
    out.write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        execute("adding", AddingConfig(), out)


def test_a_shortfall_is_partial_also_when_cached(out: Path) -> None:
    states = [execute("adding", AddingConfig(wanted=9), out).state for _ in range(2)]
    assert states == ["partial", "partial"]
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.shortfall == "3 of 9 numbers"


def test_an_input_counts_by_its_manifest_not_by_its_path(out: Path, tmp_path: Path) -> None:
    execute("adding", AddingConfig(), tmp_path / "a")
    first = execute("adding", AddingConfig(source=str(tmp_path / "a")), out)
    (tmp_path / "a").rename(tmp_path / "b")
    assert execute("adding", AddingConfig(source=str(tmp_path / "b")), out).state == "cached"
    execute("adding", AddingConfig(plus=4), tmp_path / "c")
    with pytest.raises(OutputError, match="input source changed"):
        execute("adding", AddingConfig(source=str(tmp_path / "c")), out)
    assert first.manifest.counts["in"] == 6


def test_an_extending_stage_continues_the_earlier_ones_folder(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "more", replace(STAGES["adding"], name="more", extends="adding"))
    execute("adding", AddingConfig(), out)
    times = _times(out)
    assert execute("more", AddingConfig(), out).state == "done"
    assert _times(out) == times
    assert execute("adding", AddingConfig(), out).state == "cached", "the longer result holds the shorter one"
    with pytest.raises(OutputError, match="plus: 1 → 2"):
        execute("more", AddingConfig(plus=2), out)
