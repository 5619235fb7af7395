"""Differences between arms: their size, their two errors, and what is said of them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from scipy import stats

from analysis import statistics
from analysis.caption import caption
from analysis.claims import _real, answers, claims
from analysis.effects import Comparisons, Difference
from analysis.frame import Frame, read_frame
from analysis.page import context
from analysis.tables import build_rows
from harness.store import evaluations
from harness.store.layout import Folder
from tests.analysis.fabricate import EFFECTS, Design, fabricate, key

NO_EFFECT = "decay.lr.shape=cosine"


def compared(root: Path) -> tuple[Frame, Comparisons]:
    frame = read_frame(root)
    return frame, Comparisons(frame)


def test_known_effects_come_out_with_their_sign_and_size(whole: Path) -> None:
    _, comparisons = compared(whole)
    found = comparisons.to_baseline
    for arm in ("math=0.3", "decay.lr.shape=constant"):
        d = found[arm, "bpb.docs"]
        assert d.interval is not None and d.interval[0] < EFFECTS[arm]["docs"] < d.interval[1]
    assert found["math=0.3", "bpb.math"].verdict == "better"  # lower is better
    assert found["math=0.3", "bpb.docs"].verdict == "worse"
    assert found["math=0.3", "quickstart.average"].verdict == "better"  # higher is better
    assert found[NO_EFFECT, "bpb.docs"].verdict == "not distinguishable"


def test_a_difference_is_the_mean_of_the_differences_between_runs_of_one_seed(whole: Path) -> None:
    _, comparisons = compared(whole)

    def bits(arm: str, seed: str) -> float:
        folder = whole / "evals" / key("weights", key("decay", arm, seed)) / key("task", "math")
        return float(json.loads((folder / "results.json").read_text())["metrics"]["bits_per_byte"]["value"])

    by_seed = [bits("math=0.3", seed) - bits("default", seed) for seed in ("d1", "d2", "d3")]
    d = comparisons.to_baseline["math=0.3", "bpb.math"]
    assert d.estimate == pytest.approx(np.mean(by_seed))
    assert (d.df, d.seeds) == ((5 - 1) * (3 - 1), ("d1", "d2", "d3"))
    assert d.run_se is not None and d.interval is not None
    assert d.interval[1] - d.estimate == pytest.approx(stats.t.ppf(0.975, 8) * d.run_se)


def test_the_adjusted_interval_is_dunnetts_over_arms_and_bonferronis_over_primary_metrics(whole: Path) -> None:
    _, comparisons = compared(whole)
    d = comparisons.to_baseline[NO_EFFECT, "bpb.docs"]
    assert comparisons.family == (4, 3)
    assert d.critical == statistics.dunnett_critical(4, 8, 0.05 / 3, 0.5)
    assert d.adjusted is not None and d.interval is not None
    assert d.adjusted[0] < d.interval[0] < d.interval[1] < d.adjusted[1]


def test_only_primary_metrics_against_the_baseline_get_a_verdict(whole: Path) -> None:
    _, comparisons = compared(whole)
    verdicts = {name for (_, name), d in comparisons.to_baseline.items() if d.verdict is not None}
    assert verdicts == {"bpb.docs", "bpb.math", "quickstart.average"}
    assert all(d.verdict is None and d.adjusted is None for d in comparisons.to_control.values())


def test_seeds_that_move_all_arms_alike_do_not_hide_a_difference(tmp_path: Path) -> None:
    # paired by seed the arm is better beyond doubt; an unpaired test of the same six runs sees nothing
    _, comparisons = compared(fabricate(tmp_path, Design(seed_noise=0.4, run_noise=0.002)))
    d = comparisons.to_baseline["math=0.3", "bpb.math"]
    frame = comparisons.frame
    ours, theirs = ([v.value for v in frame.at_end(arm, "bpb.math").values()] for arm in ("math=0.3", "default"))
    assert d.verdict == "better"
    assert stats.ttest_ind(ours, theirs, equal_var=False).pvalue > 0.1


def test_one_seed_gives_a_difference_and_no_run_level_error(tmp_path: Path) -> None:
    frame, comparisons = compared(fabricate(tmp_path, Design(seeds=("d1",))))
    d = comparisons.to_baseline["math=0.3", "bpb.math"]
    assert d.estimate == pytest.approx(-0.2, abs=0.02)
    assert (d.verdict, d.reason, d.interval, d.mde) == ("not estimated", "one seed", None, None)
    assert d.item_se is not None  # the items' error is there, and is not taken for the runs'
    for _, clauses in answers(frame, comparisons):
        assert len(clauses) == 1 and clauses[0].startswith("Not estimated (one seed): ")


def test_runs_that_do_not_vary_mark_nobody(tmp_path: Path) -> None:
    _, comparisons = compared(fabricate(tmp_path, Design(run_noise=0.0)))
    d = comparisons.to_baseline["math=0.3", "bpb.math"]
    assert d.estimate == pytest.approx(-0.2, abs=1e-6)
    assert (d.verdict, d.reason, d.run_se) == ("not estimated", "the runs do not vary", None)


def test_an_arm_at_its_ceiling_is_named_because_it_shrinks_the_pooled_error(tmp_path: Path) -> None:
    effects = {**EFFECTS, "math=0.3": {**EFFECTS["math=0.3"], "sums": 9.0}}
    _, comparisons = compared(fabricate(tmp_path, Design(effects=effects, run_noise=0.05)))
    assert "math=0.3" in comparisons.unvarying("quickstart.sums.acc")
    assert comparisons.unvarying("bpb.docs") == ()
    _, comparisons = compared(fabricate(tmp_path / "still", Design(run_noise=0.0, seed_noise=0.0)))
    assert comparisons.unvarying("bpb.docs") == ()  # there is no pooled error that could be too small


def strays(root: Path, arm: str) -> Frame:
    """The folder's frame with the arm's runs 0.3 bits up, down and where they were."""
    frame = read_frame(root)
    moved = dict(frame.values)
    for seed, by in (("d1", 0.3), ("d2", -0.3)):
        place = f"{arm}/{seed}", "end", "bpb.docs"
        moved[place] = replace(moved[place], value=moved[place].value + by)
    return replace(frame, values=moved)


@pytest.mark.parametrize(("arm", "said"), [("control", "its interval is"), ("default", "all intervals here are")])
def test_an_arm_that_varies_more_than_the_pooled_error_says_is_named(whole: Path, arm: str, said: str) -> None:
    frame = strays(whole, arm)
    comparisons = Comparisons(frame)
    assert [*comparisons.straying["bpb.docs"]] == [arm] and not comparisons.straying["bpb.math"]
    clauses = {metric.name: found for metric, found in answers(frame, comparisons)}["bpb.docs"]
    assert f"`{arm}` varies more over seeds than the other arms (SD 0.26" in clauses[-1]
    assert f"so {said} too short" in clauses[-1]
    marked = {c["arm"] for c in claims(frame, comparisons)["claims"] if arm in c["variance"]["straying"]}
    assert marked == (set(EFFECTS) - {"default"} if arm == "default" else {arm})
    text = caption(frame, comparisons, frame.primary)
    assert f"In `bpb.docs`, `{arm}` varies more over seeds" in text


def test_an_error_that_is_not_estimated_says_why_in_the_same_words_everywhere(tmp_path: Path) -> None:
    one_arm = Design(effects={"default": {}}, control=None)
    waiting = Design(missing=frozenset(f"{arm}/d{seed}" for arm in EFFECTS for seed in (2, 3)))
    for name, design, why in (("one", one_arm, "one arm"), ("few", waiting, "no two arms share two seeds yet")):
        frame, comparisons = compared(fabricate(tmp_path / name, design))
        assert comparisons.why_no_error("bpb.docs") == why
        page = context(frame, comparisons, build_rows(frame, comparisons), (), {})
        assert page["variance"]["bpb.docs"] == f"run-level error not estimated: {why}"


def test_runs_are_called_missing_where_an_arm_lacks_a_seed_that_another_has(whole: Path, killed: Path) -> None:
    assert compared(killed)[1].missing_runs("bpb.docs")
    frame = read_frame(whole)
    gone = {
        place: v for place, v in frame.values.items() if not (place[0].startswith("control/") and "docs" in place[2])
    }
    comparisons = Comparisons(replace(frame, values=gone))
    assert not comparisons.missing_runs("bpb.docs")  # a whole arm is missing: the others' table is complete
    assert not comparisons.missing_runs("bpb.math")


def test_a_diverged_seed_is_not_averaged_over(killed: Path) -> None:
    frame, comparisons = compared(killed)
    d = comparisons.to_baseline["decay.lr.shape=constant", "bpb.docs"]
    assert d.seeds == ("d1", "d3")
    assert d.df == 13 - 5 - 3 + 1
    claim = next(c for c in claims(frame, comparisons)["claims"] if c["arm"] == d.arm and c["metric"] == "bpb.docs")
    assert (claim["planned"], claim["done"], claim["diverged"], claim["n_seeds"]) == (3, 2, 1, 2)


def test_an_arm_whose_runs_all_diverged_is_not_estimated(tmp_path: Path) -> None:
    every = frozenset(f"math=0.3/d{i}" for i in (1, 2, 3))
    _, comparisons = compared(fabricate(tmp_path, Design(diverged=every)))
    d = comparisons.to_baseline["math=0.3", "bpb.math"]
    assert (d.verdict, d.estimate, d.reason) == ("not estimated", None, "every run of math=0.3 diverged")
    assert comparisons.to_baseline[NO_EFFECT, "bpb.math"].verdict is not None


def test_arms_without_a_common_seed_are_not_compared(tmp_path: Path) -> None:
    missing = frozenset({"default/d1", "math=0.3/d2", "math=0.3/d3"})
    _, comparisons = compared(fabricate(tmp_path, Design(missing=missing)))
    d = comparisons.to_baseline["math=0.3", "bpb.math"]
    assert (d.estimate, d.reason) == (None, "math=0.3 and default have no seed in common")


def test_missing_runs_widen_the_interval_through_a_smaller_correlation(killed: Path) -> None:
    _, comparisons = compared(killed)
    d = comparisons.to_baseline[NO_EFFECT, "bpb.docs"]
    assert d.critical is not None and d.df == 6
    assert d.critical > statistics.dunnett_critical(4, 6, 0.05 / 3, 0.5)


def test_item_error_of_bits_per_byte_is_paired_by_document(whole: Path) -> None:
    frame, comparisons = compared(whole)
    d = comparisons.to_baseline["control", "bpb.docs"]
    alone = statistics.ratio_estimate(*_bits_and_bytes(frame, "control/d1"))
    assert d.item_se is not None and d.items == 24
    assert d.item_se < 0.3 * alone.se  # documents differ far more than two models on one document


def _bits_and_bytes(frame: Frame, run: str) -> tuple[np.ndarray, np.ndarray]:
    items = frame.items(run, "end", frame.by_name["bpb.docs"])
    assert items is not None
    return items.numerator, items.denominator


def test_item_error_of_an_average_combines_its_tasks(whole: Path) -> None:
    _, comparisons = compared(whole)
    found = comparisons.to_baseline
    sums, facts = (found["math=0.3", f"quickstart.{task}.acc"].item_se for task in ("sums", "facts"))
    average = found["math=0.3", "quickstart.average"]
    assert sums is not None and facts is not None
    assert average.item_se == pytest.approx(math.hypot(sums, facts) / 2)
    assert average.items == 120


def test_items_that_are_not_the_same_are_not_paired(tmp_path: Path) -> None:
    root = fabricate(tmp_path, Design())
    folder, weights = Folder(root), key("weights", key("decay", "control", "d2"))
    results = evaluations.read_results(folder, weights, key("task", "docs"))
    samples = evaluations.read_samples(folder, weights, key("task", "docs"))
    assert results is not None
    hashes = samples.column("doc_hash").to_pylist()
    hashes[5] = key("another document")
    changed = samples.set_column(samples.column_names.index("doc_hash"), "doc_hash", pyarrow.array(hashes))
    shutil.rmtree(folder.evaluation(weights, key("task", "docs")))
    evaluations.write(folder, weights, key("task", "docs"), results, changed)
    _, comparisons = compared(root)
    assert comparisons.to_baseline["control", "bpb.docs"].item_se is None
    assert comparisons.to_baseline["control", "bpb.math"].item_se is not None


def test_a_claims_mde_names_the_variance_that_it_rests_on(whole: Path) -> None:
    frame, comparisons = compared(whole)
    for claim in claims(frame, comparisons)["claims"]:
        assert claim["variance"]["measured"] is True
        assert claim["variance"]["df"] == 8
        assert claim["mde"] > 0
        assert all((whole / folder / "results.json").is_file() for folder in claim["evaluations"])
        assert len(claim["runs"]) == 6


def test_an_answer_never_reads_as_if_its_interval_held_0(whole: Path) -> None:
    metric = read_frame(whole).by_name["quickstart.sums.acc"]
    found = Difference(metric, "a", "default", ("d1",), estimate=-0.038, adjusted=(-0.0754, -0.0004))
    assert _real(found, metric, 1) == "`a` by 3.8 pp (0.04 to 7.5)"


def test_the_answer_says_which_differences_are_real_and_what_could_not_be_seen(whole: Path) -> None:
    frame, comparisons = compared(whole)
    text = {metric.name: " ".join(clauses) for metric, clauses in answers(frame, comparisons)}["bpb.docs"]
    assert text.startswith("Worse than `default`: `decay.lr.shape=constant` by 0.12")
    assert "not distinguishable from `default`:" in text and f"`{NO_EFFECT}`" in text
    mde = comparisons.to_baseline[NO_EFFECT, "bpb.docs"].mde
    assert mde is not None and f"a true difference of {mde:.4f} bits/byte" in text
