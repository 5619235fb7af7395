"""For random pairs of arms, rate, shares, context and documents are equal at every update of what they share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.loader import Loader
from harness.plan.fingerprint import base_state
from harness.plan.schedule import rate
from harness.plan.science import Identities, PathBuilder, base_science, data_seeds, seeds_change_at
from harness.plan.tree import Path as RunPath
from harness.plan.tree import build
from harness.study.treatment import Context, Treatment
from tests.data.toys import toy_source
from tests.plan.build import BATCH, SCRATCH, mixture, seeds, stage, treatment

STAGES = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.sampled_from(["constant", "linear", "cosine"]),
        st.sampled_from([mixture(web="1"), mixture(web="9/10", math="1/10"), mixture(web="1/3", math="2/3")]),
        st.sampled_from([128, 256]),
        st.sampled_from(["masked", "joined"]),
    ),
    min_size=1,
    max_size=3,
)


def made(parts: list[tuple[Any, ...]]) -> Treatment:
    return treatment(
        *(
            replace(
                stage(f"s{i}", n, shape, end=None if shape == "constant" else 1e-4, mixture=mix),
                context=Context(length, documents),  # type: ignore[arg-type]
            )
            for i, (n, shape, mix, length, documents) in enumerate(parts)
        )
    )


SOURCES = {
    "web": toy_source("web", [50 + 13 * (i % 17) for i in range(40)]),
    "math": toy_source("math", [9 + 5 * (i % 11) for i in range(60)]),
}
IDENTITIES = Identities("w" * 64, "t" * 64, {name: source.identity for name, source in SOURCES.items()}, {})
ROOT = base_state(base_science(SCRATCH, IDENTITIES, 1))


@settings(max_examples=60)
@given(STAGES, STAGES, st.integers(0, 3), st.sampled_from([None, "s1"]), st.sampled_from([1, 2]))
def test_arms_see_the_same_until_their_names_part(
    a: list[tuple[Any, ...]],
    b: list[tuple[Any, ...]],
    common: int,
    from_stage: str | None,
    other_seed: int,
) -> None:
    b = a[:common] + b[common:] or b
    paths, updates = [], []
    for parts, seed in ((a, 1), (b, other_seed)):
        plan = made(parts)
        stages = [part.name for part in plan.stages]
        replicate = seeds(data=seed, from_stage=from_stage if from_stage in stages else None)
        change_at = seeds_change_at(plan, replicate.from_stage)
        pieces = PathBuilder(IDENTITIES).pieces(plan, change_at)
        own = data_seeds(pieces, change_at, seed)
        ends = np.cumsum([part.tokens for part in plan.stages])
        paths.append(RunPath(ROOT, pieces, own, tuple(int(end) for end in ends)))
        updates.append(list(_updates([p.as_json(s) for p, s in zip(pieces, own, strict=True)])))
    tree = build(paths)
    shared = [name for name in tree.of_run[0] if name in tree.of_run[1]]
    reach = max((tree.segments[name].tokens_to for name in shared), default=0) // BATCH
    for one, other in zip(updates[0][:reach], updates[1][:reach], strict=True):
        assert one == other
    if not shared and min(len(u) for u in updates):
        assert paths[0].pieces[0].key != paths[1].pieces[0].key or paths[0].data_seeds[0] != paths[1].data_seeds[0]


def _updates(pieces: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """What every update of a path is made of, as the training loop receives it."""
    loader = Loader(pieces, SOURCES)
    for piece in pieces:
        science = piece["science"]
        for t in range(piece["start"], piece["end"], BATCH):
            batch = loader.next()
            yield (
                rate(science["lr"], t, BATCH),
                science["mixture"],
                science["context"],
                [[(loader.source_names[source], document) for source, document in row] for row in batch.documents],
                batch.input_ids.tobytes(),
                batch.labels.tobytes(),
                batch.position_ids.tobytes(),
            )
