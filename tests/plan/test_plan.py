"""The plan says what runs and why: against an empty folder, a finished one, a damaged one, and a changed study."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.plan import cost
from harness.plan.fingerprint import base_state, state_at
from harness.plan.observed import CheckpointSeen, Observed, StateSeen
from harness.plan.plan import Plan, build_plan
from harness.plan.reasons import science_summary
from harness.plan.science import read_pieces
from tests.plan.studies import ITEMS, TASK, identities, study


def finished(plan: Plan, but: Iterable[str] = (), evaluated: bool = True) -> Observed:
    """A folder in which everything that `plan` names is done, but the states in `but`."""
    states = {name: StateSeen("trained", weights="of-" + name, code="c") for name in (*plan.segments, *plan.bases)}
    for name in but:
        del states[name]
    done = {("of-" + item.state, item.task.key) for item in plan.evals} if evaluated else set()
    return Observed(states=states, evaluations=frozenset(done), code="c", previous=plan.record())


def to_train(plan: Plan) -> dict[str, int]:
    return {s.id: s.tokens_to - s.start_tokens for s in plan.segments.values() if s.needed}


def test_totals_count_what_is_shared_once(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    batches = {"total": 195, "decay": 20, "long": 39}
    trunk, decays = batches["total"] - batches["decay"], 2 * batches["decay"] + batches["long"]
    assert plan.totals["tokens"] == 2 * (trunk + decays) * 512
    assert plan.totals["tokens_unshared"] == 2 * 3 * batches["total"] * 512
    assert plan.totals["tokens_to_train"] == plan.totals["tokens"]
    assert plan.totals["flops"] > 6 * plan.totals["tokens"] * 300 * 32


def test_every_run_is_a_chain_from_its_base_to_its_end(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    for run in plan.runs:
        chain = [plan.segments[name] for name in run.path]
        assert chain[0].parent == run.base
        assert chain[0].tokens_from == 0
        assert chain[-1].tokens_to == run.tokens
        for before, after in itertools.pairwise(chain):
            assert after.parent == before.id
            assert after.tokens_from == before.tokens_to


def test_a_segment_file_describes_its_whole_path(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    for segment in plan.segments.values():
        value = plan.segment_json(segment.id)
        assert value["pieces"][0]["start"] == 0
        assert value["pieces"][-1]["end"] == segment.tokens_to == value["tokens_to"]
        assert all(a["end"] == b["start"] for a, b in itertools.pairwise(value["pieces"]))
        assert {piece["science"]["data_seed"] for piece in value["pieces"]} == {plan.runs[segment.run].seeds.data}


def test_a_job_reads_the_names_of_its_path_from_its_segment_file(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    for segment in plan.segments.values():
        value = plan.segment_json(segment.id)
        pieces, data_seeds = read_pieces(value["pieces"])
        assert state_at(base_state(value["base"]), pieces, data_seeds, segment.tokens_to) == segment.id


def test_unshared_runs_have_segments_of_their_own_and_the_same_work(tmp_path: Path) -> None:
    loaded = study(tmp_path)
    shared = build_plan(loaded, identities(), None, [TASK])
    unshared = build_plan(loaded, identities(), None, [TASK], share=False)
    assert unshared.totals["tokens"] == shared.totals["tokens_unshared"]
    owned = [name for run in unshared.runs for name in run.path]
    assert len(owned) == len(set(owned)) == len(unshared.segments)
    for run, alone in zip(shared.runs, unshared.runs, strict=True):
        ends = [(p["end"], p["science"]) for p in unshared.segment_json(alone.path[-1])["pieces"]]
        assert ends == [(p["end"], p["science"]) for p in shared.segment_json(run.path[-1])["pieces"]]


def test_a_finished_folder_trains_nothing(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    again = build_plan(study(tmp_path), identities(), None, [TASK], finished(plan))
    assert to_train(again) == {}
    assert {segment.state for segment in again.segments.values()} == {"reused"}
    assert all(item.done for item in again.evals)
    assert not any(base.needed for base in again.bases.values())


def test_an_arm_that_branches_earlier_trains_only_what_it_needs_and_renames_nobody(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    earlier = ITEMS.replace("[~20k]", "[~20k, ~40k]")
    after = build_plan(study(tmp_path, earlier), identities(), None, [TASK], finished(plan))
    assert {run.name: run.path[-1] for run in plan.runs}.items() <= {r.name: r.path[-1] for r in after.runs}.items()
    work = [segment for segment in after.segments.values() if segment.needed]
    assert sorted({(s.stage, s.state) for s in work}) == [("decay", "new"), ("stable", "recomputed")]
    trunk = next(s for s in work if s.stage == "stable")
    assert "no checkpoint was kept at token" in trunk.reason
    assert f"{trunk.tokens_to:,} tokens again from token 0" in trunk.reason
    # Two seeds: each recomputes the trunk to the earlier branch point, then trains the long decay.
    assert sum(to_train(after).values()) == 2 * 195 * 512
    back = build_plan(study(tmp_path), identities(), None, [TASK], finished(after))
    assert to_train(back) == {}
    assert back.orphans


def test_a_kept_checkpoint_inside_the_trunk_shortens_what_is_recomputed(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    seen = finished(plan)
    run = plan.runs[0]
    name = state_at(run.base, run.pieces, run.data_seeds, 100 * 512)
    observed = Observed(
        seen.states, {name: CheckpointSeen("somewhere", 100 * 512)}, seen.evaluations, seen.previous, seen.code
    )
    after = build_plan(study(tmp_path, ITEMS.replace("[~20k]", "[~20k, ~40k]")), identities(), None, [TASK], observed)
    starts = {s.start_tokens for s in after.segments.values() if s.needed and s.stage == "stable"}
    assert starts == {0, 100 * 512}


@pytest.mark.parametrize("shared", [True, False])
def test_a_checkpoint_kept_exactly_at_the_branch_point_leaves_nothing_to_recompute(
    tmp_path: Path, shared: bool
) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK], share=shared)
    run = plan.runs[0]
    trunk = plan.segments[run.path[0]]
    of_another = state_at(run.base, run.pieces, run.data_seeds, trunk.tokens_to)
    found = {name: CheckpointSeen(name, trunk.tokens_to) for name in (of_another, trunk.id)}
    after = build_plan(study(tmp_path), identities(), None, [TASK], Observed(checkpoints=found), shared)
    again = after.segments[trunk.id]
    assert (again.start_path, again.start_tokens) == (trunk.id, trunk.tokens_to)
    assert again.reason == f"taken from the checkpoint that was kept at token {trunk.tokens_to:,}"
    others = {name: segment.start_path for name, segment in after.segments.items() if name != trunk.id}
    assert set(others.values()) == {None}, "without sharing, a run takes nothing from another"


def test_a_damaged_state_is_recomputed_and_named_only_if_something_needs_it(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    leaf, trunk = plan.runs[0].path[-1], plan.runs[0].path[0]
    for damaged, needed in ((leaf, True), (trunk, False)):
        states = dict(finished(plan).states)
        states[damaged] = StateSeen("damaged", reason="model.safetensors was altered")
        again = build_plan(study(tmp_path), identities(), None, [], Observed(states, code="c"))
        assert set(to_train(again)) == ({damaged} if needed else set())
        if needed:
            assert again.segments[damaged].reason == "model.safetensors was altered"


def test_a_changed_tokenizer_re_keys_everything_and_says_why(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    after = build_plan(study(tmp_path), identities(tokenizer="u"), None, [TASK], finished(plan))
    assert {segment.state for segment in after.segments.values()} == {"re-keyed"}
    assert all("because tokenizer tttttttt…→uuuuuuuu…" in segment.reason for segment in after.segments.values())
    assert not set(after.segments) & set(plan.segments)


def test_what_comes_after_a_divergence_is_neither_trained_nor_counted(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    trunk = plan.runs[0].path[0]
    seen = Observed({trunk: StateSeen("diverged", code="c")}, code="c")
    after = build_plan(study(tmp_path), identities(), None, [TASK], seen)
    other_seed = {name for run in after.runs if trunk not in run.path for name in run.path}
    assert set(to_train(after)) == other_seed
    assert after.totals["tokens_to_train"] == sum(to_train(after).values())


def test_code_that_changed_flags_and_does_not_retrain(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    seen = finished(plan)
    after = build_plan(
        study(tmp_path), identities(), None, [TASK], Observed(seen.states, {}, seen.evaluations, None, code="other")
    )
    assert to_train(after) == {}
    assert {segment.state for segment in after.segments.values()} == {"stale"}


def test_a_missing_evaluation_of_a_lost_state_brings_the_state_back(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    trunk = plan.runs[0].path[1]
    after = build_plan(study(tmp_path), identities(), None, [TASK], finished(plan, but=[trunk]))
    assert trunk in to_train(after)


def test_equal_science_is_one_arm_with_several_names(tmp_path: Path) -> None:
    items = "  - one_at_a_time: {stages.decay.lr.shape: [linear, cosine]}\n  - cases: {same: {train.batch_tokens: 512}}"
    plan = build_plan(study(tmp_path, items), identities(), None, [TASK])
    same_as = {arm.name: arm.same_as for arm in plan.arms}
    assert same_as == {
        "default": None,
        "decay.lr.shape=linear": "default",
        "decay.lr.shape=cosine": None,
        "same": "default",
    }
    assert {run.arm for run in plan.runs} == {"default", "decay.lr.shape=cosine"}


def test_seeds_from_a_stage_train_one_trunk(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path, overrides=("seeds.from=decay",)), identities(), None, [TASK])
    stable = [segment for segment in plan.segments.values() if segment.stage == "stable"]
    assert sum(segment.tokens_to - segment.tokens_from for segment in stable) == 175 * 512


def test_the_json_has_the_fields_of_the_contract(tmp_path: Path) -> None:
    value = build_plan(study(tmp_path), identities(), None, [TASK]).to_json()
    assert {"study", "arms", "runs", "segments", "evals", "totals", "lint"} <= set(value)
    assert {"name", "changes", "fingerprint", "same_as"} <= set(value["arms"][0])
    assert {"name", "arm", "seeds", "path", "points"} <= set(value["runs"][0])
    assert {"label", "segment", "tokens"} <= set(value["runs"][0]["points"][0])
    assert {"id", "kind", "parents", "stage", "tokens_from", "tokens_to", "flops", "state", "reason"} <= set(
        value["segments"][0]
    )
    assert {"point", "suite", "state"} <= set(value["evals"][0])
    assert {"arms", "runs", "segments", "tokens", "tokens_unshared", "flops", "gpu_hours", "gpu_hours_basis"} <= set(
        value["totals"]
    )
    assert {"eval_gpu_hours", "disk_bytes", "sbatch_calls"} <= set(value["totals"])


@pytest.mark.parametrize("shared", [True, False])
def test_the_record_of_a_plan_names_each_runs_path(tmp_path: Path, shared: bool) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK], share=shared)
    assert {name: facts["path"] for name, facts in science_summary(plan).items()} == {r.name: r.path for r in plan.runs}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ((), 0),
        (("launch.checkpoint_every=2048", "keep.checkpoints=last"), 0),
        (("launch.checkpoint_every=2048", "keep.checkpoints=all"), 2048),
        (("keep.checkpoints=every 4096",), 4096),
    ],
)
def test_the_disk_holds_what_is_kept_inside_segments_too(tmp_path: Path, changes: tuple[str, ...], kept: int) -> None:
    plain = build_plan(study(tmp_path), identities())
    plan = build_plan(study(tmp_path, overrides=changes), identities())
    inside = sum(
        len([tokens for tokens in range(kept, segment.tokens_to, kept) if tokens > segment.tokens_from])
        for segment in plan.segments.values()
        if kept
    )
    at_an_end = (plain.totals["disk_bytes"] - _bases(plain)) / len(plain.segments)
    assert plan.totals["disk_bytes"] == plain.totals["disk_bytes"] + inside * at_an_end


def _bases(plan: Plan) -> int:
    assert plan.shape is not None
    return cost.BYTES_PER_PARAMETER * len(plan.bases) * plan.shape.total
