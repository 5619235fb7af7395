"""What `ablate export` writes: a folder that transformers opens, and a card that says what it holds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from harness import cli
from harness.launch import card as cards
from harness.launch.export import export
from harness.launch.progress import Silent
from harness.launch.run import Options, run
from harness.store.atomic import read_json, write_json
from harness.store.layout import Folder
from harness.study.errors import UserError
from tests.launch.conftest import SCORED, TINY

STUB = "stub_work:perform"
AA = "controls:\n  - {name: aa, same_as: default, seeds: {data: [4, 5]}}\n"


@pytest.fixture
def stubbed(tmp_path: Path) -> Folder:
    """A scored study with an A/A control, its work stubbed: every score is 2.0."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("study: tiny", "study: tiny\nquestion: Is *more* better | or <worse>?") + AA + SCORED)
    return run(Options(path, tmp_path / "results", executor="debug", perform=STUB), Silent()).folder


def card_of(folder: Folder, which: str, out: Path) -> str:
    return (export(folder, which, out) / "README.md").read_text()


def front_matter(card: str) -> dict[str, object]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found is not None
    return dict(YAML(typ="safe", pure=True).load(found[1]))


@pytest.mark.filterwarnings("ignore")
def test_transformers_opens_what_was_trained_and_its_average_which_are_two_sets_of_weights(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    study = TINY.replace("lr: 3.0e-3}", "lr: 3.0e-3, ema: 0.9}").replace("12800", "2560").replace("6400", "1280")
    study = study.replace("warmup: 2560", "warmup: 256").split("ablate:")[0]
    path = tmp_path / "tiny.yaml"
    scored = "eval: {at: [end, ema], max_length: 64, held_out: {window: 64, documents: 4}, continuations: 0}\n"
    path.write_text(f"{study}seeds: {{data: [1]}}\n{scored}")
    folder = run(Options(path, tmp_path / "results", executor="debug"), Silent()).folder
    weights = []
    for which in ("default/d1", "default/d1@ema"):
        out = export(folder, which, tmp_path / which.replace("/", "-"))
        model = AutoModelForCausalLM.from_pretrained(out)
        ids = AutoTokenizer.from_pretrained(out)("1 + 1 = 2", return_tensors="pt")["input_ids"]
        assert torch.isfinite(model(ids).logits).all()
        weights.append(model.get_input_embeddings().weight.detach())
    assert not torch.equal(*weights)
    card = (tmp_path / "default-d1" / "README.md").read_text()
    assert "| decay | 2,560 to 3,840 | 256 | 64, documents masked | sums 50 %, more 50 % | linear 0.003 to 0 |" in card
    assert "moving average" not in card and "ema 0.9" in card
    assert "moving average" in (tmp_path / "default-d1@ema" / "README.md").read_text()


def test_the_card_has_a_head_the_scores_with_their_spread_and_where_the_weights_come_from(
    stubbed: Folder, tmp_path: Path
) -> None:
    card = card_of(stubbed, "more=0.3/d2", tmp_path / "out")
    head = front_matter(card)
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mid-training", "ablation", "tiny"],
    }
    assert r"| bpb.sums (bits/byte) | lower | 2 | 1 | 2 | 0 | 2 |" in card
    assert r"Is \*more\* better \| or \<worse\>?" in card
    state = read_json(stubbed.run_json("more=0.3", "d2"))["path"][-1]
    done = read_json(stubbed.state(state).done)
    for fact in (state, done["weights"], "data 2", "No license was chosen", "stages.decay.mixture"):
        assert fact in card
    assert "Differences to the baseline" in card  # the report was built at the run's end
    shutil.rmtree(stubbed.report)
    assert "Differences" not in card_of(stubbed, "more=0.3/d2", tmp_path / "without")


def test_differences_are_those_of_the_report(stubbed: Folder, tmp_path: Path) -> None:
    claim: dict[str, object] = {
        "metric": "bpb.sums",
        "arm": "more=0.3",
        "baseline": "default",
        "unit": "bits/byte",
        "difference": -0.05,
    }
    claim |= {"ci95": [-0.08, -0.02], "adjusted_ci": None, "verdict": "better", "reason": None, "n_seeds": 2}
    write_json(stubbed.report / "claims.json", {"schema": 1, "claims": [claim, {**claim, "arm": "more=0"}]})
    card = card_of(stubbed, "more=0.3/d1", tmp_path / "out")
    assert card.count("| default | -0.05 | -0.08 to -0.02 |  | better | 2 |") == 1
    assert "-0.05" not in card_of(stubbed, "default/d1", tmp_path / "other")


def test_hub_ids_of_the_base_and_of_the_sources_stand_in_the_head(stubbed: Folder, tmp_path: Path) -> None:
    stubbed.source_manifest("sums").parent.mkdir(parents=True, exist_ok=True)
    base, source = read_json(stubbed.base_manifest), read_json(stubbed.source_manifest("sums"))
    write_json(stubbed.base_manifest, {**base, "kind": "hub", "asked": {"model": {"path": "owner/model"}}})
    write_json(stubbed.source_manifest("sums"), {**source, "declared": {"hf": "owner/texts"}})
    end = stubbed.state(read_json(stubbed.run_json("default", "d1"))["path"][-1])
    segment = read_json(end.segment_json) if end.segment_json.exists() else {"schema": 1}
    science: dict[str, object] = {
        "lr": {"shape": "constant", "value": 0.1},
        "mixture": {"sums": "1/1"},
        "batch_tokens": 256,
    }
    science |= {"context": {"length": 64, "documents": "masked", "rope": {"type": "theta", "theta": 5e5}}}
    science |= {"optimizer": {"name": "sgd", "clip": None}, "precision": "fp32"}
    piece = {"start": 0, "end": 512, "stage": "stable", "science": science}
    write_json(end.segment_json, {**segment, "pieces": [piece]})
    card = card_of(stubbed, "default/d1", tmp_path / "out")
    assert front_matter(card)["base_model"] == "owner/model" and front_matter(card)["datasets"] == ["owner/texts"]
    assert (
        "| 64, documents masked, RoPE theta (theta 500000) | sums 100 % | constant 0.1 | sgd, clip off, fp32 |" in card
    )


def test_a_control_is_exported_and_called_one(stubbed: Folder, tmp_path: Path) -> None:
    card = card_of(stubbed, "aa/d4", tmp_path / "out")
    assert "aa is a control (A/A)" in card and "Nothing but the seeds." in card
    assert "control" not in card_of(stubbed, "default/d1", tmp_path / "other")


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("default/d1@emma", "has no point `emma`"),
        ("default/d1@dekay", "did you mean `decay`?"),
        ("default/d1@", "expected a point behind it"),
        ("default/d3", "did you mean `default/d"),
        ("defualt/d1", "did you mean `default`?"),
        ("default@end", "name one of them: default/d1, default/d2"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(
    stubbed: Folder, tmp_path: Path, which: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(["export", str(stubbed.root), which, str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_target_that_exists_is_left_as_it_is(stubbed: Folder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    for target in (out, out / "mine", dangling):
        with pytest.raises(UserError, match="exists already"):
            export(stubbed, "default/d1", target)
    assert [path.name for path in out.iterdir()] == ["mine"] and (out / "mine").read_text() == "kept"
    assert dangling.is_symlink()


def test_names_cannot_break_the_card() -> None:
    assert cards.plain("a|b\n# c `d` [e](f) <g>") == r"a\|b \# c \`d\` \[e\](f) \<g\>"
    assert json.loads(json.dumps(cards.plain("x_y"))) == r"x\_y"
