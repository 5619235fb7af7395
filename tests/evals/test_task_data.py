"""The data of our own tasks: reproducible, free of leakage, and what their names say."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from harness.data import arithmetic, passages
from harness.evals.task_files import OWN_TASKS
from harness.evals.tasks import generate


def items(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (OWN_TASKS / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def training_text() -> str:
    """The arithmetic source with its default parameters, and another seed of it."""
    return "".join([*arithmetic.generate(20000, seed=0), *arithmetic.generate(5000, seed=1)])


def test_the_committed_data_is_what_the_generator_writes() -> None:
    files = generate.files()
    assert {name: (OWN_TASKS / name).read_bytes() for name in files} == files
    assert {path.name for path in OWN_TASKS.glob("*.jsonl")} == set(files)
    assert sum(map(len, files.values())) < 150_000


def test_no_operand_pair_of_arithmetic_occurs_in_training_text(training_text: str) -> None:
    asked = {frozenset((item["a"], item["b"])) for item in items("arithmetic")}
    numbers = (re.findall(r"\d+", line) for line in training_text.splitlines())
    added = {frozenset(map(int, (line[0], line[1]))) for line in numbers if len(line) == 3}
    assert len(added) > 150, "the training text is read"
    assert not asked & added
    # A fact whose sum stands first would escape the pairs above; no line holds the three numbers in any order.
    sums = {tuple(sorted((item["a"], item["b"], item["a"] + item["b"]))) for item in items("arithmetic")}
    lines = {tuple(sorted(map(int, re.findall(r"\d+", line)))) for line in training_text.splitlines()}
    assert not sums & lines


def test_every_pair_of_arithmetic_facts_occurs_in_training_text_in_the_words_of_the_task(training_text: str) -> None:
    lines = set(training_text.splitlines())
    for item in items("arithmetic_facts"):
        assert f"{item['prompt']} {item['choices'][item['answer']]}" in lines


@pytest.mark.parametrize("name", ["arithmetic", "arithmetic_facts"])
def test_the_labelled_choice_is_the_sum_and_no_other_is(name: str) -> None:
    for item in items(name):
        values = [int(choice.removesuffix(".")) for choice in item["choices"]]
        assert len(set(values)) == generate.CHOICES
        assert values[item["answer"]] == item["a"] + item["b"]


@pytest.mark.parametrize("name", ["arithmetic", "arithmetic_facts"])
def test_the_place_of_the_right_choice_tells_nothing(name: str) -> None:
    answers = [item["answer"] for item in items(name)]
    expected = len(answers) / generate.CHOICES
    spread = (expected * (1 - 1 / generate.CHOICES)) ** 0.5
    assert all(abs(answers.count(place) - expected) < 4 * spread for place in range(generate.CHOICES))


def test_a_repeated_passage_repeats_at_its_distance() -> None:
    for item in items("repeated_passage"):
        passage = item["continuation"].removeprefix(" ")
        text = item["context"] + item["continuation"]
        first = text.index(passage)
        assert first < len(item["context"])
        assert text.rindex(passage) - (first + len(passage)) == item["distance"]
        assert generate.PASSAGE_DISTANCE[0] <= item["distance"] <= generate.PASSAGE_DISTANCE[1]


def test_no_repeated_passage_occurs_in_training_text() -> None:
    trained = [document.text for document in passages.generate(2000, 0, (200, 1200))]
    for item in items("repeated_passage"):
        opening = item["continuation"].strip()[:40]
        assert not any(opening in text for text in trained)
