"""One lm-eval task on one model: lm-eval's numbers and samples, our per-item metrics and standard errors.

Each task is scored by a call of its own to `lm_eval.evaluator.evaluate`, with the task loaded once per process. Scored
together, requests of different tasks share padded batches, and a result would depend on which other tasks happened to
be missing; `simple_evaluate` besides knows one few-shot count for all, describes the environment (seconds) and asks
the Hub about the model. What it does to a task before scoring is done here: few-shot count, few-shot seed, seeds.
lm-eval's caches of requests and responses are not used: they do not know the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval.evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, hash_string

from harness.evals.item_metrics import Metric, bits_per_byte, correct_probability, finite, mean_metric, ratio_metric
from harness.evals.lm import ObservedLM, quiet, seeded
from harness.evals.settings import SEEDS, EvalTask
from harness.evals.task_files import own_task, stock_task
from harness.study.errors import UserError

DERIVED = {"correct_prob": True, "bits_per_byte": False}  # ours, by name: whether higher is better
HEADLINES = ("acc", "exact_match", "bits_per_byte")  # for a task that names none, the first that it has

_loaded: dict[tuple[str, str | None, int | None], Any] = {}


@dataclass(frozen=True)
class Scored:
    """A task's result. rows: one per item. lengths: positions of each item that was scored by likelihood, uncut."""

    metrics: Mapping[str, Metric]
    rows: list[dict[str, Any]]
    lengths: list[int]
    task_hash: str
    headline: str
    num_fewshot: int
    version: Any
    dataset: Mapping[str, Any]


def run(lm: ObservedLM, wanted: EvalTask) -> Scored:
    """Score `wanted` on `lm`. Raises UserError when the task cannot be loaded or is of a kind that is not supported."""
    task = load_task(wanted)
    task.set_fewshot_seed(SEEDS["fewshot"])
    lm.positions.clear()
    with seeded(), quiet():
        results = lm_eval.evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": {wanted.task: task}, "groups": {}},
            limit=wanted.limit,
            bootstrap_iters=0,
            log_samples=True,
            cache_requests=False,
        )
    if results is None:
        raise RuntimeError("lm-eval gave no results: it takes this process for one of several ranks")
    samples = results["samples"][wanted.task]
    items = _by_item(samples)
    columns = _columns(task, items)
    if wanted.gold:
        columns |= _gold(lm, task, wanted.task, items)
    metrics = _metrics(task, results, wanted.task, samples, columns)
    return Scored(
        metrics=metrics,
        rows=_rows(items, columns),
        lengths=_lengths(lm, task, items),
        task_hash=hash_string("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)),
        headline=wanted.headline or _headline(metrics),
        num_fewshot=int(task.get_config("num_fewshot") or 0),
        version=results["versions"].get(wanted.task),
        dataset=_dataset(task),
    )


def _gold(lm: ObservedLM, task: Any, name: str, items: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """How likely the right answer of a generating task is after its prompt, [items] each.

    The text is the task's whole target after its delimiter, as in a few-shot example: for gsm8k the worked solution.
    `bits_per_byte` is its loss (the proxy of Bhagia et al. 2024, arXiv:2412.04403), `correct_prob` is 2 to the minus
    that: the geometric mean of its probability per byte, in (0, 1], whatever the tokenizer and the answer's length.
    """
    if task.OUTPUT_TYPE != "generate_until":
        raise ValueError(f"{name}: `gold` is for tasks that generate")
    pairs = [
        (samples[0]["arguments"][0][0], f"{task.config.target_delimiter}{samples[0]['target']}") for samples in items
    ]
    requests = [
        Instance("loglikelihood", dict(samples[0]["doc"]), pair, 0) for samples, pair in zip(items, pairs, strict=True)
    ]
    with seeded(), quiet():
        scored = lm.loglikelihood(requests)
    bits = [
        bits_per_byte(-nats, len(answer.encode("utf-8"))) for (nats, _), (_, answer) in zip(scored, pairs, strict=True)
    ]
    return {"bits_per_byte": bits, "correct_prob": [2.0**-value for value in bits]}


def load_task(wanted: EvalTask) -> Any:
    """lm-eval's task object, kept for the life of the process. Raises UserError when it cannot be loaded."""
    key = (wanted.task, wanted.content, wanted.num_fewshot)
    if key not in _loaded:
        path = wanted.path or str((own_task(wanted.task) or stock_task(wanted.task)).path)
        try:
            with quiet():
                tasks = TaskManager(include_defaults=False).load([path])["tasks"]
        except Exception as error:
            raise UserError(
                f"The evaluation task `{wanted.task}` ({path}) cannot be loaded: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:500]}. A task of lm-eval fetches its data from the Hugging Face "
                "Hub on first use; without a network, fetch it before where there is one."
            ) from error
        if list(tasks) != [wanted.task]:
            raise UserError(f"{path} defines {', '.join(tasks)}, not the task `{wanted.task}`.")
        task = tasks[wanted.task]
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"`{wanted.task}` runs code that the model writes, which is not supported yet.")
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"`{wanted.task}` has images or sound, which is not supported yet.")
        _set_fewshot(task, wanted)
        _loaded[key] = task
    return _loaded[key]


