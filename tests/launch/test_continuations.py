"""Continuations in a whole study: one run an arm writes at the end, and the others miss nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.continuations import continuations
from analysis.frame import read_frame
from harness.launch import prepare, run
from harness.launch.progress import Silent
from harness.launch.run import Options
from harness.launch.status import read_plan, status
from harness.plan.observed import TaskRef
from harness.plan.plan import build_plan
from harness.store import evaluations
from harness.store.layout import Folder
from harness.study import load_study
from tests.plan.studies import TASK, identities, study

KIND = "continuations"
WRITTEN = TaskRef(KIND, KIND, KIND, "c" * 64)
AA = ("controls=[{name: aa, same_as: default, seeds: {data: [4, 5]}}]",)


def test_only_the_first_seeds_of_each_arm_write_and_only_at_the_end(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path, overrides=AA), identities(), tasks=[TASK, WRITTEN])
    arms = [arm.name for arm in plan.arms if not arm.control]
    assert len(arms) == 3 and len(plan.runs) == 8, "the arm of the control is planned, too"
    assert [f"{item.run}@{item.label}" for item in plan.evals if item.task is WRITTEN] == [
        f"{arm}/d1@end" for arm in arms
    ]
    assert sum(item.task is TASK for item in plan.evals) == 3 * len(plan.runs)


def test_where_the_end_is_not_evaluated_nothing_is_written(tmp_path: Path) -> None:
    plan = build_plan(
        study(tmp_path, overrides=("eval.at=[stable]", "compare.primary=[]")), identities(), tasks=[TASK, WRITTEN]
    )
    assert plan.evals and all(item.task is TASK for item in plan.evals)


def test_before_all_sources_are_known_nobody_knows_what_will_be_written(scored: Path, tmp_path: Path) -> None:
    planned = prepare.planned(load_study(scored), Folder(tmp_path / "nowhere"))
    assert planned.resolved.sources == {} and [task.kind for task in planned.tasks] == []


def results(folder: Folder) -> dict[tuple[str, str], str]:
    """Kind of every result by weights and key."""
    found = {}
    for path in folder.evals.glob("*/*/results.json"):
        weights, name = path.parent.parent.name, path.parent.name
        found[weights, name] = (evaluations.read_results(folder, weights, name) or {})["kind"]
    return found


@pytest.fixture
def asked(scored: Path) -> Options:
    return Options(scored, scored.parent / "results", executor="debug")


def test_a_study_writes_and_changing_the_number_of_prompts_evaluates_nothing_else(
    asked: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.report._figures", lambda frame, scores: {})  # nobody looks at them here
    assert run.run(asked, Silent()).ended.exit_code == 0
    folder = Folder(asked.folder or "")
    before = results(folder)
    assert sum(kind == KIND for kind in before.values()) == 3, "one an arm"
    assert {one.state for one in status(folder)} == {"done"}

    frame = read_frame(folder.root)
    found = continuations(frame)
    assert found.runs == {arm: f"{arm}/d1" for arm in ("default", "more=0", "more=0.3")}
    assert len(found.prompts) == 10 and all(len(prompt.by_arm) == 3 for prompt in found.prompts)
    assert {prompt.source for prompt in found.prompts} == {"sums", "more"}
    assert {one.status for one in frame.runs} == {"done"}
    assert {metric.name.split(".")[0] for metric in frame.metrics} == {"bpb"}
    for name in ("index.html", "report.md"):
        assert "What the arms write" in (folder.root / "report" / name).read_text("utf-8")

    fewer = Options(asked.study, asked.folder, ("eval.continuations=4",), executor="debug")
    ended = run.run(fewer, Silent())
    assert ended.trained_tokens == 0 and ended.evaluated == 3
    after = results(folder)
    assert {kind for place, kind in after.items() if place not in before} == {KIND} and len(after) == len(before) + 3
    again = continuations(read_frame(folder.root))
    assert [prompt.prompt for prompt in again.prompts] == [prompt.prompt for prompt in found.prompts[:4]]
    assert [prompt.by_arm for prompt in again.prompts] == [prompt.by_arm for prompt in found.prompts[:4]]

    none = Options(asked.study, asked.folder, ("eval.continuations=0",), executor="debug")
    assert run.run(none, Silent()).evaluated == 0
    assert all(task["kind"] != KIND for task in read_plan(folder)["tasks"])
    assert "What the arms write" not in (folder.root / "report/index.html").read_text("utf-8")
