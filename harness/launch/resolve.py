"""What the base and the sources are: read from manifests, or found out and written there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.launch.checksums import Checksums
from harness.launch.promote import promoted
from harness.plan.science import NOT_WANTED, Identities
from harness.store import manifests
from harness.store.layout import Folder
from harness.store.markers import Damaged
from harness.store.places import expanded
from harness.study.errors import Mistake, StudyError, UserError

if TYPE_CHECKING:
    from harness.evals.settings import EvalSettings, EvalTask
    from harness.study import Study
    from harness.study.treatment import Base


STAMPED = ("size", "mtime_ns", "ctime_ns")


@dataclass(frozen=True)
class Resolved:
    """Manifests that hold for a study; what has none is missing here and unresolved in `identities`."""

    base: Mapping[str, Any] | None
    sources: Mapping[str, Mapping[str, Any]]
    identities: Identities


def known(study: Study, folder: Folder) -> Resolved:
    """What the folder's manifests say, as far as they were made for what the study declares. Reads nothing else."""
    base = manifests.read_base(folder)
    if base is not None and not _covers(base, {**_asked(study), "optimizer": "cold"}):
        base = None
    sources = {} if base is None else _known_sources(study, folder, base["tokenizer"]["identity"])
    return _resolved(study, base, sources)


def resolve(study: Study, folder: Folder, note: Callable[[str], None]) -> Resolved:
    """Find out what is not known yet and write its manifest. Unchanged files are not read again.

    note: called with a line for a person. Raises UserError for a base or a source that cannot be read.
    """
    try:
        return _resolve(study, folder, note)
    except UserError as error:
        raise _placed(study, error) from None


# How messages name what they are about: `base.model.config.hidden_size`, or source `web`.
_NAMED = re.compile(r"`(?P<base>base(?:\.\w+)*)|source `(?P<source>[\w.-]+)`", re.ASCII)


def _placed(study: Study, error: UserError) -> UserError:
    """`error` with the line of the study that it is about, where it begins with what that is."""
    named = _NAMED.match(str(error))
    if named is None or isinstance(error, StudyError):
        return error
    path = tuple(named["base"].split(".")) if named["base"] else ("sources", named["source"])
    place, _ = study.document.locate(path)
    return StudyError(str(place), str(error))


def _resolve(study: Study, folder: Folder, note: Callable[[str], None]) -> Resolved:
    from harness.data import resolve_sources, resolve_tokenizer

    asked = _asked(study)
    _check_files(study)
    study = promoted(study, folder)
    earlier = manifests.read_base(folder)
    tokenizer = resolve_tokenizer(study, earlier and earlier["tokenizer"], note)
    if earlier is not None and earlier["tokenizer"] == tokenizer and _still_holds(study, asked, earlier):
        base = earlier
    else:
        note("looking at the base")
        from harness.train.base import describe_base  # imports torch: not for a run that finds everything done

        found = describe_base(_base(study), study.path.absolute().parent, tokenizer, earlier)
        manifests.write_base(folder, {**found, "asked": asked})
        base = manifests.read_base(folder) or found
    discard_altered_stores(folder, note)
    return _resolved(study, base, resolve_sources(study, base, folder, note))


def _check_files(study: Study) -> None:
    """Raise UserError for files of a source that are not there or cannot be a source, before any are read."""
    from harness.data.sources import declared_sources

    for source in declared_sources(study).values():
        if source.is_files:
            source.paths()


def lacks_origin(resolved: Resolved) -> bool:
    """Whether all is resolved, and something that it was made from or made into is not on this machine: the folder was
    copied here, or the shared store was emptied. As long as there is nothing to do, nobody misses it."""
    if resolved.base is None or resolved.identities.unresolved:
        return False
    paths = [resolved.base["location"], resolved.base["tokenizer"]["path"], resolved.base["optimizer"]]
    paths += [file["path"] for file in resolved.base["files"]]
    for source in resolved.sources.values():
        paths += [source["tokens"], *(file["path"] for file in source["files"])]
    return not all(Path(path).exists() for path in paths if path is not None)


def discard_altered_stores(folder: Folder, note: Callable[[str], None]) -> None:
    """Take the token stores of a folder out of use whose files are not what they were when written; hashed once."""
    from harness.data.cache import cache_root
    from harness.data.token_store import is_complete, recorded_files

    checksums = Checksums(cache_root())
    for path in sorted((folder.manifests / "sources").glob("*.json")):
        manifest = manifests.read_source(folder, path.stem)
        store = None if manifest is None else Path(manifest["tokens"])
        if store is None or not is_complete(store):
            continue
        try:
            checksums.check(store, recorded_files(store))
        except Damaged as reason:
            note(f"damaged: {reason}")
            (store / "meta.json").unlink(missing_ok=True)  # what was last written goes first: it is built again
    checksums.save()


