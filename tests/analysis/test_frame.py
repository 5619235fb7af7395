"""What is read from a results folder, and what stays missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analysis.effects import Comparisons
from analysis.frame import END, read_frame
from analysis.metrics import family_of, guess_direction
from harness.study.errors import UserError
from tests.analysis.fabricate import EFFECTS, Design, fabricate, key


def test_a_folder_without_a_plan_is_refused_in_one_paragraph(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no plan"):
        read_frame(tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_frame(tmp_path)


def test_runs_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    design = Design(
        diverged=frozenset({"math=0.3/d1"}), missing=frozenset({"math=0.3/d2"}), failed=frozenset({"control/d3"})
    )
    frame = read_frame(fabricate(tmp_path, design))
    assert frame.count("math=0.3") == {"planned": 3, "done": 1, "diverged": 1, "unfinished": 1}
    assert frame.count("control") == {"planned": 3, "done": 2, "failed": 1}
    assert {run.name: run.detail for run in frame.runs if run.status != "done"} == {
        "math=0.3/d1": "at 220,160 tokens",
        "math=0.3/d2": "not started",
        "control/d3": "out of memory",
    }


def test_a_run_without_all_its_evaluations_is_not_done(tmp_path: Path) -> None:
    root = fabricate(tmp_path, Design())
    evaluation = next((root / "evals").glob(f"{key('weights', key('decay', 'control', 'd1'))}/{key('task', 'sums')}"))
    (evaluation / "DONE.json").unlink()
    frame = read_frame(root)
    run = frame.run_of("control", "d1")
    assert run is not None and run.status == "unevaluated"
    # and an average over the tasks that are left would be another metric under the same name
    assert ("control/d1", END, "quickstart.facts.acc") in frame.values
    assert ("control/d1", END, "quickstart.average") not in frame.values
    assert ("control/d2", END, "quickstart.average") in frame.values


def test_an_altered_evaluation_is_named_and_left_out(tmp_path: Path) -> None:
    root = fabricate(tmp_path, Design())
    results = next((root / "evals").glob(f"*/{key('task', 'docs')}/results.json"))
    results.write_text(results.read_text().replace("bits_per_byte", "bits_per_bite"))
    frame = read_frame(root)
    assert len(frame.damaged) == 1 and str(results) in frame.damaged[0]
    assert not any("bite" in metric.name for metric in frame.metrics)


def test_several_names_of_one_arm_are_one_arm(whole: Path) -> None:
    frame = read_frame(whole)
    assert frame.arms[0].aliases == ("mixture-as-written",)
    assert frame.arm("mixture-as-written") is frame.arm("default")
    assert len(frame.arms) == 5 and len(frame.runs) == 15
    with pytest.raises(UserError, match="did you mean `control`"):
        frame.arm("contrl")


def test_bits_per_byte_and_probabilities_come_before_accuracy_and_primaries_first(whole: Path) -> None:
    frame = read_frame(whole)
    assert [m.name for m in frame.metrics] == [
        "bpb.docs",
        "bpb.math",
        "quickstart.average",
        "quickstart.sums.correct_prob",
        "quickstart.facts.correct_prob",
        "quickstart.sums.acc",
        "quickstart.facts.acc",
    ]
    assert [m.higher_is_better for m in frame.metrics] == [False, False, True, True, True, True, True]


def test_an_average_is_the_mean_of_headlines_and_never_holds_bits_per_byte(whole: Path) -> None:
    frame = read_frame(whole)
    assert frame.by_name["quickstart.average"].parts == ("quickstart.sums.acc", "quickstart.facts.acc")
    parts = [frame.values["control/d1", END, part].value for part in frame.by_name["quickstart.average"].parts]
    assert frame.values["control/d1", END, "quickstart.average"].value == pytest.approx(sum(parts) / 2)


def test_a_measure_behind_a_filter_and_a_verified_solution_are_accuracies() -> None:
    """The headlines of math@1: its average was declared, and then no report had it."""
    assert [family_of(measure) for measure in ("exact_match,flexible-extract", "math_verify")] == ["accuracy"] * 2
    assert family_of("perplexity,none") == "other"


def test_without_declared_primaries_bits_per_byte_and_averages_stand_in(tmp_path: Path) -> None:
    frame = read_frame(fabricate(tmp_path, Design(primary=())))
    assert frame.compare.primary == ("bpb.docs", "bpb.math", "quickstart.average")
    assert not frame.primary_declared


def test_items_carry_the_identity_by_which_they_are_paired(whole: Path) -> None:
    frame = read_frame(whole)
    docs = frame.items("default/d1", END, frame.by_name["bpb.docs"])
    sums = frame.items("default/d1", END, frame.by_name["quickstart.sums.acc"])
    assert docs is not None and docs.ratio and json.loads(docs.identity[3]) == [3, key("docs", 3)]
    assert sums is not None and json.loads(sums.identity[3]) == [3, key("sums", 3), key("sums", 3, "target")]
    value = frame.values["default/d1", END, "bpb.docs"].value
    assert docs.numerator.sum() / docs.denominator.sum() == pytest.approx(value)


def test_half_way_a_headline_that_nothing_has_reported_has_its_column(tmp_path: Path) -> None:
    every = frozenset(f"{arm}/d{i}" for arm in EFFECTS for i in (1, 2, 3))
    root = fabricate(tmp_path, Design(missing=every, primary=("bpb.docs",)))
    shutil.rmtree(root / "evals")
    names = [m.name for m in read_frame(root).metrics]
    assert names == ["bpb.docs", "bpb.math", "quickstart.average", "quickstart.sums.acc", "quickstart.facts.acc"]


@pytest.mark.parametrize(
    ("name", "higher"),
    [("base.glossary.acc", True), ("bpb.docs", False), ("tasks.books.word_perplexity", False), ("x.y.nll", False)],
)
def test_the_direction_of_what_nothing_has_reported_is_that_of_its_measure(name: str, higher: bool) -> None:
    assert guess_direction(name) is higher


def test_a_primary_metric_that_no_evaluation_reports_is_said_to_be_none(tmp_path: Path) -> None:
    frame = read_frame(fabricate(tmp_path, Design(primary=("bpb.dcos",))))
    d = Comparisons(frame).to_baseline["control", "bpb.dcos"]
    assert (d.verdict, d.reason) == ("not estimated", "no evaluation reports it")
