"""What differs in how arms were computed is listed, with the arms."""

from __future__ import annotations

from pathlib import Path

from analysis import audit
from analysis.frame import read_frame
from harness.store.atomic import append_json_line
from tests.analysis.fabricate import Design, fabricate


def test_arms_whose_attention_ran_on_other_backends_are_listed_and_counts_of_launches_are_not(tmp_path: Path) -> None:
    frame = read_frame(fabricate(tmp_path, Design()))
    assert not [fact for fact in audit.facts(frame) if fact.name.startswith("ran.")]
    for run in frame.runs:
        backend = "math" if run.arm == "control" else "flash"
        said = {"attention": "dense", "sdpa": [backend], "launched": {"rope": len(run.name)}}
        event = {"attempt": 0, "kind": "kernels", "kernels": "torch", **said}
        append_json_line(frame.folder.state(run.path[-1]).events, event)
    found = {fact.name: fact for fact in audit.facts(frame)}
    assert found["ran.sdpa"].differs and not found["ran.attention"].differs
    arms = dict(found["ran.sdpa"].values)
    assert arms["math"] == ("control",) and "default" in arms["flash"] and "control" not in arms["flash"]
    assert "ran.launched" not in found
