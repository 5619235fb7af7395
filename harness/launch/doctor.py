"""`ablate doctor`: what is here, what is missing, and the command that gets it; with a study, what that one needs."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from harness import track
from harness.launch import look
from harness.launch.code import git_commit, tree_hash
from harness.launch.look import Found
from harness.launch.needs import Needs, needs_of

Mark = Literal["ok", "missing", "optional"]
WIDTH = 80


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    mark: `missing` only of what is required; `optional`: not here, and not needed. get: the command or the step that
    gets it, empty where nothing is to be done.
    """

    group: str
    name: str
    mark: Mark
    found: str
    get: str = ""


def checks(study: Path | None = None, chosen: Path | None = None) -> list[Check]:
    """Everything that is looked at; a check that cannot be made has failed. Raises StudyError for a wrong study."""
    needs = Needs(results=chosen or Needs.results) if study is None else needs_of(study, chosen)
    return [*_study(needs), *_software(needs), *_evaluation(needs), *_machine(needs), *_places(needs), *_around(needs)]


def passed(found: Sequence[Check]) -> bool:
    return all(check.mark != "missing" for check in found)


def text(found: Sequence[Check]) -> str:
    """Grouped lines of at most 80 columns; what is to be done stands under what it is for."""
    width = max(len(check.name) for check in found)
    lines: list[str] = []
    for group in dict.fromkeys(check.group for check in found):
        lines += [group]
        for check in (check for check in found if check.group == group):
            lines += _lines(check, width)
    missing = [check.name for check in found if check.mark == "missing"]
    end = "Nothing required is missing." if not missing else f"Missing: {', '.join(missing)}."
    return "\n".join([*lines, *textwrap.wrap(end, WIDTH)])


def to_json(found: Sequence[Check]) -> dict[str, Any]:
    return {"ok": passed(found), "checks": [asdict(check) for check in found]}


def _lines(check: Check, width: int) -> list[str]:
    head = f"  {check.mark:<8}  {check.name:<{width}}  "
    under = " " * len(head)
    lines = _wrapped(check.found, head, under) or [head.rstrip()]
    if check.get:
        lines += _wrapped(f"-> {check.get}", under, under + "   ")
    return lines


def _wrapped(sentence: str, first: str, others: str) -> list[str]:
    """A name with hyphens stays whole, to be copied."""
    return textwrap.wrap(sentence, WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def _check(group: str, name: str, required: bool, look_at: Callable[[], Found]) -> Check:
    try:
        found = look_at()
    except Exception as error:  # a broken installation may raise anything; the other checks go on
        found = Found(False, f"{type(error).__name__}: {error}")
    mark: Mark = "ok" if found.ok else "missing" if required else "optional"
    return Check(group, name, mark, found.sentence, "" if found.ok else found.get)


def _study(needs: Needs) -> list[Check]:
    if not needs.study:
        return []
    found = Found(not needs.problem, needs.problem or "can be planned", "mend it, then look at `ablate plan`")
    return [_check("study", needs.study, True, lambda: found)]


def _software(needs: Needs) -> list[Check]:
    group = "software"
    code = f"tree {tree_hash()[:12]}, commit {(git_commit() or 'none')[:12]}"
    return [
        _check(group, "python", True, look.python),
        *[_check(group, name, True, lambda name=name: look.package(name)) for name in look.NEEDED],  # type: ignore[misc]
        _check(group, "gguf", needs.gguf, look.gguf),
        Check(group, "code", "ok", code),
    ]


def _evaluation(needs: Needs) -> list[Check]:
    group = "evaluation and report"
    extras = look.suite_extras()
    return [
        *[_check(group, name, True, lambda name=name: look.package(name)) for name in look.EVALUATION],  # type: ignore[misc]
        *[
            _check(group, module, module in needs.extras, lambda m=module: look.extra(m, *extras[m]))  # type: ignore[misc]
            for module in extras
        ],
        _check(group, "TeX", False, look.tex),
    ]


def _machine(needs: Needs) -> list[Check]:
    group = "machine"
    return [
        _check(group, "device", True, lambda: look.device(needs.device, needs.gpus)),
        *[_check(group, "liger", True, lambda: look.liger(needs.liger, needs.device)) for _ in needs.liger[:1]],
        _check(group, "cores", False, lambda: look.cores(needs.jobs, needs.threads)),
    ]


def _places(needs: Needs) -> list[Check]:
    group = "places"
    return [
        _check(group, "results", bool(needs.study), lambda: look.place(needs.results, needs.disk_bytes)),
        _check(group, "token store", True, look.token_store),
    ]


def _around(needs: Needs) -> list[Check]:
    group = "network and cluster"
    return [
        _check(group, "hub", bool(needs.hub), lambda: look.hub(needs.hub)),
        *[
            _check(group, name, name in needs.trackers, lambda name=name: look.tracker(name, needs.trackers.get(name)))  # type: ignore[misc]
            for name in track.TRACKERS
        ],
        *[_check(group, name, False, lambda name=name: look.command(name)) for name in ("sbatch", "squeue")],  # type: ignore[misc]
    ]
