"""What a study needs of the machine, as `ablate doctor` checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.launch import look
from harness.store.layout import Folder
from harness.study.bases import names_a_path
from harness.study.checks import liger_parts
from harness.study.errors import UserError
from harness.track.settings import declared, targets

if TYPE_CHECKING:
    from harness.study import Study


@dataclass(frozen=True)
class Needs:
    """What is required. The defaults are those of no study: nothing but the software itself.

    extras: modules that the study's suites require. hub: ids that it takes from the hub. disk_bytes: of the checkpoints
    that its plan still has to make, None where the model's size is not known. problem: why no plan can be made yet.
    trackers: name → whether it writes offline. liger: parts of the model for which it asks for Liger's kernel.
    """

    results: Path = Path("results")
    extras: frozenset[str] = frozenset()
    hub: tuple[look.HubFile, ...] = ()
    gguf: bool = False
    trackers: Mapping[str, bool] = field(default_factory=dict)
    device: str = "auto"
    liger: tuple[str, ...] = ()
    gpus: int = 1
    jobs: int = 1
    threads: int = 1
    disk_bytes: float | None = None
    problem: str = ""
    study: str = ""


def needs_of(path: Path, chosen: Path | None = None) -> Needs:
    """What the study at `path` needs. `chosen`: its results folder. Raises StudyError for a study that is wrong."""
    from harness.launch import prepare

    study = prepare.load(path)
    folder = prepare.folder_of(study, chosen)
    launch = study.spec.launch
    suites = set(study.spec.eval.suites)
    trackers, _ = targets(declared(study.spec.track), study.spec.study)
    base = study.arms[0].treatment.base
    disk, problem = _disk(study, folder)
    return Needs(
        results=folder.root,
        extras=frozenset(module for module, (_, users) in look.suite_extras().items() if suites & set(users)),
        hub=tuple(_hub(study)),
        gguf=any(str(place).endswith(".gguf") for place in _places(base.model)),
        trackers={target.name: target.offline for target in trackers},
        device=launch.device,
        liger=liger_parts(launch),
        gpus=int(launch.gpus),
        jobs=int(launch.jobs),
        threads=int(launch.threads),
        disk_bytes=disk,
        problem=problem,
        study=study.spec.study,
    )


def _disk(study: Study, folder: Folder) -> tuple[float | None, str]:
    """Bytes of the checkpoints that are still to be made, and why there is no plan to tell it by, if so."""
    from harness.launch import prepare

    try:
        plan = prepare.planned(study, folder).plan
    except UserError as error:  # a suite's extra that is not installed, too: it has a line of its own
        return None, str(error)
    total = plan.totals["disk_bytes"]
    needed = [*(base.needed for base in plan.bases.values()), *(segment.needed for segment in plan.segments.values())]
    return (None if total is None or not needed else total * sum(needed) / len(needed)), ""


def _places(block: Mapping[str, Any]) -> list[Any]:
    config = block.get("config") or {}
    return [place for place in (block.get("path"), config.get("like")) if place is not None]


def _hub(study: Study) -> list[look.HubFile]:
    """Hub ids of the base, its tokenizer and the sources: what is named and is no path here."""
    base, here = study.arms[0].treatment.base, study.path.absolute().parent
    named: list[tuple[str, object, str | None]] = [
        *[("model", place, base.model.get("revision")) for place in _places(base.model)],
        *[("model", place, None) for place in _places(base.tokenizer)],
        *[("dataset", source.hf, source.revision) for source in study.spec.sources.values()],
    ]
    found: list[look.HubFile] = []
    for kind, name, revision in named:
        if not isinstance(name, str) or names_a_path(name):
            continue
        if kind == "dataset" or not (here / name).exists():
            found.append(look.HubFile(kind, name, revision))
    return list(dict.fromkeys(found))
