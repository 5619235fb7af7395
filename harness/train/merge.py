"""A state that is made of others' weights without training: a segment of kind `merge`.

Its `segment.json` carries a `recipe`, {"method": ..., "of": [states]}, which names it and says what to do. `ema` takes
the moving average of the weights that the one state of `of` was trained with (`optimizer.ema`). A method that averages
several states (a soup, WSM) is another entry of `_METHODS`, with its coefficients in the recipe.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import transformers
from safetensors.torch import load_file
from transformers import PreTrainedModel

from harness.store import checkpoints, states
from harness.store.atomic import staging_folder, writing
from harness.store.attempts import Attempt, Fenced, begin
from harness.store.checkpoints import CheckpointMarker
from harness.store.layout import Folder
from harness.store.markers import Damaged
from harness.study.errors import UserError
from harness.train.average import put_average
from harness.train.checkpoint import AVERAGE, remove_leftovers
from harness.train.model import load_model, save_model

Environment = Mapping[str, Any]


def merge_state(folder: Folder, state_id: str, environment: Environment) -> str:
    """Make the state of a merge segment from the states that its recipe names; one that is there is left alone.

    environment: numerics and code, for the record. Returns `merged`, or `fenced` when a newer attempt has begun.
    Raises UserError when a state that it is made of is not whole, or keeps no such weights.
    """
    state = folder.state(state_id)
    try:
        if states.verify_state(state) is not None:
            return "merged"
    except Damaged:
        pass  # made again
    segment = states.read_segment(state)
    attempt = begin(state, {**environment, "versions": {"transformers": transformers.__version__}})
    try:
        attempt.event("attempt_started", tokens=segment["tokens_to"])
        remove_leftovers(state)
        _merge(folder, segment, attempt)
    except Fenced as reason:
        attempt.finish("fenced", error=str(reason))
        return "fenced"
    except BaseException as error:
        attempt.failed(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        raise
    attempt.finish("merged", tokens=segment["tokens_to"], steps=0)
    return "merged"


def _merge(folder: Folder, segment: Mapping[str, Any], attempt: Attempt) -> None:
    recipe = segment["recipe"]
    parts = [_final(folder, name) for name in recipe["of"]]
    model = _METHODS[recipe["method"]](recipe, parts)
    marker = _save(attempt, model, parts[0], segment)
    weights = checkpoints.weights_hash(marker.files)
    attempt.check_owner()
    states.write_done(attempt.state, "trained", marker.tokens, marker.step, weights, marker.tokens, {"recipe": recipe})
    attempt.event("finished", tokens=marker.tokens, steps=0)


def _final(folder: Folder, name: str) -> CheckpointMarker:
    """The whole last checkpoint of a state that goes into a merge."""
    state = folder.state(name)
    try:
        done = states.read_done(state)
        if done is None or done.checkpoint is None:
            raise Damaged(f"state {name} has no weights at its end")
        return states.final_checkpoint(state, done)
    except Damaged as reason:
        raise UserError(f"a merge needs weights that are not whole: {reason}. They must be trained again.") from None


def _moving_average(recipe: Mapping[str, Any], parts: Sequence[CheckpointMarker]) -> PreTrainedModel:
    (of,) = parts
    if AVERAGE not in of.files:
        raise UserError(f"{of.path} keeps no average of the weights; it was written without `optimizer.ema`.")
    model = load_model(of.model)
    put_average(model, load_file(of.path / AVERAGE))
    return model


Method = Callable[[Mapping[str, Any], Sequence[CheckpointMarker]], PreTrainedModel]
_METHODS: Mapping[str, Method] = {"ema": _moving_average}


def _save(
    attempt: Attempt, model: PreTrainedModel, of: CheckpointMarker, segment: Mapping[str, Any]
) -> CheckpointMarker:
    """The checkpoint of a merge: a model folder, and neither optimizer nor cursor, since nothing trains on from it."""
    final = attempt.state.checkpoint(segment["tokens_to"])
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with writing(final, size):
        staged = staging_folder(final)
        try:
            with writing(staged / "model"):
                save_model(model, staged / "model", of.model)
            attempt.check_owner()
            return checkpoints.seal(staged, final, segment["id"], segment["tokens_to"], of.step)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            attempt.check_owner()
            raise
