"""`ablate eval --model`: a model that the study has not made, evaluated as its arms are, as a row of its table."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.launch import failures, prepare, stamp
from harness.launch.lock import locked
from harness.launch.plan_files import recorded_options
from harness.launch.progress import Silent
from harness.launch.resolve import evaluation_settings, evaluation_tasks, resolve
from harness.launch.status import read_plan
from harness.plan.canonical import digest
from harness.store import models
from harness.store.atomic import staging_folder, sweep
from harness.store.layout import Folder
from harness.store.markers import Damaged
from harness.store.places import expanded
from harness.study.bases import names_a_path
from harness.study.checks import COMMIT
from harness.study.errors import UserError

if TYPE_CHECKING:
    from harness.evals.settings import EvalSettings, EvalTask
    from harness.launch.prepare import Prepared

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}")
OPTION = "--model"
RESERVED = ("base",)  # what a row of the table is called already


@dataclass(frozen=True)
class Asked:
    """What `ablate eval --model` was asked for. name None: the last part of the model's own."""

    model: str
    folder: Path
    name: str | None = None
    revision: str | None = None
    suites: tuple[str, ...] = ()
    wait: bool = False


@dataclass(frozen=True)
class Evaluated:
    """What came of it. evaluated: how many tasks were; failed: why others were not, a paragraph. report: its page."""

    name: str
    weights: str
    evaluated: int
    failed: str | None
    report: Path | None

    def to_json(self) -> dict[str, Any]:
        report = None if self.report is None else str(self.report)
        return {
            "model": self.name,
            "weights": self.weights,
            "evaluated": self.evaluated,
            "failed": self.failed,
            "report": report,
        }


def evaluate_outside(asked: Asked, listener: Silent) -> Evaluated:
    """Evaluate the model on what it lacks, record it in the folder and build the report. Trains nothing.

    Raises UserError, before anything is written, for a folder of no study, a study that was changed since, a name that
    is taken, and a model that cannot be had or scored.
    """
    folder = Folder(asked.folder)
    plan = read_plan(folder)
    name = _name(asked, plan)
    _check_model(asked)
    _check_suites(asked.suites, plan["eval"]["suites"])
    options = recorded_options(asked.folder)
    with locked(folder, asked.wait, listener.note):
        sweep(folder.models)
        prepared = prepare.planned(prepare.load(options.study, options.overrides), folder, options.share)
        _check_unchanged(prepared, plan)
        known = _known(folder, name)
        done = _Evaluation(asked, name, prepared, known, listener).run()
        report = stamp.report(prepare.again(prepared, options.share), listener.note)
    return replace(done, report=report)


def _name(asked: Asked, plan: Mapping[str, Any]) -> str:
    """What the model's row is called. Raises UserError for a name that is none or that another row has."""
    own = Path(asked.model.rstrip("/")).name
    name = asked.name if asked.name is not None else own.removesuffix(".gguf")
    if not NAME.fullmatch(name):
        raise UserError(
            f"`{name}` cannot name a model's row; expected letters, digits and . _ + = -, beginning with a letter or "
            "a digit, at most 100 of them: choose one with `--name`."
        )
    if name in RESERVED or name in {arm["name"] for arm in plan["arms"]}:
        what = "the base's row" if name in RESERVED else "an arm of the study"
        raise UserError(f"`{name}` is the name of {what}; choose another for the model with `--name`.")
    return name


def _check_model(asked: Asked) -> None:
    """Refuse what can be seen to be no model before anything is read."""
    here = expanded(asked.model)
    if here.exists():
        if asked.revision is not None:
            raise UserError(f"`--revision` is of a model on the hub, and {here} is here; leave it away.")
        if not ((here / "config.json").is_file() or (here.is_file() and here.suffix == ".gguf")):
            what = "a folder without a config.json" if here.is_dir() else "a file, and no .gguf one"
            raise UserError(
                f"`{OPTION} {asked.model}` is {what}; expected a model's folder with config.json, safetensors and "
                "tokenizer, a .gguf file, or an id on the hub."
            )
    elif asked.revision is None and names_a_path(asked.model):
        raise UserError(f"`{OPTION} {asked.model}`: there is no {here}.")
    elif asked.revision is None or not COMMIT.fullmatch(asked.revision):
        raise UserError(
            f"`{OPTION} {asked.model}`: there is no such folder or file here; for an id on the hub, add `--revision` "
            "with a commit, 40 hexadecimal digits: what a name or a branch stands for moves."
        )


