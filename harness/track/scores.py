"""The scores of a run as the report has them, under the names of a dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.plan.merges import EMA
from harness.store.layout import Folder
from harness.store.markers import MARKER
from harness.track.rows import done_of

Scores = dict[str, float]


def dashboard_name(metric: str) -> str:
    """`bpb/web` of `bpb.web`, `eval/base/mmlu/acc` of `base.mmlu.acc`, `eval/base/average` of `base.average`."""
    first, _, rest = metric.partition(".")
    if first == "bpb":
        return f"bpb/{rest}"
    task, _, measure = rest.rpartition(".")
    return "/".join(part for part in ("eval", first, task, measure) if part)


def scores_of(folder: Folder, plan: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Scores]:
    """Label of each evaluated point that has scores → metric → value: the numbers that the report prints.

    plan: plan.json. run: one of its runs. Averaged weights have a prefix of their own, `ema/`.
    """
    from analysis.frame import read_frame  # not before there is something to read: it brings the statistics

    name = run["name"]
    evaluated = [item for item in plan["evals"] if item["point"].rpartition("@")[0] == name]
    frame = read_frame(folder.root, {**plan, "runs": [run], "evals": evaluated})
    found: dict[str, Scores] = {}
    for label in labels(evaluated):
        prefix = f"{EMA}/" if label == EMA else ""
        values = {
            prefix + dashboard_name(metric): value.value
            for (of, at, metric), value in frame.values.items()
            if (of, at) == (name, label)
        }
        if values:
            found[label] = dict(sorted(values.items()))
    return found


def labels(evals: Sequence[Mapping[str, Any]]) -> list[str]:
    """The labels of points at which something is evaluated, in order."""
    return list(dict.fromkeys(str(item["point"]).rpartition("@")[2] for item in evals))


def all_there(
    folder: Folder, run: Mapping[str, Any], evals: Sequence[Mapping[str, Any]], keys: Mapping[tuple[str, str], str]
) -> bool:
    """Whether every evaluation that the plan wants of a run has a result. A few looks at the disk.

    evals: of this run; keys: (suite, task) → the task's key.
    """
    states = {point["label"]: point.get("state") or point["segment"] or run["base"] for point in run["points"]}
    weights: dict[str, str | None] = {}
    for item in evals:
        state = states[str(item["point"]).rpartition("@")[2]]
        if state not in weights:
            done = done_of(folder.state(state))
            weights[state] = None if done is None else done.weights
        of = weights[state]
        if of is None or not (folder.evaluation(of, keys[item["suite"], item["task"]]) / MARKER).exists():
            return False
    return True
