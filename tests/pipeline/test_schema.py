"""The JSON schema of pipelines says what `load` says: what runs is valid by it, a mistake is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cdkit.core.errors import ConfigError
from cdkit.core.yaml_files import parse_yaml
from cdkit.pipeline import spec
from cdkit.pipeline.schema import pipeline_schema
from cdkit.pipeline.variables import CHOICE
from cdkit.stages import STAGES
from tests.cli.running import ran

SCHEMA = pipeline_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
SHIPPED = sorted(spec.shipped("pipelines"))


def _mistakes(text: str) -> list[str]:
    value = parse_yaml(text, scalar_keys_beside=CHOICE).value
    # Keys that are numbers or truth values in YAML are texts in JSON.
    return [error.message for error in VALIDATOR.iter_errors(json.loads(json.dumps(value)))]


def _part(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]})


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(ran(["pipeline", "schema", "--format", "json"]).out) == SCHEMA
    assert json.loads(ran(["pipeline", "schema"]).out) == SCHEMA


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_pipeline_is_valid(name: str) -> None:
    assert _mistakes(spec.find(name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_misspelt_key_of_any_stage_is_not(name: str) -> None:
    pipeline: dict[str, Any] = spec.read_document(spec.find(name)).value
    for stage, body in pipeline["stages"].items():
        for misspelt in body:
            wrong = {f"{key}x" if key == misspelt else key: value for key, value in body.items()}
            assert not _part("stage").is_valid(wrong), (stage, misspelt)
    assert not VALIDATOR.is_valid({"varz": {}, "stages": {"page": {"run": "report"}}})


@pytest.mark.parametrize("kind", STAGES)
def test_every_setting_is_known_with_its_default_and_its_help(kind: str) -> None:
    fields = STAGES[kind].config_class().model_fields
    properties = SCHEMA["$defs"][kind]["properties"]
    assert set(properties) == {"run", "each", "when_needed", *fields}
    for name, field in fields.items():
        assert properties[name]["description"] == field.description
        if not field.is_required():
            by_schema = VALIDATOR.evolve(
                schema={"$ref": f"#/$defs/{kind}/properties/{name}", "$defs": SCHEMA["$defs"]}
            )
            assert by_schema.is_valid(json.loads(json.dumps(field.get_default(call_default_factory=True))))


HEAD = "vars: {base: embedded, n: 3, words: [star, mug], flag: true, kind: sample, all: {star: photos}}\nstages:\n  "


@pytest.mark.parametrize(
    "stages",
    [
        's: {run: sample, prompts: [a star], seeds: "${n}", steps: "${n}0"}',
        's: {run: sample, prompts: ["${base}"], seeds: {by: base, embedded: 3, else: "${n}"}}',
        's: {run: sample, prompts: "${words}"}',
        's: {run: "${kind}", prompts: [a star]}',
        "s: {run: {by: base, embedded: sample, else: attention}, prompts: [a star]}",
        '"${w}-s": {each: {w: "${words}"}, run: sample, prompts: ["a ${w}"]}',
        '"${w}-s": {each: {w: [a, {by: n, 3: b, else: c}]}, run: sample, prompts: ["a ${w}"]}',
        's: {run: sample, when_needed: "${flag}", prompts: [a star]}\n  t: {run: report}',
        's: {run: train, concepts: "${all}", steps: null}',
        "s: {run: train, concepts: {by: base, embedded: {star: photos}, else: {}}, sample_every: {by: flag, true: 5}}",
        "s: {run: retrieve, index: i, prompts: [a], exclude_like: photos}",
        's: {run: compare, single: {a: "x,y", b: [z]}}',
        "s: {run: report}",
    ],
)
def test_what_loads_is_valid(stages: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(HEAD + stages)
    spec.load(tmp_path / "p.yaml", {}, tmp_path / "run")
    assert _mistakes(HEAD + stages) == []


@pytest.mark.parametrize(
    "stages",
    [
        "s: {run: smaple, prompts: [a star]}",
        "s: {prompts: [a star]}",
        "s: [sample]",
        "s: {run: retrieve, prompts: [a star]}",
        "s: {run: sample, promts: [a star]}",
        "s: {run: class-images, base: embedded, prompts: []}",
        "s: {run: sample, prompts: [a star], seeds: many}",
        "s: {run: sample, prompts: [a star], seeds: 0}",
        "s: {run: sample, prompts: [a star], scheduler: euler}",
        "s: {run: sample, prompts: [a star], seeds: {by: base, embedded: many}}",
        "s: {run: sample, prompts: [[a star]]}",
        "s: {run: sample, prompts: [a star], when_needed: soon}",
        "s: {run: sample, prompts: [a star], each: {c: star}}",
        "s: {run: train, concepts: [star]}",
        "s t: {run: report}",
        "s: {by: base, embedded: {run: report}}",
    ],
)
def test_what_does_not_load_is_not_valid(stages: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(HEAD + stages)
    with pytest.raises(ConfigError):
        spec.load(tmp_path / "p.yaml", {}, tmp_path / "run")
    assert _mistakes(HEAD + stages)
