"""Generated addition facts, with operand pairs that never occur in them.

A document is a few facts, one a line, each in one of `TEMPLATES` (most often the first). Operands are whole numbers
from 0 to `LARGEST`: few enough that a model of 0.2M parameters learns from some ten thousand tokens. A number always
follows a space, so that a trained tokenizer spells it in one way. The pairs of `held_out_pairs()` never occur, in
either order and in any template, so a model that completes them has generalised and not recalled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from random import Random

GENERATOR_VERSION = 2
LARGEST = 20
TEMPLATES = (
    "Sum: {a} + {b} = {c}.",
    "So {a} plus {b} is {c}.",
    "The sum of {a} and {b} is {c}.",
    "Adding {b} to {a} gives {c}.",
)
FIRST_TEMPLATE_SHARE = 0.6
FACTS_PER_DOCUMENT = (4, 12)
_HELD_OUT_ONE_IN = 5


@cache
def held_out_pairs() -> tuple[tuple[int, int], ...]:
    """The operand pairs (a, b), a <= b, that no training text contains in either order; ascending, always the same.

    A pair is held out when the SHA-256 of "a+b" is 0 modulo 5; pairs with an operand below 2 never are (their facts
    are rules, and text of other sources spells them out). Both orders of a pair make two evaluation items.
    """
    return tuple((a, b) for a in range(2, LARGEST + 1) for b in range(a, LARGEST + 1) if _held_out(a, b))


def is_held_out_pair(a: int, b: int) -> bool:
    """Whether the operands a and b, in either order, are held out."""
    return (min(a, b), max(a, b)) in _held_out_set()


def generate(documents: int, seed: int) -> Iterator[str]:
    """`documents` documents. Document i is a function of (seed, i) alone: a longer source begins like a shorter one."""
    for index in range(documents):
        draw = Random(f"arithmetic {GENERATOR_VERSION} {seed} {index}")
        yield "\n".join(_fact(draw) for _ in range(draw.randint(*FACTS_PER_DOCUMENT))) + "\n"


def _fact(draw: Random) -> str:
    while True:
        a, b = draw.randint(0, LARGEST), draw.randint(0, LARGEST)
        if not is_held_out_pair(a, b):
            break
    template = TEMPLATES[0] if draw.random() < FIRST_TEMPLATE_SHARE else draw.choice(TEMPLATES[1:])
    return template.format(a=a, b=b, c=a + b)


def _held_out(a: int, b: int) -> bool:
    return int.from_bytes(hashlib.sha256(f"{a}+{b}".encode()).digest(), "big") % _HELD_OUT_ONE_IN == 0


@cache
def _held_out_set() -> frozenset[tuple[int, int]]:
    return frozenset(held_out_pairs())
