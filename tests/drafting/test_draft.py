"""The YAML that answers make: `cdkit run` takes it as it is, whatever was answered; all of it is explained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdkit.core.errors import ConfigError, OutputError
from cdkit.drafting.answers import Answers, ConceptAnswer, Shows, check_source, check_word, names_of, with_article
from cdkit.drafting.bases import BaseModel, describe_base
from cdkit.drafting.captions import CaptionSource
from cdkit.drafting.draft import commands, draft, quoted, write_draft
from cdkit.drafting.photos import PhotoSurvey
from cdkit.evaluation.scoring import FEW_PROMPTS
from cdkit.pipeline import spec

REAL = BaseModel("someone/model", "Stable Diffusion XL", 1024, 7_000_000_000, "exact")
POOL = CaptionSource("pool", ("pool/*.parquet", "more.csv"), True, "2 pool files")
TEXTS = CaptionSource("pool", ("texts.csv",), False, "1 pool file, which name no pictures")
INDEX = CaptionSource("index", ("indexes/my own",), True, "a built index")
NONE = CaptionSource("none", (), False, "no captions")
EMBEDDED = CaptionSource("embedded", ("embedded",), True, "the embedded pool")


def concept(word: str, shows: Shows = "thing", side: int = 2048, source: str = "photos/mein Hünd") -> ConceptAnswer:
    return ConceptAnswer(word, PhotoSurvey(source, 5, 5, ((side, side),) * 5, (), (), 0, 0), shows)


def answers(*concepts: ConceptAnswer, base: BaseModel = REAL, captions: CaptionSource = POOL, **more: Any) -> Answers:
    return Answers(concepts, base, captions, **{"keep": "distil", "fit": "12GB", "out": Path("mine.yaml"), **more})


def loaded(made: Answers, tmp_path: Path) -> spec.Pipeline:
    path = tmp_path / "drafted pipeline.yaml"
    write_draft(draft(made), path, force=True)
    return spec.load(path, {}, tmp_path / "run")


def stages(pipeline: spec.Pipeline) -> list[str]:
    return list(dict.fromkeys(step.stage for step in pipeline.steps))


def configs(pipeline: spec.Pipeline) -> dict[str, dict[str, Any]]:
    return {step.name: step.config.model_dump() for step in pipeline.steps}


@pytest.mark.parametrize("captions", [POOL, TEXTS, INDEX, NONE, EMBEDDED])
@pytest.mark.parametrize("base", [REAL, describe_base("embedded"), BaseModel("owner/unknown")])
@pytest.mark.parametrize("words", [("dog",), ("dog", "vase"), ("dog", "dog", "ginger cat")])
def test_whatever_is_answered_makes_a_pipeline(
    words: tuple[str, ...], base: BaseModel, captions: CaptionSource, tmp_path: Path
) -> None:
    pipeline = loaded(answers(*map(concept, words), base=base, captions=captions), tmp_path)
    steps = configs(pipeline)
    several, joint = len(words) > 1, len(words) > 1 and captions.kind == "none"
    assert ("merge" in stages(pipeline)) == (several and not joint)
    assert ("retrieve" in stages(pipeline)) == bool(captions.pictures)
    assert ("index" in stages(pipeline)) == (captions.kind in ("pool", "embedded"))
    trained = [step for step in steps.values() if "learning_rate" in step]
    assert len(trained) == (1 if joint else len(words))
    assert {step["keep"] for step in trained} == {"images" if captions.pictures else "distil"}
    assert sum(step.stage == "evaluate" for step in pipeline.steps) == len(words) + several
    assert stages(pipeline)[-1] == "report"
    assert len(pipeline.description) > 40
    for step in pipeline.steps:
        if step.stage == "evaluate":
            prompts = steps[Path(steps[step.name]["samples"]).name]["prompts"]
            assert sum("<new" in prompt for prompt in prompts) >= FEW_PROMPTS


def test_two_concepts_are_trained_apart_and_merged(tmp_path: Path) -> None:
    steps = configs(loaded(answers(concept("dog"), concept("vase")), tmp_path))
    run = tmp_path / "run"
    assert steps["vase-tuned"]["token"] == {"vase": "<new2>"}
    assert steps["merged"]["deltas"] == [str(run / "dog-tuned"), str(run / "vase-tuned")]
    assert steps["together"]["deltas"] == [str(run / "merged")]
    assert steps["together"]["prompts"][-1] == "a <new2> vase on the left and a <new1> dog on the right"
    assert steps["together-before"]["prompts"][-1] == "a vase on the left and a dog on the right"
    assert steps["together-scores"]["compare"] == {"before": str(run / "together-before")}
    assert steps["dog-scores"]["compare"] == {"before": str(run / "dog-before"), "merged": str(run / "dog-merged")}
    assert steps["dog-tuned"]["fit"] == "12GB"


def test_without_captions_the_concepts_are_trained_together(tmp_path: Path) -> None:
    steps = configs(loaded(answers(concept("dog"), concept("dog"), captions=NONE, keep="none"), tmp_path))
    assert steps["tuned"]["concepts"] == {"dog": "photos/mein Hünd", "dog-2": "photos/mein Hünd"}
    assert steps["tuned"]["categories"] == {"dog": "dog", "dog-2": "dog"}
    assert steps["tuned"]["token"] == {"dog": "<new1>", "dog-2": "<new2>"}
    assert (steps["tuned"]["keep"], steps["tuned"]["steps"]) == ("none", 500)
    assert steps["together"]["deltas"] == [str(tmp_path / "run" / "tuned")]


def test_captions_without_pictures_still_count_tokens_and_merge(tmp_path: Path) -> None:
    steps = configs(loaded(answers(concept("dog"), concept("vase"), captions=TEXTS), tmp_path))
    assert steps["merged"]["index"] == steps["picks"]["index"] == str(tmp_path / "run" / "index")
    assert steps["dog-tuned"]["tokens"] == str(tmp_path / "run" / "picks")


def test_small_photos_are_enlarged_and_large_ones_are_not_spoken_of(tmp_path: Path) -> None:
    steps = configs(loaded(answers(concept("dog", side=600)), tmp_path))
    assert steps["dog-tuned"]["enlarge"] is True
    assert "enlarge" not in draft(answers(concept("dog"))).text


def test_faces_and_styles_have_their_own_settings(tmp_path: Path) -> None:
    steps = configs(loaded(answers(concept("man", "face"), concept("art", "style")), tmp_path))
    assert (steps["man-tuned"]["preset"], steps["art-tuned"]["preset"]) == ("face", "style")
    assert steps["art-after"]["prompts"][0] == "a house in the style of <new2> art"
    assert steps["together"]["prompts"][0] == "a <new1> man on the grass in the style of <new2> art"
    face = configs(loaded(answers(concept("man", "face")), tmp_path))
    assert face["man-tuned"]["steps"] == 750
    embedded = configs(loaded(answers(concept("star", "face"), base=describe_base("embedded")), tmp_path))
    assert embedded["star-tuned"]["preset"] is None
    assert embedded["star-tuned"]["steps"] == 120


def test_a_model_whose_lora_diffusers_does_not_read_is_not_exported_as_one(tmp_path: Path) -> None:
    pipeline = loaded(answers(concept("dog"), base=replace(REAL, lora=False)), tmp_path)
    assert "export" not in stages(pipeline)


@pytest.mark.parametrize("captions", [POOL, INDEX, NONE])
def test_every_variable_is_explained(captions: CaptionSource) -> None:
    """By a comment on its line, or above it."""
    lines = draft(answers(concept("dog", side=600), concept("vase"), captions=captions)).text.splitlines()
    variables = yaml.safe_load("\n".join(lines))["vars"]
    for variable in variables:
        place = next(n for n in range(len(lines)) if lines[n].startswith(f"  {variable}:"))
        above = place - 1
        while re.match(r"    |  \w+:", lines[above]):
            above -= 1
        assert "    #" in lines[place] or lines[above].startswith("  #"), variable


@pytest.mark.parametrize("word", ["true", "null", "1", "Bär", "together", "ice-cream van", "index", "日本"])
def test_words_that_yaml_or_stages_would_misread(word: str, tmp_path: Path) -> None:
    pipeline = loaded(answers(concept(word), concept("star"), base=describe_base("embedded")), tmp_path)
    assert next(iter(pipeline.variables["concepts"]))["word"] == word


@pytest.mark.parametrize(
    "source", ['a "b" c', "tab\there", "ünï/ço dé", "emoji 🐕", "back\\slash", "line\u2028end", "#x: y"]
)
def test_paths_come_through_yaml_as_they_are(source: str, tmp_path: Path) -> None:
    pipeline = loaded(answers(concept("dog", source=source)), tmp_path)
    assert configs(pipeline)["dog-tuned"]["concepts"] == {"dog": source}
    assert yaml.safe_load(quoted(source)) == source


def test_what_no_pipeline_can_hold_is_refused() -> None:
    for word in ("", " ", "<new1>", "a{}b", "${x}", "x" * 61, "line\nbreak$"):
        with pytest.raises(ConfigError):
            check_word(word)
    assert check_word("  coffee \n mug ") == "coffee mug"
    for source in ("photos/${x}", "photos/\udcff"):
        with pytest.raises(ConfigError):
            check_source(source, "--photos")


def test_names_and_articles() -> None:
    assert names_of(["Dog", "dog", "Müller's hat", "日本", "together"]) == [
        *("dog", "dog-2", "muller-s-hat", "concept", "together-2")
    ]
    assert (with_article("dog"), with_article("Apple")) == ("a dog", "an Apple")


def test_a_file_is_replaced_only_when_told_to(tmp_path: Path) -> None:
    target = tmp_path / "neu ü" / "dog.yaml"
    made = draft(answers(concept("dog")))
    write_draft(made, target, force=False)
    with pytest.raises(OutputError, match="exists"):
        write_draft(made, target, force=False)
    with pytest.raises(OutputError, match="is a folder"):
        write_draft(made, tmp_path, force=True)
    with pytest.raises(ConfigError):
        write_draft(replace(made, text="stages: {x: {run: trian}}"), target, force=True)
    assert target.read_text(encoding="utf-8") == made.text
    assert [path.name for path in target.parent.iterdir()] == ["dog.yaml"], "nothing half-written stays"


def test_the_two_commands_can_be_pasted() -> None:
    assert commands(Path("mein Hund.yaml")) == (
        "cdkit run 'mein Hund.yaml' --dry-run",
        "cdkit run 'mein Hund.yaml'",
    )
