"""Data: sources, tokenizing, the token store, packing and the loader. Needs numpy; imports no torch.

resolve_tokenizer, resolve_sources    before planning: manifests and token stores
TokenSource, Loader, Cursor, Batch    during training
requested_tokens, check_demand        at planning: what a path asks for, and whether it is there
"""

from harness.data.cursor import Cursor, SourceCursor
from harness.data.demand import (
    Shortage,
    check_demand,
    requested_by_piece,
    requested_tokens,
    shortages,
)
from harness.data.loader import Batch, Loader, Served, served
from harness.data.resolve import resolve_sources
from harness.data.token_store import TokenSource
from harness.data.tokenizer import open_tokenizer, resolve_tokenizer

__all__ = [
    "Batch",
    "Cursor",
    "Loader",
    "Served",
    "Shortage",
    "SourceCursor",
    "TokenSource",
    "check_demand",
    "open_tokenizer",
    "requested_by_piece",
    "requested_tokens",
    "resolve_sources",
    "resolve_tokenizer",
    "served",
    "shortages",
]
