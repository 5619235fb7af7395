"""Whatever a study holds, `ablate plan` plans it or leaves with 2 and one paragraph: no traceback, no hang.

10,000 mutated studies in `make test-full`, the first 500 of them in `make test`. A failure names its seed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from harness import cli
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


def plan(study: Path, folder: Path) -> tuple[int, str]:
    """Exit code and stderr of `ablate plan STUDY`, as a user would see them."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited(TOO_LONG):
        code = cli.call(["plan", str(study), "-o", str(folder)])
    return code, err.getvalue()


def check(seeds: range, folder: Path) -> Counter[int]:
    studies, codes = corpus(), Counter[int]()
    study = folder / "study.yaml"
    for seed in seeds:
        study.write_text(mutated(seed, studies), encoding="utf-8")
        try:
            code, said = plan(study, folder / "results")
        except BaseException as error:
            raise AssertionError(f"seed {seed} ended in {type(error).__name__}: {error}") from error
        codes[code] += 1
        assert code in (0, 2), f"seed {seed}: exit code {code}"
        if code == 2:
            assert said.startswith("ablate: "), f"seed {seed} said {said!r}"
            assert said.count("\n\n") == 0 and "Traceback" not in said, f"seed {seed} said {said!r}"
            assert len(said) < LONGEST_MESSAGE, f"seed {seed} said {len(said)} characters"
    return codes


def test_mutated_studies_plan_or_are_refused(tmp_path: Path) -> None:
    codes = check(range(CHUNK), tmp_path)
    assert codes[2] > CHUNK // 2, "the mutations break hardly anything"


@pytest.mark.slow
@pytest.mark.parametrize("start", range(CHUNK, 10_000, CHUNK))
def test_ten_thousand_mutated_studies_plan_or_are_refused(start: int, tmp_path: Path) -> None:
    check(range(start, start + CHUNK), tmp_path)
