"""What each key that names no work is proven with: evaluation, comparison, machines, what is kept and shown."""

from __future__ import annotations

from typing import Any

from tests.proofs.looks import (
    EVALUATED,
    HELD_OUT,
    MISSING,
    See,
    Shown,
    admitted,
    after_other_code,
    checkpoints,
    devices,
    forwards,
    kernels,
    layers,
    linted,
    named,
    of,
    points,
    recorded,
    reported,
    sbatch,
    scores,
    silence,
    strategies,
    told,
    words,
    workers,
    written_checkpoints,
)
from tests.proofs.other_keys import DECAY, MIX
from tests.proofs.science_keys import BATCH, LENGTH, STAGE


def scored(key: str, one: Any, other: Any, see: See = scores) -> Shown:
    """Of `eval`."""
    return of(see, key, one, other, EVALUATED)


def launched(see: See, key: str, one: Any, other: Any, **launch: Any) -> Shown:
    """Of `launch`."""
    start = {f"launch.{name}": value for name, value in launch.items()}
    return of(see, f"launch.{key}", one, other, start)


CLUSTER = {**EVALUATED, "ablate": [{"cases": {"mix": MIX}}], "launch.device": "cuda", "seeds": {"data": [1, 2]}}


def asked(key: str, one: Any, other: Any, **launch: Any) -> Shown:
    """Of `launch`, in what a cluster is asked for."""
    start = {**CLUSTER, **{f"launch.{name}": value for name, value in launch.items()}}
    return of(sbatch, f"launch.{key}", one, other, start)


def rule(key: str, one: Any, other: Any, **rest: Any) -> Shown:
    """Of a rule of `launch.resources`."""
    both = [rest | ({} if value is MISSING else {key: value}) for value in (one, other)]
    return asked("resources", [both[0]], [both[1]])


def compared(key: str, one: Any, other: Any, **start: Any) -> Shown:
    return of(reported, f"compare.{key}", one, other, {f"compare.{name}": v for name, v in start.items()})


def tracked(one: Any, other: Any) -> Shown:
    return of(told, "track", one, other)


TASKS = {**EVALUATED, "eval.max_length": 256, "eval.limit": 1}

