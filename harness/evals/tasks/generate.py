"""Writes the data of the harness's own tasks: `python -m harness.evals.tasks.generate`.

The files are committed, so that an evaluation means the same everywhere; this module says where they come from, and
running it again changes nothing. A change of what it writes is a new version of the task.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from harness.data import arithmetic, passages

CHOICES = 4
MISSES = (-9, -7, -5, -4, -3, 3, 4, 5, 7, 9)  # wrong sums: near enough to be numbers of the right size
FACTS = 200
PASSAGES = 64
PASSAGE_SEED = -1  # sources have seeds from 0, so no source generates these documents
PASSAGE_DISTANCE = (200, 700)


def files() -> dict[str, bytes]:
    """Every data file by name, as it must be committed."""
    return {
        "arithmetic.jsonl": _lines(held_out_sums()),
        "arithmetic_facts.jsonl": _lines(known_sums()),
        "repeated_passage.jsonl": _lines(repeated_passages()),
    }


def held_out_sums() -> Iterator[dict[str, Any]]:
    """Sums of the pairs that training text never contains, in both orders."""
    for a, b in arithmetic.held_out_pairs():
        yield addition(a, b)
        if a != b:
            yield addition(b, a)


def known_sums() -> Iterator[dict[str, Any]]:
    """Sums of pairs that training text contains, with operands from the same range as the held-out ones."""
    span = range(2, arithmetic.LARGEST + 1)
    pairs = [(a, b) for a in span for b in span if not arithmetic.is_held_out_pair(a, b)]
    for a, b in sorted(Random("arithmetic_facts 1").sample(pairs, FACTS)):
        yield addition(a, b)


def addition(a: int, b: int) -> dict[str, Any]:
    """A sum with three near misses, in an order drawn from the operands.

    Choices end with the full stop of the training text, so that no choice is the beginning of another.
    """
    draw = Random(f"addition 1 {a} {b}")
    wrong = draw.sample([a + b + miss for miss in MISSES if a + b + miss >= 0], CHOICES - 1)
    values = [a + b, *wrong]
    draw.shuffle(values)
    prompt, full_stop = arithmetic.TEMPLATES[0].format(a=a, b=b, c="|").split(" |")
    return {
        "prompt": prompt,
        "choices": [f"{value}{full_stop}" for value in values],
        "answer": values.index(a + b),
        "a": a,
        "b": b,
    }


def repeated_passages() -> Iterator[dict[str, Any]]:
    """The first repeat of each document: context from the first occurrence's mark on, continuation the second.

    The white space before the passage belongs to the continuation, where tokenizers put it. distance: characters
    between the two occurrences.
    """
    for document in passages.generate(PASSAGES, PASSAGE_SEED, PASSAGE_DISTANCE):
        repeat = document.repeats[0]
        start = repeat.first[0] - len(passages.FIRST_MARK.lstrip())
        split = repeat.second[0] - 1
        yield {
            "context": document.text[start:split],
            "continuation": document.text[split : repeat.second[1]],
            "distance": repeat.second[0] - repeat.first[1],
        }


def _lines(items: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items).encode()


def main() -> None:
    for name, data in files().items():
        (Path(__file__).parent / name).write_bytes(data)
        print(f"{name}: {data.count(10)} items, {len(data)} bytes")


if __name__ == "__main__":
    main()
