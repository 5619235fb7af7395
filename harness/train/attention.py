"""How documents in one row are kept apart, without a mask of the row's square where rows are long.

    joined          one document a row, as far as attention goes: plain causal attention
    dense           one additive mask [rows, 1, length, length], handed to every layer; short rows on a CPU
    by-document     each document attends by itself, plain causal; rows above DENSE_LIMIT on a CPU, and on a GPU models
                    that FlexAttention does not serve
    flex            FlexAttention with a block mask (torch.nn.attention.flex_attention), on a GPU
    library         layers differ in what they may see (sliding windows): transformers builds the masks from positions

A dense mask keeps scaled_dot_product_attention off its flash kernel and grows with the square of the row. Attention
functions of our own are registered with transformers under names of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flex_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.study.errors import UserError
from harness.train.packing import document_mask, single_mask_serves

# Above it a call for each document costs less than attending to everything and masking most of it.
DENSE_LIMIT = 512
FLEX_LEAST_WIDTH = 16  # of a head, below which FlexAttention has no kernel
LIBRARY_LIMIT = 4096  # the longest row for which transformers may build a mask of its square

Kind = Literal["joined", "dense", "by-document", "flex", "library"]
# Names among transformers' attention functions. Those without a mask function get the mask that the model was given.
BY_DOCUMENT = "ablate_by_document"
CAUSAL = "ablate_causal"
FLEX = "ablate_flex"
FLEX_IN_WINDOWS = "ablate_flex_in_windows"


def choose(model: PreTrainedModel, context: Mapping[str, Any], device: str) -> Kind:
    """How rows of a stage's `context` are attended to on a device. Raises UserError where nothing can do it."""
    same_for_all, flex = single_mask_serves(model.config), _flex_serves(model)
    length, joined = context["length"], context["documents"] == "joined"
    if same_for_all:
        if joined:
            return "joined"
        if device == "cuda":
            return "flex" if flex else "by-document"
        return "dense" if length <= DENSE_LIMIT else "by-document"
    if device == "cuda" and flex and (not joined or length > LIBRARY_LIMIT):
        return "flex"
    if length > LIBRARY_LIMIT:
        raise UserError(
            f"`context.length: {length}` with a {model.config.model_type} model: its layers see different windows, "
            f"which only a mask of the row's square could say here, and those end at {LIBRARY_LIMIT} positions. Use a "
            "GPU and a model that FlexAttention serves, or shorter rows."
        )
    return "joined" if joined else "library"


def _flex_serves(model: PreTrainedModel) -> bool:
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return bool(getattr(model, "_supports_flex_attn", False)) and width >= FLEX_LEAST_WIDTH


class Attention:
    """What a model's forward is given beside its tokens, and which attention function its layers call."""

    def __init__(self, model: PreTrainedModel, context: Mapping[str, Any], device: str, dtype: torch.dtype) -> None:
        """dtype: of the queries. Sets the attention function of `model`. Raises UserError where it does not take it."""
        self.kind = choose(model, context, device)
        self._dtype = dtype
        self._one_mask = single_mask_serves(model.config)
        function = self._function(device)
        try:
            if model.config._attn_implementation != function:
                model.set_attn_implementation(function)
        except (ValueError, ImportError) as error:
            raise UserError(f"a {model.config.model_type} model cannot be run here: {error}") from None
        if model.config._attn_implementation != function:
            raise UserError(
                f"rows of {context['length']} tokens need attention {self.kind}, which a {model.config.model_type} "
                f"model does not take: it computes attention itself. Use rows of at most {DENSE_LIMIT}, or "
                "`documents: joined`."
            )

    def _function(self, device: str) -> str:
        if self.kind == "flex":
            return FLEX if self._one_mask else FLEX_IN_WINDOWS
        if self.kind == "by-document":
            return BY_DOCUMENT
        # Left to itself, transformers searches positions for documents, and waits for the device each time.
        return CAUSAL if device == "cuda" and self.kind == "joined" and self._one_mask else "sdpa"

    def arguments(self, position_ids: np.ndarray, device: torch.device) -> dict[str, Any]:
        """`position_ids` and `attention_mask` for rows of positions int64 [rows, length], which count up by one inside
        a document and start anew in the next."""
        if self.kind == "by-document":
            _Documents.now = boundaries(position_ids)
        if not restarts(position_ids):
            # Positions that only count up are the model's own.
            return {"position_ids": None, "attention_mask": None}
        positions = torch.from_numpy(position_ids)
        return {"position_ids": to_device(positions, device), "attention_mask": self._mask(positions, device)}

    def _mask(self, positions: Tensor, device: torch.device) -> Any:
        if self.kind == "by-document" or not self._one_mask:
            return None  # where layers differ, transformers finds the documents from the positions
        if self.kind == "flex":
            return block_mask(to_device(document_of(positions), device))
        return document_mask(positions, device, self._dtype)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for, as far as the device allows."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


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


