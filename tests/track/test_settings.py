"""Where the runs of a study go: the study first, then the environment, then a default; never a key in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.study import load_study
from harness.study.errors import UserError
from harness.track import check
from harness.track.settings import Target, declared, targets


def settings_of(tmp_path: Path, track: str) -> dict[str, dict[str, object]]:
    from tests.track.conftest import STUDY

    path = tmp_path / "study.yaml"
    path.write_text(STUDY + f"track: {track}\n")
    return declared(load_study(path).spec.track)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("none", {}),
        ("wandb", {"wandb": {}}),
        (
            "{wandb: {project: p, tags: [a]}, tensorboard: {}}",
            {"wandb": {"project": "p", "tags": ["a"]}, "tensorboard": {}},
        ),
    ],
)
def test_what_is_declared_is_what_was_written(tmp_path: Path, written: str, kept: dict[str, object]) -> None:
    assert settings_of(tmp_path, written) == kept


def test_the_study_wins_over_the_environment_and_it_is_said() -> None:
    environment = {"WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team", "WANDB_API_KEY": "k" * 40}
    (target,), said = targets({"wandb": {"project": "ours"}}, "study", environment)
    assert (target.project, target.entity, target.offline) == ("ours", "team", False)
    assert said == ["wandb: the study's project `ours` is used, not WANDB_PROJECT=theirs"]


def test_without_a_project_runs_lie_under_the_study() -> None:
    found, _ = targets({"wandb": {}, "trackio": {}, "tensorboard": {}}, "study", {"WANDB_MODE": "offline"})
    assert [(t.name, t.project) for t in found] == [("wandb", "study"), ("trackio", "study"), ("tensorboard", None)]


def test_disabled_sends_nothing_and_says_so() -> None:
    found, (said,) = targets({"wandb": {}}, "study", {"WANDB_MODE": "disabled"})
    assert found == [] and "nothing is sent; `ablate sync` can send it later" in said


def test_a_mode_that_is_mistyped_is_refused_and_sends_nothing() -> None:
    """Taken for online it would send what was meant to stay here."""
    with pytest.raises(UserError, match=r"WANDB_MODE=ofline is no mode of W&B; did you mean `offline`"):
        targets({"wandb": {}}, "s", {"WANDB_MODE": "ofline"})


def test_what_was_sent_to_one_place_says_nothing_of_another() -> None:
    places = [
        Target("wandb", "p", "me", False, "https://one"),
        Target("wandb", "p", "you", False, "https://one"),
        Target("wandb", "p", "me", False, "https://two"),
        Target("wandb", "q", "me", False, "https://one"),
        Target("wandb", "p", "me", True, "https://one"),
        Target("trackio", "p"),
        Target("tensorboard"),
    ]
    assert len({place.destination for place in places}) == len(places)
    for place in places:
        assert Target.from_json(json.loads(json.dumps(place.to_json()))) == place


def test_a_key_is_looked_for_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("wandb")[0] is False and "wandb login" in check("wandb")[2]
    monkeypatch.setenv("WANDB_API_KEY", "secret" * 8)
    ok, sentence, _ = check("wandb")
    assert ok and sentence.endswith("logged in") and "secret" not in sentence
