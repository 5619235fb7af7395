"""The runs of a study's `merge:` block, made of the runs that are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from harness.plan.canonical import digest
from harness.plan.fingerprint import LENGTH
from harness.plan.merges import coefficients_of, decay_weights, enter, mean_recipe, normalised
from harness.plan.records import END, PlanArm, PlanRun, Point, names_of
from harness.study.errors import Mistake
from harness.study.merges import cuts
from harness.study.treatment import pooled

if TYPE_CHECKING:
    from harness.plan.tree import Segment
    from harness.study import Study
    from harness.study.merges import Merge
    from harness.study.treatment import SeedSet

Part = tuple[int, int]  # a run, by its index, and the token of its path at which its weights are taken


def cuts_of(study: Study, arms: Sequence[PlanArm]) -> dict[str, set[int]]:
    """Arm that is trained → tokens at which a merge needs its state. Raises Mistake."""
    trained = names_of(arms)
    found: dict[str, set[int]] = {}
    for merge in study.merges:
        if merge.of == "checkpoints":
            treatment = study.arm(merge.arms[0]).treatment
            found.setdefault(trained[merge.arms[0]], set()).update(cuts(merge, treatment))
    return found


class Merged:
    """Enters the study's merges into a plan: their arms, their runs and the segments that make them."""

    def __init__(
        self, study: Study, arms: list[PlanArm], runs: list[PlanRun], segments: dict[str, Segment], costs_known: bool
    ) -> None:
        self._study, self._arms, self._runs, self._segments = study, arms, runs, segments
        self._costs_known = costs_known
        own = {arm.name: arm for arm in arms}
        self._of_name = {name: own[trained] for name, trained in names_of(arms).items()}
        self._first_with: dict[str, str] = {}

    def enter(self) -> None:
        """Enter all of them. Raises Mistake for a merge of one model with itself, and of a rate that changes."""
        for merge in self._study.merges:
            self._one(merge)

    def _one(self, merge: Merge) -> None:
        self._check_distinct(merge)
        made: list[tuple[SeedSet, list[Part]]] = [
            (seeds, parts) for seeds, parts in self._parts(merge) if self._checked(merge, parts)
        ]
        coefficients = self._coefficients(merge, len(made[0][1]))
        order = sorted(range(len(coefficients)), key=lambda i: made[0][1][i])  # that of the plan: a mean has none
        coefficients = [coefficients[i] for i in order]
        made = [(seeds, [parts[i] for i in order]) for seeds, parts in made]
        fingerprint = self._fingerprint(merge, made[0][1], coefficients)
        first = self._first_with.setdefault(fingerprint, merge.name)
        same_as = None if first == merge.name else first
        self._arms.append(PlanArm(merge.name, merge.changes, fingerprint, same_as, merge=merge.of))
        for seeds, parts in made if same_as is None else ():
            self._run(merge, seeds, parts, coefficients)

    def _parts(self, merge: Merge) -> list[tuple[SeedSet, list[Part]]]:
        """What each run of a merge is made of."""
        of_arm = {
            name: {run.seeds.name: i for i, run in enumerate(self._runs) if run.arm == self._of_name[name].name}
            for name in merge.arms
        }
        sets = self._study.seed_sets
        if merge.of == "seeds":
            indices = [of_arm[merge.arms[0]][seeds.name] for seeds in sets]
            return [(pooled(sets), [(index, self._runs[index].tokens) for index in indices])]
        found = []
        for seeds in sets:
            indices = [of_arm[name][seeds.name] for name in merge.arms]
            if merge.of == "arms":
                parts = [(index, self._runs[index].tokens) for index in indices]
            else:
                end = self._runs[indices[0]].tokens
                parts = [(indices[0], tokens) for tokens in range(end - merge.over, end + 1, merge.every)]
            found.append((seeds, parts))
        return found

    def _check_distinct(self, merge: Merge) -> None:
        own: dict[str, str] = {}
        for index, name in enumerate(merge.arms):
            other = own.setdefault(self._of_name[name].name, name)
            if other != name:
                said = f"`{name}` and `{other}` are one arm under two names; expected arms that differ"
                raise Mistake((*merge.place, "arms", index), said)

    def _checked(self, merge: Merge, parts: Sequence[Part]) -> bool:
        """Checkpoints stand for a decay only where the rate did not move. Raises Mistake."""
        if merge.of != "checkpoints":
            return True
        run, since = self._runs[parts[0][0]], parts[0][1]
        value: float | None = None
        for piece in run.pieces:
            if piece.end <= since:
                continue
            lr = piece.science["lr"]
            at = max(piece.start, since)
            if lr["shape"] != "constant" or value not in (None, lr["value"]):
                how = f"is {lr['shape']}" if lr["shape"] != "constant" else f"goes from {value:g} to {lr['value']:g}"
                raise Mistake(
                    (*merge.place, "over"),
                    f"covers tokens [{since:,}, {run.tokens:,}) of `{merge.arms[0]}`, where the rate {how} from token "
                    f"{at:,} on (`{piece.stage}`); expected a window at one constant rate, which the mean then decays",
                )
            value = lr["value"]
        return True

    def _coefficients(self, merge: Merge, count: int) -> list[Fraction]:
        if merge.decay is not None:
            return coefficients_of(decay_weights(merge.decay, merge.to, count - 1))
        return normalised(merge.weights, count)

    def _fingerprint(self, merge: Merge, parts: Sequence[Part], coefficients: Sequence[Fraction]) -> str:
        """What two merges must share to be one: whose weights are taken where, and how much each counts."""
        arms = {arm.name: arm.fingerprint for arm in self._arms}
        taken = [
            [arms[self._runs[index].arm], self._runs[index].seeds.name if merge.pooled else "", tokens, str(c)]
            for (index, tokens), c in zip(parts, coefficients, strict=True)
        ]
        return digest({"merge": taken})[:LENGTH]

    def _run(self, merge: Merge, seeds: SeedSet, parts: Sequence[Part], coefficients: Sequence[Fraction]) -> None:
        states = [self._state(index, tokens) for index, tokens in parts]
        last, tokens = parts[-1]
        run = self._runs[last]
        state = enter(self._segments, mean_recipe(states, coefficients), last, run, tokens, self._costs_known)
        name = f"{merge.name}/{seeds.name}"
        made = PlanRun(
            name,
            merge.name,
            seeds,
            run.base,
            [state],
            [Point(END, state, tokens, state)],
            run.pieces,
            run.data_seeds,
            tokens,
            made_of=tuple(dict.fromkeys(index for index, _ in parts)),
        )
        self._runs.append(made)

    def _state(self, index: int, tokens: int) -> str:
        return next(name for name in self._runs[index].path if self._segments[name].tokens_to == tokens)


def behind(run: PlanRun, runs: Sequence[PlanRun], segments: Mapping[str, Segment]) -> list[Segment]:
    """What was trained to make a merged run: the paths of all runs that it is made of, whole, what they share once."""
    return [segments[name] for name in dict.fromkeys(name for index in run.made_of for name in runs[index].path)]
