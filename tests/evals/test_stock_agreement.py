"""The stock `lm_eval` command on the exported folder: every number and every sample is ours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.evals.evaluate import evaluate_state
from harness.evals.settings import EvalSettings, EvalTask, task_key
from harness.evals.suites import resolve_tasks
from harness.evals.task_files import OWN_TASKS
from harness.store import evaluations
from harness.study.schema import EvalSpec
from tests.evals.conftest import LIMIT, STATE, Exported, StockCommand

SPEC = EvalSpec.model_validate({"suites": ["quickstart@1"], "limit": LIMIT})


def settings(batch_size: int) -> EvalSettings:
    return EvalSettings(max_length=512, batch_size=batch_size, device="cpu", threads=1)


def evaluated(exported: Exported, batch_size: int) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Results and samples by task."""
    tasks = resolve_tasks(SPEC, {}, settings(batch_size))
    evaluate_state(exported.folder, STATE, tasks, settings(batch_size))
    return {
        task.task: (
            evaluations.read_results(exported.folder, exported.weights, task.key) or {},
            evaluations.read_samples(exported.folder, exported.weights, task.key).to_pylist(),
        )
        for task in tasks
    }


@pytest.fixture(scope="module")
def stock(stock_command: StockCommand) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the stock command writes: its results file, and its samples by task."""
    out = stock_command.finished()
    (results,) = out.glob("*/results_*.json")
    samples = {}
    for name in (task.task for task in resolve_tasks(SPEC, {}, settings(1))):
        (path,) = out.glob(f"*/samples_{name}_2*.jsonl")
        samples[name] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return json.loads(results.read_text("utf-8")), samples


def plain(value: Any) -> Any:
    """As JSON has it: lm-eval writes responses as lists of strings."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else str(value)


def test_every_number_equals_the_stock_command_s(exported: Exported, stock: tuple[dict[str, Any], Any]) -> None:
    compared = 0
    for task, (ours, _) in evaluated(exported, 1).items():
        theirs = stock[0]["results"][task]
        for field, value in theirs.items():
            metric, _, filter_name = field.partition(",")
            if not filter_name:
                continue
            if metric.endswith("_stderr"):
                assert ours["metrics"][metric.removesuffix("_stderr")]["stderr"] == pytest.approx(value, rel=1e-12)
            else:
                assert ours["metrics"][metric]["value"] == value
            compared += 1
        assert ours["task_hash"] == stock[0]["task_hashes"][task]
        assert ours["settings"]["num_fewshot"] == stock[0]["n-shot"][task]
        assert ours["versions"]["task"] == stock[0]["versions"][task]
    assert compared >= 6


def test_every_sample_equals_the_stock_command_s(exported: Exported, stock: tuple[Any, dict[str, Any]]) -> None:
    for task, (_, ours) in evaluated(exported, 1).items():
        theirs = sorted(stock[1][task], key=lambda sample: sample["doc_id"])
        assert len(ours) == len(theirs) == LIMIT
        for row, sample in zip(ours, theirs, strict=True):
            for field in ("doc_id", "doc_hash", "prompt_hash", "target_hash"):
                assert row[field] == sample[field]
            record = json.loads(row["record"])
            assert record["doc"] == sample["doc"]
            assert str(record["target"]) == sample["target"]
            assert plain(record["resps"]) == plain(sample["resps"])
            assert plain(record["filtered_resps"][sample["filter"]]) == plain(sample["filtered_resps"])
            for metric in sample["metrics"]:
                assert row[metric] == sample[metric]


def test_at_a_larger_batch_a_task_equals_simple_evaluate_to_the_bit(exported: Exported) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    ours = evaluated(exported, 8)
    manager = TaskManager(include_path=str(OWN_TASKS), include_defaults=False)
    for task, (_, rows) in ours.items():
        theirs = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(exported.model), "dtype": "float32", "max_length": 512},
            tasks=[task],
            batch_size=8,
            device="cpu",
            limit=LIMIT,
            bootstrap_iters=0,
            task_manager=manager,
        )
        assert theirs is not None
        for row, sample in zip(rows, theirs["samples"][task], strict=True):
            record = json.loads(row["record"])
            assert record["resps"] == json.loads(json.dumps(sample["resps"]))


def test_a_task_s_result_does_not_depend_on_the_tasks_beside_it(exported: Exported, tmp_path: Path) -> None:
    together = evaluated(exported, 8)
    tasks = resolve_tasks(SPEC, {}, settings(8))
    for task in tasks:
        alone = _again(exported, task, tmp_path)
        assert alone == [row["record"] for row in together[task.task][1]]


def _again(exported: Exported, task: EvalTask, root: Path) -> list[str]:
    from harness.evals.evaluate import evaluate_model
    from harness.store.layout import Folder

    assert task_key(replace(task, suite="other"), settings(8)) == task.key
    folder = Folder(root)
    evaluate_model(folder, exported.model, exported.weights, [task], settings(8))
    return evaluations.read_samples(folder, exported.weights, task.key)["record"].to_pylist()
