"""Evaluating a state: one load of its model folder, every task whose result is not there yet."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.evals.settings import DTYPE, SEEDS, EvalSettings, EvalTask, task_key
from harness.evals.task_files import own_task, read_task_file
from harness.store import evaluations, manifests, states
from harness.store.atomic import WriteFailed, sha256_file
from harness.store.checkpoints import TOKENIZER_FILES
from harness.store.layout import Folder
from harness.store.markers import UnknownSchema
from harness.study.errors import UserError

if TYPE_CHECKING:
    import pyarrow

    from harness.evals.continuations import Prompt
    from harness.evals.lm import ObservedLM
    from harness.evals.run_lm_eval import Scored

Progress = Callable[[Mapping[str, Any]], None]
Encoded = tuple[list[Any], list[list[int]]]  # documents and their tokens


class EvaluationFailed(UserError):
    """Some tasks could not be evaluated; the results of the others are stored.

    failed: the reason by `suite.task`. done: keys whose results are there.
    """

    def __init__(self, failed: Mapping[str, str], done: Sequence[str]) -> None:
        super().__init__(" ".join(f"{name}: {reason}" for name, reason in failed.items()))
        self.failed = dict(failed)
        self.done = list(done)


def evaluate_state(
    folder: Folder,
    state_id: str,
    tasks: Sequence[EvalTask],
    settings: EvalSettings,
    progress: Progress | None = None,
) -> list[str]:
    """Evaluate a finished state on every task that has no whole result yet; the keys that are there afterwards.

    The final checkpoint is checked before it is loaded. Raises UserError when the state is not there or diverged,
    Damaged when its checkpoint is not whole, EvaluationFailed when some tasks failed.
    """
    state = folder.state(state_id)
    done = states.read_done(state)
    if done is None or done.weights is None:
        raise UserError(f"State {state_id[:12]} has no weights to evaluate: it is not finished, or it diverged.")
    wanted = missing_tasks(folder, done.weights, tasks)
    if wanted:
        checkpoint = states.final_checkpoint(state, done)
        if settings.trained_length is None:
            settings = replace(settings, trained_length=trained_length(folder, state_id))
        evaluate_model(folder, checkpoint.model, done.weights, wanted, settings, progress)
    return _keys(tasks)


def missing_tasks(folder: Folder, weights: str, tasks: Sequence[EvalTask]) -> list[EvalTask]:
    """The tasks without a whole result for these weights, each key once. A damaged result counts as missing."""
    unique = {task.key: task for task in tasks}
    return [task for task in unique.values() if not evaluations.exists(folder, weights, task.key)]


def evaluate_model(
    folder: Folder,
    model: Path,
    weights: str,
    tasks: Sequence[EvalTask],
    settings: EvalSettings,
    progress: Progress | None = None,
) -> list[str]:
    """Evaluate the Hugging Face folder `model` on `tasks` and store each result under `weights`, as it is ready.

    Tasks are evaluated whether or not results are there. A task that fails does not keep the others from being
    evaluated; EvaluationFailed then says which failed and why.
    """
    from harness.evals import lm as language_model

    for task in tasks:
        _check(task, settings)
    lm = language_model.load(model, settings)
    failed: dict[str, str] = {}
    done: list[str] = []
    for number, task in enumerate(tasks):
        if progress is not None:
            progress({"task": f"{task.suite}.{task.task}", "number": number, "of": len(tasks)})
        try:
            _evaluate(folder, lm, model, weights, task, settings)
            done.append(task.key)
        except (WriteFailed, UnknownSchema):
            raise  # the next task would meet the same
        except UserError as error:
            failed[f"{task.suite}.{task.task}"] = str(error)
    if failed:
        raise EvaluationFailed(failed, done)
    return done


def trained_length(folder: Folder, state_id: str) -> int | None:
    """The longest context that a state's path was trained with, the base's own before any training. None: unknown."""
    segment = states.read_segment(folder.state(state_id))
    lengths = [piece["science"]["context"]["length"] for piece in segment["pieces"]]
    if lengths:
        return int(max(lengths))
    base = manifests.read_base(folder)
    longest = None if base is None else base.get("max_positions")
    return None if longest is None else int(longest)


def _keys(tasks: Sequence[EvalTask]) -> list[str]:
    return list(dict.fromkeys(task.key for task in tasks))


def _check(task: EvalTask, settings: EvalSettings) -> None:
    """A result must be what its key says: same settings, same task files as when the key was made."""
    if task.kind == "lm_eval":
        file = own_task(task.task) if task.path is None else read_task_file(Path(task.path))
        if file is not None and file.content != task.content:
            raise UserError(
                f"The files of the evaluation task `{task.task}` ({file.path}) changed since it was planned."
            )
    if task_key(task, settings) != task.key:
        raise ValueError(f"task {task.suite}.{task.task} was resolved under other settings than it is evaluated with")


def _evaluate(
    folder: Folder, lm: ObservedLM, model: Path, weights: str, task: EvalTask, settings: EvalSettings
) -> None:
    started = time.perf_counter()
    if task.kind == "held_out":
        results, rows = _held_out(lm, model, task, settings)
    elif task.kind == "continuations":
        results, rows = _continuations(lm, model, task, settings)
    else:
        results, rows = _lm_eval(lm, task, settings)
    described = {
        "task": task.task,
        "kind": task.kind,
        "weights": weights,
        "key": task.key,
        **results,
        "items": len(rows),
        "max_length": settings.max_length,
        "trained_length": settings.trained_length,
        "versions": {**_versions(), **results["versions"]},
        "numerics": _numerics(lm),
        "seconds": round(time.perf_counter() - started, 3),
    }
    evaluations.write(folder, weights, task.key, described, _table(rows, task.kind))


def _lm_eval(lm: ObservedLM, task: EvalTask, settings: EvalSettings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from harness.evals import run_lm_eval

    scored: Scored = run_lm_eval.run(lm, task)
    return {
        "headline": scored.headline,
        "metrics": {name: metric.to_json() for name, metric in scored.metrics.items()},
        "settings": {
            "num_fewshot": scored.num_fewshot,
            "limit": task.limit,
            "max_length": settings.max_length,
            "batch_size": settings.batch_size,
            "dtype": DTYPE,
            "seeds": dict(SEEDS),
            "dataset": dict(scored.dataset),
            "content": task.content,
        },
        "versions": {"task": scored.version},
        "task_hash": scored.task_hash,
        "truncated": sum(length > settings.max_length for length in scored.lengths),
        "beyond_trained_length": _beyond(scored.lengths, settings),
    }, scored.rows


def _held_out(
    lm: ObservedLM, model: Path, task: EvalTask, settings: EvalSettings
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from harness.evals import held_out

    assert task.path is not None and settings.window is not None
    documents, tokens = _encoded(Path(task.path), settings.documents, model, lm.tokenizer)
    nats = held_out.score(lm.model, tokens, lm.prefix_token_id, settings.window, settings.batch_size, lm.device)
    losses = [held_out.DocumentLoss(*pair) for pair in zip(documents, nats, strict=True)]
    metrics = held_out.metrics(losses, settings.window, settings.by_position)
    return {
        "headline": task.headline,
        "metrics": {name: metric.to_json() for name, metric in metrics.items()},
        "settings": {
            "window": settings.window,
            "by_position": settings.by_position,
            "documents": settings.documents,
            "batch_size": settings.batch_size,
            "dtype": DTYPE,
            "left_context": lm.tokenizer.convert_ids_to_tokens(lm.prefix_token_id),
            "content": task.content,
        },
        "versions": {},
        "task_hash": hashlib.sha256("".join(document.doc_hash for document in documents).encode()).hexdigest(),
        "truncated": 0,
        "beyond_trained_length": _beyond([min(len(row), settings.window) for row in tokens], settings),
    }, held_out.rows(losses, settings.window, settings.by_position)


def _continuations(
    lm: ObservedLM, model: Path, task: EvalTask, settings: EvalSettings
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from harness.evals import continuations

    prompts = _prompts(lm, model, task, settings)
    ids = [prompt.tokens for prompt in prompts]
    end = lm.tokenizer.eos_token_id
    written = continuations.write(lm.model, ids, lm.prefix_token_id, end, settings.new_tokens, lm.device)
    return {
        "headline": None,
        "metrics": {},
        "settings": {
            "prompts": settings.continuations,
            "prompt_tokens": settings.prompt_tokens,
            "new_tokens": settings.new_tokens,
            "decoding": "greedy",
            "dtype": DTYPE,
            "left_context": lm.tokenizer.convert_ids_to_tokens(lm.prefix_token_id),
            "content": task.content,
        },
        "versions": {},
        "task_hash": hashlib.sha256("".join(prompt.doc_hash for prompt in prompts).encode()).hexdigest(),
        "truncated": 0,
        "beyond_trained_length": _beyond([len(a) + len(b) for a, b in zip(ids, written, strict=True)], settings),
    }, list(continuations.rows(lm.tokenizer, prompts, written))


def _prompts(lm: ObservedLM, model: Path, task: EvalTask, settings: EvalSettings) -> list[Prompt]:
    """The prompts of a task, kept for the next state. As many documents are looked at as held-out loss does by default,
    however many that is set to: what else is evaluated does not choose the prompts."""
    from harness.evals import continuations

    most = max(EvalSettings.documents, settings.continuations)
    shape = settings.continuations, settings.prompt_tokens, settings.new_tokens

    def chosen() -> list[Prompt]:
        read = {name: _read_and_encode(Path(path), most, lm.tokenizer) for name, path in task.sources.items()}
        return continuations.choose(read, *shape)

    files = _tokenizer_files(model)
    key = (task.key, tuple((path, _stamp(Path(path))) for path in task.sources.values()), files)
    found: list[Prompt] = _remembered(key, chosen) if files else chosen()
    return found


def _beyond(lengths: Sequence[int], settings: EvalSettings) -> int | None:
    """Items of which some positions that were scored lie beyond the trained length. None when that is not known."""
    if settings.trained_length is None:
        return None
    return sum(length > settings.trained_length for length in lengths)


def _encoded(path: Path, most: int, model: Path, tokenizer: Any) -> Encoded:
    """Held-out documents and their tokens, kept for the next state with the same documents and tokenizer."""
    files = _tokenizer_files(model)
    if not files:
        return _read_and_encode(path, most, tokenizer)
    key = (path, _stamp(path), most, files)
    found: Encoded = _remembered(key, lambda: _read_and_encode(path, most, tokenizer))
    return found


def _tokenizer_files(model: Path) -> tuple[tuple[str, str], ...]:
    """Checksums of the files that decide how the model's tokenizer encodes; empty where there is none of them."""
    return tuple((name, sha256_file(model / name)) for name in TOKENIZER_FILES if (model / name).is_file())


