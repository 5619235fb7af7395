"""Keys that no arm can change act, too; what they must differ in is what they are for. See `test_every_key`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.launch import prepare
from harness.plan.plan import build_plan
from harness.plan.science import Identities
from harness.store.layout import Folder
from harness.store.manifests import read_base
from harness.study.errors import UserError
from tests.proofs import execution_keys, other_keys
from tests.proofs.every_key import Written
from tests.proofs.looks import SCORED, Case, See, merged, reported, verdicts, weights
from tests.proofs.science_keys import STAGE

PROBES = {**other_keys.PROBES, **execution_keys.PROBES}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for all these tests, with a token store, and in `start` two trained models."""
    root = tmp_path_factory.mktemp("other-keys")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABLATE_CACHE", str(root / "cache"))
        for name in ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_MODE"):
            patch.delenv(name, raising=False)
        Case(root / "first", root / "start", [], patch).bring({"seeds": {"init": [1, 2]}})
        yield root
    torch.set_num_threads(threads)


@pytest.fixture
def case(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    start = Folder(place / "start")
    ends = [state for state in start.all_states() if 2 * STAGE in state.checkpoint_tokens()]
    bases = [state.checkpoint(2 * STAGE) for state in sorted(ends, key=lambda state: state.id)]
    base = read_base(start)
    assert base is not None and len(bases) == 2
    for name in ("a", "b"):
        lines = [{key: f"{key} {number} of {name}" for key in ("text", "body")} for number in range(40)]
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for number in range(4):
            (tmp_path / "files" / f"{name}{number}.txt").write_text(f"text {number} of {name}")
    return Case(tmp_path, place / "shared", bases, monkeypatch)


def seen(see: See, case: Case, changes: Written) -> tuple[str, Any]:
    try:
        return "seen", see(case, changes)
    except UserError as error:
        return "refused", str(error)


SLOW = (reported, verdicts, merged)  # seconds each
QUICK = ("question", "merge.NAME.weights", "controls[ ].reproduce.value")  # one of each in every run of the tests
STDLIB = ("sources.NAME.builtin=python_code", "sources.NAME.builtin=python_docs")


def weighed(entry: str) -> Any:
    slow = entry in STDLIB or (PROBES[entry].see in SLOW and entry not in QUICK)
    return pytest.param(entry, marks=pytest.mark.slow) if slow else entry


@pytest.mark.parametrize("entry", map(weighed, PROBES))
def test_studies_that_differ_in_a_key_alone_differ_in_what_it_is_for(case: Case, entry: str) -> None:
    shown = PROBES[entry]
    one, other = (seen(shown.see, case, changes) for changes in (shown.one, shown.other))
    assert "seen" in (one[0], other[0]), (one, other)
    assert one != other


@pytest.mark.parametrize("entry", execution_keys.PROBES)
def test_what_is_no_science_names_no_work(case: Case, entry: str) -> None:
    named = []
    for changes in (PROBES[entry].one, PROBES[entry].other):
        start = SCORED if PROBES[entry].see is reported else {}
        study = prepare.load(case.study({**start, **changes}))
        identities = Identities("w" * 64, "t" * 64, {name: name.ljust(64, "0") for name in study.sources}, {})
        named.append([(arm.name, arm.fingerprint) for arm in build_plan(study, identities).arms])
    assert named[0] == named[1]


OF_AN_ARM = ("base.optimizer=cold", "base.optimizer=carried", "base.lr", "base.tokens_seen", "total")


@pytest.mark.parametrize("entry", OF_AN_ARM)
def test_an_arm_that_changes_it_trains_as_the_study_that_has_that_value(case: Case, entry: str) -> None:
    one, other = PROBES[entry].one, PROBES[entry].other
    changed = {key: value for key, value in other.items() if one.get(key) != value}
    assert len(changed) == 1
    allow = {"compare.allow": {"arm": ["unequal-tokens"]}}
    both = weights(case, {**one, **allow, "ablate": [{"cases": {"arm": changed}}]})
    assert both["arm/s1"] == weights(case, other)["default/s1"] != both["default/s1"]
    assert both["default/s1"] == weights(case, one)["default/s1"]
