"""What can be seen of a study: each `See` takes a `Case` with what is written over the tiny study and says what came of
it. For `other_keys`, which says what must differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaMLP

from harness import cli
from harness.data import hub
from harness.data.documents import training_documents
from harness.data.sources import declared_sources
from harness.data.token_store import TokenSource
from harness.launch import code, observe, prepare, run, status
from harness.launch.progress import Silent
from harness.launch.run import Options, ready, work
from harness.launch.slurm import preview
from harness.store import attempts, evaluations, states
from harness.store.atomic import read_json
from harness.store.layout import Folder
from harness.study.errors import UserError
from harness.track.settings import declared, targets
from harness.train.loop import Loop
from harness.train.model import config_from_fields
from harness.train.numerics import Numerics
from harness.train.parallel import choose
from tests.proofs.every_key import Written, write, written
from tests.proofs.science_keys import CONFIG, LENGTH, STUDY

# The tiny study with a decay to its end, so that it may be run as it is.
START = written(STUDY, {"stages.decay.lr": {"shape": "linear", "to": 0}})
COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40


@dataclass
class Case:
    """Where studies are tried. root: of this test alone. shared: a results folder that many tests bring to their study,
    whose states are theirs by name. bases: checkpoints of two trained models, with their tokenizer and optimizer."""

    root: Path
    shared: Path
    bases: list[Path]
    patch: pytest.MonkeyPatch
    numbers: Any = field(default_factory=count)

    def study(self, changes: Written) -> Path:
        """The tiny study with other values, in a file; a key that stands for the case's own is put in its place."""
        return write(self.root / f"study{next(self.numbers)}.yaml", self.own(written(START, changes)))

    def own(self, value: Any) -> Any:
        """`value` with the bases' places where it names them."""
        text = json.dumps(value)
        for index, base in enumerate(self.bases):
            text = text.replace(f"BASE{index}", str(base))
        return json.loads(text.replace("ROOT", str(self.root)).replace("PLACE", str(self.shared.parent)))

    def fresh(self) -> Path:
        return self.root / f"out{next(self.numbers)}"

    def bring(self, changes: Written, out: Path | None = None) -> prepare.Prepared:
        """Train and evaluate the study, in this process and without a report; the plan that is left."""
        options = Options(self.study(changes), out or self.shared, executor="debug", yes=True, track=False)
        study = prepare.load(options.study)
        prepared = ready(study, Folder(out or self.shared), options, Silent())
        worked = work(prepared, options, Silent())
        failures = [result.failure for result in worked.results.values() if result.failure is not None]
        assert not failures, failures
        return worked.after


See = Callable[[Case, Written], Any]


@dataclass(frozen=True)
class Shown:
    """A probe: `see` differs between the two."""

    see: See
    one: Written
    other: Written


HELD_OUT = {"window": LENGTH, "documents": 2}
SCORED: dict[str, Any] = {
    "ablate": [{"mixture": {"stage": "decay", "vary": "more", "values": [0.2, 0.8], "absorb": "sums"}}],
    "sources.sums": {"builtin": "arithmetic", "documents": 60, "held_out": 0.2},
    "sources.more": {"builtin": "arithmetic", "documents": 60, "seed": 1, "held_out": 0.2},
    "train.lr": {"shape": "linear", "to": "0.5x"},
    "seeds": {"data": [1, 2]},
    "eval": {"at": ["base", "stable", "end"], "max_length": LENGTH, "held_out": HELD_OUT, "continuations": 2},
}


def of(see: See, key: str, one: Any, other: Any, start: Written | None = None) -> Shown:
    """Two values of one key over a start; MISSING: not written."""
    both = [dict(start or {}) | ({} if value is MISSING else {key: value}) for value in (one, other)]
    return Shown(see, *both)


MISSING = object()


def words(make: Callable[[str, str], Shown], key: str, first: str, *others: str) -> dict[str, Shown]:
    """A probe for each word of a choice, the first against the second and every other against the first."""
    return {f"{key}={first}": make(others[0], first), **{f"{key}={word}": make(first, word) for word in others}}


EVALUATED = {key: SCORED[key] for key in ("sources.sums", "sources.more", "eval")}

# --- what is seen


