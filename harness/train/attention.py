"""How documents in one row are kept apart, without a mask of the row's square where rows are long.

    joined          one document a row, as far as attention goes: plain causal attention
    dense           one additive mask [rows, 1, length, length], handed to every layer; short rows on a CPU
    by-document     each document attends by itself, plain causal; rows above DENSE_LIMIT on a CPU
    flex            FlexAttention with a block mask (torch.nn.attention.flex_attention), on a GPU
    library         layers differ in what they may see (sliding windows): transformers builds the masks from positions

A dense mask keeps scaled_dot_product_attention off its flash kernel and grows with the square of the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.study.errors import UserError
from harness.train.packing import document_mask, single_mask_serves

# Above it a call for each document costs less than attending to everything and masking most of it.
DENSE_LIMIT = 512
LIBRARY_LIMIT = 4096  # the longest row for which transformers may build a mask of its square
BY_DOCUMENT = "ablate_by_document"  # its name among transformers' attention functions

Kind = Literal["joined", "dense", "by-document", "flex", "library"]


def choose(config: PretrainedConfig, context: Mapping[str, Any], device: str) -> Kind:
    """How rows of a stage's `context` are attended to on a device. Raises UserError where nothing can do it."""
    if context["documents"] == "joined":
        return "joined"
    if device == "cuda":
        return "flex"
    if single_mask_serves(config):
        return "dense" if context["length"] <= DENSE_LIMIT else "by-document"
    if context["length"] > LIBRARY_LIMIT:
        raise UserError(
            f"`context.documents: masked` in rows of {context['length']} on a CPU: the layers of a {config.model_type} "
            f"model see different windows, which only a mask of the row's square could say here, and those end at "
            f"{LIBRARY_LIMIT} positions. Use a GPU, shorter rows or `documents: joined`."
        )
    return "library"


class Attention:
    """What a model's forward is given beside its tokens, and which attention function its layers call."""

    def __init__(self, model: PreTrainedModel, context: Mapping[str, Any], device: str, dtype: torch.dtype) -> None:
        """dtype: of the queries. Sets the attention function of `model`."""
        self.kind = choose(model.config, context, device)
        self._dtype = dtype
        self._one_mask = single_mask_serves(model.config)
        function = {"flex": "flex_attention", "by-document": BY_DOCUMENT}.get(self.kind, "sdpa")
        if model.config._attn_implementation != function:
            model.set_attn_implementation(function)

    def arguments(self, position_ids: np.ndarray, device: torch.device) -> dict[str, Any]:
        """`position_ids` and `attention_mask` for rows of positions int64 [rows, length], which count up by one inside
        a document and start anew in the next."""
        if not restarts(position_ids):
            # Positions that only count up are the model's own. Given, they would be searched for documents again.
            return {"position_ids": None, "attention_mask": None}
        positions = torch.from_numpy(position_ids)
        return {
            "position_ids": positions.to(device, non_blocking=True),
            "attention_mask": self._mask(positions, device),
        }

    def _mask(self, positions: Tensor, device: torch.device) -> Any:
        if self.kind == "by-document":
            _Documents.now = boundaries(positions.numpy())
            return None
        if not self._one_mask:
            return None  # transformers finds the documents from the positions
        if self.kind == "flex":
            return block_mask(document_of(positions).to(device, non_blocking=True))
        return document_mask(positions, device, self._dtype)


def restarts(position_ids: np.ndarray) -> bool:
    """Whether any row is not 0, 1, 2, ... to its end."""
    return bool((position_ids != np.arange(position_ids.shape[1])).any())


def document_of(positions: Tensor) -> Tensor:
    """[rows, length]: the number of each token's document in its row."""
    starts = positions[:, 1:] != positions[:, :-1] + 1
    return functional.pad(starts.cumsum(dim=1), (1, 0))


def boundaries(position_ids: np.ndarray) -> list[list[tuple[int, int]]]:
    """[start, end) of each document of each row."""
    found = []
    for row in position_ids:
        starts = [0, *(np.flatnonzero(row[1:] != row[:-1] + 1) + 1).tolist()]
        found.append(list(zip(starts, [*starts[1:], len(row)], strict=True)))
    return found


class _Documents:
    """Where the documents of the running micro-batch lie. Layers are recomputed in its backward, so it stays until the
    next one; not every model hands extra arguments down to its attention."""

    now: list[list[tuple[int, int]]] = []  # noqa: RUF012


def by_document(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: causal inside each document, nothing between documents.

    query [rows, heads, length, d], key and value [rows, key-value heads, length, d] → [rows, length, heads, d].
    """
    rows = _Documents.now
    if len(rows) != query.shape[0]:
        rows = [[(0, query.shape[2])]] * query.shape[0]
    grouped = query.shape[1] != key.shape[1]
    attended = [
        torch.cat(
            [
                functional.scaled_dot_product_attention(
                    query[row : row + 1, :, start:end],
                    key[row : row + 1, :, start:end],
                    value[row : row + 1, :, start:end],
                    is_causal=True,
                    scale=scaling,
                    enable_gqa=grouped,
                )
                for start, end in documents
            ],
            dim=2,
        )
        for row, documents in enumerate(rows)
    ]
    return torch.cat(attended).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(BY_DOCUMENT, by_document)


def block_mask(document: Tensor) -> Any:
    """FlexAttention's block mask for rows of documents numbered int64 [rows, length]: causal, inside a document."""
    rows, length = document.shape

    def inside(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[row, query] == document[row, key])

    return _create(document.device.type)(inside, rows, None, length, length, device=document.device)


@lru_cache
def _create(device: str) -> Any:
    """`create_block_mask`, compiled on a GPU: eager, it makes the mask of the row's square first."""
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=False) if device == "cuda" else create_block_mask
