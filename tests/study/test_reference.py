"""The reference of the study file is the schema's: every key stands in it, and the committed page is up to date."""

from __future__ import annotations

from pathlib import Path

from harness.study.reference import reference
from harness.study.schema import StudySpec

PAGE = Path(__file__).parents[2] / "docs/reference.md"


def test_the_committed_reference_is_what_the_schema_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run: ablate schema --markdown > docs/reference.md"


def test_every_key_of_the_schema_has_a_row_that_says_what_it_takes() -> None:
    text = reference()
    for key in StudySpec.names():
        assert f"| `{key}` | " in text
    assert "|  |  |" not in text, "a key without a description"
