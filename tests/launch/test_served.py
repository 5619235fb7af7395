"""Requested against served: at the end of a run each source has its declared share to within a row a stage."""

from __future__ import annotations

from pathlib import Path

from harness.launch.served import requested, text
from harness.store import states
from harness.store.layout import Folder
from harness.store.runs import read_run

RECORD = Folder(Path(__file__).parents[2] / "results" / "quickstart")


def test_every_run_of_the_quickstart_was_served_what_it_asked_for() -> None:
    runs = sorted(RECORD.runs.glob("*/*/run.json"))
    assert len(runs) == 21
    for path in runs:
        run = read_run(RECORD, path.parent.parent.name, path.parent.name)
        assert run is not None
        last = RECORD.state(run["path"][-1])
        done, segment = states.read_done(last), states.read_segment(last)
        assert done is not None
        lengths = {piece["stage"]: piece["science"]["context"]["length"] for piece in segment["pieces"]}
        asked = requested(segment["pieces"])
        assert sum(asked.values()) == done.tokens
        for source, tokens in asked.items():
            assert abs(done.summary["served"][source]["tokens"] - tokens) < sum(lengths.values())


def test_the_table_fits_a_terminal_and_names_every_arm_once() -> None:
    lines = text(RECORD).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("constant ") for line in lines) == 1
