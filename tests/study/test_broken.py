"""Every broken study is refused in one paragraph, at the right place, with what was expected.

Each file of `broken/` breaks one rule. Its first lines say which rule, of which kind, with which `--set` overrides,
and how the message begins.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.study import StudyError, load_study

BROKEN = Path(__file__).parent / "broken"


@dataclass(frozen=True)
class Broken:
    path: Path
    rule: str
    kind: str
    expect: str
    overrides: tuple[str, ...]


def read(path: Path) -> Broken:
    head = [line[2:].partition(": ") for line in path.read_text().splitlines() if line.startswith("# ")]
    values = {name: value for name, _, value in head}
    overrides = tuple(value for name, _, value in head if name == "set")
    return Broken(path, values["rule"], values["kind"], values["expect"], overrides)


STUDIES = [read(path) for path in sorted(BROKEN.glob("*.yaml"))]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.path.stem)
def test_a_broken_study_is_refused_at_its_place(study: Broken) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(study.path, study.overrides)
    message = str(caught.value).replace(f"{BROKEN}/", "")
    assert message.startswith(study.expect)
    assert "\n" not in message
    assert "pydantic" not in message
    assert any(words in message for words in ("expected", "Valid here", "not supported yet", "cannot be set here")), (
        "nothing helps the user"
    )


def test_the_study_that_the_broken_ones_include_is_sound() -> None:
    treatment = load_study(BROKEN / "parts/sound.yaml").arms[0].treatment
    assert [stage.name for stage in treatment.stages] == ["stable", "decay"]


def test_no_two_broken_studies_break_the_same_rule() -> None:
    assert not [rule for rule, count in Counter(study.rule for study in STUDIES).items() if count > 1]


def test_mistakes_of_every_origin_are_covered() -> None:
    assert len(STUDIES) >= 40
    assert sum(study.kind == "cross-field" for study in STUDIES) >= 10
    assert sum(study.expect.startswith("parts/") for study in STUDIES) >= 5
    assert sum(study.expect.startswith("--set ") for study in STUDIES) >= 5
