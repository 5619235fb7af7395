"""What a results folder says of the work before it is done: study, plan, runs, segments; and what orders carry."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.launch import code
from harness.launch.items import held_states
from harness.launch.resolve import evaluation_settings
from harness.plan.canonical import digest
from harness.store import plans, runs, states
from harness.store.atomic import write_bytes
from harness.store.places import from_folder
from harness.track.settings import declared

if TYPE_CHECKING:
    from harness.launch.prepare import Prepared
    from harness.launch.run import Options


def record(prepared: Prepared, options: Options) -> None:
    """Write study.yaml, plan.json, the runs and the segments that will be worked on."""
    folder, plan = prepared.folder, prepared.plan
    for run in plan.runs:  # first: a record of a newer version stops this before anything is written
        runs.write_run(folder, plan.run_json(run))
    if not folder.study_yaml.exists() or folder.study_yaml.read_text(encoding="utf-8") != prepared.study.text:
        write_bytes(folder.study_yaml, prepared.study.text.encode())
    write_plan(prepared, options)
    if not options.train:
        return
    needed = [base.id for base in plan.bases.values() if base.needed]
    needed += [segment.id for segment in plan.segments.values() if segment.needed]
    held = held_states(plan) if plan.held else set()
    for name in needed:
        state = folder.state(name)
        states.write_segment(state, plan.segment_json(name))
        seen = prepared.seen.observed.states.get(name)
        if seen is not None and seen.outcome == "damaged":
            state.done.unlink(missing_ok=True)  # it says what is not so; the damage was named
        if seen is not None and seen.outcome == "stale" and name not in held:
            states.set_aside(state)


def write_plan(prepared: Prepared, options: Options) -> None:
    """Write plan.json unless it is there already: the plan, and which call it answers.

    That `ablate eval` trains nothing is said of that call alone: whoever takes up the folder later, trains.
    """
    folder = prepared.folder
    asked = {
        "file": from_folder(folder.root, options.study),
        "set": list(options.overrides),
        "suites": list(options.suites),
        "resolved": digest(prepared.study.resolved),
        "yes": options.yes,
    }
    track = declared(prepared.study.spec.track)
    spec = prepared.study.spec
    added = {"keep": spec.keep.checkpoints, "silent_after": spec.launch.silent_after}
    added |= {"share": options.share, "asked": asked, "track": track}
    plans.write_plan(folder, {**prepared.plan.record(), **added})


def settings(prepared: Prepared) -> dict[str, Any]:
    """What every order carries: numerics, checkpoints, evaluation, code."""
    spec = prepared.study.spec
    every = spec.launch.checkpoint_every
    return {
        "device": spec.launch.device,
        "threads": spec.launch.threads,
        "micro_batch": spec.launch.micro_batch,
        "kernels": spec.launch.kernels if isinstance(spec.launch.kernels, str) else spec.launch.kernels.model_dump(),
        "compile": spec.launch.compile,
        "activation_checkpointing": spec.launch.activation_checkpointing,
        "strategy": spec.launch.strategy,
        "checkpoint_every": None if every is None else int(every),
        "keep": spec.keep.checkpoints,
        "code": code.provenance(),
        "evaluation": asdict(evaluation_settings(prepared.study)),
    }
