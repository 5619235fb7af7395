"""What a study compares is measured by its tasks, or refused before anything is trained, with the nearest name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from harness import cli
from harness.evals.measured import check_measured, measures
from harness.evals.settings import EvalSettings, EvalTask
from harness.evals.suites import resolve_tasks
from harness.study.errors import UserError
from harness.study.schema import EvalSpec


@pytest.fixture(scope="module")
def tasks() -> list[EvalTask]:
    with pytest.MonkeyPatch.context() as patch:
        find = importlib.util.find_spec
        patch.setattr(importlib.util, "find_spec", lambda name: find(name) or name)
        suites = ["quickstart@1", "base@1", "math@1", "long@1"]
        return resolve_tasks(EvalSpec.model_validate({"suites": suites}), {}, EvalSettings(max_length=64))


@pytest.mark.parametrize(
    "metric",
    [
        "math.gsm8k.correct_prob",
        "math.gsm8k.exact_match,flexible-extract",
        "math.minerva_math500.math_verify",
        "base.hellaswag.acc_norm",
        "base.lambada_openai.bits_per_byte",
        "base.average",
        "long.average",
        "math.average",
        "long.needle_8k.correct_prob",
        "quickstart.repeated_passage.bits_per_byte",
        "bpb.web",
    ],
)
def test_what_a_task_measures_can_be_compared(metric: str, tasks: list[EvalTask]) -> None:
    check_measured([metric], tasks)


@pytest.mark.parametrize(
    ("metric", "near"),
    [
        ("math.gsm9k.correct_prob", "math.gsm8k.correct_prob"),
        ("math.gsm8k.correct_probb", "math.gsm8k.correct_prob"),
        ("math.gsm8k.exact_match", "math.gsm8k.exact_match,"),
        ("long.needle_64k.acc", "long.needle_4k.acc"),
        ("quickstart.arithmetic.bits_per_byte", "quickstart.arithmetic"),
    ],
)
def test_what_no_task_measures_is_refused_with_the_nearest_name(metric: str, near: str, tasks: list[EvalTask]) -> None:
    with pytest.raises(UserError, match="measure") as caught:
        check_measured([metric], tasks)
    assert near in str(caught.value) and "\n" not in str(caught.value)


def test_the_average_of_a_suite_of_losses_is_refused() -> None:
    """It was accepted once, and then no report had it."""
    losses = [_task("a", "bits_per_byte"), _task("b", "perplexity,none")]
    with pytest.raises(UserError, match=r"accuracies and probabilities.*bits_per_byte, perplexity,none"):
        check_measured(["mine.average"], losses)
    check_measured(["mine.average"], [*losses, _task("c", "exact_match,strict")])


def _task(name: str, headline: str) -> EvalTask:
    return EvalTask(name, "mine", name, "lm_eval", None, headline, None, None, None)


def test_every_headline_of_a_suite_is_among_what_its_task_measures(tasks: list[EvalTask]) -> None:
    for task in tasks:
        assert task.headline in measures(task)


def test_the_place_in_the_study_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "sweeps" / "quickstart.yaml").read_text()
    study = tmp_path / "study.yaml"
    study.write_text(text.replace("primary: [bpb.docs", "primary: [quickstart.arithmetic.acx, bpb.docs"))
    assert cli.call(["plan", str(study), "-o", str(tmp_path / "out")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    line = next(number for number, line in enumerate(study.read_text().splitlines(), 1) if "arithmetic.acx" in line)
    assert (
        f"study.yaml:{line}:" in said and "compare.primary[0]: `quickstart.arithmetic` does not measure `acx`" in said
    )
