"""A results folder with known effects, written through `harness.store` in the formats of a real one.

One trunk per data seed, then a decay per arm. Effects are additive: value = level + seed + arm + run noise, and items
carry noise of their own that is shared by all runs, as the same questions are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from harness.store import attempts, evaluations, states
from harness.store.atomic import write_bytes, write_json
from harness.store.layout import Folder
from harness.store.metrics import MetricsWriter
from harness.store.runs import write_run

BATCH = 512
TRUNK = 400 * BATCH
END = 480 * BATCH
PEAK = 6e-3
ITEMS = 60
DOCUMENTS = 24

TASKS = (
    {"suite": "quickstart", "task": "sums", "kind": "lm_eval", "headline": "acc"},
    {"suite": "quickstart", "task": "facts", "kind": "lm_eval", "headline": "acc"},
    {"suite": "bpb", "task": "docs", "kind": "held_out", "headline": "bits_per_byte"},
    {"suite": "bpb", "task": "math", "kind": "held_out", "headline": "bits_per_byte"},
)

EFFECTS: Mapping[str, Mapping[str, float]] = {
    "default": {},
    "control": {"sums": -0.4, "facts": -0.3, "docs": -0.004, "math": 0.25},
    "math=0.3": {"sums": 0.4, "facts": 0.3, "docs": 0.030, "math": -0.20},
    "decay.lr.shape=constant": {"sums": -0.3, "facts": -0.3, "docs": 0.12, "math": 0.10},
    "decay.lr.shape=cosine": {"sums": 0.0, "facts": 0.0, "docs": 0.0005, "math": -0.001},
}

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "control": {"stages.decay.mixture": {"docs": 1}},
    "math=0.3": {"stages.decay.mixture": {"docs": 0.7, "math": 0.3}},
    "decay.lr.shape=constant": {"stages.decay.lr": {"shape": "constant"}},
    "decay.lr.shape=cosine": {"stages.decay.lr.shape": "cosine"},
}

MIXTURES = {"control": {"docs": "1"}, "math=0.3": {"docs": "7/10", "math": "3/10"}}
DEFAULT_MIXTURE = {"docs": "9/10", "math": "1/10"}


STUDY = """schema: 1
study: fabricated
notes: <script>alert("a study is text")</script>
"""


@dataclass(frozen=True)
class Design:
    """What to fabricate. Runs are named `arm/seed`. run_noise: SD of a run about arm + seed (logit or bits)."""

    effects: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: dict(EFFECTS))
    seeds: tuple[str, ...] = ("d1", "d2", "d3")
    run_noise: float = 0.004
    seed_noise: float = 0.05
    diverged: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    control: str | None = "control"
    primary: tuple[str, ...] = ("bpb.docs", "bpb.math", "quickstart.average")
    aliases: Mapping[str, str] = field(default_factory=lambda: {"mixture-as-written": "default"})
    threads: Mapping[str, int] = field(default_factory=dict)  # arm → threads, where not 1
    beyond: int = 0  # items with positions beyond the trained length
    random_seed: int = 0
    not_worse: Mapping[str, float] = field(default_factory=dict)
    report_also: str | None = None
    every: bool = False  # evaluated in the middle of the trunk as well
    ema: bool = False  # averaged weights at the end of each run
    continuations: int = 0  # prompts
    controls: bool = False  # an A/A arm with seeds of its own
    flops_per_token: Mapping[str, int] = field(default_factory=dict)  # of an arm's decay, where not 900,000
    question: str = "Does more mathematics in the decay help, and what does documentation pay for it?"
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: dict(CHANGES))

    @property
    def tasks(self) -> tuple[Mapping[str, str], ...]:
        """What is evaluated at every point, and what is written by one run an arm at the end."""
        return (*TASKS, WRITTEN) if self.continuations else TASKS


WRITTEN = {"suite": "continuations", "task": "continuations", "kind": "continuations", "headline": None}
HALF = TRUNK // 2
AA = "aa"
AA_SEEDS = ("d4", "d5", "d6")


def key(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def fabricate(root: Path, design: Design) -> Path:
    """Write the folder and return it."""
    folder = Folder(root)
    rng = np.random.default_rng(design.random_seed)
    noise = {
        (arm, seed, task["task"]): float(rng.normal(0.0, design.run_noise))
        for arm in design.effects
        for seed in design.seeds
        for task in TASKS
    }
    runs = [_run(design, arm, seed) for arm in design.effects for seed in design.seeds]
    checks = [_run(design, AA, seed) for seed in AA_SEEDS] if design.controls else []
    runs = [*runs, *checks]
    noise |= {(AA, seed, task["task"]): 0.0 for seed in AA_SEEDS for task in TASKS}
    write_json(folder.plan_json, _plan(design, runs))
    write_bytes(folder.study_yaml, STUDY.encode())
    _state(folder, design, key("base"), "base", 0, 0, None, "default")
    _evaluate(folder, design, key("base"), _early(1.6))
    for seed in dict.fromkeys(run["seed_set"] for run in runs):
        trunk, start, parent = key("trunk", seed), 0, key("base")
        if design.every:
            start, parent = HALF, key("half", seed)
            _state(folder, design, parent, "stable", 0, HALF, key("base"), "default")
            _evaluate(folder, design, parent, _early(0.9))
        _state(folder, design, trunk, "stable", start, TRUNK, parent, "default")
        _evaluate(folder, design, trunk, _early(0.5))
    for run in runs:
        write_run(folder, run)
        _decay(folder, design, run, noise)
    return root


def _early(lack: float) -> dict[str, float]:
    """Shifts of a state that has not learnt: more bits per byte, fewer right answers."""
    return {task["task"]: lack if task["kind"] == "held_out" else -lack for task in TASKS}


def _run(design: Design, arm: str, seed: str) -> dict[str, Any]:
    trunk, decay = key("trunk", seed), key("decay", arm, seed)
    half = [{"label": str(HALF), "segment": key("half", seed), "tokens": HALF, "state": key("half", seed)}]
    averaged = key("ema", arm, seed)
    return {
        "name": f"{arm}/{seed}",
        "arm": arm,
        "seeds": {"data": int(seed[1:])},
        "seed_set": seed,
        "changes": dict(design.changes.get(arm, {})),
        "base": key("base"),
        "path": [*([key("half", seed)] if design.every else []), trunk, decay],
        "points": [
            {"label": "base", "segment": None, "tokens": 0, "state": key("base")},
            *(half if design.every else []),
            {"label": "stable", "segment": trunk, "tokens": TRUNK, "state": trunk},
            {"label": "decay", "segment": decay, "tokens": END, "state": decay},
            {"label": "end", "segment": decay, "tokens": END, "state": decay},
            *([{"label": "ema", "segment": averaged, "tokens": END, "state": averaged}] if design.ema else []),
        ],
        "evals": [
            {"point": point, "key": key("task", task["task"]), "suite": task["suite"], "task": task["task"]}
            for point in ("base", *([str(HALF)] if design.every else []), "stable", "end", *(["ema"] * design.ema))
            for task in design.tasks
            if task is not WRITTEN or (point == "end" and seed == design.seeds[0])
        ],
    }


def _plan(design: Design, runs: list[dict[str, Any]]) -> dict[str, Any]:
    segments: dict[str, dict[str, Any]] = {}
    for run in runs:
        ends = [*([HALF] if design.every else []), TRUNK, END]
        for index, state in enumerate(run["path"]):
            first, last = ([0, *ends][index], ends[index])
            each = 900_000 if last <= TRUNK else design.flops_per_token.get(run["arm"], 900_000)
            segments[state] = _segment(state, "train", run["path"][:index][-1:], first, last, (last - first) * each)
        if design.ema:
            averaged = run["points"][-1]["state"]
            segments[averaged] = _segment(averaged, "merge", run["path"][-1:], END, END, 0)
    arms = [
        {"name": arm, "changes": dict(design.changes.get(arm, {})), "fingerprint": key("arm", arm), "same_as": None}
        for arm in design.effects
    ]
    if design.controls:
        arms = [{**arm, "control": False} for arm in arms]
        arms.append({"name": AA, "changes": {}, "fingerprint": key("arm", AA), "same_as": None, "control": True})
    arms += [
        {"name": name, "changes": {"train.precision": "fp32"}, "fingerprint": key("arm", own), "same_as": own}
        for name, own in design.aliases.items()
    ]
    return {
        "schema": 1,
        "study": "fabricated",
        "question": design.question,
        "notes": None,
        "arms": arms,
        "runs": runs,
        "segments": list(segments.values()),
        "evals": [
            {"point": f"{run['name']}@{e['point']}", "suite": e["suite"], "task": e["task"], "state": "new"}
            for run in runs
            for e in run["evals"]
        ],
        "totals": {
            "arms": len(arms),
            "runs": len(runs),
            "tokens": sum(s["tokens_to"] - s["tokens_from"] for s in segments.values()),
            "tokens_unshared": len(runs) * END,
            "flops": float(sum(s["flops"] for s in segments.values())),
            "gpu_hours": 0.001,
            "gpu_hours_basis": "assumed: 40 % of 989 TFLOP/s (H100, dense bf16)",
        },
        "lint": [
            {
                "level": "warning",
                "code": "confounded",
                "arm": "math=0.3",
                "message": "also changes docs from 36,864 to 28,672 tokens",
            }
        ],
        "unresolved": [],
        "tasks": [{**task, "key": key("task", task["task"])} for task in design.tasks],
        "science": {run["name"]: {"path": run["path"], "facts": _facts(design, run)} for run in runs},
        "controls": [{"name": AA, "kind": "same_as", "arm": "default"}] if design.controls else [],
        "share": True,
        "asked": {"file": "../study.yaml", "set": ["seeds.data=[1, 2, 3]"]},
        "compare": {
            "baseline": "default",
            "control": design.control,
            "equal": "tokens",
            "primary": list(design.primary),
            "not_worse": dict(design.not_worse),
            "report_also": design.report_also,
            "allow": {},
        },
        "eval": {"suites": ["quickstart@1"], "at": ["base", "stable", "end"], "max_length": 128},
        "orphans": [],
    }


def _segment(state: str, kind: str, parents: list[str], first: int, last: int, flops: int) -> dict[str, Any]:
    return {
        "id": state,
        "kind": kind,
        "parents": parents,
        "stage": "stable" if last <= TRUNK else "decay",
        "tokens_from": first,
        "tokens_to": last,
        "flops": flops,
        "state": "new",
        "reason": "",
    }


def _facts(design: Design, run: Mapping[str, Any]) -> dict[str, Any]:
    """What plan.json keeps of a run's resolved path."""
    facts: dict[str, Any] = {"weights": key("weights"), "optimizer": "cold"}
    for piece in _pieces(run["arm"], END):
        lr = piece["science"]["lr"]
        facts[f"{piece['stage']}.lr.{lr['shape']}@{piece['start']}"] = str(lr)
        facts |= {f"{piece['stage']}.mixture.{name}": share for name, share in piece["science"]["mixture"].items()}
        facts[f"{piece['stage']}.data_seed"] = run["seeds"]["data"]
        facts[f"{piece['stage']}.end"] = piece["end"]
    return facts