def _stamp(path: Path) -> tuple[int, int] | None:
    stat = path.stat() if path.exists() else None
    return stat and (stat.st_size, stat.st_mtime_ns)


def _read_and_encode(path: Path, most: int, tokenizer: Any) -> Encoded:
    from harness.evals import held_out

    documents = held_out.read_documents(path, most)
    return documents, held_out.encode(tokenizer, documents)


_memory: dict[Any, Any] = {}
_REMEMBERED = 16


def _remembered(key: Any, make: Callable[[], Any]) -> Any:
    if key not in _memory:
        while len(_memory) >= _REMEMBERED:
            del _memory[next(iter(_memory))]
        _memory[key] = make()
    return _memory[key]


@lru_cache(maxsize=1)
def _versions() -> Mapping[str, str]:
    return {name: version(name) for name in ("lm_eval", "torch", "transformers", "tokenizers", "datasets")}


def _numerics(lm: ObservedLM) -> dict[str, Any]:
    import torch

    return {"device": str(lm.device), "threads": torch.get_num_threads()}


def _table(rows: Sequence[Mapping[str, Any]], kind: str) -> pyarrow.Table:
    import pyarrow

    if kind == "continuations":  # columns of their kind also where there is no prompt
        from harness.evals.continuations import COLUMNS

        return pyarrow.Table.from_pylist(list(rows), pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS]))
    return pyarrow.Table.from_pylist(list(rows))
