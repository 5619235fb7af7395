"""Needles in a haystack: which code belongs to a place, said once far back. Generated, so that no hub is needed.

Every choice is a code that the text gives to some place, so that copying any number that was seen is a guess among
four; only the right pair of place and code finds the answer. Lengths are in bytes, four to a nominal token: the same
text for every tokenizer, and with an ordinary English one it fits into its nominal length. The needles asked for lie
evenly over the whole depth.
"""

from __future__ import annotations

import random
from typing import Any

import datasets

BYTES_PER_TOKEN = 4
ITEMS = 48
CHOICES = 4
PLACES = [
    "Arden",
    "Bexley",
    "Corby",
    "Dunmore",
    "Elgin",
    "Fulwood",
    "Garston",
    "Harlow",
    "Ilford",
    "Jarrow",
    "Keswick",
    "Ludlow",
]
WHO = [
    "The miller",
    "A young teacher",
    "The old captain",
    "Her neighbour",
    "The gardener",
    "A traveller",
    "The clerk",
    "My uncle",
]
DID = ["walked past", "wrote about", "asked for", "looked after", "remembered", "painted", "sold", "carried home"]
WHAT = [
    "the grey harbour",
    "a basket of apples",
    "the long letter",
    "an empty house",
    "the new bridge",
    "two small boats",
]
WHEN = ["in the morning", "before the rain", "last winter", "without a word", "for many years", "on the way home"]


def load(tokens: int, **_: Any) -> dict[str, datasets.Dataset]:
    """ITEMS items of at most `tokens` nominal tokens, as split `test`: `context`, `choices`, `answer`, `depth`."""
    return {"test": datasets.Dataset.from_list([item(tokens, number) for number in range(ITEMS)])}


def item(tokens: int, number: int) -> dict[str, Any]:
    """Item `number` of the task of that length. depth: of the needle asked for, 0 at the start and 1 at the end."""
    rng = random.Random(f"needles {tokens} {number}")
    places = rng.sample(PLACES, CHOICES)
    codes = [str(code) for code in rng.sample(range(10000, 100000), CHOICES)]
    needles = [f"The code of {place} is {code}." for place, code in zip(places, codes, strict=True)]
    answer = number % CHOICES
    question = f"\n\nThe code of {places[answer]} is"
    room = tokens * BYTES_PER_TOKEN - len(question) - len(" 00000") - sum(len(needle) + 1 for needle in needles)
    hay: list[str] = []
    while (room := room - len(line := _sentence(rng)) - 1) >= 0:
        hay.append(line)
    depth = (number + 0.5) / ITEMS
    depths = [rng.random() for _ in range(CHOICES)]
    depths[answer] = depth
    placed = sorted(zip(depths, needles, strict=True), reverse=True)
    count = len(hay)
    for at, needle in placed:
        hay.insert(int(at * count), needle)
    return {
        "context": " ".join(hay) + question,
        "choices": codes,
        "answer": answer,
        "depth": depth,
    }


def _sentence(rng: random.Random) -> str:
    return f"{rng.choice(WHO)} {rng.choice(DID)} {rng.choice(WHAT)} {rng.choice(WHEN)}."
