"""Built-in sources: deterministic, and nothing in training text that evaluation asks."""

from __future__ import annotations

import ast
import itertools
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import arithmetic, passages, stdlib
from harness.data.documents import document_hash, is_held_out, split, summarise, training_documents
from harness.data.sources import declared_source
from harness.study import checks
from harness.study.errors import UserError

HALF = Fraction(1, 2)


def test_the_same_document_is_on_the_same_side_whatever_stands_beside_it() -> None:
    texts = [f"document {number}" for number in range(200)]
    alone = {text: held_out for text, _, held_out in split(texts, HALF)}
    among_others = {text: held_out for text, _, held_out in split([*reversed(texts), *texts, "more"], HALF)}
    assert all(among_others[text] == held_out for text, held_out in alone.items())
    assert 60 < sum(alone.values()) < 140


def test_a_larger_share_keeps_what_a_smaller_one_held_out() -> None:
    hashes = [document_hash(str(number)) for number in range(500)]
    few, many = ({h for h in hashes if is_held_out(h, share)} for share in (Fraction(1, 50), Fraction(1, 10)))
    assert few < many
    assert not any(is_held_out(h, Fraction(0)) for h in hashes)


def test_identity_follows_the_training_documents_their_order_and_the_rule() -> None:
    texts = [f"document {number}" for number in range(50)]
    identity = summarise(texts, HALF).identity
    training = list(training_documents(texts, HALF))
    held_out = next(text for text in texts if text not in training)
    assert summarise([*texts, "  \n"], HALF).identity == identity, "white space is no document"
    assert summarise([text for text in texts if text != held_out], HALF).identity == identity
    assert summarise([text for text in texts if text != training[3]], HALF).identity != identity
    assert summarise(reversed(texts), HALF).identity != identity
    assert summarise(training, Fraction(51, 100)).identity != identity


def test_a_summary_counts_documents_and_utf8_bytes_of_each_side() -> None:
    summary = summarise(["naïve", "日本"], Fraction(0))
    assert (summary.train.documents, summary.train.bytes, summary.held_out.documents) == (2, 6 + 6, 0)


def test_python_code_parses_holds_no_docstrings_and_comes_in_one_order() -> None:
    documents = list(itertools.islice(stdlib.python_code(), 400))
    assert documents == list(itertools.islice(stdlib.python_code(), 400))
    assert len(documents) == 400
    whole = [text for text in documents if len(text) < stdlib.CODE_CHARACTERS]
    parsed = 0
    for text in whole:
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue  # the middle of a class that was too long
        parsed += 1
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and len(body) > 1:
                beside_code = body[0].lineno == node.lineno or body[1].lineno == body[0].end_lineno
                assert ast.get_docstring(node) is None or beside_code, ast.unparse(node)[:200]
    assert parsed > 100


def test_code_without_its_docstrings_means_the_same() -> None:
    text = (
        '"""Module."""\nimport os\n\n@decorated\ndef f(x):\n    """Doc\n    string."""\n    return x\n\n'
        'class A:\n    """Doc."""\n\n    y = "kept"\n    def g(self):\n        """Only a docstring."""\n'
    )
    (document,) = stdlib._code_documents(text, ast.parse(text))
    tree = ast.parse(document)
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert names == ["f", "A", "g"]
    assert "Module" not in document
    assert "Doc" not in document.replace("docstring", "")
    assert "return x" in document
    assert '"kept"' in document


def test_a_long_file_is_cut_between_statements_and_nothing_is_lost() -> None:
    functions = [f"def f{number}():\n    return {'+'.join('1' * 300)}\n\n" for number in range(60)]
    methods = "".join("    " + line for function in functions for line in function.splitlines(keepends=True))
    text = "".join(functions) + "class Long:\n" + methods
    documents = list(stdlib._code_documents(text, ast.parse(text)))
    assert len(documents) > 5
    assert all(len(document) < stdlib.CODE_CHARACTERS + 1000 for document in documents)
    assert "".join("".join(documents).split()) == "".join(text.split())
    assert all(document.lstrip().startswith(("def f", "class Long")) for document in documents)


