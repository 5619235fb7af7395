"""`ablate run --smoke`: every shape is tried and restored in a folder of its own, and what is broken is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.launch import prepare, smoke
from harness.launch.progress import Silent
from harness.launch.run import Options
from harness.plan.schedule import schedule
from harness.store.checkpoints import CheckpointMarker
from harness.store.layout import Folder
from harness.study.errors import UserError
from tests.launch.conftest import TINY

EVALUATED = """\
  - cases:
      longer: {stages.decay.context: {length: 128, rope: {type: linear, factor: 2}}}
eval: {at: [stable, end, every 2560], max_length: 64, held_out: {window: 64, documents: 4}}
compare: {control: more=0, primary: [bpb.sums]}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        TINY.replace("seeds:", EVALUATED.partition("eval")[0] + "seeds:") + "eval" + EVALUATED.partition("eval")[2]
    )
    return path


def tried(study: Path, **changes: Any) -> smoke.Smoke:
    return smoke.smoke(Options(study, study.parent / "results", executor="debug", **changes), Silent())


def test_an_arm_that_carries_the_optimizer_of_the_base_is_tried_beside_those_that_do_not(tmp_path: Path) -> None:
    text = re.sub(r"base:.*?\nsources:", "base: {model: ./here}\nsources:", TINY, flags=re.DOTALL)
    study = tmp_path / "tiny.yaml"
    study.write_text(text.replace("seeds:", "  - cases: {goes-on: {base.optimizer: carried}}\nseeds:"))
    short = smoke.shortened(prepare.load(study))
    assert "goes-on" in [arm.name for arm in short.arms]
    assert {arm.treatment.base.optimizer for arm in short.arms} == {"cold", "carried"}


@pytest.mark.slow
def test_every_shape_is_tried_and_restored_beside_the_results(study: Path) -> None:
    result = tried(study)
    assert result.problem is None and result.exit_code == 0
    shapes = {(one.stage, one.what) for one in result.tried}
    assert shapes == {
        ("stable", "64 masked concat, fp32, adamw"),
        ("decay", "64 masked concat, fp32, adamw"),
        ("decay", "128 linear masked concat, fp32, adamw"),
    }
    assert all(one.restored > 0 and one.speed > 0 for one in result.tried)
    assert {"bpb.sums", "bpb.more"} <= set(result.tasks)
    assert result.hours is not None and result.hours > 0
    assert not Folder(study.parent / "results").plan_json.exists(), "the real results are untouched"
    assert max(len(line) for line in smoke.text(result).splitlines()) <= 80

    leftover = result.folder / "leftover"
    leftover.touch()
    assert tried(study).problem is None
    assert not leftover.exists(), "a second one begins anew"


def test_a_study_that_evaluates_nothing_is_tried_too(tmp_path: Path) -> None:
    result = tried(plain(tmp_path, "stages.decay.lr.to: [0.5x]"))
    assert result.problem is None and result.tasks == []
    assert [(one.stage, one.restored > 0) for one in result.tried] == [("decay", True)]


def plain(tmp_path: Path, axis: str) -> Path:
    (tmp_path / "plain.yaml").write_text(
        TINY.replace(", mixture: {sums: 0.5, more: 0.5}", "").partition("ablate:")[0]
        + f"ablate:\n  - one_at_a_time: {{{axis}}}\n"
    )
    return tmp_path / "plain.yaml"


def test_arms_of_other_batches_are_tried_although_four_batches_are_other_tokens(tmp_path: Path) -> None:
    result = tried(plain(tmp_path, "stages.decay.batch_tokens: [128]"))
    assert result.problem is None
    assert {(one.arm, one.stage) for one in result.tried} >= {("decay.batch_tokens=128", "decay")}


def test_what_a_run_would_refuse_to_compare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unequal-tokens"):
        tried(plain(tmp_path, "stages.decay.tokens: [3840]"))


def test_a_folder_that_something_else_made_is_not_replaced(study: Path) -> None:
    (study.parent / "results.smoke").mkdir()
    (study.parent / "results.smoke" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is no smoke folder"):
        tried(study)
    assert (study.parent / "results.smoke" / "thesis.tex").exists()


def test_a_restore_that_loses_the_optimizer_is_found(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.train import prepare

    load = prepare.restore_optimizer

    def forgets(saved: CheckpointMarker, *rest: Any) -> None:
        if saved.path.name not in ("0", "12800"):  # a checkpoint inside a segment
            return
        load(saved, *rest)

    monkeypatch.setattr(prepare, "restore_optimizer", forgets)
    result = tried(study)
    assert result.exit_code == 1
    assert result.problem is not None and "came to other weights than before" in result.problem


def test_a_task_that_cannot_run_is_found(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study.parent / "broken.yaml").write_text(
        "task: broken\noutput_type: loglikelihood_rolling\ndataset_path: json\n"
        "dataset_kwargs: {data_files: {test: nowhere.jsonl}}\ntest_split: test\n"
        "doc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    arguments = ["run", str(study), "-o", str(study.parent / "results"), "--smoke", "--executor", "debug"]
    assert cli.call([*arguments, "--set", "eval.tasks=[broken.yaml]"]) in (1, 2)
    said = capsys.readouterr()
    assert "nowhere.jsonl" in said.out + said.err
    assert "Traceback" not in said.out + said.err


@pytest.mark.parametrize("whole", [False, True], ids=["of a stage", "over all stages"])
def test_the_steps_of_a_schedule_stay_inside_its_shortened_stages(tmp_path: Path, whole: bool) -> None:
    steps = "{shape: multi-step, warmup: 2560, milestones: [0.3, 0.5, 0.8], factors: [0.5, 0.2, 0.1]}"
    text = TINY.replace("lr: {shape: constant, warmup: 2560}", f"lr: {steps}")
    if whole:
        text = TINY.replace(", lr: {shape: constant, warmup: 2560}", "").replace(", lr: {shape: linear, to: 0}", "")
        text = text.replace("stages:", f"lr: {steps}\nstages:")
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    (treatment, *_) = [arm.treatment for arm in smoke.shortened(prepare.load(path)).arms]
    pieces = schedule(treatment)
    assert [first for first, _, _ in pieces] == [0, *(last for _, last, _ in pieces[:-1])]
    assert pieces[-1][1] == treatment.tokens == 8 * 256 and all(first < last for first, last, _ in pieces)
    ends = [piece["value"] for _, _, piece in pieces if piece["shape"] == "constant"]
    assert ends == pytest.approx([3e-3, 3e-3 * 0.2, 3e-3 * 0.1])
