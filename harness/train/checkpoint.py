"""Checkpoints: a Hugging Face folder, the optimizer's tensors and the data cursor: a state goes on to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from harness.data.cursor import Cursor
from harness.store import checkpoints
from harness.store.atomic import read_json, staging_folder, write_json
from harness.store.attempts import Attempt
from harness.store.checkpoints import CheckpointMarker
from harness.store.layout import StateFolder
from harness.store.markers import MARKER
from harness.train.model import save_model
from harness.train.optimizer import load_optimizer_tensors, optimizer_tensors

OPTIMIZER = "optimizer.safetensors"
CURSOR = "cursor.json"


def write_checkpoint(
    attempt: Attempt,
    model: PreTrainedModel,
    optimizer: torch.optim.AdamW,
    cursor: Cursor,
    tokenizer: Path,
    fingerprint: str,
    tokens: int,
    step: int,
) -> CheckpointMarker:
    """Write `checkpoints/<tokens>` of the attempt's state: aside, durable, renamed, its marker last.

    tokenizer: a folder whose tokenizer files go along. Raises Fenced when a newer attempt has begun, before anything
    is written and again before it gets its name.
    """
    attempt.check_owner()
    final = attempt.state.checkpoint(tokens)
    staged = staging_folder(final)
    try:
        save_model(model, staged / "model", tokenizer)
        tensors = {name: tensor.detach().cpu() for name, tensor in optimizer_tensors(model, optimizer).items()}
        save_file(tensors, staged / OPTIMIZER)
        write_json(staged / CURSOR, cursor.to_json())
        attempt.check_owner()
        return checkpoints.seal(staged, final, fingerprint, tokens, step)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def load_optimizer(checkpoint: Path, model: PreTrainedModel, optimizer: torch.optim.AdamW) -> None:
    """Put back the optimizer's state; a checkpoint without one (a base that starts cold) leaves it empty."""
    path = checkpoint / OPTIMIZER
    if path.exists():
        load_optimizer_tensors(model, optimizer, load_file(path))


def load_cursor(checkpoint: Path) -> Cursor | None:
    """Where the path was in its data; None at a base."""
    path = checkpoint / CURSOR
    return Cursor.from_json(read_json(path)) if path.exists() else None


def remove_checkpoints(attempt: Attempt, keep: set[int]) -> None:
    """Remove the state's checkpoints but those at the tokens in `keep`, the marker of each first."""
    attempt.check_owner()
    for tokens in attempt.state.checkpoint_tokens():
        if tokens not in keep:
            path = attempt.state.checkpoint(tokens)
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)


def remove_leftovers(state: StateFolder) -> None:
    """Remove what killed attempts were writing: folders that never got their name."""
    if state.checkpoints.is_dir():
        for path in state.checkpoints.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True)
