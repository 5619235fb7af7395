"""Whether what a study compares will be measured: refused before anything is trained where that can be known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.evals.settings import EvalTask
from harness.evals.task_files import OWN_TASKS, SUFFIX, own_task, read_task_yaml, stock_task
from harness.study.errors import UserError, nearest
from harness.study.measures import is_averaged

DERIVED = {
    "multiple_choice": ("correct_prob",),
    "loglikelihood": ("bits_per_byte",),
}
GOLD = ("bits_per_byte", "correct_prob")
DEFAULTS = {"multiple_choice": ("acc", "acc_norm")}  # of lm-eval, for a task that lists no metrics


def check_measured(metrics: Iterable[str], tasks: Sequence[EvalTask]) -> None:
    """Refuse a `suite.task.metric` of a suite that has no such task, or of a task that has no such metric.

    Averages and `bpb.SOURCE` were checked with the study. What a task measures is known from its YAML; of a task whose
    YAML cannot be read without running it nothing is refused. Raises UserError with the nearest name.
    """
    texts = {task.suite for task in tasks if task.kind == "continuations"}
    for metric in metrics:
        suite, _, rest = metric.partition(".")
        if suite in texts:
            raise UserError(f"`{metric}` is not measured; continuations are texts to read and have no metric.")
        own = {task.task: task for task in tasks if task.suite == suite and task.kind == "lm_eval"}
        if rest == "average":
            _check_average(metric, list(own.values()))
        if rest == "average" or not own:
            continue
        found = next((task for name, task in own.items() if rest.startswith(f"{name}.")), None)
        if found is None:
            names = [
                f"{suite}.{name}.{measure}" for name, task in own.items() for measure in measures(task) or ("acc",)
            ]
            raise UserError(f"`{metric}` is not measured; {nearest(metric, [f'{suite}.average', *names])}")
        known = measures(found)
        measure = rest.removeprefix(f"{found.task}.")
        if (
            known
            and measure not in known
            and measure.partition(",")[0] not in {name for name in known if "," not in name}
        ):
            valid = nearest(metric, [f"{suite}.{found.task}.{name}" for name in known])
            raise UserError(f"`{found.suite}.{found.task}` does not measure `{measure}`; {valid}")


def _check_average(metric: str, tasks: Sequence[EvalTask]) -> None:
    headlines = [task.headline for task in tasks if task.headline]
    if tasks and not any(is_averaged(headline) for headline in headlines):
        raise UserError(
            f"`{metric}` is not measured: an average is of accuracies and probabilities, and its tasks stand for "
            f"{', '.join(headlines) or 'nothing'}. Name one of its metrics instead."
        )


def measures(task: EvalTask) -> tuple[str, ...]:
    """Names of the metrics of a task by its YAML; empty where that does not tell. With a filter: `metric,filter`."""
    try:
        path = Path(task.path) if task.path else _path(task.task)
        config = read_task_yaml(path)
    except UserError:
        return ()
    kind = str(config.get("output_type", "generate_until"))
    listed = [str(entry["metric"]) for entry in config.get("metric_list") or []] or list(DEFAULTS.get(kind, ()))
    if not listed:
        return ()
    filters = [str(entry["name"]) for entry in config.get("filter_list") or []]
    named = [f"{name},{one}" for name in listed for one in filters] if filters else listed
    derived = () if config.get("process_results") and kind == "multiple_choice" else DERIVED.get(kind, ())
    headline = (task.headline,) if task.headline else ()
    return tuple(dict.fromkeys([*named, *derived, *(GOLD if task.gold else ()), *headline]))


def _path(name: str) -> Path:
    return OWN_TASKS / f"{name}{SUFFIX}" if own_task(name) is not None else stock_task(name).path