def _asked(study: Study) -> dict[str, Any]:
    """What the study declares of its base, as JSON: a manifest holds for this and nothing else."""
    base = _base(study)
    declared = {"model": base.model, "tokenizer": base.tokenizer, "optimizer": base.optimizer}
    plain: dict[str, Any] = json.loads(json.dumps(declared, default=dict))
    return plain


def _base(study: Study) -> Base:
    """The base with the optimizer's state if any arm carries it; in all else that is looked up, arms share one."""
    return replace(study.arms[0].treatment.base, optimizer="carried" if _carries(study) else "cold")


def _carries(study: Study) -> bool:
    return any(arm.treatment.base.optimizer == "carried" for arm in (*study.arms, *study.control_arms))


def _covers(manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether a manifest is of what is asked, or of that with an optimizer's state beside it."""
    return manifest.get("asked") in (asked, {**asked, "optimizer": "carried"})


def _still_holds(study: Study, asked: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether the manifest is of the declared base and its files have the sizes and times that they had.

    study: with a promoted run's folder in the place of its name. asked: what was declared.
    """
    if not _covers(manifest, asked):
        return False
    path = str(study.arms[0].treatment.base.model.get("path", ""))
    here = study.path.absolute().parent / expanded(path)
    if manifest["kind"] in ("folder", "gguf") and str(here.resolve()) != manifest["location"]:
        return False
    try:
        return all(_stamp(file["path"]) == tuple(map(file.get, STAMPED)) for file in manifest["files"])
    except OSError:
        return False


def _stamp(path: str) -> tuple[int, int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _known_sources(study: Study, folder: Folder, tokenizer: str) -> dict[str, Mapping[str, Any]]:
    from harness.data.sources import declared_sources

    found: dict[str, Mapping[str, Any]] = {}
    for name, source in declared_sources(study).items():
        manifest = manifests.read_source(folder, name)
        if (
            manifest is not None
            and manifest["declared"] == source.whole_declaration
            and manifest["tokenizer"] == tokenizer
        ):
            found[name] = manifest
    return found


def _resolved(study: Study, base: Mapping[str, Any] | None, sources: Mapping[str, Mapping[str, Any]]) -> Resolved:
    identities = Identities(
        weights=None if base is None else manifests.base_identity(base, "cold"),
        tokenizer=None if base is None else base["tokenizer"]["identity"],
        sources={name: sources[name]["identity"] if name in sources else None for name in study.sources},
        declared_sources={
            name: source.model_dump(mode="json", exclude_none=True) for name, source in study.sources.items()
        },
        carried=_carried(study, base),
    )
    return Resolved(base, sources, identities)


def _carried(study: Study, base: Mapping[str, Any] | None) -> str | None:
    if not _carries(study):
        return NOT_WANTED
    return None if base is None else manifests.base_identity(base, "carried")


def evaluation_settings(study: Study) -> EvalSettings:
    """How the study evaluates every arm."""
    from harness.evals.suites import study_settings

    longest = max(stage.context.length for arm in study.arms for stage in arm.treatment.stages)
    launch = study.spec.launch
    return study_settings(study.spec.eval, longest, launch.device, launch.threads)


def evaluation_tasks(study: Study, resolved: Resolved) -> list[EvalTask]:
    """Every task that the study evaluates, with its key; held-out tasks of resolved sources only, and continuations
    when all are resolved.

    Raises UserError, too, for a metric to compare that none of them measures.
    """
    from harness.evals.measured import check_measured
    from harness.evals.suites import TaskError, resolve_tasks

    settings = evaluation_settings(study)
    if len(resolved.sources) < len(study.sources):
        settings = replace(settings, continuations=0)
    try:
        tasks = resolve_tasks(study.spec.eval, resolved.sources, settings, study.path.parent)
    except TaskError as error:
        raise study.error(Mistake(error.path, str(error))) from None
    compare = study.spec.compare
    named: list[tuple[tuple[str | int, ...], str]] = [
        *((("compare", "primary", index), metric) for index, metric in enumerate(compare.primary)),
        *((("compare", "not_worse", metric), metric) for metric in compare.not_worse),
    ]
    for place, metric in named:
        try:
            check_measured([metric], tasks)
        except UserError as error:
            raise study.error(Mistake(place, str(error), at_key="not_worse" in place)) from None
    return tasks
