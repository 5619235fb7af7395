"""Checkpoints: a Hugging Face folder, the optimizer's tensors, the averaged weights and the window of losses where
there are any, and the data cursor: a state goes on to the bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from harness.data.cursor import CURSOR_SCHEMA, Cursor
from harness.store import checkpoints
from harness.store.atomic import staging_folder, write_json, writing
from harness.store.attempts import Attempt
from harness.store.checkpoints import CheckpointMarker
from harness.store.layout import StateFolder
from harness.store.markers import MARKER, read_marked
from harness.study.errors import UserError
from harness.train.average import WeightAverage
from harness.train.model import save_model
from harness.train.optimizer import load_optimizer_tensors, optimizer_tensors
from harness.train.spikes import SpikeWindow

OPTIMIZER = "optimizer.safetensors"
CURSOR = "cursor.json"
AVERAGE = "ema.safetensors"
SPIKES = "spikes.safetensors"


def write_checkpoint(
    attempt: Attempt,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    cursor: Cursor,
    tokenizer: Path,
    fingerprint: str,
    tokens: int,
    step: int,
    average: WeightAverage | None = None,
    spikes: SpikeWindow | None = None,
) -> CheckpointMarker:
    """Write `checkpoints/<tokens>` of the attempt's state: aside, durable, renamed, its marker last.

    tokenizer: a folder whose tokenizer files go along. Raises Fenced when a newer attempt has begun, before anything
    is written and again before it gets its name; WriteFailed when it cannot be written: then no checkpoint is there.
    """
    attempt.check_owner()
    final = attempt.state.checkpoint(tokens)
    tensors = {name: tensor.detach().cpu() for name, tensor in optimizer_tensors(model, optimizer).items()}
    means = {} if average is None else {name: tensor.cpu() for name, tensor in average.tensors().items()}
    with writing(final, _bytes([*tensors.values(), *means.values(), *model.parameters()])):
        staged = staging_folder(final)
        try:
            with writing(staged / "model"):
                save_model(model, staged / "model", tokenizer)
            with writing(staged / OPTIMIZER):
                save_file(tensors, staged / OPTIMIZER)
                if average is not None:
                    save_file(means, staged / AVERAGE)
                save_spikes(staged, spikes)
            write_json(staged / CURSOR, cursor.to_json())
            attempt.check_owner()
            return checkpoints.seal(staged, final, fingerprint, tokens, step)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            attempt.check_owner()  # a newer attempt removes what older ones were writing: that is no failure
            raise


def save_spikes(checkpoint: Path, spikes: SpikeWindow | None) -> None:
    """Write the window of losses into a checkpoint that is being made; nothing without one."""
    if spikes is not None:
        save_file({name: tensor.cpu() for name, tensor in spikes.tensors().items()}, checkpoint / SPIKES)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def load_optimizer(checkpoint: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Put back the optimizer's state; a checkpoint without one (a base that starts cold) leaves it empty."""
    path = checkpoint / OPTIMIZER
    if path.exists():
        load_optimizer_tensors(model, optimizer, load_file(path))


def load_average(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The averaged weights in a checkpoint by name. Raises UserError where it keeps none."""
    path = checkpoint / AVERAGE
    if not path.exists():
        raise UserError(f"{checkpoint} keeps no average of the weights; it was written without `optimizer.ema`.")
    return load_file(path)


def load_spikes(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The window of losses and gradient norms in a checkpoint. Raises UserError where it keeps none."""
    path = checkpoint / SPIKES
    if not path.exists():
        raise UserError(f"{checkpoint} keeps no window of losses; it was written without `optimizer.skip_spikes`.")
    return load_file(path)


def load_cursor(checkpoint: Path) -> Cursor | None:
    """Where the path was in its data; None at a base."""
    path = checkpoint / CURSOR
    return Cursor.from_json(read_marked(path, CURSOR_SCHEMA)) if path.exists() else None


def remove_checkpoints(attempt: Attempt, keep: set[int]) -> None:
    """Remove the state's checkpoints but those at the tokens in `keep`, the marker of each first.

    None that is newer than all of `keep` goes: it would be of an attempt that came after this one.
    """
    for tokens in attempt.state.checkpoint_tokens():
        if tokens not in keep and tokens < max(keep):
            attempt.check_owner()
            path = attempt.state.checkpoint(tokens)
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)


def remove_leftovers(state: StateFolder) -> None:
    """Remove what killed attempts were writing: folders that never got their name."""
    if state.checkpoints.is_dir():
        for path in state.checkpoints.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True)