def weights(case: Case, changes: Written) -> dict[str, str | None]:
    """Of the end of every run."""
    after = case.bring(changes)
    found = {}
    for planned in after.plan.runs:
        done = states.read_done(after.folder.state(planned.path[-1]))
        found[planned.name] = None if done is None else done.weights
    return found


def several(case: Case, changes: Written) -> list[str | None]:
    """The weights of the runs, whatever they are called."""
    return sorted(map(str, weights(case, changes).values()))


def merged(case: Case, changes: Written) -> dict[str, str | None]:
    return {name: of for name, of in weights(case, changes).items() if name.startswith("merge")}


def averaged(case: Case, changes: Written) -> list[str | None]:
    """The weights at the point `ema`."""
    after = case.bring(changes)
    points = [point for planned in after.plan.runs for point in planned.points if point.label == "ema"]
    return [done.weights for point in points if (done := states.read_done(after.folder.state(point.state)))]


def arms(case: Case, changes: Written) -> list[Any]:
    """Every arm with what it trains."""
    return [(arm.name, arm.treatment) for arm in prepare.load(case.study(changes)).arms]


def treatment(case: Case, changes: Written) -> Any:
    return prepare.load(case.study(changes)).arms[0].treatment


def dropped(case: Case, changes: Written) -> list[str]:
    """The arms that are left when the sources are known."""
    study = prepare.load(case.study(changes))
    found = prepare.resolved_plan(study, Folder(case.fresh()), True, lambda line: None)
    return [arm.name for arm in found.plan.arms]


def segments(case: Case, changes: Written) -> list[tuple[str, int]]:
    """What is trained, by stage."""
    study = prepare.load(case.study(changes))
    plan = prepare.planned(study, Folder(case.fresh())).plan
    return [(segment.stage, segment.tokens_to) for segment in plan.segments.values()]


def texts(case: Case, changes: Written) -> dict[str, list[str]]:
    """The first training documents of every source."""
    study = prepare.load(case.study(changes))
    found = declared_sources(study)
    return {name: list(islice(training_documents(one.documents(), one.held_out), 30)) for name, one in found.items()}


def rows(case: Case, changes: Written) -> dict[str, str]:
    """The training tokens of every source."""
    study = prepare.load(case.study(changes))
    found = prepare.resolved_plan(study, Folder(case.fresh()), True, lambda line: None).resolved.sources
    return {name: TokenSource.open(one["tokens"]).ids.tobytes().hex() for name, one in found.items()}


def held_out(case: Case, changes: Written) -> dict[str, int]:
    study = prepare.load(case.study(changes))
    found = prepare.resolved_plan(study, Folder(case.fresh()), True, lambda line: None).resolved.sources
    return {name: one["held_out"]["documents"] for name, one in found.items()}


def admitted(case: Case, changes: Written) -> str:
    """Whether the study may run as it is, and which findings it has."""
    options = Options(case.study(changes), case.fresh())
    found = ready(prepare.load(options.study), Folder(options.folder or case.root), options, Silent())
    return str([(item.code, item.arm, item.message) for item in found.plan.lint])


def linted(case: Case, changes: Written) -> list[str]:
    """The findings of a study whose model is known."""
    study = prepare.load(case.study(changes))
    found = prepare.resolved_plan(study, Folder(case.fresh()), True, lambda line: None)
    return [item.code for item in found.plan.lint]


def scores(case: Case, changes: Written) -> dict[str, Any]:
    """What every evaluation gave, by point and task."""
    after = case.bring(changes)
    found = {}
    for item in after.plan.evals:
        done = states.read_done(after.folder.state(item.state))
        assert done is not None and done.weights is not None
        result = evaluations.read_results(after.folder, done.weights, item.task.key)
        assert result is not None
        kept = {name: result[name] for name in ("metrics", "items", "truncated")}
        found[f"{item.run}@{item.label} {item.task.task}"] = kept
    return found


def points(case: Case, changes: Written) -> list[str]:
    return sorted(scores(case, changes))