def _pieces(arm: str, tokens_to: int) -> list[dict[str, Any]]:
    common = {
        "sources": {"docs": key("docs"), "math": key("math")},
        "data_seed": 1,
        "batch_tokens": BATCH,
        "context": {"length": 128, "documents": "masked", "packing": "concat", "rope": {"type": "base"}},
        "optimizer": {"name": "adamw", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0},
        "precision": "fp32",
    }
    warm = {"shape": "linear", "from": 0.0, "to": PEAK, "start": 0, "end": 20 * BATCH, "at": "end"}
    constant = {"shape": "constant", "value": PEAK}
    shape = "cosine" if arm.endswith("cosine") else "linear"
    decay = {"shape": shape, "from": PEAK, "to": 0.0, "start": TRUNK, "end": END}
    if arm.endswith("constant"):
        decay = constant
    trunk_mixture = {"docs": "1"}
    spans = [
        (0, 20 * BATCH, "stable", warm, trunk_mixture),
        (20 * BATCH, TRUNK, "stable", constant, trunk_mixture),
        (TRUNK, END, "decay", decay, MIXTURES.get(arm, DEFAULT_MIXTURE)),
    ]
    return [
        {
            "start": start,
            "end": min(end, tokens_to),
            "stage": stage,
            "science": {"lr": lr, "mixture": mixture, "blend_from": start, **common},
        }
        for start, end, stage, lr, mixture in spans
        if start < tokens_to
    ]


