"""A state is evaluated once per task; what is missing, damaged or changed is evaluated again, and nothing else."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.evals import evaluate
from harness.evals.evaluate import EvaluationFailed, evaluate_model, evaluate_state, missing_tasks, trained_length
from harness.evals.settings import EvalSettings, EvalTask, lm_eval_key, task_key
from harness.evals.suites import resolve_tasks
from harness.store import evaluations, manifests, states
from harness.store.layout import Folder
from harness.study.errors import UserError
from harness.study.schema import EvalSpec
from tests.evals.conftest import STATE, TRAINED_LENGTH, Exported

SETTINGS = EvalSettings(max_length=512, device="cpu", threads=1, window=32, by_position=True)
LOCAL = """
import datasets

def load(**_):
    rows = [{"q": f"{n} plus 1 is", "choices": [str(n), str(n + 1)], "gold": 1, "text": f"{n} café"} for n in range(6)]
    return {"test": datasets.Dataset.from_list(rows), "train": datasets.Dataset.from_list(rows[:3])}

def multiple_input_gold(doc):
    return doc["gold"]
"""
OWN_YAML = {
    "few_shot": """
output_type: multiple_choice
fewshot_split: train
num_fewshot: 2
doc_to_text: q
doc_to_choice: choices
doc_to_target: gold
""",
    "written": """
