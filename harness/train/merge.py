"""A state that is made of others' weights without training: a segment of kind `merge`.

Its `segment.json` carries a `recipe`, {"method": ..., "of": [states]}, which names it and says what to do. `ema` takes
the moving average of the weights that the one state of `of` was trained with (`optimizer.ema`); `mean` takes the mean
of the weights at the ends of all states of `of`, with the `coefficients` of the recipe (a soup, WSM).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from harness.store import checkpoints, states
from harness.store.atomic import staging_folder, writing
from harness.store.attempts import Attempt, Fenced, begin
from harness.store.checkpoints import CheckpointMarker, tokenizer_files
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
    marker = _save(attempt, model, parts[-1], segment)
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


# What a configuration says of the run that wrote it, and not of the model.
_OF_THE_WRITER = ("transformers_version", "_name_or_path")


def _mean(recipe: Mapping[str, Any], parts: Sequence[CheckpointMarker]) -> PreTrainedModel:
    """The weighted mean of the weights: sum_j n_j theta_j / D, the coefficients being n_j / D.

    It is summed in fp64 in the order of the recipe and rounded to fp32 once, so that equal weights give the plain mean
    and the result is the same on every machine. One tensor of all parts is in memory at a time, beside the model.
    """
    coefficients = [Fraction(text) for text in recipe["coefficients"]]
    _check_alike(parts)
    model = load_model(parts[-1].model)
    own = model.state_dict()
    for name, tensors in _tensors([part.model for part in parts]):
        with torch.no_grad():
            own[name].copy_(weighted_mean(tensors, coefficients))
    return model


def weighted_mean(tensors: Sequence[torch.Tensor], coefficients: Sequence[Fraction]) -> torch.Tensor:
    """sum_j c_j tensor_j in fp64, by whole numbers over one denominator. Shapes are equal. Raises ValueError for
    tensors of whole numbers that differ: they have no mean."""
    first = tensors[0]
    if not first.is_floating_point():
        if any(not torch.equal(first, other) for other in tensors):
            raise ValueError("tensors of whole numbers differ, and have no mean")
        return first
    common = math.lcm(*(one.denominator for one in coefficients))
    total = torch.zeros(first.shape, dtype=torch.float64)
    for tensor, one in zip(tensors, coefficients, strict=True):
        total += tensor.double() * float(one.numerator * (common // one.denominator))
    return total / float(common)


def _tensors(folders: Sequence[Path]) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Each tensor that the first folder stores, once, with those of the same name in the others."""
    with ExitStack() as stack:
        found = []
        for folder in folders:
            files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
            found.append({name: file for file in files for name in file.keys()})  # noqa: SIM118
        for name in found[0]:
            yield name, [files[name].get_tensor(name) for files in found]


def _check_alike(parts: Sequence[CheckpointMarker]) -> None:
    """Raise UserError for models whose weights do not mean the same: another architecture, rope or tokenizer."""
    first, *others = parts
    for other in others:
        ours, theirs = _configuration(first.model), _configuration(other.model)
        differs = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        differs += [] if tokenizer_files(first.files) == tokenizer_files(other.files) else ["the tokenizer"]
        if differs:
            raise UserError(
                f"{other.path} cannot be merged with {first.path}: they differ in {', '.join(differs)}, "
                "and their weights have no mean."
            )


def _configuration(folder: Path) -> dict[str, Any]:
    read = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {name: value for name, value in read.items() if name not in _OF_THE_WRITER}


Method = Callable[[Mapping[str, Any], Sequence[CheckpointMarker]], PreTrainedModel]
_METHODS: Mapping[str, Method] = {"ema": _moving_average, "mean": _mean}


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
