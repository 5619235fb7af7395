"""Suites: named, versioned lists of tasks, and the tasks that a study asks for, with their keys.

A suite is only a list. Results are keyed by weights and task, so two suites that share a task share its results, and a
task added to a suite (under a new version) costs that task alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from harness.evals.settings import EvalSettings, EvalTask, continuations_key, held_out_key, lm_eval_key
from harness.evals.task_files import SUFFIX, own_task, read_task_file, stock_task
from harness.plan.canonical import digest
from harness.store.places import expanded
from harness.study.errors import UserError, nearest
from harness.study.schema import EvalSpec

SUITES = Path(__file__).parent / "suites"
HELD_OUT_SUITE = "bpb"
CONTINUATIONS = "continuations"  # its suite and its only task
LONE_TASKS_SUITE = "tasks"
HELD_OUT_FILE = "held_out.jsonl"


class TaskError(UserError):
    """A mistake about a suite or task. path: of its name in the study, such as `("eval", "suites", 0)`."""

    def __init__(self, path: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.path = path


@contextmanager
def _named_at(*path: str | int) -> Iterator[None]:
    """What goes wrong inside is a mistake about the name at `path`."""
    try:
        yield
    except UserError as error:
        raise TaskError(path, str(error)) from None


@dataclass(frozen=True)
class SuiteTask:
    """A task as a suite lists it. num_fewshot, headline None: the task's own. limit: first items. gold: as EvalTask."""

    task: str
    num_fewshot: int | None
    headline: str | None
    limit: int | None = None
    gold: bool = False


@dataclass(frozen=True)
class Suite:
    name: str
    version: int
    tasks: tuple[SuiteTask, ...]
    requires: Mapping[str, str] = field(default_factory=dict)  # module → the package that brings it


def check_packages(suites: Sequence[str]) -> None:
    """Raise UserError where a suite needs a package that is not installed; planning does without."""
    for name in suites:
        for module, package in load_suite(name).requires.items():
            if importlib.util.find_spec(module) is None:
                raise UserError(
                    f"The suite `{name}` needs the package `{package}`, which is not installed: "
                    f"pip install '{package}'."
                )


def suite_names() -> list[str]:
    """Every `name@version` there is."""
    return sorted(path.stem for path in SUITES.glob(f"*{SUFFIX}"))


def load_suite(name: str) -> Suite:
    """The suite called `name@version`. Raises UserError with the nearest name when there is none."""
    if name not in suite_names():
        raise UserError(
            f"There is no suite `{name}` (a suite is named with its version): {nearest(name, suite_names())}"
        )
    text = YAML(typ="safe", pure=True).load((SUITES / f"{name}{SUFFIX}").read_bytes())
    tasks = tuple(_suite_task(name, entry) for entry in text["tasks"])
    suite = Suite(text["suite"], text["version"], tasks, dict(text.get("requires", {})))
    if f"{suite.name}@{suite.version}" != name:
        raise ValueError(f"{name}{SUFFIX} says that it is {suite.name}@{suite.version}")
    return suite


def _suite_task(suite: str, entry: Mapping[str, Any]) -> SuiteTask:
    unknown = set(entry) - {"task", "num_fewshot", "headline", "limit", "gold"}
    if unknown:
        raise ValueError(f"suite {suite}: unknown keys {sorted(unknown)}")
    return SuiteTask(
        entry["task"], entry["num_fewshot"], entry["headline"], entry.get("limit"), entry.get("gold", False)
    )


def study_settings(
    spec: EvalSpec, longest_context: int, device: str = "auto", threads: int | None = None
) -> EvalSettings:
    """The settings that a study's `eval` block means, the same for all of its arms.

    longest_context: the longest `context.length` of any arm, which is `max_length` where the study names none.
    """
    held_out = None if isinstance(spec.held_out, str) else spec.held_out
    return EvalSettings(
        max_length=int(spec.max_length or longest_context),
        batch_size=int(spec.batch_size),
        window=None if held_out is None else int(held_out.window),
        by_position=held_out is not None and held_out.by_position,
        documents=EvalSettings.documents if held_out is None else int(held_out.documents),
        continuations=spec.prompts,
        device=device,
        threads=threads,
    )


