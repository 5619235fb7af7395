"""The card of an exported model: README.md as the hub reads it, a YAML head and Markdown below."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from harness.store import attempts, manifests, states
from harness.store.atomic import read_json
from harness.store.layout import Folder
from harness.store.markers import Damaged
from harness.store.runs import is_merged

END = "end"
SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&$])")
TASK = "text-generation"


@dataclass(frozen=True)
class Exported:
    """What is exported: a run of the plan, the label of the point, its state, and the state's marker.

    name: the arm as the user called it, which may be another name of the run's arm.
    """

    folder: Folder
    plan: Mapping[str, Any]
    run: Mapping[str, Any]
    name: str
    label: str
    state: str
    done: states.Done

    @property
    def title(self) -> str:
        return str(self.run["name"]) + ("" if self.label == END else f"@{self.label}")

    @property
    def arm(self) -> Mapping[str, Any]:
        return next(dict(arm) for arm in self.plan["arms"] if arm["name"] == self.run["arm"])


def card(it: Exported) -> str:
    """README.md of an exported model."""
    parts = [
        _head(it),
        f"# {plain(it.plan['study'])}: {plain(it.title)}",
        plain(it.plan.get("question") or ""),
        _what(it),
        _section("What it changes against `default`", _changes(it)),
        _section(f"How {'its last part' if is_merged(it.run) else 'it'} was trained", _path(it)),
        _section("Scores", _scores(it)),
        _section("Differences to the baseline", _differences(it)),
        _section("How to load it", _loading()),
        _section("Where it comes from", _provenance(it)),
        _section("License", "No license was chosen. Those of the base and of the data may bind this model as well."),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(text: object) -> str:
    """`text` as Markdown that shows it as it is, in one line: names may hold anything."""
    return SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _head(it: Exported) -> str:
    """The YAML head. A JSON value is one of YAML, so nothing in a name can break it."""
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": TASK}
    base = _hub_base(it.folder)
    if base is not None:
        head["base_model"] = base
    datasets = _hub_datasets(it)
    if datasets:
        head["datasets"] = datasets
    head["tags"] = ["mid-training", "ablation", str(it.plan["study"])]
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()]
    return "\n".join(["---", *lines, "---"])


def _hub_base(folder: Folder) -> str | None:
    """The hub id that training started from, None for a base that is none."""
    base = manifests.read_base(folder)
    if base is None or base.get("kind") != "hub":
        return None
    path = base.get("asked", {}).get("model", {}).get("path")
    return None if path is None else str(path)


def _hub_datasets(it: Exported) -> list[str]:
    """Hub ids of the sources that the path has read, in the order of their names."""
    names = {name for piece in _pieces(it) for name in piece["science"]["mixture"]}
    found = []
    for name in sorted(names):
        manifest = manifests.read_source(it.folder, name)
        hub = None if manifest is None else manifest["declared"].get("hf")
        if isinstance(hub, str) and hub not in found:
            found.append(hub)
    return found


def _what(it: Exported) -> str:
    seeds = ", ".join(f"{plain(name)} {value}" for name, value in it.run["seeds"].items())
    said = [f"Trained on {it.done.tokens:,} tokens in {it.done.step:,} updates. Seeds: {seeds}."]
    if is_merged(it.run):
        parts = ", ".join(f"{plain(name)} ({plain(weight)})" for name, weight in _parts(it))
        said = [f"The weighted mean of the weights of {parts}; nothing was trained after it. Seeds: {seeds}."]
    if it.label == "ema":
        said.append("These are the moving average of the weights (EMA), not the weights at the last update.")
    elif it.label != END:
        said.append(f"These are the weights at the point {plain(it.label)}, not those at the end.")
    if it.arm.get("control"):
        said.append(
            f"{plain(it.arm['name'])} is a control (A/A): the science of another arm, trained again with seeds of its "
            "own to check the study itself."
        )
    if it.name != it.arm["name"]:
        said.append(f"{plain(it.name)} is another name of {plain(it.arm['name'])}, which has the same science.")
    return " ".join(said)


def _parts(it: Exported) -> list[tuple[str, str]]:
    """What a merged model is made of, as `run at token`, with the weight of each."""
    try:
        recipe = states.read_segment(it.folder.state(it.state))["recipe"]
    except (FileNotFoundError, Damaged, KeyError):
        return [(str(name), "weight not known") for name in it.run["made_of"]]
    ends = {segment["id"]: int(segment["tokens_to"]) for segment in it.plan["segments"]}
    runs = [run for run in it.plan["runs"] if run["name"] in it.run["made_of"]]
    return [
        (next(f"{run['name']} at token {ends[state]:,}" for run in runs if state in run["path"]), weight)
        for state, weight in zip(recipe["of"], recipe["coefficients"], strict=True)
    ]


def _changes(it: Exported) -> str:
    changes = it.arm["changes"].items()
    lines = [f"- {plain(path)}: {plain(json.dumps(value, ensure_ascii=False))}" for path, value in changes]
    if not lines and it.arm.get("control"):
        return "Nothing but the seeds."
    return "\n".join(lines) or "Nothing: the study as it is."


def _pieces(it: Exported) -> list[Mapping[str, Any]]:
    try:
        return list(states.read_segment(it.folder.state(it.state))["pieces"])
    except (FileNotFoundError, Damaged, KeyError):
        return []


def _path(it: Exported) -> str:
    """A row for each interval in which one description holds, from token 0."""
    head = ["Stage", "Tokens", "Batch", "Context", "Mixture", "Learning rate", "Optimizer"]
    rows = [
        [
            plain(piece["stage"]),
            f"{piece['start']:,} to {piece['end']:,}",
            f"{piece['science']['batch_tokens']:,}",
            _context(piece["science"]["context"]),
            _mixture(piece["science"]["mixture"]),
            _rate(piece["science"]["lr"]),
            _settings(piece["science"]["optimizer"]) + f", {plain(piece['science']['precision'])}",
        ]
        for piece in _pieces(it)
    ]
    if not rows:
        return "Not at all: this is the base."
    return table(head, rows) + "\n\nTokens are counted from the start of the path; batch and context are in tokens."


def _context(context: Mapping[str, Any]) -> str:
    rope = dict(context["rope"])
    form = rope.pop("type")
    said = f"{context['length']:,}, documents {context['documents']}"
    numbers = ", ".join(f"{name} {value:g}" for name, value in rope.items())
    return plain(said + ("" if form == "base" else f", RoPE {form}" + (f" ({numbers})" if numbers else "")))


def _mixture(mixture: Mapping[str, str]) -> str:
    return ", ".join(f"{plain(name)} {100 * float(Fraction(share)):.4g} %" for name, share in mixture.items())


def _rate(lr: Mapping[str, Any]) -> str:
    if set(lr) == {"shape", "value"}:
        return f"{plain(lr['shape'])} {lr['value']:g}"
    span = f" {lr['from']:g} to {lr['to']:g}" if {"from", "to"} <= lr.keys() else ""
    rest = {n: v for n, v in lr.items() if n not in ("shape", "start", "end", "at", *(("from", "to") if span else ()))}
    return plain(lr["shape"]) + span + (f" ({_settings(rest)})" if rest else "")


def _settings(settings: Mapping[str, Any]) -> str:
    parts = [str(value) if name == "name" else f"{name} {_value(value)}" for name, value in settings.items()]
    return plain(", ".join(parts))


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(_value, value)) + ")"
    return f"{value:g}" if isinstance(value, float) else "off" if value is None else str(value)


def _scores(it: Exported) -> str:
    """The run's own values, with mean and standard deviation over the arm's runs where it has several."""
    from analysis.frame import read_frame

    frame = read_frame(it.folder.root, it.plan)
    rows = []
    for metric in frame.metrics:
        own = frame.values.get((it.run["name"], it.label, metric.name))
        if own is None:
            continue
        of_arm = [frame.values.get((run.name, it.label, metric.name)) for run in frame.runs_of(it.run["arm"])]
        values = [value.value * metric.scale for value in of_arm if value is not None]
        several = len(values) > 1
        rows.append(
            [
                plain(metric.name) + (f" ({metric.unit})" if metric.unit else ""),
                "higher" if metric.higher_is_better else "lower",
                f"{own.value * metric.scale:.5g}",
                f"{own.n:,}",
                f"{statistics.fmean(values):.5g}" if several else "",
                f"{statistics.stdev(values):.2g}" if several else "",
                str(len(values)),
            ]
        )
    if not rows:
        return f"Nothing was evaluated at the point {plain(it.label)}."
    head = ["Metric", "Better", "This run", "n", "Mean of runs", "SD of runs", "Runs"]
    return (
        table(head, rows) + "\n\nn: items that the value is over. SD: between runs of this arm, which differ in seeds."
    )


def _differences(it: Exported) -> str:
    """What the report says, as it was last built; nothing without one, and for other weights than those at the end."""
    path = it.folder.report / "claims.json"
    if it.label != END or not path.exists():
        return ""
    try:
        found = [claim for claim in read_json(path)["claims"] if claim["arm"] == it.run["arm"]]
        rows = [_difference(claim) for claim in found]
    except (ValueError, KeyError, TypeError):
        return "The report's claims.json cannot be read; `ablate report` writes it anew."
    if not rows:
        return ""
    head = ["Metric", "Baseline", "Difference", "95 % interval", "Adjusted", "Verdict", "Seeds"]
    note = "From the report as it was last built, over all runs of the arm. Adjusted: for all arms and primary metrics."
    return table(head, rows) + "\n\n" + note


def _difference(claim: Mapping[str, Any]) -> list[str]:
    scale = 100 if claim["unit"] == "share" else 1
    unit = "percentage points" if claim["unit"] == "share" else claim["unit"]

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value * scale:+.4g}"

    def interval(ends: Sequence[float | None] | None) -> str:
        return "" if ends is None else " to ".join(shown(end) or "unbounded" for end in ends)

    reason = f" ({plain(claim['reason'])})" if claim.get("reason") else ""
    return [
        plain(claim["metric"]) + (f" ({plain(unit)})" if unit else ""),
        plain(claim["baseline"]),
        shown(claim["difference"]),
        interval(claim["ci95"]),
        interval(claim["adjusted_ci"]),
        plain(claim["verdict"]) + reason,
        str(claim["n_seeds"]),
    ]


def _loading() -> str:
    return "\n".join(
        [
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            'folder = "."  # this folder',
            "model = AutoModelForCausalLM.from_pretrained(folder)",
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            "```",
        ]
    )


def _provenance(it: Exported) -> str:
    state = it.folder.state(it.state)
    numbers = state.attempt_numbers()
    env = (attempts.read_env(state, numbers[-1]) if numbers else None) or {}
    code, numerics = env.get("code") or {}, env.get("numerics") or {}
    versions = {"torch": numerics.get("torch"), **(env.get("versions") or {})}
    dirty = " with changes that no commit has" if code.get("dirty") else ""
    facts = {
        "Study": it.plan["study"],
        "Arm": it.run["arm"],
        "Seeds": it.run["seed_set"],
        "State": it.state,
        "Weights": it.done.weights,
        "Code tree": code.get("tree"),
        "Commit": f"{code['commit']}{dirty}" if code.get("commit") else None,
        "Device": numerics.get("device"),
        "Versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value) or None,
    }
    return table(["What", "Which"], [[name, plain(value or "not recorded")] for name, value in facts.items()])
