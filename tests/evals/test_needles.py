"""The long-context tasks of our own: the needle is in the text, once, and the text has the length that it says."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from harness.evals.suites import load_suite
from harness.evals.tasks import needles

LENGTHS = [4096, 32768]


@pytest.mark.parametrize("tokens", LENGTHS)
def test_the_answer_is_said_once_and_every_choice_is_some_place_s_code(tokens: int) -> None:
    for number in range(0, needles.ITEMS, 5):
        item = needles.item(tokens, number)
        said = re.findall(r"The code of (\w+) is (\d+)\.", item["context"])
        place = item["context"].rsplit("The code of ", 1)[1].removesuffix(" is")
        assert len(said) == len(dict(said)) == len(set(item["choices"])) == needles.CHOICES
        assert dict(said)[place] == item["choices"][item["answer"]]
        assert {code for _, code in said} == set(item["choices"])


@pytest.mark.parametrize("tokens", LENGTHS)
def test_a_text_fills_its_length_and_the_needles_lie_over_the_whole_of_it(tokens: int) -> None:
    items = [needles.item(tokens, number) for number in range(needles.ITEMS)]
    room = tokens * needles.BYTES_PER_TOKEN
    for item in items:
        size = len(item["context"].encode()) + len(" 00000")
        assert room - 200 < size <= room
        at = item["context"].index(f"is {item['choices'][item['answer']]}.")
        assert abs(at / size - item["depth"]) < 0.03
    assert min(item["depth"] for item in items) < 0.02 and max(item["depth"] for item in items) > 0.98


def test_answers_are_balanced_and_items_are_the_same_in_every_process() -> None:
    assert set(Counter(needles.item(512, number)["answer"] for number in range(needles.ITEMS)).values()) == {12}
    assert needles.item(512, 3) == needles.item(512, 3) != needles.item(512, 4)


def test_the_suite_asks_at_four_lengths() -> None:
    assert [task.task for task in load_suite("long@1").tasks] == ["needle_4k", "needle_8k", "needle_16k", "needle_32k"]
