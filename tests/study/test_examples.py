"""The studies of `tests/examples`, as users wrote them: what they plan, byte for byte as they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.launch import prepare
from harness.plan import render
from harness.store.layout import Folder

EXAMPLES = Path(__file__).parents[1] / "examples"
SWEEPS = Path(__file__).parents[2] / "sweeps"
BATCH = 2**19


def plan(name: str, folder: Path, path: Path = EXAMPLES) -> dict[str, Any]:
    return prepare.planned(prepare.load(path / f"{name}.yaml"), Folder(folder)).plan.to_json()


def test_the_mixture_study(tmp_path: Path) -> None:
    found = plan("mixture", tmp_path)
    mixtures = {arm["name"]: arm["changes"].get("stages.decay.mixture") for arm in found["arms"]}
    assert mixtures == {
        "default": None,
        "math=0": {"web": 0.9, "code": 0.1, "math": 0},
        "math=0.1": {"web": 0.8, "code": 0.1, "math": 0.1},
        "math=0.3": {"web": 0.6, "code": 0.1, "math": 0.3},
        "math=0.5": {"web": 0.4, "code": 0.1, "math": 0.5},
        "without-web": {"web": 0, "code": 0.25, "math": 0.75},
        "without-code": {"web": "2/3", "code": 0, "math": "1/3"},
        "without-math": {"web": "6/7", "code": "1/7", "math": 0},
        "control": {"web": 0.85, "code": 0.12, "math": 0.03},
        "aa": None,
    }
    assert {arm["name"]: arm["same_as"] for arm in found["arms"]}["math=0.3"] == "default"
    assert Counter(run["arm"] for run in found["runs"])["aa"] == 3
    assert {run["seed_set"] for run in found["runs"] if run["arm"] == "aa"} == {"d4", "d5", "d6"}
    assert {entry["arm"] for entry in found["held"]} == set(mixtures) - {"default", "math=0.3", "aa"}
    assert found["totals"]["tokens"] == 9 * 3 * round(10e9 / BATCH) * BATCH
    assert [entry for entry in found["lint"] if entry["level"] == "error"] == []


def test_the_decay_study_cuts_one_trunk_at_8_9_and_9_5_billion_tokens(tmp_path: Path) -> None:
    found = plan("decay", tmp_path)
    shapes, lengths = ("linear", "cosine", "1-sqrt"), ("0.5B", "1B", "2B")
    assert {f"decay.lr.shape={shape},decay.tokens={length}" for shape in shapes for length in lengths} | {
        "default",
        "decay.lr.to=0.1x",
        "decay.lr.to=0.01x",
        "no-decay",
        "one-cosine",
    } == {arm["name"] for arm in found["arms"]}
    ends = {run["points"][-1]["tokens"] for run in found["runs"]}
    assert ends == {round(10e9 / BATCH) * BATCH}, "one total, whatever the decay"
    cuts = {
        point["tokens"]
        for run in found["runs"]
        if run["arm"].startswith("decay.lr.shape=linear") or run["arm"] == "default"
        for point in run["points"]
        if point["label"] == "stable"
    }
    assert sorted(round(cut / 1e9, 1) for cut in cuts) == [8.0, 9.0, 9.5]
    trunk = [segment for segment in found["segments"] if segment["stage"] == "stable" and segment["tokens_from"] == 0]
    assert len([segment for segment in trunk if segment["tokens_to"] < 1e9]) == 3, "one-cosine shares the warm-up"
    assert [entry for entry in found["lint"] if entry["level"] == "error"] == []


def test_the_three_axes_cross_in_a_study_that_includes_them(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        f"""\
schema: 1
study: three-axes
include: [{EXAMPLES / "three-axes.yaml"}]
base: {{model: somewhere/base, lr: 1.0e-3}}
sources: {{web: {{files: [web.jsonl]}}, math: {{files: [math.jsonl]}}}}
train: {{batch_tokens: 2^15, mixture: {{web: 0.9, math: 0.1}}, context: {{length: 2048}}, optimizer: {{lr: 1.0e-3}}}}
stages:
  stable: {{tokens: ~10M, lr: {{shape: constant, warmup: ~1M}}}}
  decay: {{tokens: ~1M, lr: {{shape: linear, to: 0}}}}
"""
    )
    found = plan("study", tmp_path / "results", tmp_path)
    assert [arm["name"] for arm in found["arms"][1:]] == [
        f"decay.context.length={length},decay.lr.shape={shape},math={share}"
        for share, shape, length in [
            (0.1, "linear", 2048),
            (0.1, "1-sqrt", 2048),
            (0.3, "linear", 2048),
            (0.3, "linear", 8192),
            (0.3, "1-sqrt", 2048),
            (0.3, "1-sqrt", 8192),
        ]
    ]
    first = {run["path"][0] for run in found["runs"]}
    assert len(first) == 1, "one trunk for all arms and seeds"


@pytest.mark.parametrize(("name", "path", "mass"), [("context", EXAMPLES, 2e9), ("context", SWEEPS, 1e9)])
def test_the_context_studies(name: str, path: Path, mass: float, tmp_path: Path) -> None:
    study = prepare.load(path / f"{name}.yaml")
    prepared = prepare.planned(study, Folder(tmp_path))
    found = prepared.plan.to_json()
    names = [arm["name"] for arm in found["arms"]]
    assert names[:8] == [
        "default",
        *(f"len={length}" for length in (8192, 16384, 32768)),
        "32k-yarn",
        "32k-linear",
        "32k-joined",
        "32k-equal-flops",
    ]
    assert len(names) == 10, "the long window crossed with two shares of long documents, whose inner ratio is kept"
    assert "the length of 32k-equal-flops" in found["unresolved"], "it follows from the base, which is not there yet"
    assert {stage.context.packing for arm in study.arms for stage in arm.treatment.stages} == {"best-fit"}
    lengths = {run["points"][-1]["tokens"] for run in found["runs"] if run["arm"] != "32k-equal-flops"}
    assert [round(tokens / mass, 2) for tokens in lengths] == [1.0], "a longer window is fewer rows, not more tokens"
    assert [entry for entry in found["lint"] if entry["level"] == "error"] == []
    assert "epochs are at most these" in render.text(prepared.plan, {})


@pytest.mark.parametrize("name", ["mixture-ratio", "decay"])
def test_the_studies_on_public_data_plan(name: str, tmp_path: Path) -> None:
    found = plan(name, tmp_path, SWEEPS)
    assert [entry for entry in found["lint"] if entry["level"] == "error"] == []
    assert all(source.startswith("sources.") or source in ("base", "tokenizer") for source in found["unresolved"])
