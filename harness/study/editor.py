"""The JSON Schema of a study file, for editors: completion, and a mark under a mistake while it is typed."""

from __future__ import annotations

from typing import Any

from harness.study.checks import NAME
from harness.study.schema import NULLABLE, StudySpec

_NAMED = ("sources", "stages", "merge")  # mappings of names that the user gives


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what users write: units allowed, unknown keys marked."""
    schema: dict[str, Any] = StudySpec.model_json_schema(by_alias=True)
    _written(schema)
    for name in _NAMED:
        schema["properties"][name]["propertyNames"] = {"pattern": f"^{NAME.pattern}$"}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A study of the mid-training ablation harness"
    return schema


def _written(schema: Any) -> None:
    """Take out what the models need and a user may not write: nulls and their defaults, titles of fields."""
    if isinstance(schema, list):
        for entry in schema:
            _written(entry)
    if not isinstance(schema, dict):
        return
    for name, field in schema.get("properties", {}).items():
        field.pop("title", None)
        if "default" in field and field["default"] is None:
            del field["default"]
        if name not in NULLABLE and "anyOf" in field:
            _without_null(field)
    for value in schema.values():
        _written(value)


def _without_null(field: dict[str, Any]) -> None:
    forms = [form for form in field["anyOf"] if form != {"type": "null"}]
    if len(forms) == 1:
        del field["anyOf"]
        field.update({key: value for key, value in forms[0].items() if key not in field})
    else:
        field["anyOf"] = forms
