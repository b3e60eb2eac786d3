from __future__ import annotations

from pathlib import Path

import pytest

from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError
from cdkit.index.config import IndexConfig
from cdkit.index.plan import read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "indexes").glob("*.yaml"))


def test_the_recipes_are_there() -> None:
    names = ["cc12m", "coyo700m", "embedded", "laion400m", "megalith10m", "pd12m", "relaion2b"]
    assert [path.stem for path in RECIPES] == names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_makes_a_valid_configuration(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    config = parse_config(IndexConfig, recipe.values({"captions": ["mine.parquet"], "seed": 7, "pool": None}))
    assert config.captions == ["mine.parquet"]
    assert config.seed == 7
    assert config.pool == recipe.settings.get("pool")


def test_laion400m_warns_and_names_its_successor() -> None:
    recipe = read_recipe(next(path for path in RECIPES if path.stem == "laion400m"))
    assert "withdrawn in December 2023" in recipe.warnings[0]
    assert "relaion2b" in " ".join(recipe.warnings)
    assert [read_recipe(path).name for path in RECIPES if read_recipe(path).recommended] == ["relaion2b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "not a recipe"),
        ("name: x\nsettings: {enocder: y}", "did you mean 'encoder'"),
        ("name: x", "expected: missing"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_a_recipe_that_is_no_yaml_says_where(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("a: 1\nb: ]")
    with pytest.raises(ConfigError, match="line 2: "):
        read_recipe(tmp_path / "r.yaml")
