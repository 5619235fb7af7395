"""A result's key changes exactly when what is evaluated changes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.evals import settings as evaluation_settings
from harness.evals.settings import EvalSettings, EvalTask, task_key
from harness.evals.suites import resolve_tasks, study_settings
from harness.evals.task_files import OWN_TASKS, read_task_file
from harness.study.schema import EvalSpec

SETTINGS = EvalSettings(max_length=512, window=128)
SPEC = EvalSpec.model_validate({"suites": ["quickstart@1"]})


def resolved(manifest: dict[str, Any], settings: EvalSettings = SETTINGS) -> dict[str, EvalTask]:
    return {task.task: task for task in resolve_tasks(SPEC, {"web": manifest}, settings)}


@pytest.mark.parametrize(
    ("change", "re_keyed"),
    [
        ({"max_length": 256}, {"arithmetic", "arithmetic_facts", "repeated_passage"}),
        ({"batch_size": 4}, {"arithmetic", "arithmetic_facts", "repeated_passage", "web"}),
        ({"window": 64}, {"web"}),
        ({"documents": 10}, {"web"}),
        ({"by_position": True}, {"web"}),
        ({"device": "cuda"}, set()),
        ({"threads": 4}, set()),
        ({"trained_length": 128}, set()),
    ],
)
def test_a_setting_re_keys_what_it_changes(
    manifest: dict[str, Any], change: dict[str, Any], re_keyed: set[str]
) -> None:
    before, after = resolved(manifest), resolved(manifest, replace(SETTINGS, **change))
    assert {name for name in before if before[name].key != after[name].key} == re_keyed


@pytest.mark.parametrize(
    ("field", "value", "changes"),
    [
        ("identity", "d" * 64, True),
        ("tokens", "/elsewhere", False),
        ("name", "renamed", False),
        ("held_out", {"documents": 8, "tokens": 1, "bytes": 1, "content": "e" * 64}, True),
    ],
)
def test_a_held_out_key_follows_the_source_s_content(
    manifest: dict[str, Any], field: str, value: Any, changes: bool
) -> None:
    before, after = resolved(manifest)["web"], resolved({**manifest, field: value})["web"]
    assert (before.key != after.key) is changes


def test_another_tokenizer_of_the_same_source_re_keys_nothing(manifest: dict[str, Any]) -> None:
    held_out = {**manifest["held_out"], "tokens": 1}
    assert resolved(manifest)["web"].key == resolved({**manifest, "held_out": held_out, "tokenizer": "x"})["web"].key


def test_the_limit_and_the_few_shot_count_are_part_of_the_key(manifest: dict[str, Any]) -> None:
    task = resolved(manifest)["arithmetic"]
    assert len({task_key(replace(task, **change), SETTINGS) for change in ({}, {"limit": 5}, {"num_fewshot": 2})}) == 3
    assert task_key(replace(task, suite="other", headline="acc_norm"), SETTINGS) == task.key


def test_a_new_lm_eval_re_keys_its_tasks_and_not_held_out_loss(
    manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resolved(manifest)
    monkeypatch.setattr(evaluation_settings, "lm_eval_version", lambda: "0.4.99")
    after = resolved(manifest)
    assert {name for name in before if before[name].key != after[name].key} == set(before) - {"web"}


def test_a_task_s_content_is_its_files_and_not_their_place(tmp_path: Path) -> None:
    here = read_task_file(OWN_TASKS / "arithmetic.yaml").content
    moved = tmp_path / "moved"
    shutil.copytree(OWN_TASKS, moved)
    assert read_task_file(moved / "arithmetic.yaml").content == here
    (moved / "repeated_passage.jsonl").write_text("")
    assert read_task_file(moved / "arithmetic.yaml").content == here, "another task's data is none of its files"
    for name in ("arithmetic.jsonl", "local.py", "arithmetic.yaml"):
        text = (moved / name).read_text("utf-8")
        (moved / name).write_text(text + "\n", "utf-8")
        assert read_task_file(moved / "arithmetic.yaml").content != here, name
        (moved / name).write_text(text, "utf-8")


def test_an_included_file_is_part_of_a_task_s_content(tmp_path: Path) -> None:
    (tmp_path / "common.yaml").write_text("output_type: multiple_choice\nnum_fewshot: 1\n")
    task = tmp_path / "mine.yaml"
    task.write_text("include: common.yaml\ntask: mine\n")
    before = read_task_file(task).content
    (tmp_path / "common.yaml").write_text("output_type: multiple_choice\nnum_fewshot: 2\n")
    assert read_task_file(task).content != before


def test_a_task_survives_json(manifest: dict[str, Any]) -> None:
    for task in resolved(manifest).values():
        assert EvalTask.from_json(task.to_json()) == task


def test_a_study_without_a_max_length_takes_its_longest_context() -> None:
    assert study_settings(SPEC, longest_context=384).max_length == 384
    assert study_settings(EvalSpec.model_validate({"max_length": 64}), longest_context=384).max_length == 64


def test_every_field_of_the_study_s_eval_block_reaches_the_settings() -> None:
    spec = EvalSpec.model_validate(
        {"batch_size": 3, "held_out": {"window": 32, "by_position": True, "documents": 7}, "limit": 5}
    )
    expected = EvalSettings(64, batch_size=3, window=32, by_position=True, documents=7, device="cpu", threads=1)
    expected = replace(expected, continuations=10)  # where held-out text is evaluated
    assert study_settings(spec, 64, device="cpu", threads=1) == expected


def test_keys_are_made_without_torch_or_lm_eval() -> None:
    program = (
        "import sys\n"
        "from harness.evals import EvalSettings, resolve_tasks\n"
        "from harness.study.schema import EvalSpec\n"
        "spec = EvalSpec.model_validate({'suites': ['quickstart@1', 'base@1'], 'tasks': ['copa']})\n"
        "assert len(resolve_tasks(spec, {}, EvalSettings(64))) > 8\n"
        "print([name for name in ('torch', 'lm_eval', 'transformers', 'datasets') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