output_type: generate_until
doc_to_text: q
doc_to_target: "{{choices[1]}}"
generation_kwargs: {max_gen_toks: 4, until: ["."]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
""",
    "contexts": """
output_type: multiple_choice
doc_to_text: !function own.multiple_input_gold
doc_to_choice: choices
doc_to_target: text
""",
}


def tasks_of(manifest: dict[str, Any], **spec: Any) -> list[EvalTask]:
    return resolve_tasks(EvalSpec.model_validate({"suites": ["smoke@1"], **spec}), {"web": manifest}, SETTINGS)


def own_task(folder: Path, name: str, settings: EvalSettings = SETTINGS) -> EvalTask:
    """A user's task by path."""
    (folder / "own.py").write_text(LOCAL, "utf-8")
    head = f"task: {name}\ncustom_dataset: !function own.load\ntest_split: test\n"
    (folder / f"{name}.yaml").write_text(head + OWN_YAML[name], "utf-8")
    (task,) = resolve_tasks(
        EvalSpec.model_validate({"tasks": [f"{name}.yaml"]}), {}, replace(settings, window=None), folder
    )
    return task


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Exported:
    """The state in a results folder of its own, without evaluations."""
    shutil.copytree(exported.folder.states, tmp_path / "results" / "states")
    folder = Folder(tmp_path / "results")
    return Exported(folder, folder.state(STATE).checkpoint(512) / "model", exported.weights)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tasks that were scored."""
    names: list[str] = []
    real = evaluate._evaluate

    def recording(folder: Any, lm: Any, model: Any, weights: str, task: EvalTask, settings: Any) -> None:
        names.append(task.task)
        real(folder, lm, model, weights, task, settings)

    monkeypatch.setattr(evaluate, "_evaluate", recording)
    return names


def run_one(exported: Exported, task: EvalTask, settings: EvalSettings = SETTINGS) -> tuple[dict[str, Any], Any]:
    evaluate_model(exported.folder, exported.model, exported.weights, [task], settings)
    results = evaluations.read_results(exported.folder, exported.weights, task.key)
    assert results is not None
    return results, evaluations.read_samples(exported.folder, exported.weights, task.key).to_pylist()


def test_a_second_evaluation_loads_no_model(
    copy: Exported, manifest: dict[str, Any], scored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.evals import lm

    tasks = tasks_of(manifest)
    keys = evaluate_state(copy.folder, STATE, tasks, SETTINGS)
    assert keys == [task.key for task in tasks] and scored == ["arithmetic", "repeated_passage", "web"]
    monkeypatch.setattr(lm, "load", lambda *_: pytest.fail("loaded the model for nothing"))
    assert evaluate_state(copy.folder, STATE, tasks, SETTINGS) == keys


@pytest.mark.parametrize("file", ["results.json", "samples.parquet", "DONE.json"])
def test_a_result_altered_by_one_byte_is_evaluated_again(
    copy: Exported, manifest: dict[str, Any], scored: list[str], file: str
) -> None:
    tasks = tasks_of(manifest)
    evaluate_state(copy.folder, STATE, tasks, SETTINGS)
    before = {task.key: evaluations.read_results(copy.folder, copy.weights, task.key) for task in tasks}
    scored.clear()
    path = copy.folder.evaluation(copy.weights, tasks[1].key) / file
    data = bytearray(path.read_bytes())
    place = 0 if file == "DONE.json" else len(data) // 2
    data[place] ^= 1
    path.write_bytes(data)
    assert missing_tasks(copy.folder, copy.weights, tasks) == [tasks[1]]
    evaluate_state(copy.folder, STATE, tasks, SETTINGS)
    assert scored == [tasks[1].task]
    for task in tasks:
        after = evaluations.read_results(copy.folder, copy.weights, task.key)
        assert after is not None and before[task.key] is not None
        assert after["metrics"] == before[task.key]["metrics"]  # type: ignore[index]


def test_changing_one_task_evaluates_one_task(copy: Exported, manifest: dict[str, Any], scored: list[str]) -> None:
    evaluate_state(copy.folder, STATE, tasks_of(manifest), SETTINGS)
    scored.clear()
    evaluate_state(copy.folder, STATE, tasks_of(manifest, limit=3), SETTINGS)
    assert scored == ["arithmetic"]  # the other's own limit is smaller


def test_held_out_rows_add_up_to_the_result(copy: Exported, manifest: dict[str, Any]) -> None:
    task = tasks_of(manifest)[-1]
    results, rows = run_one(copy, task)
    nats, size = sum(row["nll"] for row in rows), sum(row["bytes"] for row in rows)
    assert size == manifest["held_out"]["bytes"] and len(rows) == manifest["held_out"]["documents"]
    assert results["metrics"]["bits_per_byte"]["value"] == pytest.approx(nats / (math.log(2) * size))
    assert results["settings"]["left_context"] == "<|end|>"
    assert sum(row["nll[0,32)"] for row in rows) == pytest.approx(nats)
    assert results["metrics"]["nats_per_token[0,32)"]["value"] == pytest.approx(nats / sum(r["tokens"] for r in rows))


def test_items_beyond_max_length_or_the_trained_length_are_counted(copy: Exported, manifest: dict[str, Any]) -> None:
    spec = EvalSpec.model_validate({"suites": ["quickstart@1"], "limit": 12})
    counts = {}
    for longest in (200, 512):
        settings = EvalSettings(max_length=longest, device="cpu", threads=1)
        tasks = {task.task: task for task in resolve_tasks(spec, {}, settings)}
        evaluate_state(copy.folder, STATE, list(tasks.values()), settings)
        for name, task in tasks.items():
            counts[name, longest] = evaluations.read_results(copy.folder, copy.weights, task.key) or {}
    passage, cut = counts["repeated_passage", 512], counts["repeated_passage", 200]
    assert (passage["trained_length"], passage["truncated"], passage["beyond_trained_length"]) == (
        TRAINED_LENGTH,
        0,
        12,
    )
    assert cut["truncated"] > 0 and cut["max_length"] == 200
    assert counts["arithmetic", 512]["beyond_trained_length"] == 0


def test_a_text_longer_than_max_length_is_refused_and_the_other_tasks_are_done(
    copy: Exported, manifest: dict[str, Any]
) -> None:
    settings = replace(SETTINGS, max_length=24)
    tasks = resolve_tasks(EvalSpec.model_validate({"suites": ["smoke@1"]}), {"web": manifest}, settings)
    with pytest.raises(EvaluationFailed, match=r"smoke\.repeated_passage: .*raise eval\.max_length") as caught:
        evaluate_state(copy.folder, STATE, tasks, settings)
    assert caught.value.done == [tasks[0].key, tasks[2].key]
    assert missing_tasks(copy.folder, copy.weights, tasks) == [tasks[1]]


def test_a_user_s_few_shot_task_is_scored(copy: Exported, tmp_path: Path) -> None:
    results, rows = run_one(copy, own_task(tmp_path, "few_shot"))
    assert results["settings"]["num_fewshot"] == 2 and results["headline"] == "acc"
    record = json.loads(rows[0]["record"])
    lls = [response[0] for response in record["filtered_resps"]["none"]]
    assert rows[0]["correct_prob"] == pytest.approx(1 / (1 + math.exp(lls[0] - lls[1])))
    assert {row["acc"] for row in rows} <= {0.0, 1.0} and len(rows) == 6


def test_a_choice_of_contexts_has_its_right_one(copy: Exported, tmp_path: Path) -> None:
    _, rows = run_one(copy, own_task(tmp_path, "contexts"))
    for row in rows:
        lls = [response[0] for response in json.loads(row["record"])["filtered_resps"]["none"]]
        assert row["correct_prob"] == pytest.approx(1 / (1 + math.exp(lls[0] - lls[1])))
        assert (row["acc"] == 1.0) is (row["correct_prob"] > 0.5)


def test_a_generating_task_is_scored_and_its_length_counted(copy: Exported, tmp_path: Path) -> None:
    results, rows = run_one(copy, own_task(tmp_path, "written"))
    assert results["metrics"]["exact_match"]["n"] == len(rows) == 6
    short = replace(SETTINGS, max_length=4)
    with pytest.raises(EvaluationFailed, match="generates up to 4 tokens"):
        run_one(copy, own_task(tmp_path, "written", short), short)


def test_the_right_answer_of_a_generating_task_is_scored_where_that_is_asked_for(
    copy: Exported, tmp_path: Path
) -> None:
    plain = own_task(tmp_path, "written")
    settings = replace(SETTINGS, window=None)
    gold = replace(plain, gold=True)
    gold = replace(gold, key=task_key(gold, settings))
    assert gold.key != plain.key
    results, rows = run_one(copy, gold)
    assert results["metrics"]["exact_match"]["n"] == 6
    for row in rows:
        assert row["correct_prob"] == pytest.approx(2 ** -row["bits_per_byte"]) and 0 < row["correct_prob"] < 1
    metric = results["metrics"]["correct_prob"]
    assert metric["value"] == pytest.approx(sum(row["correct_prob"] for row in rows) / 6) and metric["higher_is_better"]
    assert "correct_prob" not in run_one(copy, plain)[0]["metrics"]


def test_a_rolling_task_keeps_nats_and_bytes_per_item(copy: Exported, tmp_path: Path) -> None:
    results, rows = run_one(copy, own_task(tmp_path, "rolling"))
    metric = results["metrics"]["bits_per_byte"]
    nats, size = sum(row["nll"] for row in rows), sum(row["bytes"] for row in rows)
    assert size == 6 * len("0 café".encode())
    assert metric["value"] == pytest.approx(nats / (math.log(2) * size))
    assert metric["stderr"] > 0 and metric["aggregation"] == "ratio"
    assert results["metrics"]["word_perplexity"]["stderr"] is None
    assert "word_perplexity" not in rows[0]


def test_a_task_that_changed_since_the_plan_is_refused(copy: Exported, tmp_path: Path) -> None:
    task = own_task(tmp_path, "few_shot")
    (tmp_path / "own.py").write_text(LOCAL.replace("range(6)", "range(5)"), "utf-8")
    with pytest.raises(UserError, match="changed since it was planned"):
        run_one(copy, task)


def test_a_task_resolved_under_other_settings_is_a_defect(copy: Exported, manifest: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="other settings"):
        evaluate_state(copy.folder, STATE, tasks_of(manifest), replace(SETTINGS, max_length=300))


def test_few_shots_of_a_zero_shot_task_are_refused(copy: Exported, manifest: dict[str, Any]) -> None:
    task = tasks_of(manifest)[0]
    key = lm_eval_key(task.task, task.content, 3, task.limit, SETTINGS)
    with pytest.raises(EvaluationFailed, match="zero-shot by its own definition"):
        run_one(copy, replace(task, num_fewshot=3, key=key))


def test_a_task_that_cannot_be_loaded_says_why_in_one_paragraph(copy: Exported, tmp_path: Path) -> None:
    task = own_task(tmp_path, "few_shot")
    (tmp_path / "few_shot.yaml").write_text("task: few_shot\ncustom_dataset: !function own.load\ntest_split: gone\n")
    (task,) = resolve_tasks(
        EvalSpec.model_validate({"tasks": ["few_shot.yaml"]}), {}, replace(SETTINGS, window=None), tmp_path
    )
    with pytest.raises(EvaluationFailed, match=r"`few_shot` .*cannot be loaded: ") as caught:
        run_one(copy, task)
    assert "\n" not in str(caught.value)


def test_a_state_without_weights_is_refused(copy: Exported, manifest: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no weights to evaluate"):
        evaluate_state(copy.folder, "f" * 64, tasks_of(manifest), SETTINGS)
    states.write_done(copy.folder.state(STATE), "diverged", 100, 1, None, None, {})
    with pytest.raises(UserError, match="diverged"):
        evaluate_state(copy.folder, STATE, tasks_of(manifest), SETTINGS)


def test_the_trained_length_is_the_longest_context_of_the_path(copy: Exported) -> None:
    assert trained_length(copy.folder, STATE) == TRAINED_LENGTH
    pieces = [{"science": {"context": {"length": length}}} for length in (128, 512, 256)]
    states.write_segment(copy.folder.state("e" * 64), {"id": "e" * 64, "pieces": pieces})
    assert trained_length(copy.folder, "e" * 64) == 512
    states.write_segment(copy.folder.state("d" * 64), {"id": "d" * 64, "pieces": []})
    assert trained_length(copy.folder, "d" * 64) is None
    manifests.write_base(copy.folder, {"max_positions": 2048})
    assert trained_length(copy.folder, "d" * 64) == 2048


def test_evaluation_leaves_the_process_s_random_state_alone(copy: Exported, manifest: dict[str, Any]) -> None:
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run_one(copy, tasks_of(manifest)[0])
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
