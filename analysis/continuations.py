"""What the arms write: greedy continuations of the same held-out prompts, side by side."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from analysis.frame import END, Frame, Run
from harness.store import evaluations

KIND = "continuations"
COLUMNS = ("source", "prompt", "reference", "continuation")
EMPTY_LINES = re.compile(r"\n(?:[ \t]*\n){3,}")  # more than a reader needs to see


@dataclass(frozen=True)
class Prompt:
    """One prompt with each arm's continuation. reference: how the document really goes on."""

    source: str
    prompt: str
    reference: str
    by_arm: Mapping[str, str]


@dataclass(frozen=True)
class Continuations:
    """runs: by arm, the run whose model wrote; all of the first seed that each arm has."""

    prompts: tuple[Prompt, ...]
    runs: Mapping[str, str]


def continuations(frame: Frame) -> Continuations:
    """Of the compared arms at the end of training; empty where the study has none or nothing was written yet."""
    keys = [task.key for task in frame.tasks if task.kind == KIND]
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    runs: dict[str, str] = {}
    for arm in frame.compared:
        for run in frame.runs_of(arm.name):
            rows = [row for key in keys for row in _rows(frame, run, key)]
            if rows:
                runs[arm.name] = run.name
                for source, prompt, reference, text in rows:
                    found.setdefault((source, prompt, reference), {})[arm.name] = text
                break
    return Continuations(tuple(Prompt(*key, by_arm) for key, by_arm in found.items()), runs)


def _rows(frame: Frame, run: Run, key: str) -> list[tuple[str, str, str, str]]:
    point = run.point(END)
    weights = frame.weights.get(point.state) if point is not None else None
    if weights is None or f"evals/{weights}/{key}" not in frame.results:
        return []
    table = evaluations.read_samples(frame.folder, weights, key)
    columns = [[readable(str(text)) for text in table.column(name).to_pylist()] for name in COLUMNS]
    return [(source, prompt, reference, text) for source, prompt, reference, text in zip(*columns, strict=True)]


def readable(text: str) -> str:
    """Text without what a page cannot hold: control characters are shown as their pictures, lines stay lines.

    Where a model writes nothing but line breaks, they are counted: `⏎ × 46`.
    """
    shown = "".join(_shown(character) for character in text.replace("\r\n", "\n"))
    return EMPTY_LINES.sub(lambda found: f"\n⏎ × {found[0].count(chr(10))}\n", shown)


def _shown(character: str) -> str:
    if character in "\n\t" or not unicodedata.category(character).startswith("C"):
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"
