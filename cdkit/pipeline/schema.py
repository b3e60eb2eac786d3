"""JSON schema of a pipeline's YAML, by which editors complete keys and mark mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdkit.core.config import StageConfig, field_settings
from cdkit.pipeline.spec import NAME, WHEN_NEEDED
from cdkit.pipeline.variables import CHOICE, EACH
from cdkit.stages import STAGES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# A text with a variable in it may stand where a number, a list or a mapping is asked for.
_VARIABLE = {"type": "string", "pattern": r"\$\{[^}]+\}", "description": "A value that holds ${variables}."}
_NOT_FOR_EDITORS = ("setting", "title")


def pipeline_schema() -> dict[str, Any]:
    """The schema, of draft 2020-12: `run` decides which other keys a stage may have."""
    kinds = [{"const": stage.name, "description": stage.summary} for stage in STAGES.values()]
    name = {"type": "string", "pattern": f"^{NAME.pattern}$"}
    stage = {
        "type": "object",
        "required": ["run"],
        "properties": {
            "run": _open({"anyOf": kinds, "description": "The stage that runs."}, "#/$defs/stage/properties/run")
        },
        "allOf": [
            {
                "if": {"required": ["run"], "properties": {"run": {"const": kind}}},
                "then": {"$ref": f"#/$defs/{kind}"},
            }
            for kind in STAGES
        ],
    }
    return {
        "$schema": DIALECT,
        "title": "A pipeline of cdkit",
        "type": "object",
        "required": ["stages"],
        "additionalProperties": False,
        "properties": {
            "name": {**name, "description": "Names the run's folder [default: the file's name]."},
            "description": {"type": "string", "description": "What the pipeline is for."},
            "vars": {
                "type": ["object", "null"],
                "description": "Values by name, for ${name} and --set; each may use those above it.",
            },
            "stages": {
                "type": "object",
                "description": "The stages by name; another stage's inputs may name them.",
                "minProperties": 1,
                "propertyNames": {"anyOf": [name, {"$ref": "#/$defs/variable"}]},
                "additionalProperties": {"$ref": "#/$defs/stage"},
            },
        },
        "$defs": {
            "variable": _VARIABLE,
            "stage": stage,
            **{kind: _stage(kind, row.config_class()) for kind, row in STAGES.items()},
        },
    }


def _stage(kind: str, config_class: type[StageConfig]) -> dict[str, Any]:
    """The keys of a stage that runs `kind`."""
    schema = config_class.model_json_schema()
    where = f"#/$defs/{kind}/properties"
    lists = {
        "type": "object",
        "description": "Writes the stage once for each combination of what these lists hold.",
        "minProperties": 1,
        "additionalProperties": {"type": "array", "minItems": 1},
    }
    needed = {"type": "boolean", "description": "Leave the stage out when none takes input from it.", "default": False}
    properties = {
        "run": {"description": STAGES[kind].summary},
        EACH: _open(lists, f"{where}/{EACH}"),
        WHEN_NEEDED: _open(needed, f"{where}/{WHEN_NEEDED}"),
        **{name: _open(field, f"{where}/{name}") for name, field in schema["properties"].items()},
    }
    # What takes the run's own folder is given it.
    filled = {name for name, extra in field_settings(config_class).items() if extra.input == "run"}
    return {
        "title": f"stage {kind}",
        "type": "object",
        "description": schema.get("description", ""),
        "required": ["run", *(name for name in schema.get("required", ()) if name not in filled)],
        "additionalProperties": False,
        "properties": properties,
    }


def _open(schema: Mapping[str, Any], pointer: str) -> dict[str, Any]:
    """`schema`, a variable, or a choice of such by a variable; `pointer` is where the result stands."""
    told = {key: schema[key] for key in ("description", "default") if key in schema}
    literal = {key: value for key, value in schema.items() if key not in (*told, *_NOT_FOR_EDITORS)}
    choice = {
        "title": "choice by a variable",
        "type": "object",
        "description": "A value for each value of a variable; `else` is for all others.",
        "required": [CHOICE],
        "properties": {CHOICE: {"type": "string", "description": "The variable that chooses."}},
        "additionalProperties": {"$ref": pointer},
    }
    return {**told, "anyOf": [_open_inside(literal, f"{pointer}/anyOf/0"), {"$ref": "#/$defs/variable"}, choice]}


def _open_inside(schema: Mapping[str, Any], pointer: str) -> dict[str, Any]:
    """`schema` with what its lists and mappings hold left open."""
    opened = dict(schema)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            opened[key] = _open(schema[key], f"{pointer}/{key}")
    if "anyOf" in schema:
        opened["anyOf"] = [_open_inside(kind, f"{pointer}/anyOf/{n}") for n, kind in enumerate(schema["anyOf"])]
    return opened
