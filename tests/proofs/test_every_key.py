"""Every key of the study file acts: two studies that differ in it alone differ in what the key is for.

An option that is accepted and ignored makes a paper wrong. So the keys are taken from the schema, and one without a
probe fails here: a new key needs its proof.

Keys of the science are proven by training: all probes are arms of one tiny study, and a pair that differs in a key must
end in other weights. What else the keys do is shown in `test_every_other_key`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.launch import prepare
from harness.launch.progress import Silent
from harness.launch.run import Options, ready, work
from harness.plan.lint import CODES
from harness.plan.plan import Plan, build_plan
from harness.plan.records import names_of
from harness.store import states
from harness.store.layout import Folder
from harness.study import load_study
from tests.proofs import execution_keys, other_keys
from tests.proofs.every_key import entries, write, written
from tests.proofs.science_keys import PROBES, SPIKES, STUDY


def test_every_key_and_every_word_of_a_choice_has_a_probe() -> None:
    known = {entry.partition(" (")[0] for entry in (*PROBES, *other_keys.PROBES, *execution_keys.PROBES)}
    missing = [entry for entry in entries() if entry not in known]
    assert not missing, "nothing shows that these act"
    assert known == set(entries()), "probes of keys that are no more"


@dataclass(frozen=True)
class Trained:
    """All probes as arms of one study, after training. arms: entry → names of its two; changes: of each arm."""

    root: Path
    plan: Plan
    weights: dict[str, str]
    arms: dict[str, tuple[str, str]]
    changes: dict[str, dict[str, Any]]

    def of(self, arm: str) -> str:
        return self.weights[names_of(self.plan.arms)[arm]]


def named() -> tuple[dict[str, tuple[str, str]], dict[str, dict[str, Any]]]:
    """Every pair as two arms, equal ones once; what changes nothing is `default`."""
    found: dict[str, str] = {"{}": "default"}
    changes: dict[str, dict[str, Any]] = {"default": {}}

    def name(written: dict[str, Any]) -> str:
        known = found.setdefault(repr(written), f"arm{len(found)}")
        changes[known] = written
        return known

    arms = {entry: (name(dict(probe.one)), name(dict(probe.other))) for entry, probe in PROBES.items()}
    return arms, changes


def train(study: Path, out: Path) -> tuple[Plan, dict[str, str]]:
    """Bring a folder to a study, in this process and without a report. Returns the plan and the weights by arm."""
    options = Options(study, out, executor="debug", yes=True, track=False)
    worked = work(ready(prepare.load(study), Folder(out), options, Silent()), options, Silent())
    weights = {}
    for run in worked.after.plan.runs:
        done = states.read_done(Folder(out).state(run.path[-1]))
        assert done is not None and done.weights is not None, run.name
        weights[run.arm] = done.weights
    return worked.after.plan, weights


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Trained]:
    root = tmp_path_factory.mktemp("every-key")
    arms, changes = named()
    cases = {name: of for name, of in changes.items() if name != "default"}
    allow = {name: list(CODES) for name in changes}
    study = {**STUDY, "ablate": [{"cases": cases}], "compare": {"allow": allow}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABLATE_CACHE", str(root / "cache"))
        plan, weights = train(write(root / "keys.yaml", study), root / "out")
        yield Trained(root, plan, weights, arms, changes)


@pytest.mark.parametrize("entry", PROBES)
def test_arms_that_differ_in_a_key_alone_end_in_other_weights(trained: Trained, entry: str) -> None:
    one, other = (trained.of(arm) for arm in trained.arms[entry])
    assert one != other


def test_arms_with_another_fingerprint_have_other_weights(trained: Trained) -> None:
    """The other way round: nothing that trains the same has two names. Rules for spikes are left out: two that find
    none have trained the same."""
    by_weights: dict[str, list[str]] = {}
    for arm, weights in trained.weights.items():
        if not any(path.endswith(SPIKES) for path in trained.changes[arm]):
            by_weights.setdefault(weights, []).append(arm)
    same = [[trained.changes[arm] for arm in arms] for arms in by_weights.values() if len(arms) > 1]
    assert same == []


def study_wide(trained: Trained, arm: str, folder: Path) -> Path:
    """The study that has an arm's changes written into it."""
    study = written(STUDY, dict(sorted(trained.changes[arm].items(), key=lambda item: item[0].count("."))))
    return write(folder / f"{arm}.yaml", {**study, "compare": {"allow": {"default": list(CODES)}}})


def test_an_arm_that_changes_a_key_is_the_study_that_has_that_value(trained: Trained, tmp_path: Path) -> None:
    arms = {arm.name: arm for arm in trained.plan.study.arms}
    prints = {arm.name: arm.fingerprint for arm in trained.plan.arms}
    for name in trained.changes:
        study = load_study(study_wide(trained, name, tmp_path))
        assert study.arms[0].treatment == arms[name].treatment, trained.changes[name]
        plan = build_plan(study, trained.plan.identities)
        assert plan.arms[0].fingerprint == prints[name], trained.changes[name]


@pytest.mark.slow
def test_that_study_trains_to_the_weights_of_the_arm(trained: Trained, tmp_path: Path) -> None:
    for name in trained.changes:
        _, weights = train(study_wide(trained, name, tmp_path), tmp_path / name)
        assert weights == {"default": trained.of(name)}, trained.changes[name]
