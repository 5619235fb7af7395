"""Merges of a study that is trained and evaluated in earnest: the weights are those of the exported folders."""

from __future__ import annotations

import itertools
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from analysis.frame import read_frame
from harness.launch import smoke, verify
from harness.launch.executor import DebugExecutor
from harness.launch.export import export
from harness.launch.progress import Silent
from harness.launch.run import Options, Report, run
from harness.launch.worker import load_perform
from harness.store import attempts, states
from harness.store.atomic import read_json
from harness.store.layout import Folder
from tests.launch.test_merged import RUNS, parts_of, path_of, report_of
from tests.launch.test_merged import write as write_tiny

END = 7680
WINDOW = 2048


def write(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = write_tiny(folder)
    text = path.read_text().replace("tokens: 12800", "tokens: 5120").replace("tokens: 6400", "tokens: 2560")
    path.write_text(text.replace("at: [stable, end]", "at: [end]").replace("over: 2560", f"over: {WINDOW}"))
    return path


def bring(study: Path, **changes: object) -> Report:
    return run(Options(study, study.parent / "results", executor="debug", yes=True, **changes), Silent())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run once. The tests of this module write nothing into its folder."""
    root = tmp_path_factory.mktemp("merged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABLATE_CACHE", str(root / "cache"))
        report = bring(write(root))
        assert report.ended.exit_code == 0 and {one.end for one in report.ended.runs} == {"done"}
    return root


def exported(folder: Folder, which: str, out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(export(folder, which, out) / "model.safetensors")
    return found


def test_a_soup_is_the_mean_of_the_exported_folders_bit_for_bit(brought: Path, tmp_path: Path) -> None:
    folder = Folder(brought / "results")
    one, two = (exported(folder, f"more=0.3/d{seed}", tmp_path / f"d{seed}") for seed in (1, 2))
    soup = exported(folder, "soup", tmp_path / "soup")
    assert all(torch.equal(soup[name], ((one[name].double() + two[name].double()) / 2).float()) for name in soup)
    assert soup.keys() == one.keys() and not any(torch.equal(one[name], two[name]) for name in soup if "embed" in name)
    card = (tmp_path / "soup" / "README.md").read_text()
    assert "more=0.3/d1 at token 7,680 (1/2)" in card and "Trained on" not in card
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "soup").config.tie_word_embeddings


def test_weights_count_as_they_are_given(brought: Path, tmp_path: Path) -> None:
    folder = Folder(brought / "results")
    one, two = (exported(folder, f"{arm}/d2", tmp_path / arm) for arm in ("more=0", "more=0.3"))
    both = exported(folder, "both/d2", tmp_path / "both")
    assert all(torch.equal(both[name], ((one[name].double() + 2 * two[name].double()) / 3).float()) for name in both)


def test_checkpoints_of_the_trunk_are_kept_for_their_mean_which_is_the_decayed_trunk(brought: Path) -> None:
    folder = Folder(brought / "results")
    parts = parts_of(folder, "wsm/d1")
    kept = [load_file(_final(folder, part) / "model.safetensors") for part in parts]
    assert [states.read_done(folder.state(part)).tokens for part in parts] == list(range(END - WINDOW, END + 1, 512))  # type: ignore[union-attr]
    assert parts[-1] == path_of(folder, "trunk/d1")[-1]
    merged = load_file(_final(folder, path_of(folder, "wsm/d1")[0]) / "model.safetensors")
    for name, tensor in merged.items():
        mean = sum(part[name].double() for part in kept) / 5  # type: ignore[operator]
        assert torch.equal(tensor, mean.float())
        decayed = kept[0][name].double()
        for i, (before, after) in enumerate(itertools.pairwise(kept), start=1):
            decayed += float(1 - Fraction(i, 5)) * (after[name].double() - before[name].double())
        torch.testing.assert_close(tensor.double(), decayed, rtol=1e-6, atol=1e-8)


def _final(folder: Folder, state: str) -> Path:
    done = states.read_done(folder.state(state))
    assert done is not None and done.checkpoint is not None
    return folder.state(state).checkpoints / done.checkpoint / "model"


def test_merges_are_evaluated_and_reported_as_any_run(brought: Path) -> None:
    folder = Folder(brought / "results")
    frame = read_frame(folder.root)
    values = {name: frame.values[name, "end", "bpb.sums"].value for name in RUNS}
    assert len(set(values.values())) == len(values) and all(0 < value < 20 for value in values.values())
    page = report_of(folder)
    assert "| `both` | 2 of 2 |" in page and "| `wsm` | 2 of 2 |" in page and "| soup (one model of" in page
    costs = read_json(folder.plan_json)["totals"]
    assert costs["tokens"] == 2 * (5120 + 4 * 2560) and costs["tokens_unshared"] == 8 * END


def test_a_merged_run_trained_alone_comes_to_the_same_weights(brought: Path, tmp_path: Path) -> None:
    folder = Folder(brought / "results")
    settings = verify.numerics_of(folder, "wsm/d1")
    env = attempts.read_env(folder.state(path_of(folder, "wsm/d1")[0]), 0)
    assert env is not None and set(env["numerics"]) == {"device", "threads", "torch"}
    executor = DebugExecutor(load_perform("harness.launch.perform:perform"))
    found = verify.retrain(folder, "wsm/d1", tmp_path / "alone", executor, settings, Silent())
    assert [point.label for point in found] == ["end"] and found[0].equal
    assert verify.damage(folder)[1] == []


@pytest.mark.slow
def test_without_sharing_merges_come_to_the_same_weights(brought: Path, tmp_path: Path) -> None:
    study = write(tmp_path)
    assert bring(study, share=False).ended.exit_code == 0
    shared, alone = Folder(brought / "results"), Folder(tmp_path / "results")
    for name in RUNS:
        pair = [states.read_done(folder.state(path_of(folder, name)[0])) for folder in (shared, alone)]
        assert pair[0] is not None and pair[1] is not None and pair[0].weights == pair[1].weights, name


@pytest.mark.slow
def test_a_rehearsal_makes_a_merge_of_each_kind(tmp_path: Path) -> None:
    study = write(tmp_path)
    result = smoke.smoke(Options(study, tmp_path / "results", executor="debug"), Silent())
    assert result.problem is None
    folder = Folder(tmp_path / "results.smoke")
    made = [run["name"] for run in read_json(folder.plan_json)["runs"] if run.get("made_of")]
    assert made == ["soup/d1", "both/d1", "wsm/d1"]
    assert all(states.read_done(folder.state(path_of(folder, name)[0])) is not None for name in made)
    shutil.rmtree(folder.root)
