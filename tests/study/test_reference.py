"""The reference of the study file is the schema's: every key stands in it, and the committed page is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.study.defaults import held
from harness.study.reference import reference
from harness.study.schema import ITEM_KINDS, SeedsSpec, SourceSpec, StudySpec
from harness.study.schema.execution import LaunchSpec
from harness.study.schema.training import ContextSpec, OptimizerSpec, TrainSpec
from tests.study.conftest import Load

PAGE = Path(__file__).parents[2] / "docs/reference.md"


def test_the_committed_reference_is_what_the_schema_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run: ablate schema --markdown > docs/reference.md"


def test_every_key_of_the_schema_has_a_row_that_says_what_it_takes() -> None:
    text = reference()
    for key in StudySpec.names():
        assert f"| `{key}` | " in text
    assert "|  |  |" not in text, "a key without a description"


WRITTEN = {
    "train": (TrainSpec, ("precision",)),
    "train.context": (ContextSpec, ("rope", "documents", "packing")),
    "train.optimizer": (
        OptimizerSpec,
        ("name", "weight_decay", "decay_embeddings", "clip", "z_loss", "label_smoothing", "eps"),
    ),
    "seeds": (SeedsSpec, ("init", "data")),
    "launch": (LaunchSpec, ("silent_after",)),
    "sources.math": (SourceSpec, ("seed",)),
}


@pytest.mark.parametrize(("block", "key"), [(block, key) for block, (_, keys) in WRITTEN.items() for key in keys])
def test_a_default_of_the_reference_can_be_written_and_changes_nothing(load: Load, block: str, key: str) -> None:
    shown = held(WRITTEN[block][0], key)
    assert shown is not None and f"| {shown} |" in reference()
    plain, written = load(), load("", f"{block}.{key}={shown.strip('`')}")
    assert plain.arms[0].treatment == written.arms[0].treatment
    assert plain.sources == written.sources and plain.spec.launch == written.spec.launch
    assert [(one.init, one.data) for one in plain.seed_sets] == [(one.init, one.data) for one in written.seed_sets]


def test_the_reference_says_what_an_arm_may_change_and_every_kind_of_item() -> None:
    text = reference()
    assert "`base.optimizer`, `base.lr`, `base.tokens_seen`, `train`, " in text
    assert f"one of {', '.join(ITEM_KINDS)} |" in text
