"""Where a task's YAML is and what it is made of, found without importing lm-eval.

Our own tasks lie in `harness/evals/tasks`, a user's task is named by its path, and lm-eval's tasks lie in its package.
lm-eval's own index parses some 14,000 files (seconds to tens of seconds per process); here a name is found with one
scan for `task:` lines, and the one file is handed to lm-eval.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import Node

from harness.plan.canonical import digest
from harness.store.atomic import sha256_file
from harness.study.errors import UserError

OWN_TASKS = Path(__file__).parent / "tasks"
SUFFIX = ".yaml"


@dataclass(frozen=True)
class TaskFile:
    """A task that is not lm-eval's: its name, its YAML and a digest of all files that it names."""

    name: str
    path: Path
    content: str


@dataclass(frozen=True)
class StockEntry:
    """A name in lm-eval's package. A group or a tag stands for several tasks and is not evaluated as one."""

    kind: Literal["task", "group", "tag"]
    path: Path


class _TaskConstructor(SafeConstructor):
    """Reads task YAML: `!function module.name` stays a string, nothing is imported."""


def _function_name(constructor: SafeConstructor, node: Node) -> str:
    return f"!function {constructor.construct_scalar(node)}"


_TaskConstructor.add_constructor("!function", _function_name)


def own_task_names() -> list[str]:
    """Names of the tasks that the harness ships."""
    return sorted(path.stem for path in OWN_TASKS.glob(f"*{SUFFIX}"))


def own_task(name: str) -> TaskFile | None:
    """The harness's task of that name, None when there is none. A file's stem is its task's name."""
    path = OWN_TASKS / f"{name}{SUFFIX}"
    return read_task_file(path) if path.is_file() else None


def read_task_file(path: Path) -> TaskFile:
    """A task YAML with everything it names. Raises UserError when it cannot be read or is not one task."""
    config = read_task_yaml(path)
    name = config.get("task")
    if not isinstance(name, str) or "group" in config:
        raise UserError(f"{path} is not the YAML of one lm-eval task: it needs `task: NAME` and no `group`.")
    if not re.fullmatch(r"[A-Za-z0-9._+-]+", name):
        raise UserError(f"{path}: the task's name `{name}` may hold only letters, digits and . _ + -")
    return TaskFile(name, path, _content_digest(path, config))


def read_task_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The task's settings after its `include`s (the file's own win), functions as strings."""
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path} includes itself.")
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _TaskConstructor
    try:
        config = yaml.load(path.read_bytes())
    except (OSError, YAMLError) as error:
        raise UserError(f"The task file {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"The task file {path} holds no settings.")
    merged: dict[str, Any] = {}
    for include in _as_list(config.pop("include", None)):
        merged.update(read_task_yaml(path.parent / include, (*seen, path)))
    return {**merged, **config}


def _content_digest(path: Path, config: dict[str, Any]) -> str:
    """Digest of the task's files, each named relative to the YAML's folder, so that moving them changes nothing."""
    folder = path.resolve().parent
    files = {path.resolve(), *_included(path.resolve())}
    for text in _strings(config):
        files.update(_named_file(text, path))
    return digest([[os.path.relpath(file, folder), sha256_file(file)] for file in sorted(files)])


def _included(path: Path) -> set[Path]:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _TaskConstructor
    found: set[Path] = set()
    for include in _as_list(yaml.load(path.read_bytes()).get("include")):
        target = (path.parent / include).resolve()
        found |= {target} | _included(target)
    return found


def _named_file(text: str, path: Path) -> list[Path]:
    """The file that a setting names, if any: a function's module, or data, beside the YAML or by its absolute path.

    lm-eval's `json` loader reads relative `data_files` from the working directory of whoever calls it, which for a job
    is not where the study was written; a relative file that is not beside the YAML is therefore refused.
    """
    folder = path.resolve().parent
    if text.startswith("!function "):
        module = text.removeprefix("!function ").rpartition(".")[0]
        source = folder / f"{module.replace('.', '/')}.py"
        return [source.resolve()] if source.is_file() else []
    if len(text) > 1000 or "\n" in text or not text.endswith((".jsonl", ".json", ".csv", ".parquet", ".txt")):
        return []
    if "://" in text:
        return []
    target = folder / text
    if not target.is_file():
        raise UserError(
            f"{path} names the data file `{text}`, which is not there. Give an absolute path, or load a file beside "
            "the YAML with `custom_dataset: !function module.function`."
        )
    return [target.resolve()]


def _strings(value: Any) -> list[str]:
    """Every string in the places where a task names files: functions anywhere, data in `dataset_kwargs`."""
    found = [text for text in _leaves(value) if text.startswith("!function ")]
    return found + [text for text in _leaves(value.get("dataset_kwargs", {})) if not text.startswith("!function ")]


def _leaves(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _leaves(item)]
    if isinstance(value, list):
        return [text for item in value for text in _leaves(item)]
    return []


def _as_list(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def stock_task(name: str) -> StockEntry:
    """lm-eval's task of that name. Raises UserError when there is none, or when the name stands for several."""
    index = stock_index()
    entry = index.get(name)
    if entry is None:
        names = [*own_task_names(), *index]
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
        hint = f" Near it: {', '.join(f'`{word}`' for word in close)}." if close else ""
        raise UserError(
            f"No evaluation task is called `{name}`: neither the harness ({', '.join(own_task_names())}) nor "
            f"lm-eval has it.{hint} A task of your own is named by the path of its YAML, ending in {SUFFIX}."
        )
    if entry.kind != "task":
        raise UserError(
            f"`{name}` is a {entry.kind} of several lm-eval tasks; results are kept per task, so name its tasks one "
            f"by one (see {entry.path})."
        )
    return entry


@lru_cache(maxsize=1)
def stock_index() -> dict[str, StockEntry]:
    """Every task, group and tag name of the installed lm-eval: about half a second, once per process."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise UserError("lm-eval is not installed: install the package `lm-eval[hf]`.")
    index: dict[str, StockEntry] = {}
    tags: dict[str, StockEntry] = {}
    for folder, folders, names in os.walk(Path(spec.origin).parent / "tasks"):
        folders.sort()
        for name in sorted(names):
            if name.endswith(SUFFIX):
                _index_file(Path(folder) / name, index, tags)
    return {**tags, **index}


_FIELD = re.compile(r"^(task|group|tag)[ \t]*:[ \t]*(.*(?:\n[ \t]*-[ \t]+.*)*)", re.MULTILINE)


def _index_file(path: Path, index: dict[str, StockEntry], tags: dict[str, StockEntry]) -> None:
    fields = {key: _words(value) for key, value in _FIELD.findall(path.read_text("utf-8", "replace"))}
    if "group" in fields:
        for word in fields["group"]:
            index.setdefault(word, StockEntry("group", path))
        return
    for word in fields.get("task", []):
        index.setdefault(word, StockEntry("task", path))
    for word in fields.get("tag", []):
        tags.setdefault(word, StockEntry("tag", path.parent))


def _words(value: str) -> list[str]:
    """The scalar or the list items of a field as written, without quotes and comments."""
    words = re.split(r"[\n,\[\]]", value)
    stripped = (re.sub(r"^[ \t]*-[ \t]+", "", word).split(" #")[0].strip().strip("'\"") for word in words)
    return [word for word in stripped if word]
