from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.study import StudySpec, json_schema
from harness.study.blocks import Block
from harness.study.schema import NULLABLE


def schemas(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for value in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from schemas(value)


def test_every_reference_of_the_schema_leads_somewhere() -> None:
    schema = json_schema()
    references = [part["$ref"] for part in schemas(schema) if "$ref" in part]
    assert references
    assert all(reference.removeprefix("#/$defs/") in schema["$defs"] for reference in references)


def test_unknown_keys_are_marked_in_every_block() -> None:
    schema = json_schema()
    blocks = [part for part in (schema, *schema["$defs"].values()) if "properties" in part]
    assert len(blocks) > 15
    assert all(part["additionalProperties"] is False for part in blocks)


def test_units_may_be_written_as_text() -> None:
    schema = json_schema()
    assert schema["properties"]["schema"] == {
        "const": 1,
        "description": "1, the version of this grammar",
        "type": "integer",
    }
    tokens = schema["$defs"]["StageSpec"]["properties"]["tokens"]
    assert {form.get("type", form.get("const")) for form in tokens["anyOf"]} == {"integer", "string", "rest", "object"}


def test_null_is_offered_only_where_it_means_something() -> None:
    for part in schemas(json_schema()):
        for name, field in part.get("properties", {}).items():
            if isinstance(field, dict) and {"type": "null"} in field.get("anyOf", []):
                assert name in NULLABLE


def test_every_field_says_what_it_expects() -> None:
    def check(block: type[Block]) -> None:
        assert all(field.description for field in block.model_fields.values()), block.__name__

    check(StudySpec)
    for block in Block.__subclasses__():
        check(block)