def forwards(case: Case, changes: Written) -> list[tuple[int, ...]]:
    """The shape of every forward pass of an evaluation."""
    seen: list[tuple[int, ...]] = []
    plain = LlamaForCausalLM.forward

    def forward(self: Any, input_ids: Any = None, **rest: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return plain(self, input_ids=input_ids, **rest)

    with case.patch.context() as patch:
        patch.setattr(LlamaForCausalLM, "forward", forward)
        case.bring(changes, case.fresh())
    return seen


def reported(case: Case, changes: Written) -> tuple[str, str]:
    """The report, after the changes were given to a folder whose runs are all done; and what is found in the study."""
    study = write(case.root / "reported.yaml", case.own(written(START, SCORED)))
    sets = [word for path, value in changes.items() for word in ("--set", f"{path}={json.dumps(value)}")]
    out = case.shared.parent / "scored"
    code = cli.call(["run", str(study), "-o", str(out), "--executor", "debug", "--yes", *sets])
    if code:
        raise UserError(f"exit code {code}")
    lint = [(item["code"], item["arm"]) for item in read_json(out / "plan.json")["lint"]]
    return (out / "report" / "report.md").read_text("utf-8"), str(lint)


def verdicts(case: Case, changes: Written) -> tuple[Any, ...]:
    """What the controls have shown, and what was trained for them."""
    after = case.bring(changes)
    said = [(verdict.name, verdict.passed, verdict.sentence) for verdict in after.verdicts]
    names = sorted(run.name for run in after.plan.runs)
    return said, names, sorted(after.plan.held)


def sbatch(case: Case, changes: Written) -> str:
    """The sbatch files, without what differs from one call to the next."""
    study = prepare.load(case.study(changes))
    text = "\n".join(preview.texts(prepare.planned(study, Folder(case.root / "cluster"))))
    return "\n".join(line for line in text.splitlines() if "--job-name" not in line)


def checkpoints(case: Case, changes: Written) -> list[int]:
    """What is on the disk when all is done."""
    after = case.bring(changes, case.fresh())
    return sorted(tokens for state in after.folder.all_states() for tokens in state.checkpoint_tokens())


def written_checkpoints(case: Case, changes: Written) -> list[int]:
    """What was written on the way, kept or not."""
    after = case.bring(changes, case.fresh())
    events = [event for state in after.folder.all_states() for event in attempts.read_events(state)]
    return [event["tokens"] for event in events if event["kind"] == "checkpoint"]


def recorded(case: Case, changes: Written) -> list[Any]:
    """The numerics of every attempt, the threads that it had, and how often parts of the model ran in an update."""
    ran: list[tuple[int, int]] = []
    plain, update = LlamaMLP.forward, Loop.update
    calls = [0]

    def forward(self: Any, x: Any) -> Any:
        calls[0] += 1
        return plain(self, x)

    def counted(loop: Loop) -> None:
        calls[0] = 0
        update(loop)
        ran.append((calls[0], torch.get_num_threads()))

    out = case.fresh()
    with case.patch.context() as patch:
        patch.setattr(LlamaMLP, "forward", forward)
        patch.setattr(Loop, "update", counted)
        after = case.bring(changes, out)
    found = [read_json(path)["numerics"] for path in sorted(after.folder.root.glob("states/*/attempts/*/env.json"))]
    return [found, ran]


def devices(case: Case, changes: Written) -> list[str]:
    """Where a worker goes, without a GPU and with one."""
    settings = run.settings(prepare.planned(prepare.load(case.study(changes)), Folder(case.fresh())))
    found = []
    for there in (False, True):
        with case.patch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda there=there: there)
            patch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
            try:
                found.append(Numerics.resolve(settings["device"]).device)
            except UserError:
                found.append("refused")
    return found


def kernels(case: Case, changes: Written) -> list[Any]:
    """Whose kernels a worker would run: on a GPU, and on a CPU whose interpreter stands in for one."""
    settings = run.settings(prepare.planned(prepare.load(case.study(changes)), Folder(case.fresh())))
    found: list[Any] = []
    for device in ("cuda", "cpu"):
        with case.patch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda device=device: device == "cuda")
            patch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
            numerics = Numerics.resolve(device, kernels=settings["kernels"])
            try:
                found.append(numerics.for_model(config_from_fields({**CONFIG, "vocab_size": 300})).kernels.parts)
            except UserError:
                found.append("refused")
    return found


