"""What an evaluation is asked to do, and the key that names its result.

A key covers everything that a result depends on besides the weights, and nothing that it does not: the task's content
(never where its files lie), few-shot count, limit, window, batch size, the scoring rules and lm-eval's version. Device
and threads are numerics: they are recorded, they name nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal

from harness.plan.canonical import digest

Kind = Literal["lm_eval", "held_out", "continuations"]

SCORING = 1  # raised when a per-item metric of ours changes its definition, so that old results are not taken for new
WRITING = 1  # raised when prompts are chosen or continued by another rule
PROMPT_TOKENS, NEW_TOKENS = 32, 48  # of a continuation; fewer where `max_length` does not hold them
DTYPE = "float32"
SEEDS: Mapping[str, int] = {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}  # lm-eval's own defaults


@dataclass(frozen=True)
class EvalSettings:
    """How every arm of a study is evaluated.

    max_length: most positions that a task item may have; longer ones are cut from the left and counted.
    batch_size: requests (or windows) per forward.
    window: positions of a held-out window. None where no held-out task is evaluated.
    by_position: also report the held-out loss by position in the window.
    documents: most held-out documents per source.
    continuations: prompts from held-out documents that are continued. 0 where none are.
    device: `cpu`, `cuda` or `auto`. threads: of the forward on a CPU; None leaves the process as it is.
    trained_length: the longest context that the model was trained with, to count what lies beyond it; None: it is read
        from the state.
    """

    max_length: int
    batch_size: int = 8
    window: int | None = None
    by_position: bool = False
    documents: int = 200
    continuations: int = 0
    device: str = "auto"
    threads: int | None = None
    trained_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_length", "batch_size", "documents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.continuations < 0:
            raise ValueError(f"continuations must be at least 0, got {self.continuations}")

    @property
    def prompt_tokens(self) -> int:
        """Of a prompt to be continued: half of `max_length` at most, so that something can follow."""
        return max(1, min(PROMPT_TOKENS, self.max_length // 2))

    @property
    def new_tokens(self) -> int:
        """Of a continuation, at most; with the prompt and the token before it they need `max_length` positions."""
        return min(NEW_TOKENS, self.max_length - self.prompt_tokens)


@dataclass(frozen=True)
class EvalTask:
    """One task of one suite.

    key: names the result together with the weights. suite: the suite's name without its version; `tasks` for tasks
    that a study names itself, `bpb` for held-out sources, `continuations`. task: lm-eval's name, or the source's.
    num_fewshot: None takes the task's own. headline: the metric that stands for the task in tables (None: results.json
    names one). limit: first items only. path: a user's task YAML, or the held-out documents of a source; None for a
    task that the harness or lm-eval ships, which is found in the running code, and for continuations. sources: of
    continuations, the held-out documents of each source, by its name. content: digest of what the task is made of
    (None for a task that lm-eval ships: lm-eval's version stands for it). gold: of a generating task, the right
    answer's likelihood is scored as well.
    """

    key: str
    suite: str
    task: str
    kind: Kind
    num_fewshot: int | None
    headline: str | None
    limit: int | None
    path: str | None
    content: str | None
    gold: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EvalTask:
        return cls(**value)


@lru_cache(maxsize=1)
def lm_eval_version() -> str:
    return version("lm_eval")


def lm_eval_key(
    task: str,
    content: str | None,
    num_fewshot: int | None,
    limit: int | None,
    settings: EvalSettings,
    gold: bool = False,
) -> str:
    """The key of an lm-eval task: 64 hex digits."""
    return digest(
        {
            "kind": "lm_eval",
            "scoring": SCORING,
            "lm_eval": lm_eval_version(),
            "task": task,
            "content": content,
            "num_fewshot": num_fewshot,
            "limit": limit,
            "max_length": settings.max_length,
            "batch_size": settings.batch_size,
            "dtype": DTYPE,
            "seeds": dict(SEEDS),
            **({"gold": True} if gold else {}),
        }
    )


def held_out_key(content: str | None, settings: EvalSettings) -> str:
    """The key of a source's held-out bits per byte: 64 hex digits. The source's name is not part of it."""
    return digest(
        {
            "kind": "held_out",
            "scoring": SCORING,
            "content": content,
            "window": settings.window,
            "by_position": settings.by_position,
            "documents": settings.documents,
            "batch_size": settings.batch_size,
            "dtype": DTYPE,
        }
    )


def continuations_key(content: str | None, settings: EvalSettings) -> str:
    """The key of the continuations of a study's sources: 64 hex digits."""
    return digest(
        {
            "kind": "continuations",
            "writing": WRITING,
            "content": content,
            "prompts": settings.continuations,
            "prompt_tokens": settings.prompt_tokens,
            "new_tokens": settings.new_tokens,
            "dtype": DTYPE,
        }
    )


def task_key(task: EvalTask, settings: EvalSettings) -> str:
    """The key that `task` has under `settings`. It differs from `task.key` when the two do not belong together."""
    if task.kind == "held_out":
        return held_out_key(task.content, settings)
    if task.kind == "continuations":
        return continuations_key(task.content, settings)
    return lm_eval_key(task.task, task.content, task.num_fewshot, task.limit, settings, task.gold)
