"""What crosses from one stage into the next.

    weights     always carried
    schedule    always new, but for one `lr` over all stages, which goes on
    data        goes on: nothing is served twice before a pool is used up
    optimizer   carried, or cold: declared (`optimizer.state`), and where another optimizer takes over
    average     carried where `optimizer.ema` stays what it was, else it begins at the weights
    spikes      carried where `optimizer.skip_spikes` stays what it was, else an empty window

At token 0 the base decides (`base.optimizer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.train.loop import piece_at

Piece = Mapping[str, Any]


def begins_cold(pieces: Sequence[Piece], tokens: int) -> bool:
    """Whether the optimizer's state is empty at `tokens` of a path, whatever the checkpoint there holds."""
    if tokens == 0 or tokens >= pieces[-1]["end"]:
        return False
    before, after = (piece_at(pieces, at)["science"] for at in (tokens - 1, tokens))
    return bool(after.get("optimizer_from") == tokens or before["optimizer"]["name"] != after["optimizer"]["name"])


def carried_over(segment: Mapping[str, Any], tokens: int) -> dict[str, Any] | None:
    """What a segment that is taken up at token `tokens` carries into a new stage; None where none begins there."""
    pieces = segment["pieces"]
    if tokens == 0 or tokens != segment["tokens_from"]:
        return None
    before, after = (piece_at(pieces, at) for at in (tokens - 1, tokens))
    if before["stage"] == after["stage"]:
        return None
    then, now = before["science"], after["science"]
    return {
        "tokens": tokens,
        "from_stage": before["stage"],
        "stage": after["stage"],
        "weights": "carried",
        "schedule": "goes on" if then["lr"] == now["lr"] else "new",
        "data": "goes on",
        "optimizer": "cold" if begins_cold(pieces, tokens) else "carried",
        "average": _option("ema", then, now),
        "spikes": _option("skip_spikes", then, now),
    }


def _option(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How something that the optimizer keeps beside its state goes on."""
    declared = now["optimizer"].get(name)
    if declared is None:
        return "none"
    return "carried" if then["optimizer"].get(name) == declared else "begins"
