"""Every tracker keeps one contract: a study's runs with all their rows, each once, whatever happened in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import cli
from harness.launch.tracking import send
from harness.store.layout import Folder
from harness.store.plans import read_plan
from harness.store.tracking import Standing
from harness.track import sender
from harness.track.settings import Target, targets
from harness.track.tracker import TrackerDown, make_tracker
from tests.track import readers
from tests.track.conftest import UPDATES
from tests.track.readers import Rows
from tests.track.wandb_server import WandbServer

RUNS = ("default/d1", "more=0.3/d1")


@dataclass
class Case:
    """A tracker on a finished results folder. read: what it holds, by its own means."""

    folder: Folder
    target: Target
    read: Callable[[], dict[str, Rows]]

    def send(self, jobs: int = 1) -> Standing:
        (standing,) = send(self.folder, [self.target], jobs, lambda note: None)
        return standing


@pytest.fixture(params=["wandb", "wandb offline", "trackio", "tensorboard"])
def case(request: pytest.FixtureRequest, study: Path) -> Case:
    folder = Folder(study.parent / "out")
    name, _, mode = request.param.partition(" ")
    if request.param == "wandb":
        server: WandbServer = request.getfixturevalue("server")
    project = f"tracked-{study.parent.name}"
    (target,), _ = targets({name: {"project": project, "mode": mode or None}}, "tracked")

    def read() -> dict[str, Rows]:
        if request.param == "wandb":
            assert all(run.complete for run in server.runs.values())
            assert server.lines == sum(len(run.rows) for run in server.runs.values()), "a line was sent twice"
            return {
                run.settings["displayName"]: [{k: v for k, v in row.items() if k[0] != "_"} for row in run.rows]
                for run in server.runs.values()
            }
        if name == "trackio":
            return readers.trackio(project)
        return readers.wandb_offline(folder.root) if name == "wandb" else readers.tensorboard(folder.root)

    return Case(folder, target, read)


def training(rows: Rows) -> list[float]:
    return [row["tokens"] for row in rows if "train/loss" in row]


def scores(rows: Rows) -> list[tuple[float, float]]:
    return [(row["eval_tokens"], row["bpb/sums"]) for row in rows if "bpb/sums" in row]


def check_whole(found: dict[str, Rows]) -> None:
    shared = [name for name in found if name.startswith("segments/stable-2560/d1/")]
    assert sorted(found) == sorted([*RUNS, *shared]) and len(shared) == 1
    for name in RUNS:
        assert training(found[name]) == [256 * (n + 1) for n in range(UPDATES)], "a row an update, from token 0"
        assert [at for at, _ in scores(found[name])] == [2560, 5120]
        assert all(row["train/lr"] > 0 for row in found[name] if "train/lr" in row)
    assert training(found[shared[0]]) == [256 * (n + 1) for n in range(10)]
    assert not scores(found[shared[0]])


def test_every_run_is_there_with_its_whole_path_and_its_scores(case: Case) -> None:
    assert case.send() == Standing(str(case.target), 3, 3)
    check_whole(case.read())


def test_what_was_sent_is_sent_once(case: Case) -> None:
    case.send()
    before = case.read()
    assert case.send() == Standing(str(case.target), 3, 3)
    assert case.read() == before


def test_a_sender_that_was_lost_half_way_leaves_no_row_twice_and_none_out(case: Case, tmp_path: Path) -> None:
    plan = read_plan(case.folder)
    tracker = make_tracker(case.target, case.folder, tmp_path / "scratch")

    class Breaks:
        """The tracker, which goes away at the third run's end, as a machine does: nobody is told."""

        live = tracker.live
        closed = 0

        def open(self, run):  # type: ignore[no-untyped-def]
            opened = tracker.open(run)
            close = opened.close

            def closing(summary, ended):  # type: ignore[no-untyped-def]
                Breaks.closed += 1
                close(summary, False)
                if Breaks.closed == 2:
                    raise TrackerDown("gone")

            opened.close = closing
            return opened

    (lost,) = sender.senders(case.folder, plan, [case.target], lambda target: Breaks())  # type: ignore[arg-type]
    lost.tick()
    assert lost.problem == "gone" and lost.standing.sent == 1
    assert case.send().sent == 3
    check_whole(case.read())


def test_a_task_that_is_added_later_adds_its_scores_and_nothing_else(case: Case, study: Path) -> None:
    case.send()
    before = case.read()
    (study.parent / "numbers.yaml").write_text(
        "task: numbers\noutput_type: loglikelihood_rolling\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {study.parent}/numbers.jsonl}}}}\ntest_split: test\n"
        "doc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}]\nmetadata: {version: 1}\n"
    )
    (study.parent / "numbers.jsonl").write_text('{"text": "1 + 1 = 2"}\n')
    arguments = ["run", str(study), "-o", str(case.folder.root), "--executor", "debug"]
    assert cli.call([*arguments, "--set", "eval.tasks=[numbers.yaml]"]) == 0
    assert case.send() == Standing(str(case.target), 3, 3)
    found = case.read()
    check_whole(found)
    for name in RUNS:
        new = [row for row in found[name] if any("numbers" in metric for metric in row)]
        assert sorted(row["eval_tokens"] for row in new) == [2560, 5120]
        assert scores(found[name]) == scores(before[name])
