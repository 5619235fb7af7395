"""Whatever stands anywhere in a study, it loads or is refused in one paragraph with a place."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from harness.study import StudyError, load_study
from tests.study.conftest import BASE, STAGES

ABLATE = """
total: ~0.1M
ablate:
  - grid:
      - mixture: {stage: decay, vary: math, values: [0, 0.5], absorb: web}
      - stages.decay.context.rope: [base, {type: default, theta: 1e6}]
    exclude: [{math: 0}]
  - cases: {flat: {stages.decay.lr: {shape: constant}}, one: {lr: {shape: cosine, to: 0.1x}}}
  - zip: [{stages.decay.tokens: [5120, ~1k]}, {train.optimizer.lr: [1e-3, 2e-3]}]
seeds: {data: [1, 2], from: decay}
eval: {suites: [quickstart@1], at: [stable, end], max_length: 128, held_out: {window: 64}}
compare: {control: flat, primary: [bpb.web], allow: {flat: [schedule-open]}}
launch: {micro_batch: 256, checkpoint_every: 1k}
"""
SOUND = YAML(typ="safe", pure=True).load(BASE + STAGES.replace("tokens: 51200", "tokens: rest") + ABLATE)
ODD = [
    None,
    True,
    0,
    -1,
    3.5,
    1e300,
    10**30,
    "",
    "x",
    "base",
    "rest",
    "none",
    "~1B",
    "0.1x",
    "every x",
    "stages.decay.lr",
]
ODD += [[], {}, [1], [[1]], [{}], ["default"], {"a": 1}, {"a": {"b": [None]}}, {"stages": {}}, {"mixture": {}}]


def spots(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from spots(one, (*path, key))


def replaced(path: tuple[Any, ...], value: Any) -> Any:
    study = copy.deepcopy(SOUND)
    block = study
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    return study


def test_the_sound_study_loads(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(json.dumps(SOUND))
    assert len(load_study(tmp_path / "study.yaml").arms) == 1 + 2 + 2 + 2


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(spots(SOUND))), st.sampled_from(ODD))
def test_no_value_anywhere_ends_in_a_traceback(path: tuple[Any, ...], value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study.yaml"
        study.write_text(json.dumps(replaced(path, value)))
        try:
            load_study(study)
        except StudyError as error:
            assert error.place.startswith(f"{study}:")
            assert "\n" not in str(error)