def _state(
    folder: Folder,
    design: Design,
    state_id: str,
    stage: str,
    tokens_from: int,
    tokens_to: int,
    parent: str | None,
    arm: str,
    until: int | None = None,
    outcome: str = "trained",
    loss_shift: float = 0.0,
) -> None:
    """One state with its attempt, metrics and marker. until: the token at which it ended early."""
    state = folder.state(state_id)
    pieces = [] if stage == "base" else _pieces(arm, tokens_to)
    segment = {
        "id": state_id,
        "kind": "base" if stage == "base" else "train",
        "parent": parent,
        "stage": stage,
        "tokens_from": tokens_from,
        "tokens_to": tokens_to,
        "base": {"weights": key("weights")},
        "pieces": pieces,
    }
    states.write_segment(state, segment)
    numerics = {"device": "cpu", "threads": design.threads.get(arm, 1), "micro_batch": BATCH, "torch": "2.13.0"}
    attempt = attempts.begin(state, {"numerics": numerics, "code": {"tree": "4a" * 20}})
    attempt.event("attempt_started", tokens=tokens_from)
    writer = MetricsWriter(attempt.folder / "metrics.jsonl")
    rng = np.random.default_rng(int(state_id[:8], 16))
    last = until or tokens_to
    for tokens in range(tokens_from + BATCH, last + 1, BATCH):
        loss = 2.2 + 3.5 * math.exp(-tokens / 30_000) + loss_shift * (tokens - tokens_from) / (tokens_to - tokens_from)
        noisy = loss + float(rng.normal(0.0, 0.03))
        by_source = {"docs": noisy + 0.1} if tokens <= TRUNK else {"docs": noisy + 0.1, "math": noisy - 0.5}
        writer.write(
            {
                "tokens": tokens,
                "step": tokens // BATCH,
                "loss": noisy,
                "loss_by_source": by_source,
                "grad_norm": 0.5,
                "lr": PEAK,
                "labels": BATCH,
                "tokens_per_second": 40_000.0,
                "flops": tokens * 900_000,
                "time": 1_790_000_000.0,
            }
        )
    writer.flush()
    if outcome == "failed":
        attempt.event("failed", error="out of memory")
        return
    attempt.event("finished" if outcome == "trained" else "diverged", tokens=last)
    weights = key("weights", state_id) if outcome == "trained" else None
    served = {"docs": {"tokens": last, "labels": last, "documents": 50, "epochs": 0.5}}
    summary = {} if stage == "base" else {"served": served}
    states.write_done(state, outcome, last, last // BATCH, weights, last if weights else None, summary)  # type: ignore[arg-type]


def _decay(folder: Folder, design: Design, run: Mapping[str, Any], noise: Mapping[tuple[str, str, str], float]) -> None:
    name, arm, seed = run["name"], run["arm"], run["seed_set"]
    if name in design.missing:
        return
    state = run["path"][-1]
    outcome, until = "trained", None
    if name in design.diverged:
        outcome, until = "diverged", TRUNK + 30 * BATCH
    if name in design.failed:
        outcome, until = "failed", TRUNK + 10 * BATCH
    effects = design.effects.get(arm, {})
    shift = effects.get("docs", 0.0) - 0.2
    _state(folder, design, state, "decay", TRUNK, END, run["path"][0], arm, until, outcome, shift)
    if outcome != "trained":
        return
    seed_rng = np.random.default_rng([design.random_seed, int(seed[1:])])
    together = float(seed_rng.normal(0.0, design.seed_noise))
    _evaluate(
        folder,
        design,
        state,
        {task["task"]: effects.get(task["task"], 0.0) + together + noise[arm, seed, task["task"]] for task in TASKS},
    )
    if design.continuations and seed == design.seeds[0]:
        _write_continuations(folder, design, key("weights", state), arm)
    if design.ema:
        averaged = run["points"][-1]["state"]
        states.write_done(folder.state(averaged), "trained", END, END // BATCH, key("weights", averaged), END, {})
        _evaluate(folder, design, averaged, {task["task"]: effects.get(task["task"], 0.0) for task in TASKS})


def _write_continuations(folder: Folder, design: Design, weights: str, arm: str) -> None:
    numbers = range(design.continuations)
    table = {
        "source": ["docs" if number % 2 else "math" for number in numbers],
        "prompt": [f"Prompt {number} begins <b>here</b> and | goes\non" for number in numbers],
        "reference": [f"as the document does, {number}" for number in numbers],
        "continuation": [f"as {arm} does: {number} & `so on`\x00\x1b[31m" for number in numbers],
    }
    results = {
        "task": "continuations",
        "kind": "continuations",
        "weights": weights,
        "key": key("task", "continuations"),
        "metrics": {},
        "settings": {"greedy": True},
        "versions": {},
        "items": design.continuations,
        "numerics": {"device": "cpu", "threads": 1},
        "seconds": 0.25,
    }
    evaluations.write(folder, weights, key("task", "continuations"), results, pyarrow.table(table))


def _evaluate(folder: Folder, design: Design, state: str, shifts: Mapping[str, float]) -> None:
    for task in TASKS:
        _write_task(folder, design, key("weights", state), task, shifts[task["task"]])


def _write_task(folder: Folder, design: Design, weights: str, task: Mapping[str, str], shift: float) -> None:
    name = task["task"]
    items = np.random.default_rng([7, len(name), ord(name[0])])
    own = np.random.default_rng(int(weights[:8], 16))  # how this model differs on single items
    if task["kind"] == "held_out":
        size = items.integers(400, 4000, DOCUMENTS)
        spread = own.normal(0.0, 0.03, DOCUMENTS)
        spread -= float(spread @ size) / float(size.sum())  # the run's value stays what the design says
        level = items.normal(1.9, 0.25, DOCUMENTS) + shift + spread
        nll = level * size * math.log(2.0)
        table = {
            "doc_id": list(range(DOCUMENTS)),
            "doc_hash": [key(name, i) for i in range(DOCUMENTS)],
            "nll": nll.tolist(),
            "bytes": size.tolist(),
            "tokens": (size // 3).tolist(),
        }
        value = float(nll.sum() / math.log(2.0) / size.sum())
        metrics = {"bits_per_byte": {"value": value, "stderr": 0.01, "n": DOCUMENTS, "higher_is_better": False}}
    else:
        probability = 1.0 / (1.0 + np.exp(-(items.normal(0.0, 1.5, ITEMS) + own.normal(0.0, 0.2, ITEMS) + 3.0 * shift)))
        right = (probability > 0.5).astype(float)
        table = {
            "doc_id": list(range(ITEMS)),
            "doc_hash": [key(name, i) for i in range(ITEMS)],
            "target_hash": [key(name, i, "target") for i in range(ITEMS)],
            "prompt_hash": [key(name, i, "prompt") for i in range(ITEMS)],
            "acc": right.tolist(),
            "correct_prob": probability.tolist(),
            "record": ["{}"] * ITEMS,
        }
        metrics = {
            measure: {"value": float(values.mean()), "stderr": 0.05, "n": ITEMS, "higher_is_better": True}
            for measure, values in (("acc", right), ("correct_prob", probability))
        }
    results = {
        "task": name,
        "kind": task["kind"],
        "weights": weights,
        "key": key("task", name),
        "metrics": metrics,
        "settings": {"batch_size": 8, "num_fewshot": 0},
        "versions": {"lm_eval": "0.4.13"},
        "task_hash": key("task content", name),
        "max_length": 512,
        "trained_length": 128,
        "beyond_trained_length": design.beyond,
        "truncated": 0,
        "numerics": {"device": "cpu", "threads": 1},
        "seconds": 0.5,
    }
    evaluations.write(folder, weights, key("task", name), results, pyarrow.table(table))