def causal(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: plain causal, whatever the positions.

    query [rows, heads, length, d], key and value [rows, key-value heads, length, d] → [rows, length, heads, d].
    """
    _check_plain(module, others)
    attended = _attend(query, key, value, scaling)
    return attended.transpose(1, 2).contiguous(), None


# What families hand to an attention function beside queries, keys and values, and plain attention would leave out.
_CHANGES_SCORES = ("position_bias", "s_aux", "softcap", "sliding_window")


def _check_plain(module: nn.Module, others: Mapping[str, Any]) -> None:
    """Raise UserError for attention with biases, sinks, capped scores or a window."""
    asked = [name for name in _CHANGES_SCORES if others.get(name) is not None]
    if asked:
        raise UserError(
            f"{type(module).__name__} wants attention with `{asked[0]}`, which rows of this length and this device "
            "cannot be given; use shorter rows, `documents: joined` or another model."
        )


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda and query.dtype == torch.float32 and not torch.is_autocast_enabled("cuda"):
        # In fp32 the kernels that do without a matrix of the row's square know no groups of heads.
        copies = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(copies, dim=1) for part in (key, value))
        grouped = False
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)


def _by_length(of_row: tuple[Tensor, ...], documents: list[tuple[int, int]]) -> Iterator[tuple[Tensor, ...]]:
    """Queries, keys and values of each document of a row."""
    lengths = [end - start for start, end in documents]
    return zip(*(part.split(lengths, dim=2) for part in of_row), strict=True)


@torch.compiler.disable  # a compiler would make a program for every way in which documents can lie
def by_document(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """As `causal`, but inside each document: nothing between documents."""
    _check_plain(module, others)
    rows = _Documents.now
    if len(rows) != query.shape[0] or any(documents[-1][1] != query.shape[2] for documents in rows):
        raise RuntimeError("attention was called for other rows than those whose documents are known")
    # Split, not sliced: the gradient of slices is a sum of tensors that are zero outside of their slice.
    parts = [part.split(1) for part in (query, key, value)]
    attended = [
        torch.cat([_attend(*of_document, scaling) for of_document in _by_length(of_row, documents)], dim=2)
        for of_row, documents in zip(zip(*parts, strict=True), rows, strict=True)
    ]
    return torch.cat(attended).transpose(1, 2).contiguous(), None


def flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, Any]:
    """transformers' FlexAttention, in one type: under autocast rotated queries and keys are fp32 beside bf16 values,
    which the kernel refuses or computes in fp32. Without a mask, plain causal attention."""
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (part.to(dtype) for part in (query, key, value))
    if attention_mask is None:
        return causal(module, query, key, value, scaling=scaling, **others)
    attend = ALL_ATTENTION_FUNCTIONS["flex_attention"]
    attended, scores = attend(module, query, key, value, attention_mask, scaling=scaling, **others)
    return attended, scores


for _name, _function in ((BY_DOCUMENT, by_document), (CAUSAL, causal), (FLEX, flex), (FLEX_IN_WINDOWS, flex)):
    ALL_ATTENTION_FUNCTIONS.register(_name, _function)
ALL_MASK_ATTENTION_FUNCTIONS.register(FLEX_IN_WINDOWS, flex_attention_mask)


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