# Every one is execution: it names no work.
PROBES: dict[str, Shown] = {
    "study": of(named, "study", "one", "other"),
    "question": of(reported, "question", "Is it so?", "Is it not?"),
    "notes": of(reported, "notes", "Read it slowly.", "Read it fast."),
    # eval
    "eval.suites": of(scores, "eval.suites", [], ["smoke@1"], {**TASKS, "eval.tasks": ["arithmetic_facts"]}),
    "eval.tasks": of(points, "eval.tasks", [], ["arithmetic_facts"], {**TASKS, "eval.suites": ["smoke@1"]}),
    "eval.at": scored("eval.at", ["end"], ["stable", "end"], see=points),
    "eval.at (base)": scored("eval.at", ["end"], ["base", "end"], see=points),
    "eval.at (every)": scored("eval.at", ["end"], ["end", f"every {2 * BATCH}"], see=points),
    "eval.max_length": of(
        scores, "eval.max_length", 64, 8, {**EVALUATED, "eval": {"tasks": ["arithmetic"], "limit": 4}}
    ),
    "eval.held_out=none": scored("eval.held_out", HELD_OUT, "none"),
    "eval.held_out.window": scored("eval.held_out.window", LENGTH, LENGTH // 2),
    "eval.held_out.by_position": scored("eval.held_out.by_position", False, True),
    "eval.held_out.documents": scored("eval.held_out.documents", 2, 3),
    "eval.continuations": scored("eval.continuations", 2, 3),
    "eval.limit": of(scores, "eval.limit", 1, 2, {**EVALUATED, "eval": {"tasks": ["arithmetic"], "max_length": 64}}),
    "eval.batch_size": scored("eval.batch_size", 1, 4, see=forwards),
    # compare
    "compare.baseline": compared("baseline", "default", "more=0.8"),
    "compare.control": compared("control", MISSING, "more=0.2"),
    **words(
        lambda one, other: of(
            linted,
            "compare.equal",
            one,
            other,
            {"ablate": [{"cases": {"long": {DECAY: STAGE + BATCH}}}]},
        ),
        "compare.equal",
        "tokens",
        "flops",
    ),
    "compare.primary": compared("primary", ["bpb.sums"], ["bpb.more"]),
    "compare.not_worse": compared("not_worse", {"bpb.sums": 0.01}, {"bpb.sums": 0.5}),
    "compare.report_also=flops": compared("report_also", MISSING, "flops"),
    "compare.report_also=tokens": compared("report_also", MISSING, "tokens", equal="flops"),
    "compare.allow": compared("allow", {}, {"default": ["no-control"]}),
    **words(lambda one, other: of(after_other_code, "stale", one, other), "stale", "reuse", "rerun"),
    "stale=refuse": of(after_other_code, "stale", "reuse", "refuse"),
    # launch
    "launch.jobs": launched(workers, "jobs", 1, 3),
    "launch.threads": launched(recorded, "threads", 1, 2),
    "launch.threads (cluster)": asked("threads", 1, 2),
    **words(lambda one, other: launched(devices, "device", one, other), "launch.device", "auto", "cpu", "cuda"),
    "launch.micro_batch": launched(recorded, "micro_batch", MISSING, LENGTH),
    **words(lambda one, other: launched(kernels, "kernels", one, other), "launch.kernels", "auto", "torch", "liger"),
    **{
        entry: shown
        for part in ("rope", "rms_norm", "swiglu")
        for entry, shown in words(
            lambda one, other, part=part: launched(kernels, "kernels", {part: one}, {part: other}),  # type: ignore[misc]
            f"launch.kernels.{part}",
            "torch",
            "liger",
        ).items()
    },
    **words(
        lambda one, other: launched(
            kernels, "kernels", {"fused_linear_cross_entropy": one}, {"fused_linear_cross_entropy": other}
        ),
        "launch.kernels.fused_linear_cross_entropy",
        "torch",
        "liger",
        "chunked",
    ),
    "launch.compile": launched(layers, "compile", False, True),
    **words(
        lambda one, other: launched(layers, "activation_checkpointing", one, other),
        "launch.activation_checkpointing",
        "off",
        "full",
        "selective",
    ),
    "launch.checkpoint_every": launched(written_checkpoints, "checkpoint_every", None, BATCH),
    "launch.nodes": asked("nodes", 1, 2),
    "launch.gpus": asked("gpus", 1, 2),
    "launch.gpu_type": asked("gpu_type", MISSING, "h100"),
    **words(
        lambda one, other: launched(strategies, "strategy", one, other, gpus=2),
        "launch.strategy",
        "auto",
        "ddp",
        "fsdp",
    ),
    "launch.time": asked("time", "1h", "2h"),
    "launch.silent_after": launched(silence, "silent_after", "1m", "5m"),
    "launch.parallel": asked("parallel", 1, 2),
    "launch.slurm": asked("slurm", {"account": "ours"}, {"account": "theirs"}),
    "launch.resources[ ].arm": rule("arm", "default", "mix", time="1h"),
    "launch.resources[ ].stage": rule("stage", "stable", "decay", time="1h"),
    **words(
        lambda one, other: rule("work", one, other, time="1h"), "launch.resources[ ].work", "train", "evaluate", "close"
    ),
    "launch.resources[ ].nodes": rule("nodes", 1, 2, stage="decay"),
    "launch.resources[ ].gpus": rule("gpus", 1, 2, stage="decay"),
    "launch.resources[ ].gpu_type": rule("gpu_type", "h100", "a100", stage="decay"),
    "launch.resources[ ].time": rule("time", "1h", "2h", stage="decay"),
    "launch.resources[ ].slurm": rule("slurm", {"account": "ours"}, {"account": "theirs"}, stage="decay"),
    "budget.gpu_hours": of(admitted, "budget.gpu_hours", 1e-30, 1e9),
    "keep.checkpoints": of(checkpoints, "keep.checkpoints", "last", f"every {2 * BATCH}"),
    "keep.checkpoints=last": of(checkpoints, "keep.checkpoints", "all", "last", {"launch.checkpoint_every": BATCH}),
    "keep.checkpoints=all": of(checkpoints, "keep.checkpoints", "last", "all", {"launch.checkpoint_every": BATCH}),
    # track
    **words(tracked, "track", "none", "wandb", "trackio", "tensorboard"),
    "track.wandb.project": tracked({"wandb": {"project": "one"}}, {"wandb": {"project": "other"}}),
    "track.wandb.entity": tracked({"wandb": {"entity": "one"}}, {"wandb": {"entity": "other"}}),
    **words(
        lambda one, other: tracked({"wandb": {"mode": one}}, {"wandb": {"mode": other}}),
        "track.wandb.mode",
        "online",
        "offline",
    ),
    "track.wandb.tags": tracked({"wandb": {"tags": ["one"]}}, {"wandb": {"tags": ["other"]}}),
    "track.trackio.project": tracked({"trackio": {"project": "one"}}, {"trackio": {"project": "other"}}),
    "track.tensorboard": tracked({"trackio": {}}, {"trackio": {}, "tensorboard": {}}),
}
