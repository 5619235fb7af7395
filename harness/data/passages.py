"""Long documents in which passages of random words come back, word for word, at a declared distance.

Random words cannot be guessed, so the loss on a second occurrence is low only for a model that reaches back to the
first: a measure of how context is used. A document is random filler with two to four repeats, one after the other:

    ...filler. Note: <passage>. filler of the declared distance. Again: <passage>. filler...

The evaluation reads the same structure (`generate` gives the spans): context = text before the second occurrence,
continuation = the second occurrence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

GENERATOR_VERSION = 1
WORDS = tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())
"""Common English words. Changing the list changes the text, hence the version."""
DOCUMENT_CHARACTERS = (2000, 4000)
PASSAGE_CHARACTERS = (120, 200)
LEAD_CHARACTERS = (40, 200)
FIRST_MARK = " Note: "
SECOND_MARK = " Again: "
SMALLEST_DISTANCE = len(SECOND_MARK)
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Repeat:
    """Two spans (start, stop) in characters that hold the same passage. `second[0] - first[1]` is the distance."""

    first: Span
    second: Span


@dataclass(frozen=True, slots=True)
class PassageDocument:
    """A document and its repeats in order. `first` and `second` are the spans of the last one, the deepest inside."""

    text: str
    repeats: tuple[Repeat, ...]

    @property
    def first(self) -> Span:
        return self.repeats[-1].first

    @property
    def second(self) -> Span:
        return self.repeats[-1].second


def generate(documents: int, seed: int, distance: tuple[int, int]) -> Iterator[PassageDocument]:
    """`documents` documents; document i is a function of (seed, i, distance) alone.

    distance: smallest and largest number of characters between the end of a passage and its second occurrence, drawn
    uniformly; the mark in front of the second counts, so at least `SMALLEST_DISTANCE`. A document goes on until it
    has as many characters as it drew from `DOCUMENT_CHARACTERS`, and holds at least one repeat however far apart.
    """
    smallest, largest = distance
    if not SMALLEST_DISTANCE <= smallest <= largest:
        raise ValueError(f"distance {distance} is not two ascending numbers of at least {SMALLEST_DISTANCE}")
    for index in range(documents):
        yield _document(Random(f"passages {GENERATOR_VERSION} {seed} {index}"), (smallest, largest))


def _document(draw: Random, distance: tuple[int, int]) -> PassageDocument:
    target = draw.randint(*DOCUMENT_CHARACTERS)
    text = ""
    repeats: list[Repeat] = []
    while not repeats or len(text) < target:
        text += _filler(draw, draw.randint(*LEAD_CHARACTERS)) + FIRST_MARK
        passage = _passage(draw)
        first = (len(text), len(text) + len(passage))
        text += passage
        text += _filler(draw, draw.randint(*distance) - len(SECOND_MARK)) + SECOND_MARK
        second = (len(text), len(text) + len(passage))
        text += passage
        repeats.append(Repeat(first, second))
    return PassageDocument(text.lstrip() + "\n", _moved(repeats, len(text) - len(text.lstrip())))


def _moved(repeats: list[Repeat], back: int) -> tuple[Repeat, ...]:
    return tuple(
        Repeat((r.first[0] - back, r.first[1] - back), (r.second[0] - back, r.second[1] - back)) for r in repeats
    )


def _passage(draw: Random) -> str:
    """Random words and a full stop, of a drawn length to within a word."""
    target = draw.randint(*PASSAGE_CHARACTERS)
    words = [draw.choice(WORDS)]
    length = len(words[0]) + 1
    while True:
        word = draw.choice(WORDS)
        if length + 1 + len(word) > target:
            return " ".join(words) + "."
        words.append(word)
        length += 1 + len(word)


def _filler(draw: Random, characters: int) -> str:
    """Sentences of random words of exactly so many characters; the last word may be cut short to make them exact."""
    text = ""
    while len(text) < characters:
        text += " " + " ".join(draw.choice(WORDS) for _ in range(draw.randint(4, 9))) + "."
    return text[: characters - 1] + "." if characters > 0 else ""
