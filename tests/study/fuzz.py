"""Mutated studies: what slips in when people type. One seed is one study, the same on every machine."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
CORPUS = [*sorted((ROOT / "tests/examples").glob("*.yaml")), *sorted((ROOT / "sweeps").glob("*.yaml"))]
SCALARS: list[Any] = [None, True, False, 0, -1, 1, 3.5, 0.1, 1e300, float("inf"), float("nan"), 10**30, 2**63, -0.0]
SCALARS += [
    "",
    " ",
    "x",
    "base",
    "rest",
    "none",
    "end",
    "default",
    "~1B",
    "1B",
    "32k",
    "2^21",
    "2^62",
    "2^99",
    "0.1x",
    "-1x",
]
SCALARS += [
    "every 1B",
    "every x",
    "every ²",
    "every 512",
    "1e-999999999x",
    2**62,
    "a\0b",
    "1/3",
    "1/0",
    "no",
    "off",
    "3e-4",
    "proportional",
    "all",
    "auto",
    "../..",
    "a/b",
    "é",
]
SCALARS += [
    "stages.decay.lr",
    "stages..lr",
    "stages.decay.lr.to",
    "\x07",
    "\u202e",
    "a" * 300,
    "<<",
    "*x",
    "&x",
    "!!int 3",
]
SHAPES: list[Any] = [
    [],
    {},
    [1],
    [[1]],
    [{}],
    ["default"],
    {"a": 1},
    {"a": {"b": [None]}},
    {"stages": {}},
    {"mixture": {}},
]
SHAPES += [
    {"type": "yarn"},
    {"flops_of": "default"},
    {"run": "a/b/c"},
    {"shape": "cosine"},
    {"web": 1},
    {1: 2},
    {None: 1},
]
NOISE = list(":{}[]-#&*!|>%@`'\",?~\t\x00 \n\\/.0x^=<é\u2028\ufeff")

Spot = tuple[Any, ...]


def corpus() -> list[Any]:
    """The studies that mutations start from, as plain values."""
    return [YAML(typ="safe", pure=True).load(path.read_text()) for path in CORPUS]


def mutated(seed: int, studies: list[Any]) -> str:
    """A study with one to four mutations of its values, its keys, or its text."""
    dice = random.Random(seed)
    index = dice.randrange(len(studies))
    if dice.random() < 0.3:
        text = CORPUS[index].read_text()
        for _ in range(dice.randint(1, 4)):
            text = dice.choice(TEXT_MUTATIONS)(dice, text)
        return text
    study = copy.deepcopy(studies[index])
    for _ in range(dice.randint(1, 4)):
        dice.choice(VALUE_MUTATIONS)(dice, study)
    out = io.StringIO()
    YAML(typ="safe", pure=True).dump(study, out)
    return out.getvalue()


def _spots(value: Any, path: Spot = ()) -> Iterator[Spot]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from _spots(one, (*path, key))


def _somewhere(dice: random.Random, study: Any) -> tuple[Any, Any]:
    """A block of the study and one of its keys."""
    spots = list(_spots(study))
    if not spots:
        return {"study": study}, "study"
    path = dice.choice(spots)
    block = study
    for key in path[:-1]:
        block = block[key]
    return block, path[-1]


def _replace(dice: random.Random, study: Any) -> None:
    block, key = _somewhere(dice, study)
    block[key] = copy.deepcopy(dice.choice(SCALARS + SHAPES))


def _remove(dice: random.Random, study: Any) -> None:
    block, key = _somewhere(dice, study)
    del block[key]


def _rename(dice: random.Random, study: Any) -> None:
    block, key = _somewhere(dice, study)
    if isinstance(block, dict):
        text = str(key)
        at = dice.randrange(len(text) + 1)
        block[text[:at] + dice.choice(["", "x", ".", " "]) + text[at + 1 :]] = block.pop(key)


def _insert(dice: random.Random, study: Any) -> None:
    block, key = _somewhere(dice, study)
    value = copy.deepcopy(dice.choice(SCALARS + SHAPES))
    if isinstance(block, list):
        block.insert(key, value)
    else:
        block[dice.choice(["tokens", "lr", "to", "from", "shape", "mixture", "as", "when", "over", "unknown"])] = value


def _move(dice: random.Random, study: Any) -> None:
    """Something of the study, where something else stood."""
    block, key = _somewhere(dice, study)
    other, name = _somewhere(dice, study)
    block[key] = copy.deepcopy(other[name])


def _wrap(dice: random.Random, study: Any) -> None:
    block, key = _somewhere(dice, study)
    block[key] = [block[key]] if dice.random() < 0.5 else {str(key): block[key]}


def _drop_text(dice: random.Random, text: str) -> str:
    at = dice.randrange(len(text) + 1)
    return text[:at] + text[at + dice.randint(1, 8) :]


def _add_text(dice: random.Random, text: str) -> str:
    at = dice.randrange(len(text) + 1)
    return text[:at] + "".join(dice.choices(NOISE, k=dice.randint(1, 3))) + text[at:]


def _indent(dice: random.Random, text: str) -> str:
    lines = text.split("\n")
    at = dice.randrange(len(lines))
    lines[at] = " " * dice.randint(0, 9) + lines[at].lstrip()
    return "\n".join(lines)


def _repeat(dice: random.Random, text: str) -> str:
    lines = text.split("\n")
    at = dice.randrange(len(lines))
    return "\n".join([*lines[: at + 1], *lines[at:]])


def _cut(dice: random.Random, text: str) -> str:
    return text[: dice.randrange(len(text) + 1)]


VALUE_MUTATIONS: list[Callable[[random.Random, Any], None]] = [
    _replace,
    _replace,
    _remove,
    _rename,
    _insert,
    _move,
    _wrap,
]
TEXT_MUTATIONS: list[Callable[[random.Random, str], str]] = [_drop_text, _add_text, _indent, _repeat, _cut]
