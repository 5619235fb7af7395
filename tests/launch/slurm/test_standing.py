"""What status says of a run, from the folder and the queue, which are looked at one after the other."""

from __future__ import annotations

from pathlib import Path

from harness.launch.slurm.classes import End
from harness.launch.slurm.standing import Standings
from harness.launch.status import read_plan
from harness.store.layout import Folder
from tests.launch.test_run import bring, options


def test_a_segment_that_was_finished_between_the_two_looks_is_left_at_the_first(unscored: Path) -> None:
    report, _ = bring(options(unscored))
    run = read_plan(report.folder)["runs"][0]
    standings = Standings(report.folder, {}, {}, set(), {})
    assert standings.of_run(run, "training", "80% of decay") == ("training", "80% of decay")
    assert standings.of_run(run, "done", "") == ("done", "")


def test_the_first_thing_that_is_not_done_says_how_a_run_stands(unscored: Path) -> None:
    report, _ = bring(options(unscored))
    run = read_plan(report.folder)["runs"][0]
    state = run["path"][-1]
    report.folder.state(state).done.unlink()
    item = f"train:{state}"

    def said(**more: object) -> tuple[str, str]:
        fields: dict[str, object] = {"under_way": {}, "tries": {}, "cancelled": set(), "groups": {}, **more}
        return Standings(Folder(report.folder.root), **fields).of_run(run, "waiting", "")  # type: ignore[arg-type]

    assert said() == ("waiting", "")
    assert said(cancelled={item})[0] == "cancelled"
    assert said(tries={item: [End("user", "no such column", 0)]}) == ("held", "user: no such column")
    assert said(tries={item: [End("preempted", "x", 0)]})[0] == "lost"
    assert said(problem="Slurm does not answer", cancelled={item}) == ("waiting", "")
