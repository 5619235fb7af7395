"""The report as files: what a reader finds in it, and that the same results give the same bytes."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis import metrics
from analysis.report import build
from tests.analysis.fabricate import EFFECTS, Design, fabricate, key

VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects text, ids and what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.titles: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name == "title":
                self.titles.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "action") and not (value or "").startswith("#"):
                self.loads.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def files(report: Path) -> dict[str, bytes]:
    return {
        path.relative_to(report).as_posix(): path.read_bytes() for path in sorted(report.rglob("*")) if path.is_file()
    }


def page(root: Path) -> Page:
    return Page((root / "report" / "index.html").read_text("utf-8"))


def csv_rows(root: Path) -> list[dict[str, str]]:
    with (root / "report" / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_report_is_these_files(killed: Path, rich: Path) -> None:
    always = [
        "attempts.csv",
        "claims.json",
        "figures/loss.pdf",
        "figures/loss.svg",
        "figures/schedule.pdf",
        "figures/schedule.svg",
        "index.html",
        "report.md",
        "reproduce.sh",
        "table.csv",
        "table_main.tex",
    ]
    assert list(files(killed / "report")) == always
    evaluated_on_the_way = ["figures/scores.pdf", "figures/scores.svg", "scores.csv"]
    assert list(files(rich / "report")) == sorted([*always, *evaluated_on_the_way])


def test_the_same_results_give_the_same_bytes_in_another_process_with_other_hashes(killed: Path) -> None:
    before = files(killed / "report")
    shutil.rmtree(killed / "report")
    code = "import sys; from pathlib import Path; from analysis.report import build; build(Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, str(killed)], check=True, env=environment)
    assert files(killed / "report") == before


def test_the_page_is_well_formed_and_fetches_nothing(killed: Path) -> None:
    found = page(killed)
    assert (found.faults, found.open) == ([], [])
    assert found.loads == []
    assert len(found.ids) == len(set(found.ids))
    text = (killed / "report" / "index.html").read_text("utf-8")
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    script = text[text.index("<script>") : text.index("</script>")]
    assert script.count("\n") < 40


def test_planned_done_and_diverged_runs_stand_in_every_table(killed: Path) -> None:
    text = page(killed).text
    tables = (killed / "report" / "index.html").read_text("utf-8").split("<table")[1:]
    with_arms = [table.split("</table>")[0] for table in tables if ">Arm<" in table]
    assert len(with_arms) >= 4
    for table in with_arms:
        assert "2 of 3, 1 diverged" in table and "2 of 3, 1 unfinished" in table
    markdown = (killed / "report" / "report.md").read_text("utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)
    with_runs = [table for table in tables if "| Field |" not in table.split("\n")[0]]
    assert len(with_runs) >= 4
    assert all("2 of 3, 1 diverged" in table for table in with_runs)
    assert "13 of 15 runs finished, 1 diverged, 1 unfinished" in text
    broken = [row for row in csv_rows(killed) if row["row"] == "decay.lr.shape=constant"]
    assert {(row["planned"], row["done"], row["diverged"], row["n"]) for row in broken} == {("3", "2", "1", "2")}
    claims = json.loads((killed / "report" / "claims.json").read_bytes())
    assert claims["runs"] == {"planned": 15, "done": 13, "diverged": 1}


def test_every_mean_names_its_runs_and_evaluations(killed: Path) -> None:
    html = (killed / "report" / "index.html").read_text("utf-8")
    primary = html[html.index("<h2>Primary metrics") : html.index("<h2>All metrics")]
    weights = key("weights", key("decay", "control", "d2"))
    assert "control/d2: " in primary and f"evals/{weights[:12]}…/{key('task', 'docs')[:12]}…" in primary
    for row in csv_rows(killed):
        assert len(row["runs"].split()) == int(row["n"])
        for folder in row["evaluations"].split():
            assert (killed / folder / "results.json").is_file()


def test_the_base_and_the_branch_point_are_rows_without_tests(killed: Path) -> None:
    references = [row for row in csv_rows(killed) if row["kind"] in ("base", "branch")]
    assert {row["row"] for row in references} == {"base", "after stable"}
    assert all(row["difference"] == row["verdict"] == "" and row["mean"] for row in references)
    stable = next(row for row in references if row["row"] == "after stable")
    assert (stable["n"], stable["planned"]) == ("3", "3")  # one trunk a seed, not one an arm
    assert next(row for row in references if row["row"] == "base")["n"] == "1"


def test_several_names_of_one_arm_share_its_row(killed: Path) -> None:
    assert {row["aliases"] for row in csv_rows(killed) if row["row"] == "default"} == {"mixture-as-written"}
    assert not any(row["row"] == "mixture-as-written" for row in csv_rows(killed))
    assert "also mixture-as-written" in page(killed).text


def test_every_metric_shows_which_way_is_better(killed: Path) -> None:
    markdown = (killed / "report" / "report.md").read_text("utf-8")
    for name in ("bpb.docs", "bpb.math"):
        assert f"| {name} ↓," in markdown
    for name in ("quickstart.average", "quickstart.sums.acc", "quickstart.facts.correct_prob"):
        assert f" {name} ↑," in markdown


def test_what_is_not_marked_shows_the_effect_that_would_have_been_seen(killed: Path) -> None:
    claims = json.loads((killed / "report" / "claims.json").read_bytes())["claims"]
    unmarked = [c for c in claims if c["verdict"] == "not distinguishable"]
    assert unmarked
    text = page(killed).text
    for claim in unmarked:
        scale, digits = (100, 1) if claim["unit"] == "share" else (1, 4)
        assert f"MDE {metrics.number(claim['mde'] * scale, digits)}" in text.replace("\u00a0", " ")


def test_a_bound_that_excludes_zero_is_not_printed_as_if_it_held_it() -> None:
    assert (metrics.bound(-0.00001, 4), metrics.bound(0.00001, 4)) == ("−0.0000", "+0.0000")
    assert metrics.number(-0.00001, 4, signed=True) == "0.0000"


@pytest.mark.usefixtures("without_figures")
def test_names_from_the_study_cannot_become_markup(tmp_path: Path) -> None:
    arm = "<script>alert(1)</script>|x"
    build(fabricate(tmp_path, Design(effects={"default": {}, arm: {}}, control=None)))
    found = page(tmp_path)
    assert found.faults == []
    assert "<script>alert" not in (tmp_path / "report" / "index.html").read_text("utf-8")


def test_a_folder_in_which_nothing_has_run_yet_has_a_report(tmp_path: Path) -> None:
    every = frozenset(f"{arm}/d{i}" for arm in EFFECTS for i in (1, 2, 3))
    root = fabricate(tmp_path, Design(missing=every))
    for name in ("states", "evals"):
        shutil.rmtree(root / name)
    build(root)
    found = page(root)
    assert "0 of 15 runs finished, 15 unfinished" in found.text
    assert found.faults == [] and "not estimated" in found.text
    assert not (root / "report" / "figures").exists()


@pytest.mark.usefixtures("without_figures")
def test_half_way_the_arms_that_are_there_are_compared(tmp_path: Path) -> None:
    missing = frozenset(f"{arm}/d{i}" for arm in EFFECTS for i in (1, 2, 3)) - {
        f"{arm}/d{i}" for arm in ("default", "math=0.3") for i in (1, 2)
    }
    root = fabricate(tmp_path, Design(missing=missing))
    build(root)
    claims = {(c["arm"], c["metric"]): c for c in json.loads((root / "report" / "claims.json").read_bytes())["claims"]}
    there = claims["math=0.3", "bpb.math"]
    assert (there["n_seeds"], there["variance"]["df"]) == (2, 1)
    assert claims["control", "bpb.math"]["reason"] == "control has no result yet"
    # the family is the one that was planned: looking early must not narrow the intervals
    whole = json.loads((root / "report" / "claims.json").read_bytes())["family"]
    assert (whole["arms"], whole["metrics"]) == (4, 3)
    assert "4 of 15 runs finished, 11 unfinished" in page(root).text


def test_a_rebuilt_report_drops_figures_that_no_longer_hold(tmp_path: Path) -> None:
    root = fabricate(tmp_path, Design(effects={"default": {}, "control": {}}, seeds=("d1",)))
    build(root)
    assert (root / "report" / "figures" / "loss.svg").exists()
    shutil.rmtree(root / "states")
    build(root)
    assert not (root / "report" / "figures" / "loss.svg").exists()


@pytest.mark.usefixtures("without_figures")
def test_compared_arms_with_other_numerics_are_listed(tmp_path: Path) -> None:
    root = fabricate(tmp_path, Design(threads={"math=0.3": 2}))
    build(root)
    assert "numerics.threads differs: 1 (default, control, math=0.3" in page(root).text
    assert "2 (math=0.3)" in page(root).text


def test_equal_numerics_and_the_lint_are_stated(killed: Path) -> None:
    text = page(killed).text
    assert "Numerics and code are the same in all attempts." in text
    assert "also changes docs from 36,864 to 28,672 tokens" in text


@pytest.mark.usefixtures("without_figures")
def test_items_beyond_the_trained_length_are_marked(tmp_path: Path, killed: Path) -> None:
    root = fabricate(tmp_path, Design(beyond=3))
    build(root)
    assert "† evaluated at positions beyond the longest context" in page(root).text
    assert "†" not in page(killed).text


@pytest.mark.usefixtures("without_figures")
def test_steps_that_two_attempts_computed_differently_are_named(tmp_path: Path) -> None:
    root = fabricate(tmp_path, Design())
    attempts = root / "states" / key("decay", "control", "d1") / "attempts"
    shutil.copytree(attempts / "0", attempts / "1")
    log = attempts / "1" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[3]["loss"] += 1e-9
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    build(root)
    assert f"Two attempts of control/d1 disagree at token {lines[3]['tokens']:,}" in page(root).text


@pytest.mark.usefixtures("without_figures")
def test_updates_that_were_left_out_as_spikes_are_counted_over_the_path_of_each_run(tmp_path: Path) -> None:
    root = fabricate(tmp_path, Design())
    for state, left_out in ((key("decay", "control", "d1"), (2, 5)), (key("trunk", "d1"), (7,))):
        log = root / "states" / state / "attempts" / "0" / "metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        for index in left_out:
            lines[index]["skipped"] = True
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        done = root / "states" / state / "DONE.json"
        marker = json.loads(done.read_text())
        marker["summary"]["skipped"] = len(left_out)
        done.write_text(json.dumps(marker))
    build(root)
    text = " ".join(page(root).text.split())
    assert "control/d1 left out 3 updates as spikes" in text and "default/d1 left out 1 update as spikes" in text
    assert "d2 left out" not in text
    assert "`control/d1` left out 3 updates as spikes" in (root / "report" / "report.md").read_text("utf-8")


def test_figures_are_svg_documents_with_a_line_for_each_arm(killed: Path) -> None:
    for name in ("loss.svg", "schedule.svg"):
        text = (killed / "report" / "figures" / name).read_text("utf-8")
        ElementTree.fromstring(text)
        assert "dc:date" not in text
    loss = (killed / "report" / "figures" / "loss.svg").read_text("utf-8")
    assert all(arm in loss for arm in EFFECTS)
    schedule = (killed / "report" / "figures" / "schedule.svg").read_text("utf-8")
    assert ">70<" in schedule and ">30<" in schedule  # the shares of math=0.3, in percent
    assert "context" not in schedule  # the same for all arms


@pytest.mark.usefixtures("without_figures")
def test_a_study_that_tests_nothing_promises_no_interval(tmp_path: Path) -> None:
    build(fabricate(tmp_path, Design(seeds=("d1",))))
    markdown = (tmp_path / "report" / "report.md").read_text("utf-8")
    for text in (page(tmp_path).text, markdown):
        assert "Δ: difference to the baseline, not tested." in text
    assert not any(said in markdown for said in ("Dunnett", "MDE", "±", "interval holds"))
    assert "In brackets: the interval" not in page(tmp_path).text


@pytest.mark.usefixtures("without_figures")
def test_that_all_seeds_go_on_from_one_trunk_is_said_wherever_errors_are(tmp_path: Path) -> None:
    root = fabricate(tmp_path, Design())
    said = "All seeds go on from one trunk of 205k tokens"
    build(root)
    assert said not in (root / "report" / "report.md").read_text("utf-8")
    plan = (root / "plan.json").read_text("utf-8")
    for seed in ("d2", "d3"):
        plan = plan.replace(key("trunk", seed), key("trunk", "d1"))
    (root / "plan.json").write_text(plan)
    build(root)
    markdown = (root / "report" / "report.md").read_text("utf-8")
    for text in (page(root).text, markdown, (root / "report" / "table_main.tex").read_text("utf-8")):
        assert said in text


@pytest.mark.filterwarnings("error")
def test_every_arm_is_in_the_legend_as_it_is_written(tmp_path: Path) -> None:
    names = ("_first", "$x_1^2$")  # matplotlib would leave out the one and set the other as a formula
    build(fabricate(tmp_path, Design(effects={"default": {}, **{name: {} for name in names}}, control=None)))
    figure = (tmp_path / "report" / "figures" / "loss.svg").read_text("utf-8")
    assert all(figure.count(name) >= 1 for name in names)


def test_figures_are_pdf_documents_without_dates_and_compressors(rich: Path) -> None:
    for name in ("loss.pdf", "schedule.pdf", "scores.pdf"):
        content = (rich / "report" / "figures" / name).read_bytes()
        assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
        assert b"Date" not in content and b"FlateDecode" not in content
        assert b"/Type0" in content or b"/TrueType" in content  # letters as journals ask for them, no type 3


def test_a_sort_key_holds_no_rounding_of_another_machines_library() -> None:
    from analysis.render import _sortable

    assert (_sortable(-2.8e-16), _sortable(None), _sortable(1 / 3)) == ("0", "", "0.333333333")


def test_analysis_needs_neither_torch_nor_a_plotting_library_to_be_imported() -> None:
    code = (
        "import sys, analysis.report, analysis.compare; "
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("tokens", "text"), [(246_000, "246k"), (2_061_824, "2.06M"), (999_900, "1M"), (10**10, "10B"), (12, "12")]
)
def test_token_counts_read_as_people_say_them(tokens: int, text: str) -> None:
    from analysis.render import tokens_text

    assert tokens_text(tokens) == text


@pytest.mark.usefixtures("without_figures")
def test_a_control_that_is_the_baseline_is_said_once(tmp_path: Path) -> None:
    build(fabricate(tmp_path, Design(control="default")))
    text = page(tmp_path).text
    assert "Differences are against default, which is also the control" in text
    assert "Δ to control" not in text
