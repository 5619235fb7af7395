"""What a tracker shows of a study: a run for each (arm, seeds), and one for each segment that no run ends with.

The run of (arm, seeds) holds its whole path, from token 0, whoever else shares parts of it. It begins when its last
segment does; until then the segments before show how training goes, each as a run of its own with the job type
`segment`. All of it is a function of plan.json and the folder; nothing here knows a tracker.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from harness.store import attempts
from harness.store.layout import Folder
from harness.store.runs import states_behind
from harness.track.rows import Stretch, begun, done_of, pieces_of
from harness.track.scores import all_there, labels, scores_of
from harness.track.tracker import TrackedRun

TAG_LENGTH = 64  # of W&B
ID_LENGTH = 32


@dataclass(frozen=True)
class Projected:
    """One run of a tracker's. path: what its history covers. run: the plan's, None for a segment. evals: of the run.

    behind: of a merged run, the states of the runs that it is made of; the updates are theirs, its history has none.
    """

    id: str
    name: str
    path: tuple[Stretch, ...]
    run: Mapping[str, Any] | None
    evals: tuple[Mapping[str, Any], ...] = ()
    behind: tuple[str, ...] = ()

    @property
    def last(self) -> str:
        return self.path[-1].state


class Projection:
    """The runs of a plan as a tracker has them, and how far each is."""

    def __init__(self, folder: Folder, plan: Mapping[str, Any], tags: Sequence[str] = ()) -> None:
        self.folder, self.plan = folder, plan
        self._tags = tuple(tags)
        self._arms = {arm["name"]: arm for arm in plan["arms"]}
        self._segments = {segment["id"]: segment for segment in plan["segments"]}
        self._keys = {(task["suite"], task["task"]): task["key"] for task in plan["tasks"]}
        self._users: dict[str, list[Mapping[str, Any]]] = {}
        for run in plan["runs"]:
            for state in run["path"]:
                self._users.setdefault(state, []).append(run)
        self.all = (*self._shared(), *self._runs())

    def _runs(self) -> Iterator[Projected]:
        evals: dict[str, list[Mapping[str, Any]]] = {}
        for item in self.plan["evals"]:
            evals.setdefault(str(item["point"]).rpartition("@")[0], []).append(item)
        for run in self.plan["runs"]:
            path = tuple(self._stretch(state) for state in run["path"])
            own = tuple(evals.get(run["name"], ()))
            behind = tuple(states_behind(self.plan, run))
            yield Projected(self._id("run", run["path"][-1]), run["name"], path, run, own, behind)

    def _shared(self) -> Iterator[Projected]:
        """Segments that are the last of no run: nobody's history shows them while they are trained."""
        ends = {run["path"][-1] for run in self.plan["runs"]}
        for state, users in self._users.items():
            if state not in ends:
                segment, seeds = self._segments[state], users[0]["seed_set"]
                name = f"segments/{segment['stage']}-{segment['tokens_to']}/{seeds}/{state[:8]}"
                yield Projected(self._id("segment", state), name, (self._stretch(state),), None)

    def _stretch(self, state: str) -> Stretch:
        segment = self._segments[state]
        return Stretch(state, int(segment["tokens_from"]), int(segment["tokens_to"]))

    def _id(self, kind: str, fingerprint: str) -> str:
        """A function of the science alone, within a study: the same wherever the folder lies."""
        text = f"{self.plan['study']}\n{kind}\n{fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]

    def begun(self, item: Projected) -> bool:
        """Whether the run is to be shown: its last segment was begun, or its path ended before it."""
        return begun(self.folder.state(item.last)) or self.diverged(item)

    def trained(self, item: Projected) -> bool:
        """Whether its history is whole."""
        done = done_of(self.folder.state(item.last))
        return done is not None or self.diverged(item)

    def ended(self, item: Projected) -> bool:
        """Whether nothing is to come: trained, and evaluated wherever the plan says, or diverged."""
        if self.diverged(item):
            return True
        if done_of(self.folder.state(item.last)) is None:
            return False
        return item.run is None or all_there(self.folder, item.run, item.evals, self._keys)

    def seal(self, item: Projected) -> str:
        """A digest of all that there is to send of a run that has ended: its weights and its evaluations by key."""
        done = done_of(self.folder.state(item.last))
        tasks = [[e["point"], self._keys[e["suite"], e["task"]]] for e in item.evals]
        facts = [None if done is None else [done.outcome, done.weights, done.tokens], sorted(tasks), list(self._tags)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def scored_points(self, item: Projected) -> list[str]:
        """Labels of the points at which every evaluation of the run is there, in order, up to the first that is not;
        of a run that has ended all of them."""
        found = []
        for label in labels(item.evals):
            here = [e for e in item.evals if str(e["point"]).rpartition("@")[2] == label]
            assert item.run is not None
            if not all_there(self.folder, item.run, here, self._keys) and not self.diverged(item):
                break
            found.append(label)
        return found

    def diverged(self, item: Projected) -> bool:
        own = done_of(self.folder.state(item.last)) if item.behind else None
        if own is not None and own.outcome != "diverged":
            return False
        states = (*item.behind, *(stretch.state for stretch in item.path))
        done = (done_of(self.folder.state(state)) for state in states)
        return any(marker is not None and marker.outcome == "diverged" for marker in done)

    def scores(self, item: Projected) -> dict[str, dict[str, float]]:
        """Label → metric → value: what was evaluated of the run so far."""
        return {} if item.run is None else scores_of(self.folder, self.plan, item.run)

    def point_tokens(self, item: Projected) -> dict[str, int]:
        """Label → token of the path at which the point lies."""
        points = () if item.run is None else item.run["points"]
        return {str(point["label"]): int(point["tokens"]) for point in points}

    def tracked(self, item: Projected) -> TrackedRun:
        """The run as a tracker opens it."""
        study = str(self.plan["study"])
        if item.run is None:
            return TrackedRun(item.id, item.name, "segment", study, self._cut([study]), self._segment_config(item))
        arm = self._arms[item.run["arm"]]
        tags = [study, *self._roles(item.run["arm"]), *(_short(path) for path in arm["changes"])]
        return TrackedRun(item.id, item.name, "run", study, self._cut(tags), self._config(item, arm))

    def _cut(self, tags: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(tag[:TAG_LENGTH] for tag in (*tags, *self._tags)))

    def _roles(self, arm: str) -> list[str]:
        """What the study calls an arm besides its name: the reference, the control, a check of the study itself."""
        names = {arm, *(other["name"] for other in self.plan["arms"] if other["same_as"] == arm)}
        compare = self.plan.get("compare") or {}
        roles = [role for role in ("baseline", "control") if compare.get(role) in names]
        return [*roles, *(["a/a"] if self._arms[arm].get("control") else [])]

    def _config(self, item: Projected, arm: Mapping[str, Any]) -> dict[str, Any]:
        """What the arm declares first, then all that it is, then which replicate and which code."""
        assert item.run is not None
        return {
            **_flat("changes", arm["changes"]),
            "arm": arm["name"],
            "study": self.plan["study"],
            **(_flat("made_of", item.run["made_of"]) if item.behind else self._science(item, item.run["name"])),
            **_flat("seeds", item.run["seeds"]),
            "fingerprint": item.last,
            **self._code(item.last),
        }

    def _segment_config(self, item: Projected) -> dict[str, Any]:
        segment, users = self._segments[item.last], self._users[item.last]
        seeds = {
            name: value for name, value in users[0]["seeds"].items() if all(u["seeds"][name] == value for u in users)
        }
        return {
            "arm": "shared" if len({run["arm"] for run in users}) > 1 else users[0]["arm"],
            "study": self.plan["study"],
            "stage": segment["stage"],
            "tokens_from": segment["tokens_from"],
            "tokens_to": segment["tokens_to"],
            "runs": len(users),
            **self._science(item, users[0]["name"]),
            **_flat("seeds", seeds),
            "fingerprint": item.last,
            **self._code(item.last),
        }

    def _science(self, item: Projected, run: str) -> dict[str, Any]:
        pieces = pieces_of(self.folder, item.last)
        if not pieces:  # a segment that was not begun: what the plan knows of the run
            summary = (self.plan.get("science") or {}).get(run) or {}
            return _flat("science", summary.get("facts") or {})
        found: dict[str, Any] = {}
        for piece in pieces:
            stage, science = piece["stage"], {**piece["science"]}
            rate = science.pop("lr")
            found |= _flat(f"science.{stage}", science)
            shape = {name: value for name, value in rate.items() if name != "shape"}
            found |= _flat(f"science.{stage}.lr.{rate['shape']}@{piece['start']}", shape)
            found[f"science.{stage}.end"] = piece["end"]
        return found

    def _code(self, state: str) -> dict[str, Any]:
        """The code that trained the state last."""
        where = self.folder.state(state)
        for number in reversed(where.attempt_numbers()):
            env = attempts.read_env(where, number)
            if env is not None and isinstance(env.get("code"), dict):
                return _flat("code", env["code"])
        return {}


def _short(path: str) -> str:
    return path.removeprefix("stages.")


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Nested mappings as dotted keys; shares as numbers, so that a dashboard can sort and plot them."""
    if isinstance(value, Mapping):
        return {key: item for name, inner in value.items() for key, item in _flat(f"{prefix}.{name}", inner).items()}
    if isinstance(value, list | tuple):
        return {prefix: ", ".join(map(str, value))}
    if isinstance(value, str) and "mixture" in prefix:
        try:
            return {prefix: float(Fraction(value))}
        except (ValueError, ZeroDivisionError):
            return {prefix: value}
    return {prefix: value}