def resolve_tasks(
    spec: EvalSpec,
    source_manifests: Mapping[str, Mapping[str, Any]],
    settings: EvalSettings,
    folder: Path | None = None,
) -> list[EvalTask]:
    """Every task that a study evaluates, in order: those of its suites, its own, its held-out sources, continuations.

    source_manifests: by source name, as `store.manifests` reads them; each becomes a held-out task when
    `settings.window` is set, and all together the one of continuations; whoever passes some of a study's sources only
    must leave that one out, for its key is of them all. folder: where the study's relative paths of task YAML begin
    (its own folder; None: the working directory).

    Neither lm-eval nor torch is imported. Raises TaskError for unknown names and files that are not there.
    """
    limit = None if spec.limit is None else int(spec.limit)
    found: list[EvalTask] = []
    for index, name in enumerate(spec.suites):
        with _named_at("eval", "suites", index):
            suite = load_suite(name)
        found += [_task(suite.name, entry, None, settings, limit) for entry in suite.tasks]
    for index, name in enumerate(spec.tasks):
        entry = SuiteTask(name, None, None)
        with _named_at("eval", "tasks", index):
            found.append(_task(LONE_TASKS_SUITE, entry, folder or Path(), settings, limit))
    if settings.window is not None:
        found += [_held_out(name, manifest, settings) for name, manifest in source_manifests.items()]
    if settings.continuations and source_manifests:
        found += _continuations(source_manifests, settings, required=bool(spec.continuations))
    _refuse_ambiguous(found)
    return found


def _task(suite: str, entry: SuiteTask, folder: Path | None, settings: EvalSettings, limit: int | None) -> EvalTask:
    """An lm-eval task with its key. `folder`: where a path of the user's begins; None inside a suite."""
    name, path, content = entry.task, None, None
    if folder is not None and name.endswith(SUFFIX):
        path = (folder / expanded(name)).resolve()
        if not path.is_file():
            raise UserError(f"The evaluation task `{name}` is not there: {path} is no file.")
        file = read_task_file(path)
        name, content = file.name, file.content
    elif (own := own_task(name)) is not None:
        content = own.content
    elif folder is not None:
        stock_task(name)  # only to refuse an unknown name now rather than on the cluster
    limits = [value for value in (entry.limit, limit) if value is not None]
    first = min(limits) if limits else None
    return EvalTask(
        key=lm_eval_key(name, content, entry.num_fewshot, first, settings, entry.gold),
        suite=suite,
        task=name,
        kind="lm_eval",
        num_fewshot=entry.num_fewshot,
        headline=entry.headline,
        limit=first,
        path=None if path is None else str(path),
        content=content,
        gold=entry.gold,
    )


def _held_out(name: str, manifest: Mapping[str, Any], settings: EvalSettings) -> EvalTask:
    """The held-out documents of a source."""
    content = _held_out_content(manifest)
    return EvalTask(
        key=held_out_key(content, settings),
        suite=HELD_OUT_SUITE,
        task=name,
        kind="held_out",
        num_fewshot=None,
        headline="bits_per_byte",
        limit=None,
        path=_held_out_file(manifest),
        content=content,
    )


def _held_out_content(manifest: Mapping[str, Any]) -> str:
    """Names a source's held-out text. Token counts are left out: the tokenizer is the weights' affair."""
    held_out = {field: value for field, value in manifest["held_out"].items() if field != "tokens"}
    return digest({"source": manifest["identity"], "held_out": held_out})


def _held_out_file(manifest: Mapping[str, Any]) -> str:
    return str(Path(manifest["tokens"]) / HELD_OUT_FILE)


def _continuations(
    manifests: Mapping[str, Mapping[str, Any]], settings: EvalSettings, required: bool
) -> list[EvalTask]:
    """The task of what the model writes; none where no source has held-out text, unless it is asked for by name."""
    held_out = {name: manifests[name] for name in sorted(manifests) if manifests[name]["held_out"]["documents"]}
    if not held_out:
        if required:
            raise UserError("`eval.continuations` needs held-out text, and no source has any: raise its `held_out`.")
        return []
    content = digest({name: _held_out_content(manifest) for name, manifest in held_out.items()})
    return [
        EvalTask(
            key=continuations_key(content, settings),
            suite=CONTINUATIONS,
            task=CONTINUATIONS,
            kind="continuations",
            num_fewshot=None,
            headline=None,
            limit=None,
            path=None,
            content=content,
            sources={name: _held_out_file(manifest) for name, manifest in held_out.items()},
        )
    ]


def _refuse_ambiguous(tasks: Sequence[EvalTask]) -> None:
    """Two results under one `suite.task` could not be told apart in a table."""
    seen: dict[tuple[str, str], str] = {}
    for task in tasks:
        if seen.setdefault((task.suite, task.task), task.key) != task.key:
            raise UserError(
                f"`{task.suite}.{task.task}` is asked for twice with different settings or content; keep one of them."
            )
