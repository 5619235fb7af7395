"""Suites and task names: what is listed exists, what does not is refused with the nearest name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from harness.evals import suites
from harness.evals.settings import EvalSettings
from harness.evals.suites import check_packages, load_suite, resolve_tasks, suite_names
from harness.evals.task_files import OWN_TASKS, own_task_names, read_task_file, stock_index
from harness.study.errors import UserError
from harness.study.schema import EvalSpec

SETTINGS = EvalSettings(max_length=64)


def resolve(folder: Path | None = None, **spec: Any) -> list[Any]:
    return resolve_tasks(EvalSpec.model_validate(spec), {}, SETTINGS, folder)


def test_every_task_of_every_suite_is_ours_or_lm_eval_s_and_one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    listed = {task.task for name in suite_names() for task in load_suite(name).tasks}
    monkeypatch.undo()
    stock = {name for name, entry in stock_index().items() if entry.kind == "task"}
    assert listed - set(own_task_names()) <= stock
    assert {"quickstart@1", "smoke@1", "base@1", "math@1"} <= set(suite_names())


def test_a_suite_that_needs_a_missing_package_says_so_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"math@1.*lm-eval\[math\]"):
        check_packages(["quickstart@1", "math@1"])
    assert load_suite("math@1").tasks, "a plan needs no package"


@pytest.mark.parametrize("name", ["quickstart", "quickstart@2", "quikstart@1"])
def test_an_unknown_suite_is_refused_with_the_nearest_name(name: str) -> None:
    with pytest.raises(UserError, match="did you mean `quickstart@1`"):
        load_suite(name)


def test_a_suite_s_own_limit_and_the_study_s_are_both_kept_to() -> None:
    limits = {task.task: task.limit for task in resolve(suites=["smoke@1"], limit=3)}
    assert limits == {"arithmetic": 3, "repeated_passage": 2}


def test_a_suite_file_under_a_wrong_name_is_a_defect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a@1.yaml").write_text("suite: a\nversion: 2\ntasks: []\n")
    monkeypatch.setattr(suites, "SUITES", tmp_path)
    with pytest.raises(ValueError, match="says that it is a@2"):
        load_suite("a@1")


def test_an_unknown_task_is_refused_with_near_names() -> None:
    with pytest.raises(UserError, match=r"hellaswagg.*Near it: `hellaswag`"):
        resolve(tasks=["hellaswagg"])


@pytest.mark.parametrize(("name", "kind"), [("mmlu", "group"), ("ai2_arc", "tag")])
def test_a_name_that_stands_for_several_tasks_is_refused(name: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"`{name}` is a {kind} of several"):
        resolve(tasks=[name])


def test_a_stock_task_is_taken_by_name_and_ours_hides_one_of_the_same_name() -> None:
    piqa, arithmetic = resolve(tasks=["piqa", "arithmetic"])
    assert (piqa.path, piqa.content, piqa.suite) == (None, None, "tasks")
    assert (arithmetic.path, arithmetic.content) == (None, read_task_file(OWN_TASKS / "arithmetic.yaml").content)
    assert "arithmetic" in stock_index()


def test_a_user_s_task_is_found_from_the_study_s_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: my_task\noutput_type: multiple_choice\n")
    (task,) = resolve(tmp_path, tasks=["mine.yaml"])
    assert (task.task, task.path) == ("my_task", str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match=r"other\.yaml"):
        resolve(tmp_path, tasks=["other.yaml"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("group: several\ntask: [a, b]\n", "not the YAML of one lm-eval task"),
        ("task: a/b\n", "may hold only letters"),
        ("- task\n", "holds no settings"),
        ("task: [\n", "cannot be read"),
        ("include: bad.yaml\ntask: x\n", "includes itself"),
        ("task: x\ndataset_path: json\ndataset_kwargs: {data_files: {test: here.jsonl}}\n", "here.jsonl"),
    ],
)
def test_a_broken_task_file_is_one_paragraph(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        resolve(tmp_path, tasks=["bad.yaml"])
    assert "\n" not in str(caught.value)


def test_one_name_for_two_different_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: arithmetic\noutput_type: multiple_choice\n")
    with pytest.raises(UserError, match="asked for twice"):
        resolve(tmp_path, tasks=["arithmetic", "mine.yaml"])