def layers(case: Case, changes: Written) -> tuple[int, ...]:
    """Layers that were compiled; matrix products and activations of a forward and its backward."""
    from harness.train import layers as module
    from harness.train.model import build_model

    settings = run.settings(prepare.planned(prepare.load(case.study(changes)), Folder(case.fresh())))
    names = ("compile", "activation_checkpointing")
    numerics = replace(Numerics.resolve("cpu"), **{name: settings[name] for name in names})
    seen = [0]
    with case.patch.context() as patch:
        patch.setattr(torch.nn.Module, "compile", lambda self, **rest: seen.__setitem__(0, seen[0] + 1))
        model = build_model(config_from_fields({**CONFIG, "vocab_size": 300}), 1)
        module.prepare_layers(model, numerics)
    with torch.autograd.profiler.profile() as profile:
        model(input_ids=torch.arange(8).view(1, 8), use_cache=False).logits.sum().backward()
    ran = [event.name for event in profile.function_events]
    return seen[0], ran.count("aten::mm"), ran.count("aten::silu")


def strategies(case: Case, changes: Written) -> list[str]:
    """How two processes divide a small and a large model."""
    settings = run.settings(prepare.planned(prepare.load(case.study(changes)), Folder(case.fresh())))
    return [choose(settings["strategy"], 2, parameters) for parameters in (1000, 2_000_000_000)]


def workers(case: Case, changes: Written) -> int:
    """Processes that would be at work at once."""
    study = prepare.load(case.study(changes))
    return int(run._executor(Options(study.path), study)._jobs)  # type: ignore[attr-defined]


def silence(case: Case, changes: Written) -> list[str]:
    """What is said of a run that has made no step for two minutes."""
    after = case.bring(changes, case.fresh())
    state = after.folder.state(after.plan.runs[0].path[-1])
    state.done.unlink()
    attempts.begin(state, {})
    with case.patch.context() as patch:
        patch.setattr(status.processes, "quiet_seconds", lambda pulse: 120.0)
        return [found.state for found in status.status(after.folder)]


def told(case: Case, changes: Written) -> list[Any]:
    """What every tracker is given to know where it sends."""
    study = prepare.load(case.study(changes))
    return [target.to_json() for target in targets(declared(study.spec.track), study.spec.study, {})[0]]


def after_other_code(case: Case, changes: Written) -> list[str]:
    """How states stand that another code has trained; refused, where they are."""
    out = case.fresh()
    case.bring({}, out)
    with case.patch.context() as patch:
        for module in (code, observe):
            patch.setattr(module, "tree_hash", lambda: "f" * 64)
        options = Options(case.study(changes), out, yes=True, track=False)
        found = ready(prepare.load(options.study), Folder(out), options, Silent()).plan
        return [f"{segment.state} {segment.needed}" for segment in found.segments.values()]


def named(case: Case, changes: Written) -> str:
    """Where results go when no folder is chosen."""
    return str(prepare.folder_of(prepare.load(case.study(changes)), None).root)


def fetched(case: Case, changes: Written) -> dict[str, list[str]]:
    """The documents of a data set on a hub that holds everything that it is asked for, each text saying what it is."""

    def snapshot(repository: str, revision: str, chosen: Any, source: str) -> Path:
        root = case.root / "hub" / repository / revision
        for name in chosen:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            line = {key: f"{key} of {repository} {revision} {name}" for key in ("text", "body")}
            (root / name).write_text(json.dumps(line) + "\n")
        return root

    names = [f"{name}/{split}.jsonl" for name in ("small", "large") for split in ("train", "test")]
    with case.patch.context() as patch:
        patch.setattr(hub, "_listed", lambda *asked: names)
        patch.setattr(hub, "_snapshot", snapshot)
        return texts(case, changes)


def of_the_hub(case: Case, changes: Written) -> dict[str, str | None]:
    """The weights at the end, from a base that a hub gives by its revision."""

    def snapshot_download(name: str, revision: str | None = None, **rest: Any) -> str:
        return str(case.bases[0 if revision in (None, COMMIT) else 1] / "model")

    with case.patch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        return weights(case, changes)


def included(case: Case, changes: Written) -> Any:
    for name, rate in (("one", 0.01), ("other", 0.02)):
        write(case.root / f"{name}.yaml", {"train": {"context": {"packing": "best-fit" if rate > 0.01 else "concat"}}})
    return treatment(case, changes)


def solved(case: Case, changes: Written) -> dict[str, int]:
    """The length of every arm, the model being known."""
    study = prepare.load(case.study(changes))
    found = prepare.resolved_plan(study, Folder(case.fresh()), True, lambda line: None).study
    return {arm.name: arm.treatment.tokens for arm in found.arms}