def test_python_docs_holds_docstrings_under_their_signatures() -> None:
    documents = list(stdlib.python_docs())
    (heapq,) = [text for text in documents if text.startswith("Module heapq\n")]
    assert "heappush(heap, item)\n    Push item onto heap" in heapq
    assert documents == list(stdlib.python_docs())
    assert len(documents) > 200


def facts_in(text: str) -> list[tuple[int, int, int]]:
    """Every fact of a generated document, read back without the generator's own pattern."""
    found = []
    for line in text.splitlines():
        numbers = [int(number) for number in re.findall(r"\d+", line)]
        assert len(numbers) == 3, line
        assert len(re.findall(r" \d+", line)) == 3, "a number follows a space"
        found.append((numbers[0], numbers[1], numbers[2]))
    return found


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_arithmetic_is_right_and_never_adds_a_held_out_pair_in_either_order(seed: int) -> None:
    held_out = set(arithmetic.held_out_pairs())
    facts = [fact for text in arithmetic.generate(3000, seed) for fact in facts_in(text)]
    assert len(facts) > 12000
    assert all(a + b == c for a, b, c in facts)
    seen = {(min(a, b), max(a, b)) for a, b, _ in facts}
    assert not seen & held_out
    possible = {(a, b) for a in range(arithmetic.LARGEST + 1) for b in range(a, arithmetic.LARGEST + 1)}
    assert len(possible - held_out - seen) < 10, "every other pair occurs"


def test_held_out_pairs_are_fixed() -> None:
    pairs = arithmetic.held_out_pairs()
    assert pairs[:3] == PINNED_PAIRS
    assert len(pairs) == PINNED_COUNT
    assert pairs == tuple(sorted(pairs))
    assert all(arithmetic.is_held_out_pair(b, a) and a <= b for a, b in pairs)


PINNED_PAIRS = ((2, 2), (2, 7), (2, 9))
PINNED_COUNT = 46


def test_a_longer_source_begins_like_a_shorter_one() -> None:
    assert list(arithmetic.generate(5, 3)) == list(itertools.islice(arithmetic.generate(50, 3), 5))
    assert list(passages.generate(3, 3, (50, 90))) == list(itertools.islice(passages.generate(9, 3, (50, 90)), 3))
    assert list(arithmetic.generate(5, 3)) != list(arithmetic.generate(5, 4))


def test_a_study_is_refused_for_the_distance_for_which_the_generator_refuses() -> None:
    assert checks.SMALLEST_DISTANCE == passages.SMALLEST_DISTANCE


@given(st.integers(0, 99), st.integers(passages.SMALLEST_DISTANCE, 5000), st.integers(0, 1500))
@settings(max_examples=40, deadline=None)
def test_a_passage_comes_back_word_for_word_at_the_declared_distance(seed: int, smallest: int, more: int) -> None:
    for document in passages.generate(3, seed, (smallest, smallest + more)):
        for repeat in document.repeats:
            first, second = (document.text[slice(*span)] for span in (repeat.first, repeat.second))
            assert first == second
            assert 60 <= len(first) <= passages.PASSAGE_CHARACTERS[1]
            assert smallest <= repeat.second[0] - repeat.first[1] <= smallest + more
            assert document.text.count(first) == 2
        assert (document.first, document.second) == (document.repeats[-1].first, document.repeats[-1].second)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"builtin": "arithmetics"}, "did you mean `arithmetic`"),
        ({"builtin": "python_code", "seed": 1}, "takes no parameter `seed`"),
        ({"builtin": "passages", "distance": [300, 200]}, "ascending"),
        ({"builtin": "passages", "distance": [2, 200]}, "at least 8"),
        ({"builtin": "arithmetic", "documents": 0}, "at least 1"),
        ({"builtin": "arithmetic", "held_out": 1}, "below 1"),
        ({"text": "body"}, "expected `builtin` or `files`"),
    ],
)
def test_a_declaration_that_cannot_be_done_is_refused(declared: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        declared_source("facts", declared, Path())


def test_every_parameter_changes_the_documents() -> None:
    plain = {"builtin": "passages", "documents": 3, "seed": 0, "distance": [50, 60]}
    changes = ({}, {"documents": 4}, {"seed": 1}, {"distance": [70, 80]})
    texts = [tuple(declared_source("p", {**plain, **change}, Path()).documents()) for change in changes]
    assert len(set(texts)) == 4
