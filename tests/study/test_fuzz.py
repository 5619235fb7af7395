"""Whatever a study holds, `ablate plan` plans it or leaves with 2 and one paragraph: no traceback, no hang.

10,000 mutated studies in `make test-full`, the first 500 of them in `make test`. A failure names its seed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from harness import cli
from tests.study.conftest import BASE, STAGES
from tests.study.fuzz import corpus, mutated

TOO_LONG = 60  # seconds; a plan of these studies takes a hundredth of one
LONGEST_MESSAGE = 4000
CHUNK = 500


class HungError(Exception):
    """A plan that did not come back."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    def expire(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback()
        raise HungError

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def plan(study: Path, folder: Path, *more: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `ablate plan STUDY`, as a user would see them."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited(TOO_LONG):
        code = cli.call(["plan", str(study), "-o", str(folder), *more])
    return code, out.getvalue(), err.getvalue()


def check(seeds: range, folder: Path) -> Counter[int]:
    studies, codes = corpus(), Counter[int]()
    study = folder / "study.yaml"
    for seed in seeds:
        study.write_text(mutated(seed, studies), encoding="utf-8")
        try:
            code, _, said = plan(study, folder / "results")
            if code == 0:  # what is printed for a program holds more than what is printed for a person
                again, printed, _ = plan(study, folder / "results", "--json")
                assert (again, json.loads(printed)["lint"] is not None) == (0, True)
        except BaseException as error:
            raise AssertionError(f"seed {seed} ended in {type(error).__name__}: {error}") from error
        codes[code] += 1
        assert code in (0, 2), f"seed {seed}: exit code {code}"
        if code == 2:
            assert said.startswith("ablate: "), f"seed {seed} said {said!r}"
            assert said.count("\n\n") == 0 and "Traceback" not in said, f"seed {seed} said {said!r}"
            assert len(said) < LONGEST_MESSAGE, f"seed {seed} said {len(said)} characters"
    return codes


def test_a_plan_whose_sums_are_beyond_64_bits_is_printed(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    cases = ", ".join(f"a{rate}: {{train.optimizer.lr: {rate}e-3}}" for rate in range(1, 5))
    long = STAGES.replace("tokens: 51200", "tokens: 2^62")
    study.write_text(f"{BASE}{long}ablate: [{{cases: {{{cases}}}}}]\n", encoding="utf-8")
    code, printed, _ = plan(study, tmp_path / "results", "--json")
    assert code == 0 and json.loads(printed)["totals"]["tokens"] == 5 * (2**62 + 10240)


def test_mutated_studies_plan_or_are_refused(tmp_path: Path) -> None:
    codes = check(range(CHUNK), tmp_path)
    assert codes[2] > CHUNK // 2, "the mutations break hardly anything"


@pytest.mark.slow
@pytest.mark.parametrize("start", range(CHUNK, 10_000, CHUNK))
def test_ten_thousand_mutated_studies_plan_or_are_refused(start: int, tmp_path: Path) -> None:
    check(range(start, start + CHUNK), tmp_path)
