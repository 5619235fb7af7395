"""States are named by the science behind them, never by cuts; runs share exactly what their paths agree on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.plan.fingerprint import base_state, state_at
from harness.plan.schedule import rate
from harness.plan.science import PathBuilder, Piece, base_science, data_seeds, seeds_change_at
from harness.plan.tree import Path, Tree, build
from harness.study.treatment import Context, SeedSet, Treatment
from tests.plan.build import BATCH, IDENTITIES, SCRATCH, mixture, seeds, stage, treatment

ROOT = base_state(base_science(SCRATCH, IDENTITIES, 1))
MIX = mixture(web="9/10", math="1/10")


def pieces_of(plan: Treatment) -> list[Piece]:
    return PathBuilder(IDENTITIES).pieces(plan)


def name_at(pieces: list[Piece], tokens: int, base: str = ROOT, data: int = 1) -> str:
    return state_at(base, pieces, [data] * len(pieces), tokens)


def path(plan: Treatment, seed: SeedSet | None = None, cuts: list[int] | None = None) -> Path:
    at, ends = 0, set(cuts or [])
    for part in plan.stages:
        at += part.tokens
        ends.add(at)
    seed = seed or seeds()
    change_at = seeds_change_at(plan, seed.from_stage)
    pieces = PathBuilder(IDENTITIES).pieces(plan, change_at)
    return Path(ROOT, pieces, data_seeds(pieces, change_at, seed.data), tuple(sorted(ends)))


def intervals(tree: Tree, run: int) -> list[tuple[int, int]]:
    batches = [tree.segments[name] for name in tree.of_run[run]]
    return [(s.tokens_from // BATCH, s.tokens_to // BATCH) for s in batches]


def test_trunks_of_three_lengths_are_one_trunk_cut_where_the_decays_begin() -> None:
    arms = [treatment(stage("stable", n), stage("decay", 100 - n, "linear", end=0.0)) for n in (80, 90, 95)]
    tree = build([path(arm) for arm in arms])
    assert intervals(tree, 0) == [(0, 80), (80, 100)]
    assert intervals(tree, 1) == [(0, 80), (80, 90), (90, 100)]
    assert intervals(tree, 2) == [(0, 80), (80, 90), (90, 95), (95, 100)]
    assert sum(s.tokens_to - s.tokens_from for s in tree.segments.values()) == (95 + 20 + 10 + 5) * BATCH


def test_a_segment_is_worked_on_as_a_path_through_it_says() -> None:
    """An arm without a decay shares its constant rate with the trunk, and stays constant where it is alone."""
    decay, steady = treatment(stage("stable", 8), stage("decay", 4, "linear", end=0.0)), treatment(stage("stable", 12))
    tree = build([path(arm, cuts=[2 * BATCH, 10 * BATCH]) for arm in (decay, steady)])
    for name, segment in tree.segments.items():
        assert name in tree.of_run[segment.run]


def test_one_schedule_over_all_shares_the_warm_up_only() -> None:
    warmup_then_constant = treatment(stage("stable", 60, warmup=10), stage("decay", 40, "linear", end=0.0))
    stages = tuple(replace(part, lr=None) for part in warmup_then_constant.stages)
    cosine = Treatment(SCRATCH, stages, lr=replace(stage("x", 1, "cosine", end=1e-4, warmup=10).lr))
    tree = build([path(warmup_then_constant), path(cosine)])
    assert intervals(tree, 0)[0] == intervals(tree, 1)[0] == (0, 10)
    assert tree.of_run[0][0] == tree.of_run[1][0]
    assert tree.of_run[0][1] != tree.of_run[1][1]


def test_seeds_from_a_stage_share_the_trunk_before_it() -> None:
    plan = treatment(stage("stable", 50), stage("decay", 10, "linear", end=0.0))
    tree = build([path(plan, seeds(data=d, from_stage="decay")) for d in (1, 2, 3)])
    assert len(tree.segments) == 1 + 3
    assert len({names[0] for names in tree.of_run}) == 1


def test_a_boundary_at_which_nothing_changes_changes_no_name() -> None:
    """One source: the blend has no counters, so two stages in a row are the one stage that they describe."""
    one = pieces_of(treatment(stage("a", 30)))
    two = pieces_of(treatment(stage("a", 10), stage("b", 20)))
    assert [name_at(one, n * BATCH) for n in (5, 10, 30)] == [name_at(two, n * BATCH) for n in (5, 10, 30)]


def test_blend_counters_start_with_the_stage_so_a_stage_boundary_is_science_for_a_mixture() -> None:
    one = pieces_of(treatment(stage("a", 30, mixture=MIX)))
    two = pieces_of(treatment(stage("a", 10, mixture=MIX), stage("b", 20, mixture=MIX)))
    assert name_at(one, 10 * BATCH) == name_at(two, 10 * BATCH)
    assert name_at(one, 30 * BATCH) != name_at(two, 30 * BATCH)


def test_an_option_at_its_default_does_not_reach_the_name_and_a_source_that_is_not_drawn_neither() -> None:
    plan = treatment(stage("a", 10))
    other = replace(IDENTITIES, sources={**IDENTITIES.sources, "math": "f" * 64})
    changed = replace(IDENTITIES, sources={**IDENTITIES.sources, "web": "f" * 64})
    here, there = (PathBuilder(ids).pieces(plan) for ids in (IDENTITIES, other))
    assert name_at(here, 10 * BATCH) == name_at(there, 10 * BATCH)
    assert name_at(here, 10 * BATCH) != name_at(PathBuilder(changed).pieces(plan), 10 * BATCH)


FIELDS: dict[str, Any] = {
    "context": Context(length=256),
    "precision": "bf16-mixed",
    "mixture": MIX,
    "batch_tokens": 1024,
}


def test_every_field_of_the_science_re_keys() -> None:
    names = set()
    for field, value in FIELDS.items():
        changed = treatment(replace(stage("a", 10), **{field: value}))
        names.add(name_at(pieces_of(changed), 4 * BATCH))
    for optimizer_field, value in {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.0, "clip": None}.items():
        part = stage("a", 10)
        changed = treatment(replace(part, optimizer=replace(part.optimizer, **{optimizer_field: value})))
        names.add(name_at(pieces_of(changed), 4 * BATCH))
    plain = treatment(stage("a", 10))
    names |= {name_at(pieces_of(plain), 4 * BATCH, data=d) for d in (1, 2)}
    names.add(name_at(pieces_of(plain), 4 * BATCH, base=base_state(base_science(SCRATCH, IDENTITIES, 2))))
    assert len(names) == len(FIELDS) + 4 + 2 + 1


# Random studies of one grammar: a trunk, then up to two stages, with everything that may vary varied.
stages_strategy = st.lists(
    st.tuples(
        st.integers(1, 12),
        st.sampled_from(["constant", "linear", "1-sqrt"]),
        st.sampled_from([0.0, 1e-3]),
        st.sampled_from([mixture(web="1"), MIX]),
        st.sampled_from([128, 256]),
    ),
    min_size=1,
    max_size=3,
)


def made(parts: list[tuple[Any, ...]]) -> Treatment:
    return treatment(
        *(
            stage(f"s{i}", n, shape, end=None if shape == "constant" else end, mixture=mix, context=Context(length))
            for i, (n, shape, end, mix, length) in enumerate(parts)
        )
    )


@settings(max_examples=200)
@given(stages_strategy, st.data())
def test_a_name_does_not_depend_on_where_the_path_is_cut(parts: list[tuple[Any, ...]], data: st.DataObject) -> None:
    plan = made(parts)
    cuts = data.draw(st.lists(st.integers(1, plan.tokens // BATCH).map(lambda n: n * BATCH), max_size=4))
    plain, cut = build([path(plan)]), build([path(plan, cuts=cuts)])
    assert set(plain.segments) <= set(cut.segments)
    for name, segment in cut.segments.items():
        assert name == name_at(pieces_of(plan), segment.tokens_to)


@settings(max_examples=100)
@given(st.lists(stages_strategy, min_size=2, max_size=4), st.integers(1, 5))
def test_the_run_that_a_segment_names_passes_through_it(arms: list[list[tuple[Any, ...]]], every: int) -> None:
    plans = [made(parts) for parts in arms]
    paths = [path(plan, cuts=list(range(every * BATCH, plan.tokens, every * BATCH))) for plan in plans]
    tree = build(paths)
    assert all(name in tree.of_run[segment.run] for name, segment in tree.segments.items())


@settings(max_examples=200)
@given(stages_strategy, stages_strategy, st.integers(1, 3))
def test_two_arms_share_exactly_the_part_on_which_every_update_agrees(
    a: list[tuple[Any, ...]], b: list[tuple[Any, ...]], common: int
) -> None:
    """Rate, mixture, context and seed are compared update by update; names agree just as far."""
    b = a[:common] + b[common:] if len(b) > common else b
    paths = [path(made(a)), path(made(b))]
    tree = build(paths)
    shared = {name for name in tree.of_run[0] if name in tree.of_run[1]}
    reach = max((tree.segments[name].tokens_to for name in shared), default=0)
    updates = [list(_updates(p)) for p in paths]
    agree = 0
    for one, other in zip(*updates, strict=False):
        if one != other:
            break
        agree += 1
    assert reach // BATCH <= agree
    if reach // BATCH < agree:
        # They look alike for some updates more only where a declaration differs that has not shown yet.
        pieces = [next(piece for piece in p.pieces if piece.start <= reach < piece.end) for p in paths]
        assert pieces[0].science != pieces[1].science


def _updates(path: Path) -> Any:
    for piece, seed in zip(path.pieces, path.data_seeds, strict=True):
        science = {k: v for k, v in piece.science.items() if k not in ("lr", "blend_from")}
        for t in range(piece.start, piece.end, BATCH):
            yield rate(piece.science["lr"], t, BATCH), science, seed
