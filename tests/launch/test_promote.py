"""A run of another study as the base of one: at which rate it was left, and what is said where that cannot be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.launch import prepare
from harness.launch.progress import Silent
from harness.launch.promote import promoted
from harness.launch.run import Options, run
from harness.plan.schedule import end_rate
from harness.store import states
from harness.store.atomic import read_json
from harness.store.layout import Folder
from harness.study.errors import UserError

NEXT = """\
schema: 1
study: next
base: {{run: tiny/default/d1, optimizer: cold{lr}}}
sources:
  sums: {{builtin: arithmetic, documents: 200}}
train: {{batch_tokens: 256, mixture: {{sums: 1.0}}, context: {{length: 64}}, optimizer: {{lr: 1.0e-3}}}}
stages:
  more: {{tokens: 2560, lr: {{shape: linear, warmup: 256, to: 0}}}}
"""


@pytest.fixture
def tiny(unscored: Path) -> Folder:
    """Six runs that ended in an open-ended decay."""
    text = unscored.read_text().replace("{shape: linear, to: 0}", "{shape: inverse-sqrt}")
    allow = ", ".join(f"{arm}: [schedule-open]" for arm in ("default", "more=0", "more=0.3"))
    unscored.write_text(text.replace("{control: more=0}", f"{{control: more=0, allow: {{{allow}}}}}"))
    options = Options(unscored, unscored.parent / "results" / "tiny", executor="debug", perform="stub_work:perform")
    return run(options, Silent()).folder


def promote(folder: Folder, lr: str = "") -> Path:
    """The model folder that a study begins with."""
    path = folder.root.parents[1] / "next.yaml"
    path.write_text(NEXT.format(lr=lr))
    study = promoted(prepare.load(path), Folder(folder.root.parent / "next"))
    return Path(str(study.arms[0].treatment.base.model["path"]))


def test_a_run_that_ended_in_an_open_ended_decay_was_left_at_a_rate(tiny: Folder) -> None:
    assert promote(tiny).name == "model"
    state = tiny.state(read_json(tiny.run_json("default", "d1"))["path"][-1])
    done = states.read_done(state)
    assert done is not None
    left = end_rate(states.read_segment(state)["pieces"][-1]["science"]["lr"], done.tokens)
    assert promote(tiny, f", lr: {left!r}").name == "model"
    with pytest.raises(UserError, match=rf"`base\.lr: 0\.5`, but .* ended at a rate of {left:g}; write that"):
        promote(tiny, ", lr: 0.5")


@pytest.mark.parametrize("content", [None, "", "{}"])
def test_a_run_whose_rate_cannot_be_read_is_refused_where_a_rate_is_declared(tiny: Folder, content: str | None) -> None:
    state = tiny.state(read_json(tiny.run_json("default", "d1"))["path"][-1])
    state.segment_json.unlink() if content is None else state.segment_json.write_text(content)
    assert promote(tiny).name == "model"
    with pytest.raises(UserError, match=r"at which rate .* ended cannot be told"):
        promote(tiny, ", lr: 1e-3")