def _set_fewshot(task: Any, wanted: EvalTask) -> None:
    """As `simple_evaluate`: a task whose YAML says 0 keeps it, so asking for more is refused, not ignored."""
    own = task.get_config("num_fewshot")
    if wanted.num_fewshot is None:
        task.set_config(key="num_fewshot", value=own or 0)
    elif own == 0 and wanted.num_fewshot > 0:
        raise UserError(
            f"`{wanted.task}` is zero-shot by its own definition; it cannot be run {wanted.num_fewshot}-shot."
        )
    else:
        task.set_config(key="num_fewshot", value=wanted.num_fewshot)


def _by_item(samples: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Samples grouped by item: lm-eval writes one per (filter, item)."""
    items: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        items.setdefault(sample["doc_id"], []).append(sample)
    return list(items.values())


def metric_name(metric: str, filter_name: str) -> str:
    """lm-eval's `metric,filter` without the filter that does nothing."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _columns(task: Any, items: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Per-item values, [items] each: lm-eval's metrics that are means of numbers, and ours."""
    names: dict[str, None] = {}
    for samples in items:
        for sample in samples:
            names.update({metric_name(m, sample["filter"]): None for m in sample["metrics"] if _is_mean(task, m)})
    columns: dict[str, list[float]] = {name: [] for name in names}
    for samples in items:
        values = {metric_name(m, s["filter"]): s[m] for s in samples for m in s["metrics"]}
        for name, column in columns.items():
            column.append(_number(values.get(name)))
    derived = [_derived(task, samples[0]) for samples in items]
    for name in dict.fromkeys(name for values in derived for name in values):
        if name not in columns:
            columns[name] = [values.get(name, math.nan) for values in derived]
    return columns


def _is_mean(task: Any, metric: str) -> bool:
    return task.aggregation().get(metric, mean) is mean


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) or getattr(value, "ndim", None) == 0 else math.nan


def _derived(task: Any, sample: Mapping[str, Any]) -> dict[str, float]:
    """Our per-item metrics of one sample, from its responses."""
    if task.OUTPUT_TYPE == "multiple_choice" and task.config.process_results is None:
        doc = sample["doc"]
        choices = task.doc_to_choice(doc)
        lls = [response[0] for response in sample["filtered_resps"]][: len(choices)]
        return {"correct_prob": correct_probability(lls, correct_choices(task, doc, choices))}
    if task.OUTPUT_TYPE == "loglikelihood":
        context, continuation = sample["arguments"][0]
        moved = context[len(context.rstrip()) :]  # lm-eval scores white space that ends the context
        size = len((moved + continuation).encode("utf-8"))
        return {"bits_per_byte": bits_per_byte(-sample["filtered_resps"][0][0], size)}
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        nll, size = -sample["filtered_resps"][0], len(sample["arguments"][0][0].encode("utf-8"))
        return {"nll": nll, "bytes": float(size)}
    return {}


def correct_choices(task: Any, doc: Mapping[str, Any], choices: Sequence[str]) -> set[int]:
    """Indices of the right choices, by the rules of lm-eval's own scoring. Empty when the label is out of range."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        return {choices.index(gold)} if gold in choices else set()
    listed = gold if isinstance(gold, list) else [gold]
    return {int(index) for index in listed if 0 <= int(index) < len(choices)}


def _metrics(
    task: Any,
    results: Mapping[str, Any],
    name: str,
    samples: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Sequence[float]],
) -> dict[str, Metric]:
    """lm-eval's numbers as they are, with our standard errors, and the means of our own columns."""
    higher = results["higher_is_better"].get(name, {})
    found = {}
    for field, value in results["results"][name].items():
        metric, _, filter_name = field.partition(",")
        if not filter_name or metric.endswith("_stderr"):
            continue
        label = metric_name(metric, filter_name)
        better = bool(higher.get(metric, True))
        if label in columns and _is_mean(task, metric):
            ours = mean_metric(columns[label], better)
            found[label] = Metric(finite(float(value)), ours.stderr, ours.n, better, "mean")
        elif metric == "bits_per_byte" and "nll" in columns:
            ours = ratio_metric(columns["nll"], columns["bytes"], better, 1 / math.log(2))
            found[label] = Metric(finite(float(value)), ours.stderr, ours.n, better, "ratio")
        elif isinstance(value, int | float):
            n = sum(metric in sample["metrics"] and sample["filter"] == filter_name for sample in samples)
            found[label] = Metric(finite(float(value)), None, n, better, "other")
    for label, better in DERIVED.items():
        if label in columns and label not in found:
            found[label] = mean_metric(columns[label], better)
    return found