def _check_suites(suites: Sequence[str], of_study: Sequence[str]) -> None:
    """Refuse suites that are not there or not installed, and a second version of one: tables leave versions away."""
    from harness.evals.suites import check_packages, load_suite

    versions = {name.partition("@")[0]: name for name in of_study}
    for name in suites:
        load_suite(name)
        other = versions.setdefault(name.partition("@")[0], name)
        if other != name:
            raise UserError(
                f"`--suite {name}`: the table has {other} already, and two versions of one suite could not be told "
                "apart in it; evaluate the model with that one."
            )
    check_packages(suites)


def _check_unchanged(prepared: Prepared, plan: Mapping[str, Any]) -> None:
    """Refuse a study that is not the one of the folder's plan: the model would not be evaluated as the arms were."""
    folder, study = prepared.folder, prepared.study
    same = study.text == folder.study_yaml.read_text(encoding="utf-8") if folder.study_yaml.exists() else False
    same = same and plan["asked"].get("resolved") == digest(study.resolved)
    keys = {task["key"] for task in plan.get("tasks", ())}
    if not same or keys != {task.key for task in prepared.tasks}:
        why = f"{study.path} was changed" if not same else "what names an evaluation was changed"
        raise UserError(
            f"{why} since {folder.root} was brought to it, so the model would be evaluated otherwise than the arms "
            f"were. `ablate eval {folder.root}` brings the arms to it; then call again."
        )


def _known(folder: Folder, name: str) -> dict[str, Any] | None:
    """The record of an earlier call; a damaged one counts as none."""
    try:
        return models.read_model(folder, name)
    except Damaged:
        return None


