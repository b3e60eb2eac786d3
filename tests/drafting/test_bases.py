"""Base models at hand: what lies nearby and in the hub's cache, told by its files alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cdkit.core.errors import CdkitError, ConfigError, InputError
from cdkit.drafting.bases import bases_at_hand, describe_base
from tests.support.tiny_pipeline import tiny_pipeline
from tests.support.tiny_xl_pipeline import tiny_xl_pipeline


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two usable models, one cut short, and one of another family."""
    root = tmp_path_factory.mktemp("hier sind Modelle")
    tiny_pipeline(root / "models" / "klein")
    tiny_xl_pipeline(root / "xl")
    shutil.copytree(root / "models" / "klein", root / "models" / "cut")
    shutil.rmtree(root / "models" / "cut" / "vae")
    (root / "models" / "other").mkdir()
    (root / "models" / "other" / "model_index.json").write_text('{"_class_name": "AudioLDMPipeline"}')
    return root


@pytest.fixture
def cache(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one model."""
    folder = tmp_path / "hub" / "models--someone--small"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abc")
    shutil.copytree(models / "models" / "klein", folder / "snapshots" / "0123abc")
    (tmp_path / "hub" / "models--someone--clip" / "snapshots").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("cache")
def test_what_can_be_used_is_offered(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    found = {base.spec: base for base in bases_at_hand()}
    assert list(found) == ["xl", "models/klein", "someone/small", "embedded"]
    small = found["someone/small"]
    assert (small.family, small.side, small.merge, small.lora) == ("Stable Diffusion 1 and 2", 32, "exact", True)
    folder = models / "models" / "klein"
    parts = [path for part in ("unet", "vae", "text_encoder") for path in (folder / part).glob("*.safetensors")]
    assert small.bytes == sum(path.stat().st_size for path in parts) > 0
    assert found["xl"].family == "Stable Diffusion XL"
    assert "32 × 32 pixels" in small.sentence()


def test_nothing_but_embedded_where_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert [base.spec for base in bases_at_hand()] == ["embedded"]


def test_a_model_that_is_not_here_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = describe_base("black-forest-labs/FLUX.1-dev")
    assert (base.family, base.side, base.bytes) == (None, None, None)
    assert "downloaded" in base.sentence()


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        ("models/cut", InputError, "has no vae"),
        ("models/other", ConfigError, "another kind"),
        ("models", InputError, "no model_index.json"),
        ("./gone", InputError, "no base model"),
        ("embeded", ConfigError, "no base model"),
        ("a/b/c", ConfigError, "no name of a repository"),
    ],
)
def test_what_is_none_is_refused(
    models: Path, monkeypatch: pytest.MonkeyPatch, spec: str, kind: type[CdkitError], said: str
) -> None:
    monkeypatch.chdir(models)
    with pytest.raises(kind, match=said):
        describe_base(spec)