def _headline(metrics: Mapping[str, Metric]) -> str:
    for wanted in HEADLINES:
        for name in metrics:
            if name == wanted or name.startswith(f"{wanted},"):
                return name
    return next(iter(metrics))


def _rows(items: Sequence[Sequence[Mapping[str, Any]]], columns: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    table = []
    for index, samples in enumerate(items):
        first = samples[0]
        record = {
            "doc": first["doc"],
            "target": first["target"],
            "resps": first["resps"],
            "filtered_resps": {sample["filter"]: sample["filtered_resps"] for sample in samples},
            "metrics": {metric_name(m, s["filter"]): s[m] for s in samples for m in s["metrics"]},
        }
        table.append(
            {
                "doc_id": int(first["doc_id"]),
                "doc_hash": first["doc_hash"],
                "target_hash": first["target_hash"],
                "prompt_hash": first["prompt_hash"],
                **{name: column[index] for name, column in columns.items()},
                "record": json.dumps(record, default=handle_non_serializable, ensure_ascii=False),
            }
        )
    return table


def _lengths(lm: ObservedLM, task: Any, items: Sequence[Sequence[Mapping[str, Any]]]) -> list[int]:
    """Positions that each item needs, uncut: its longest request. A rolling text is windowed, never cut."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return []
    if task.OUTPUT_TYPE == "generate_until":
        return [lm.positions[samples[0]["arguments"][0][0], ""] for samples in items]
    return [max(lm.positions[tuple(pair)] for pair in samples[0]["arguments"]) for samples in items]


def _dataset(task: Any) -> dict[str, Any]:
    """Which data lm-eval read: names, and the loader's fingerprint of the evaluated split."""
    config = task.config
    described = {"path": config.dataset_path, "name": config.dataset_name, "fingerprint": None}
    fingerprint = getattr(task.eval_docs, "_fingerprint", None)
    if config.dataset_path is not None:
        described["fingerprint"] = fingerprint
    return described