class _Evaluation:
    """One call's work, with the folder held."""

    def __init__(
        self, asked: Asked, name: str, prepared: Prepared, known: Mapping[str, Any] | None, listener: Silent
    ) -> None:
        self.asked, self.name, self.prepared, self.known = asked, name, prepared, known
        self.folder, self.listener = prepared.folder, listener

    def run(self) -> Evaluated:
        from harness.evals.evaluate import missing_tasks

        self._fix_numerics()
        settings = evaluation_settings(self.prepared.study)
        own, extra = self._tasks(settings)
        model = self._look()
        settings = replace(settings, trained_length=model["max_positions"])
        _check_positions(self.name, model, settings)
        weights = self._weights_known(model)
        if weights is not None and not missing_tasks(self.folder, weights, [*own, *extra]):
            self._record(model, weights, extra)
            return Evaluated(self.name, weights, 0, None, None)
        return self._convert_and_evaluate(model, settings, own, extra)

    def _fix_numerics(self) -> None:
        """Threads and kernels of this process as a worker of the study has them."""
        launch = self.prepared.study.spec.launch
        os.environ.setdefault("OMP_NUM_THREADS", str(launch.threads))
        from harness.train.numerics import Numerics, set_threads

        set_threads(Numerics.resolve(device=launch.device, threads=launch.threads))

    def _look(self) -> dict[str, Any]:
        """What the model is: a manifest as the base has one."""
        from harness.data.tokenizer import tokenizer_of
        from harness.study.treatment import Base
        from harness.train.base import describe_base, locate

        asked = self.asked
        declared = {"path": asked.model, **({"revision": asked.revision} if asked.revision else {})}
        self.listener.note(f"looking at {asked.model}")
        location = locate(declared, Path.cwd(), OPTION)
        on_the_hub = asked.revision is not None
        of_study = (self.prepared.resolved.base or {}).get("tokenizer")
        tokenizer = tokenizer_of(asked.model if on_the_hub else str(location), asked.revision, of_study)
        base = Base(model=declared, tokenizer={"of": "model"}, optimizer="cold", lr=None, tokens_seen=None)
        return describe_base(base, Path.cwd(), tokenizer, self.known, OPTION, trained=False)

    def _tasks(self, settings: EvalSettings) -> tuple[list[EvalTask], list[EvalTask]]:
        """The study's tasks and those of further suites. Continuations are the arms' own, and left out."""
        own = [task for task in self.prepared.tasks if task.kind != "continuations"]
        if any(task.kind == "held_out" and not Path(str(task.path)).exists() for task in own):
            # The shared store is not here, or was emptied: the held-out text is read again.
            study = self.prepared.study
            found = evaluation_tasks(study, resolve(study, self.folder, self.listener.note))
            own = [task for task in found if task.kind != "continuations"]
        extra = self._extra_tasks(settings)
        if not own and not extra:
            raise UserError(
                f"the study of {self.folder.root} evaluates nothing; name a suite for the model with `--suite`."
            )
        return own, extra

    def _suites(self) -> list[str]:
        """Suites beside the study's: of this call, and of earlier ones."""
        spec = self.prepared.study.spec.eval
        there = {name.partition("@")[0] for name in spec.suites}
        wanted = dict.fromkeys([*(self.known or {}).get("suites", ()), *self.asked.suites])
        return [name for name in wanted if name.partition("@")[0] not in there]

    def _extra_tasks(self, settings: EvalSettings) -> list[EvalTask]:
        from harness.evals.suites import resolve_tasks

        spec = self.prepared.study.spec.eval.model_copy(update={"suites": self._suites(), "tasks": []})
        _check_suites(spec.suites, ())
        return resolve_tasks(spec, {}, replace(settings, window=None, continuations=0))

    def _weights_known(self, model: Mapping[str, Any]) -> str | None:
        """The weights' hash, where an earlier call found it for the same files and tokenizer."""
        known = self.known
        if known is None or (known["identity"], known["tokenizer"].get("identity")) != _of(model):
            return None
        return str(known["weights"])

    def _convert_and_evaluate(
        self, model: Mapping[str, Any], settings: EvalSettings, own: Sequence[EvalTask], extra: Sequence[EvalTask]
    ) -> Evaluated:
        """The model is written aside as a base is, in fp32 and whole, which also says what its weights are called."""
        from harness.evals.evaluate import EvaluationFailed, evaluate_model, missing_tasks
        from harness.train.base import write_trained

        staged = staging_folder(self.folder.model_json(self.name))
        try:
            weights = write_trained(model, staged)
            self._check_same_weights(weights)
            self._record(model, weights, extra)
            missing = missing_tasks(self.folder, weights, [*own, *extra])
            failed = None
            try:
                done = (
                    evaluate_model(self.folder, staged / "model", weights, missing, settings, self._progress)
                    if missing
                    else []
                )
            except EvaluationFailed as error:
                failed, done = str(error), error.done
            return Evaluated(self.name, weights, len(done), failed, None)
        except UserError:
            raise
        except (MemoryError, RuntimeError) as error:
            failure = failures.of_exception(error)
            if not failure.kind.startswith("memory"):
                raise
            raise UserError(f"{self.name} does not fit into memory here ({failure.error}).") from None
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _check_same_weights(self, weights: str) -> None:
        if self.known is not None and self.known["weights"] != weights:
            raise UserError(
                f"{self.folder.model_json(self.name)} is of other weights ({self.known['weights'][:12]}, these are "
                f"{weights[:12]}): choose another name with `--name`, or delete that file, which takes the model out "
                "of the table."
            )

    def _record(self, model: Mapping[str, Any], weights: str, extra: Sequence[EvalTask]) -> None:
        hub = model["kind"] == "hub"
        record = {
            "name": self.name,
            "kind": model["kind"],
            "model": self.asked.model if hub else model["location"],
            "revision": self.asked.revision,
            "location": model["location"],
            "weights": weights,
            "identity": model["identity"],
            "tokenizer": {key: model["tokenizer"][key] for key in ("identity", "vocab_size")},
            "parameters": model["parameters"]["total"],
            "max_positions": model["max_positions"],
            "suites": self._suites(),
            "tasks": [
                {key: getattr(task, key) for key in ("suite", "task", "kind", "key", "headline")} for task in extra
            ],
            "files": model["files"],
        }
        models.write_model(self.folder, record)

    def _progress(self, fields: Mapping[str, Any]) -> None:
        self.listener.note(f"evaluating {self.name}: {fields['task']} ({fields['number'] + 1} of {fields['of']})")


def _of(model: Mapping[str, Any]) -> tuple[str, str]:
    return model["identity"], model["tokenizer"]["identity"]


def _check_positions(name: str, model: Mapping[str, Any], settings: EvalSettings) -> None:
    """Refuse a model whose learned positions end before the study's longest item: there is none to look up."""
    needed = max(settings.max_length, settings.window or 0)
    most = model["max_positions"]
    if model["rope"] is None and most is not None and most < needed:
        raise UserError(
            f"{name} has {most:,} positions and no rotary ones that go on behind them, and the study evaluates with "
            f"{needed:,} (`eval.max_length`, `eval.held_out.window`): it cannot be scored as the arms are."
        )
