"""`ablate bench share`: one study with and without sharing, wall-clock, each in a folder of its own."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.launch import prepare
from harness.launch.progress import Silent
from harness.launch.run import Options, run
from harness.store import states
from harness.store.atomic import read_json
from harness.store.layout import Folder
from harness.study.errors import UserError


def bench(options: Options, listener: Silent) -> dict[str, Any]:
    """Both ways, from base and manifests on; seconds, tokens trained, and whether all final weights are equal.

    Data is tokenized before the clock starts, so that the first of the two does not pay for both.
    """
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="ablate-bench-") as scratch:
        study = prepare.load(options.study, options.overrides)
        prepare.resolved_plan(study, Folder(Path(scratch) / "warm"), True, listener.note)
        for name, share in (("shared", True), ("unshared", False)):
            listener.note(f"running {name}")
            folder = Path(scratch) / name
            began = time.perf_counter()
            done = run(replace(options, folder=folder, share=share, track=False), listener)
            seconds = time.perf_counter() - began
            if done.ended.exit_code:
                raise UserError(f"the {name} run did not finish: {done.ended.failed[:1] or 'stopped'}")
            measured[name] = {"seconds": round(seconds, 2), "trained_tokens": done.trained_tokens}
            measured[name]["weights"] = _final_weights(Folder(folder))
    weights = [measured[name].pop("weights") for name in ("shared", "unshared")]
    return {
        "bench": "share",
        "study": study.spec.study,
        "jobs": 1 if options.executor == "debug" else options.jobs or study.spec.launch.jobs,
        "threads": study.spec.launch.threads,
        **measured,
        "speed_up": round(measured["unshared"]["seconds"] / measured["shared"]["seconds"], 3),
        "weights_equal": weights[0] == weights[1],
        "runs": len(weights[0]),
    }


def _final_weights(folder: Folder) -> dict[str, str | None]:
    """The weights of every run's end, None for a diverged one."""
    found: dict[str, str | None] = {}
    for planned in read_json(folder.plan_json)["runs"]:
        done = states.read_done(folder.state(planned["path"][-1]))
        found[planned["name"]] = None if done is None else done.weights
    return found
