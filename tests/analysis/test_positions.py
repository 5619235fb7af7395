"""Held-out loss by position: a line an arm, a point only where every seed has it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from analysis.figures import Styles, figure_files
from analysis.positions import ByPosition, by_position


def frame(values: dict[tuple[str, str, str], float]) -> Any:
    runs = {"default": ["default/d1", "default/d2"], "long": ["long/d1", "long/d2"]}
    return SimpleNamespace(
        values={key: SimpleNamespace(value=value) for key, value in values.items()},
        compared=[SimpleNamespace(name=name) for name in runs],
        runs_of=lambda arm: [SimpleNamespace(name=name) for name in runs[arm]],
    )


def test_the_line_is_the_mean_over_seeds_in_the_order_of_positions() -> None:
    values = {}
    for arm, seed, low, high, nats in [
        ("default", 1, 32, 64, 3.0),
        ("default", 1, 0, 32, 4.0),
        ("default", 2, 0, 32, 5.0),
        ("default", 2, 32, 64, 3.5),
        ("long", 1, 0, 32, 4.0),
        ("long", 2, 0, 32, 4.0),
        ("long", 1, 32, 64, 2.0),  # its second seed was not evaluated there
    ]:
        values[f"{arm}/d{seed}", "end", f"bpb.my.web.nats_per_token[{low},{high})"] = nats
        values[f"{arm}/d{seed}", "stable", f"bpb.my.web.nats_per_token[{low},{high})"] = 9.0
        values[f"{arm}/d{seed}", "end", "bpb.my.web"] = 1.0
    assert by_position(frame(values)) == [
        ByPosition("my.web", {"default": ((0, 32, 4.5), (32, 64, 3.25)), "long": ((0, 32, 4.0),)})
    ]


def test_without_positions_there_is_nothing_to_draw() -> None:
    assert by_position(frame({("default/d1", "end", "bpb.web"): 1.0})) == []


def test_the_figure_is_written_as_svg_and_pdf_with_every_arm_named() -> None:
    drawn = figure_files(
        _no_curves(),
        [],
        [],
        Styles(["default", "long"], "default", None),
        [ByPosition("web", {"default": ((0, 32, 4.5), (32, 64, 3.25)), "long": ((0, 32, 4.0), (32, 64, 3.0))})],
    )
    assert sorted(drawn) == ["positions.pdf", "positions.svg"]
    text = drawn["positions.svg"].decode()
    assert all(word in text for word in ("default", "long", "web", "position in the window"))


def _no_curves() -> Any:
    return SimpleNamespace(arms={})
