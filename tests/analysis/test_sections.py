"""The report's other sections: averaged weights, scores along training, continuations, controls, appendix, compute."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest

from analysis import appendix, compute
from analysis.continuations import continuations, readable
from analysis.effects import Comparisons
from analysis.frame import read_frame
from analysis.groups import factors_of, groups_of
from analysis.report import build
from analysis.tables import build_rows
from analysis.trajectory import trajectories
from harness.store import attempts, evaluations
from harness.store.layout import Folder
from harness.store.metrics import MetricsWriter
from tests.analysis.conftest import RICH
from tests.analysis.fabricate import BATCH, EFFECTS, END, HALF, TRUNK, Design, fabricate, key
from tests.analysis.test_report import Page, csv_rows, page


def html(root: Path) -> str:
    return (root / "report" / "index.html").read_text("utf-8")


def markdown(root: Path) -> str:
    return (root / "report" / "report.md").read_text("utf-8")


def test_averaged_weights_are_reference_rows_of_their_arms_without_tests(rich: Path) -> None:
    rows = [row for row in csv_rows(rich) if row["kind"] == "ema"]
    assert {row["row"] for row in rows} == {f"{arm} (EMA)" for arm in EFFECTS}
    assert all(row["mean"] and row["difference"] == row["verdict"] == row["margin_verdict"] == "" for row in rows)
    assert {row["n"] for row in rows} == {"3"}
    with_ema, without = (Comparisons(read_frame(root)) for root in (rich, rich))
    assert with_ema.family == without.family == (4, 3)
    assert "math=0.3 (EMA)" in page(rich).text and "math=0.3 (EMA)" in markdown(rich)


def test_scores_along_training_stand_in_a_table_a_figure_and_a_file(rich: Path) -> None:
    frame = read_frame(rich)
    found = trajectories(frame, frame.primary)
    docs = found[0]
    assert docs.tokens == (0, HALF, TRUNK, END)
    end = frame.at_end("math=0.3", "bpb.docs")
    assert docs.means["math=0.3"][END] == pytest.approx(sum(v.value for v in end.values()) / 3)
    assert docs.means["math=0.3"][HALF] == docs.means["default"][HALF]  # one trunk
    with (rich / "report" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 5 * 4 and {row["n"] for row in rows if row["tokens"] != "0"} == {"3"}
    assert "| Arm | Runs | 0 | 102k | 205k | 246k |" in markdown(rich)
    assert "Scores along training" in page(rich).text


def test_a_point_that_one_seed_lacks_is_no_point_of_the_curve(tmp_path: Path) -> None:
    root = fabricate(tmp_path, replace(RICH, missing=frozenset({"control/d2"})))
    frame = read_frame(root)
    docs = trajectories(frame, frame.primary)[0]
    assert END not in docs.means["control"] and TRUNK in docs.means["control"]


def test_without_an_interval_there_is_no_curve(whole: Path) -> None:
    frame = read_frame(whole)
    assert trajectories(frame, frame.primary) == []


def test_ten_continuations_an_arm_stand_side_by_side(rich: Path) -> None:
    found = continuations(read_frame(rich))
    assert len(found.prompts) == 10
    assert all(tuple(prompt.by_arm) == tuple(EFFECTS) for prompt in found.prompts)
    assert found.runs == {arm: f"{arm}/d1" for arm in EFFECTS}
    section = html(rich)[html(rich).index('id="continuations"') : html(rich).index('id="comparable"')]
    assert section.count("<details") == 10 and section.count("<pre>") == 10 * (1 + len(EFFECTS))
    assert markdown(rich).count("Prompt ") == 2  # short; the page has the rest


def test_what_a_model_writes_cannot_become_markup_or_control_characters(rich: Path) -> None:
    text = html(rich)
    assert "<b>here</b>" not in text and "&lt;b&gt;here" in text
    assert "\x00" not in text and "\x1b" not in text and "␀␛[31m" in text
    assert Page(text).faults == []
    assert readable("a\r\nb\tc\x07\u200b\u202e") == "a\nb\tc␇\ufffd\ufffd"
    assert readable("a" + 47 * "\n" + "b\n\n\nc") == "a\n⏎ × 47\nb\n\n\nc", "a page of empty lines is counted"


def test_continuations_are_no_metric_and_no_number_rests_on_them(rich: Path) -> None:
    frame = read_frame(rich)
    assert not any("continuations" in metric.name for metric in frame.metrics)
    assert all(run.status == "done" for run in frame.runs)
    shutil_free = [row for row in csv_rows(rich) if key("task", "continuations") in row["evaluations"]]
    assert shutil_free == []


@pytest.mark.usefixtures("without_figures")
def test_an_arm_that_writes_nothing_is_said_to_and_a_first_line_break_is_kept(tmp_path: Path) -> None:
    root = fabricate(tmp_path, replace(RICH, continuations=1))
    weights = key("weights", json.loads((root / "plan.json").read_text("utf-8"))["runs"][0]["path"][-1])
    where = Folder(root).evaluation(weights, key("task", "continuations"))
    row = {"source": ["docs"], "prompt": ["Prompt"], "reference": ["\n  indented"], "continuation": [""]}
    results = json.loads((where / "results.json").read_text("utf-8"))
    shutil.rmtree(where)
    evaluations.write(Folder(root), weights, key("task", "continuations"), results, pyarrow.table(row))
    build(root)
    assert "<pre>\n\n  indented</pre>" in html(root), "a parser drops the line break right after <pre>"
    assert html(root).count("nothing: the document ends here") == 1 and "| *nothing* |" in markdown(root)


@pytest.mark.usefixtures("without_figures")
def test_a_run_whose_texts_are_missing_is_unevaluated_and_the_other_seeds_are_done(tmp_path: Path) -> None:
    root = fabricate(tmp_path, RICH)
    weights = key("weights", json.loads((root / "plan.json").read_text("utf-8"))["runs"][0]["path"][-1])
    shutil.rmtree(Folder(root).evaluation(weights, key("task", "continuations")))
    status = {run.name: run.status for run in read_frame(root).runs}
    assert [name for name, word in status.items() if word != "done"] == ["default/d1"]
    assert status["default/d1"] == "unevaluated"


@pytest.mark.usefixtures("without_figures")
def test_before_anything_is_written_there_is_no_such_section(tmp_path: Path) -> None:
    root = fabricate(tmp_path, replace(RICH, missing=frozenset(f"{a}/d{i}" for a in EFFECTS for i in (1, 2, 3))))
    build(root)
    assert "What the arms write" not in html(root)


@pytest.mark.usefixtures("without_figures")
def test_controls_have_a_section_and_no_row_elsewhere(tmp_path: Path) -> None:
    root = fabricate(tmp_path, replace(RICH, controls=True, ema=False))
    build(root)
    assert "aa" not in {row["row"] for row in csv_rows(root)}
    text = html(root)
    section = text[text.index('id="controls"') : text.index('id="primary"')]
    assert "aa" in section and re.search(r"passed|failed|no verdict", section)
    assert "## Controls" in markdown(root)
    arms = json.loads((root / "report" / "claims.json").read_bytes())["claims"]
    assert "aa" not in {claim["arm"] for claim in arms}


@pytest.mark.usefixtures("without_figures")
def test_question_and_notes_stand_at_the_head(tmp_path: Path) -> None:
    root = fabricate(tmp_path, Design())
    plan = json.loads((root / "plan.json").read_bytes())
    plan["notes"] = "Two lines\nof <notes>.\n"
    (root / "plan.json").write_text(json.dumps(plan))
    build(root)
    head = html(root)[: html(root).index('id="answers"')]
    assert "Does more mathematics in the decay help" in head and "of &lt;notes&gt;." in head
    assert markdown(root).index("of <notes>.") < markdown(root).index("## Answers")


def test_the_appendix_names_every_field_that_differs_and_no_other(rich: Path) -> None:
    frame = read_frame(rich)
    found = {
        arm: {(c.field, c.baseline, c.arm) for c in changed} for arm, changed in appendix.differences(frame).items()
    }
    assert found["math=0.3"] == {("decay.mixture.docs", "9/10", "7/10"), ("decay.mixture.math", "1/10", "3/10")}
    assert found["control"] == {("decay.mixture.docs", "9/10", "1"), ("decay.mixture.math", "1/10", "—")}
    (shape,) = found["decay.lr.shape=cosine"]
    assert shape[0] == "decay.lr @ 204,800" and "shape: linear" in shape[1] and "shape: cosine" in shape[2]
    text = page(rich).text
    assert "decay.lr @ 204,800" in text and "| decay.mixture.docs | 9/10 | 7/10 |" in markdown(rich)


def test_the_appendix_has_sources_environments_and_the_study_as_text(rich: Path) -> None:
    frame = read_frame(rich)
    assert appendix.served(frame)["control"][0] == appendix.Served("docs", "245,760", "50", "0.5")
    (environment,) = appendix.environments(frame)
    assert environment.facts["numerics.threads"] == "1"
    text = html(rich)
    assert "&lt;script&gt;alert(&#34;a study is text&#34;)" in text and "<script>alert" not in text
    assert "--set seeds.data=[1, 2, 3]" in page(rich).text
    with (rich / "report" / "attempts.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 2 + 15  # halves and trunks of three seeds, fifteen decays
    assert sum(int(line["tokens_computed"]) for line in lines) == 3 * TRUNK + 15 * (END - TRUNK)


@pytest.mark.usefixtures("without_figures")
def test_a_plan_of_an_earlier_version_has_a_report_with_less_in_it(tmp_path: Path) -> None:
    root = fabricate(tmp_path, Design())
    plan = json.loads((root / "plan.json").read_bytes())
    for name in ("science", "controls", "asked", "share", "totals"):
        plan.pop(name)
    for name in ("not_worse", "report_also"):
        plan["compare"].pop(name)
    (root / "plan.json").write_text(json.dumps(plan))
    (root / "study.yaml").unlink()
    build(root)
    assert page(root).faults == []
    assert "Configuration of each arm" not in html(root) and "The study file" not in html(root)


def test_lost_work_is_what_was_computed_and_not_kept(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    state = folder.state(key("state"))
    env = {"numerics": {"device": "cpu", "threads": 2, "processor": "EPYC", "world": 1}}
    first = attempts.begin(state, env)
    first.event("attempt_started", tokens=0)
    _rows(first.folder, 1, 10)
    first.event("checkpoint", tokens=6 * BATCH)  # four updates more, then killed
    second = attempts.begin(state, env)
    second.event("attempt_started", tokens=6 * BATCH)
    _rows(second.folder, 7, 20)
    second.event("checkpoint", tokens=20 * BATCH)
    second.event("finished", tokens=20 * BATCH, steps=14)
    second.finish("trained", tokens=20 * BATCH)
    found = compute.Spent()
    compute._add(found, state, 0)
    assert (found.tokens, found.lost) == (24 * BATCH, 4 * BATCH)
    assert found.outcomes == {compute.NO_END: 1, "trained": 1}
    assert list(found.devices) == ["EPYC, 2 threads"]


def _rows(folder: Path, first: int, last: int) -> None:
    writer = MetricsWriter(folder / "metrics.jsonl")
    for step in range(first, last + 1):
        writer.write({"tokens": step * BATCH, "step": step, "loss": 1.0, "time": 1.0})
    writer.flush()


def test_the_compute_statement_keeps_what_was_measured_from_what_was_assumed(rich: Path) -> None:
    text = " ".join(compute.statement(read_frame(rich)))
    trained = 3 * TRUNK + 15 * (END - TRUNK)
    assert f"trains {trained:,} tokens for 15 runs instead of {15 * END:,}" in text
    assert "PaLM, 2204.02311" in text
    assert "assumed: 40 % of 989 TFLOP/s (H100, dense bf16)); this is no measurement" in text
    assert "no work was lost" in text and "on CPU, 1 thread (21 attempts)" in text
    results = 4 * (1 + 3 + 3 + 15 + 15) + 5  # tasks at base, halves, trunks, ends and averages; texts an arm
    assert f"for {results} results" in text


def test_what_is_not_known_of_the_cost_is_said(tmp_path: Path) -> None:
    root = fabricate(tmp_path, Design(missing=frozenset(f"{a}/d{i}" for a in EFFECTS for i in (1, 2, 3))))
    plan = json.loads((root / "plan.json").read_bytes())
    plan["totals"] |= {"flops": None, "gpu_hours": None}
    (root / "plan.json").write_text(json.dumps(plan))
    for name in ("states", "evals"):
        shutil.rmtree(root / name)
    text = " ".join(compute.statement(read_frame(root)))
    assert "floating-point operations are not known" in text
    assert "No attempt at training has been recorded. Nothing has been evaluated." in text


def test_arms_are_grouped_by_what_they_change() -> None:
    assert factors_of({"stages.decay.lr.shape": "cosine", "stages.decay.lr.to": 0}) == ("decay.lr",)
    assert factors_of({"stages.decay.mixture": {}, "train.batch_tokens": 1}) == ("decay.mixture", "train.batch_tokens")
    assert factors_of({"total": 1}) == ("total",)


def test_each_compared_arm_is_in_one_group(whole: Path) -> None:
    groups = groups_of(read_frame(whole))
    assert [(g.title, [arm.name for arm in g.arms]) for g in groups] == [
        ("decay.mixture", ["math=0.3"]),
        ("decay.lr", ["decay.lr.shape=constant", "decay.lr.shape=cosine"]),
    ]


def _long() -> Design:
    effects = {"default": {}, **{f"math={i / 100:g}": {"math": -0.01 * i} for i in range(1, 20)}}
    return Design(effects=effects, control=None, seeds=("d1", "d2"))


@pytest.mark.usefixtures("without_figures")
def test_a_long_study_has_heads_that_stay_a_filter_and_sentences_that_end(tmp_path: Path) -> None:
    root = fabricate(tmp_path, _long())
    build(root)
    text = html(root)
    assert 'class="scroll tall"' in text and 'label.className = "filter"' in text and "position: sticky" in text
    assert Page(text).faults == []
    answers = text[text.index('id="answers"') : text.index('id="primary"')]
    assert " more" in answers and len(Page(answers).text) < 3000
    assert len(build_rows(*_frame(root))) == 2 + 20


def _frame(root: Path) -> tuple[object, object]:
    frame = read_frame(root)
    return frame, Comparisons(frame)


def test_a_short_study_has_no_filter(rich: Path) -> None:
    assert "label.filter" in html(rich) and 'className = "filter"' not in html(rich)


@pytest.mark.usefixtures("without_figures")
def test_a_study_of_one_arm_is_a_report_too(tmp_path: Path) -> None:
    root = fabricate(tmp_path, Design(effects={"default": {}}, control=None))
    build(root)
    assert page(root).faults == [] and "There is no arm to compare." in page(root).text


def test_the_page_names_its_regions_and_follows_the_readers_colours(rich: Path) -> None:
    text = html(rich)
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    targets = set(re.findall(r'<a href="#([^"]+)"', text))
    assert targets and targets <= set(Page(text).ids)
    for svg in re.findall(r"<svg[^>]*class=\"figure\"[^>]*>", text):
        assert 'role="img"' in svg and "aria-label=" in svg
