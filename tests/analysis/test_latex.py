r"""`table_main.tex`: what stands in it, and that LaTeX sets it on a narrow and on a wide page."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.caption import caption
from analysis.effects import Comparisons
from analysis.frame import read_frame
from analysis.latex import escape, name, table_main
from analysis.report import build
from analysis.tables import build_rows
from tests.analysis.conftest import KILLED, RICH
from tests.analysis.fabricate import Design, fabricate

OVERFULL = 2.0  # points that a box may stick out: the eye does not see them


def latex(root: Path) -> str:
    frame = read_frame(root)
    comparisons = Comparisons(frame)
    return table_main(frame, comparisons, build_rows(frame, comparisons))


def line_of(text: str, arm: str) -> str:
    flat = text.replace(r"\allowbreak{}", "")
    return next(line for line in flat.splitlines() if line.startswith(rf"\texttt{{{arm}}}"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 % of a_b & c#1", r"5 \% of a\_b \& c\#1"),
        ("~1B for $2 {x} ^y", r"\textasciitilde{}1B for \$2 \{x\} \textasciicircum{}y"),
        ("a\\b", r"a\textbackslash{}b"),
        ("−1 ≤ β → “x”", r"$-$1 $\leq$ $\beta$ $\rightarrow$ ``x''"),
        ("Größe", "Größe"),
        ("Łódź", "[U+0141]ódz"),
        ("数", "[U+6570]"),
        ("a\nb\x07", "a b"),
    ],
)
def test_text_is_set_as_written(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_long_names_may_break_after_their_punctuation_and_never_inside_a_number() -> None:
    assert name("decay.lr=0.5") == r"\texttt{decay.\allowbreak{}lr=\allowbreak{}0.5}"


def test_baseline_first_then_control_then_the_arms_by_factor_then_references(whole: Path) -> None:
    flat = latex(whole).replace(r"\allowbreak{}", "")
    order = [
        r"\texttt{default} {\scriptsize(baseline)}",
        r"\texttt{control} {\scriptsize(control)}",
        r"\emph{decay.mixture}",
        r"\texttt{math=0.3}",
        r"\emph{decay.lr}",
        r"\texttt{decay.lr.shape=constant}",
        r"\texttt{decay.lr.shape=cosine}",
        r"\emph{for reference, not tested}",
        "\nbase & ",
        "after stable, at 204,800 tokens",
    ]
    places = [flat.index(part, flat.index(r"\toprule")) for part in order]
    assert places == sorted(places)


def test_bold_is_the_best_and_what_cannot_be_told_from_it(whole: Path) -> None:
    text = latex(whole)
    bold = {arm: line_of(text, arm).count(r"\bfseries") for arm in ("default", "control", "math=0.3")}
    # documentation: default, control (and cosine); mathematics: math=0.3 alone
    assert bold == {"default": 1, "control": 1, "math=0.3": 1}
    references = text[text.index("for reference") :].split(r"\bottomrule")[0]
    assert r"\bfseries" not in references and r"\pm" not in references


def test_differences_carry_the_half_width_and_the_mark_of_the_study(whole: Path) -> None:
    d = Comparisons(read_frame(whole)).to_baseline["math=0.3", "bpb.math"]
    assert d.estimate is not None and d.adjusted is not None
    half = (d.adjusted[1] - d.adjusted[0]) / 2
    assert f"{d.estimate:+.4f} & $\\pm{half:.4f}^{{*}}$" in line_of(latex(whole), "math=0.3")
    unmarked = line_of(latex(whole), "decay.lr.shape=cosine")
    assert r"\pm" in unmarked and "*" not in unmarked


def test_the_caption_says_what_was_asked_and_what_every_mark_means(rich: Path) -> None:
    text = latex(rich)
    caption = text[text.index(r"\caption{") : text.index(r"\label")].replace(r"\allowbreak{}", "")
    for words in (
        "Does more mathematics in the decay help",
        "246k tokens a run, 3 seeds an arm",
        r"difference to \texttt{default} (paired by seed)",
        r"holds for 4 arms and 3 metrics together at 95 \% (Dunnett, Bonferroni; variance pooled over arms, 8 df)",
        "Bold: the best arm and those that cannot be told from it",
        "Smallest true difference that would have been seen with a probability of 0.8: 0.",
        r"$\ddagger$: not worse than the baseline by more than the margin",
        r"5 pp in \texttt{quickstart.average}",
    ):
        assert words in caption
    assert r"^{*\ddagger}" in text and r"*\S}" in text


def test_diverged_runs_are_counted_and_not_averaged_over(killed: Path) -> None:
    text = latex(killed)
    assert r"2/3$^{\times 1}$" in line_of(text, "decay.lr.shape=constant")
    assert r"$\times$k: k runs diverged and are left out" in text


def test_a_metric_that_a_finished_run_lacks_counts_its_own_runs(whole: Path) -> None:
    frame = read_frame(whole)
    values = {place: v for place, v in frame.values.items() if place != ("math=0.3/d2", "end", "bpb.docs")}
    frame = replace(frame, values=values)
    comparisons = Comparisons(frame)
    text = table_main(frame, comparisons, build_rows(frame, comparisons))
    assert text.count("n=2") == 1 and "n=2" in line_of(text, "math=0.3")
    assert "Runs are missing: a difference is the least-squares one" in text
    assert "Runs are missing" not in latex(whole)


def test_the_caption_says_that_runs_of_crossed_seeds_are_no_independent_ones(whole: Path) -> None:
    frame = read_frame(whole)
    finding = {"level": "warning", "code": "crossed-seeds", "arm": "", "message": "6 replicates share seeds"}
    crossed = replace(frame, plan={**frame.plan, "lint": [finding]})
    assert "Seeds are crossed: runs that share one" in caption(crossed, Comparisons(crossed), crossed.primary)
    assert "crossed" not in caption(frame, Comparisons(frame), frame.primary)


def test_one_seed_has_no_bold_no_interval_and_says_so(tmp_path: Path) -> None:
    text = latex(fabricate(tmp_path, Design(seeds=("d1",))))
    assert r"\bfseries" not in text and r"$\pm" not in text.split(r"\toprule")[1]
    assert "One seed: its error is not estimated, and nothing is marked or bold." in text


def test_a_study_of_which_nothing_has_run_has_a_table(tmp_path: Path) -> None:
    every = frozenset(f"default/d{i}" for i in (1, 2, 3))
    root = fabricate(tmp_path, Design(effects={"default": {}}, missing=every, control=None))
    shutil.rmtree(root / "evals")
    assert "0/3 & {--} &" in latex(root)


HOSTILE = {"default": {}, "a_b=50%,c~1B&d#2^x{y}$": {}, "x" * 60: {}}


def _many() -> Design:
    arms = {"default": {}, **{f"math={i / 100:g},decay.tokens={j}M": {} for i in range(1, 26) for j in (1, 2)}}
    changes = {arm: {"stages.decay.mixture": {}, **({"total": 1} if "2M" in arm else {})} for arm in arms}
    return replace(
        RICH, effects=arms, changes=changes, control=None, seeds=("d1", "d2"), continuations=0, every=False, ema=False
    )


DESIGNS = {
    "rich": RICH,
    "killed": KILLED,
    "one-seed": Design(seeds=("d1",)),
    "one-arm": Design(effects={"default": {}}, control=None),
    "hostile-names": Design(effects=HOSTILE, control=None, question="50 % of $x_1 & #2, ~1B? Łódź 数 <b> “é” −1 \\end"),
    "many-arms": _many(),
}


def test_arms_that_do_not_fit_one_page_go_on_in_another_float(tmp_path: Path) -> None:
    many = _many()
    nothing_yet = frozenset(f"{arm}/{seed}" for arm in many.effects for seed in many.seeds)
    text = latex(fabricate(tmp_path, replace(many, missing=nothing_yet)))
    floats = text.count(r"\begin{table*}")
    assert floats > 1
    assert text.count(r"\caption{(continued)}") == text.count(r"\addtocounter{table}{-1}") == floats - 1
    assert text.count(r"\label{") == 1
    assert len(re.findall(r"^\\texttt\{math=", text, flags=re.MULTILINE)) == 50 * text.count(r"\label{") * _blocks(text)


def _blocks(text: str) -> int:
    return text.split(r"\end{table*}")[0].count(r"\begin{tabular}")


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["onecolumn", "twocolumn"])
@pytest.mark.parametrize("design", DESIGNS)
def test_pdflatex_sets_the_table_without_an_overfull_box(tmp_path: Path, design: str, columns: str) -> None:
    if shutil.which("pdflatex") is None:
        pytest.fail("pdflatex is missing: .ci/run names the packages that this test needs")
    build(fabricate(tmp_path / "results", DESIGNS[design]))
    shutil.copy(tmp_path / "results" / "report" / "table_main.tex", tmp_path)
    preamble = rf"\documentclass[{columns}]{{article}}\usepackage{{booktabs,siunitx}}"
    document = "\n".join([preamble, r"\begin{document}", r"\input{table_main}", "Text.", r"\end{document}", ""])
    (tmp_path / "paper.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "paper.log").read_text(errors="replace")
    boxes = [float(points) for points in re.findall(r"Overfull \\[hv]box \(([\d.]+)pt", log)]
    assert max(boxes, default=0.0) <= OVERFULL, re.findall(r"Overfull.*", log)
    assert "Float too large" not in log and "Missing character" not in log
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000
