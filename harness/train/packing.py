"""Attention of packed rows: in masked rows a token sees its own document alone.

One mask is built per micro-batch and handed to every layer. Left to itself, transformers finds the documents
from the positions, which costs the same work and a wait for the device; it is used only where layers differ in what
they may see (sliding windows), which one mask cannot say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from harness.study.errors import UserError

Arguments = Callable[[np.ndarray, torch.device], dict[str, Any]]


def single_mask_serves(config: PretrainedConfig) -> bool:
    """Whether every layer attends to all earlier positions, so that one mask says it for all."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None


def document_mask(position_ids: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor | None:
    """What is added to attention scores: [rows, 1, length, length], 0 to attend, -inf not to.

    position_ids: int64 [rows, length], on the CPU, counting up by one inside a document and starting anew in the next.
    dtype: of the queries. A boolean mask would be made into this one again in every layer. None, where each row is one
    document, means plain causal attention, for which kernels have a faster path.
    """
    starts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    if not bool(starts.any()):
        return None
    document = torch.nn.functional.pad(starts.cumsum(dim=1), (1, 0)).to(device)
    same = (document.unsqueeze(2) == document.unsqueeze(1)).tril_()
    attend, ignore = (torch.tensor(value, dtype=dtype, device=device) for value in (0.0, -torch.inf))
    return torch.where(same, attend, ignore).unsqueeze(1)


@torch.no_grad()
def check_causal(model: nn.Module) -> None:
    """Raise UserError unless a token's logits ignore what follows it: an encoder that stands among transformers' causal
    models (BERT without `is_decoder`) would be trained to copy the token that it is to predict."""
    device = next(model.parameters()).device
    rows = torch.arange(8, device=device).repeat(2, 1) % model.config.vocab_size
    rows[1, 7] = (rows[1, 7] + 1) % model.config.vocab_size
    logits = model(input_ids=rows, use_cache=False).logits
    if _differ(logits[0, :7], logits[1, :7], 1e-4):
        raise UserError(
            f"this {model.config.model_type} model sees the tokens that it is to predict; expected a causal model "
            "(some families need `is_decoder: true`)."
        )


@torch.no_grad()
def check_isolation(model: nn.Module, arguments: Arguments | None = None) -> None:
    """Raise UserError unless a packed document has the logits that it has alone, whatever stands before it.

    arguments: what a forward is given for rows of positions, where that is not a dense mask.

    Two rows of two documents that differ in the first one are run through the model as training does it, and the second
    document by itself. An architecture that mixes positions outside attention (a convolution, a recurrence) cannot keep
    documents apart; one that counts positions itself does not begin anew at a document.
    """
    config = model.config
    device = next(model.parameters()).device
    rows = torch.arange(8, device=device).repeat(2, 1) % config.vocab_size
    rows[1, :4] = (rows[1, :4] + 1) % config.vocab_size
    positions = np.tile(np.arange(4), (2, 2))

    def logits(ids: Tensor, given: np.ndarray) -> Tensor:
        kept = _dense(model, given, device) if arguments is None else arguments(given, device)
        try:
            found: Tensor = model(input_ids=ids, use_cache=False, **kept).logits
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise _not_masked(config, f"it does not take a mask of documents ({reason})") from None
        return found

    packed, alone = logits(rows, positions), logits(rows[:, 4:], positions[:, :4])
    if _differ(packed[0, 4:], packed[1, 4:], 1e-5):
        raise _not_masked(config, "tokens of one document change the logits of the next")
    if _differ(packed[:, 4:], alone, 1e-3):  # other shapes may take other kernels
        raise _not_masked(config, "a document's logits depend on where it stands in its row")


def _differ(one: Tensor, other: Tensor, rounding: float) -> bool:
    """Whether logits differ by more than `rounding` of the greatest of them."""
    return bool((one - other).abs().max() > rounding * other.abs().max())


def _dense(model: nn.Module, position_ids: np.ndarray, device: torch.device) -> dict[str, Any]:
    positions = torch.from_numpy(position_ids)
    mask = document_mask(positions, device, torch.float32) if single_mask_serves(model.config) else None
    return {"position_ids": positions.to(device), "attention_mask": mask}


def _not_masked(config: PretrainedConfig, why: str) -> UserError:
    return UserError(
        f"`context.documents: masked` cannot be kept by a {config.model_type} model: {why}. Use `documents: joined`."
    )
