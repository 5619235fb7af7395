"""Shards on disk: `shards/rank-R-of-N.safetensors`, a file of each rank, written through torch.distributed.checkpoint.

DCP's own file writer pickles its metadata, and nothing is unpickled from a results folder, so this is a storage layer
of safetensors on its `StorageWriter`: a file says of each tensor where in the whole one its rows lie, as
`HuggingFaceStorageReader` expects it (which opens them, too). Names are `model.<name>`, `optimizer.<part>.<name>` and
`average.<name>`; what all ranks hold alike, rank 0 writes. Readers take up the rows that they want, whatever number of
ranks has written them.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.tensor import DTensor

from harness.store.atomic import writing
from harness.store.checkpoints import SHARDS, CheckpointMarker
from harness.store.markers import Damaged

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32"}
_NAMES |= {torch.bool: "BOOL", torch.uint8: "U8", torch.float64: "F64"}
_OFFSETS = "DCP_SHARDING_INFO"  # the name under which DCP's readers look for them

warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


@dataclass(frozen=True)
class Entry:
    """A tensor that is to be written."""

    name: str
    dtype: torch.dtype
    shape: Sequence[int]

    @property
    def bytes(self) -> int:
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count


def write_tensors(
    path: Path, entries: Sequence[Entry], values: Iterable[Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A durable safetensors file of `entries`, whose values come one after the other: one is in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.bytes
        kind = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape)}
        header[entry.name] = {**kind, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with writing(path, end), path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry, value in zip(entries, values, strict=True):
            if tuple(value.shape) != tuple(entry.shape) or value.dtype != entry.dtype:
                raise ValueError(f"{entry.name} is {tuple(value.shape)} of {value.dtype}, not as announced")
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write(memoryview(cast(Any, flat.numpy())))
        file.flush()
        os.fsync(file.fileno())


class RankFile(StorageWriter):
    """Writes one rank's part of a plan into one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        entries, offsets = [], {}
        for item in plan.items:
            assert item.tensor_data is not None, "only tensors are kept"
            name = item.index.fqn
            entries.append(Entry(name, item.tensor_data.properties.dtype, item.tensor_data.chunk.sizes))
            offsets[name] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
        values = (cast(Tensor, planner.resolve_data(item)) for item in plan.items)
        metadata = {_OFFSETS: json.dumps(offsets), "DCP_VERSION": "1.0"}
        write_tensors(self._path, entries, values, metadata)
        written: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        written.set_result([])
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None: ...

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class OwnPart(dcp.DefaultSavePlanner):
    """Plans this rank's part alone. The ranks need not agree: a file's name and the rows in it follow from the rank,
    and that all are there is what the checkpoint's marker says. So nothing in the background waits for anybody."""

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return all_plans, Metadata({})


def save_async(path: Path, tensors: Mapping[str, Tensor | DTensor]) -> Future[Any]:
    """Begin to write this rank's part of `tensors`, DTensors sharded by rows or plain ones of this rank alone.

    They are copied to host memory first (as much as they take), and may change when this returns. What is in the future
    raises what went wrong; once it is done without, the file is durable.
    """
    here = {name: value for name, value in tensors.items() if not isinstance(value, DTensor) or _local(value).numel()}
    saved = dcp.async_save(
        cast(Any, here),
        storage_writer=RankFile(path),
        planner=OwnPart(),
        no_dist=True,
        use_collectives=False,
    )
    return saved if isinstance(saved, Future) else saved.upload_completion


def _local(value: DTensor) -> Tensor:
    return cast(Tensor, value.to_local())


def rank_file(checkpoint: Path, rank: int, world: int) -> Path:
    """The file of rank `rank` of `world` that have written a checkpoint."""
    return checkpoint / SHARDS / f"rank-{rank:05d}-of-{world:05d}.safetensors"


def is_complete(path: Path) -> bool:
    """Whether a file that another machine has written is seen here as it was written."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


@dataclass(frozen=True)
class _Piece:
    file: Path
    offset: int
    shape: tuple[int, ...]


class ShardFiles:
    """The tensors of a sharded checkpoint. Rows are read when they are asked for."""

    def __init__(self, saved: CheckpointMarker) -> None:
        self._checkpoint = saved.path
        self._pieces: dict[str, list[_Piece]] = {}
        # By the marker: another machine may not list them all yet.
        for path in (saved.path / name for name in sorted(saved.files) if name.startswith(f"{SHARDS}/")):
            with safe_open(path, framework="pt") as file:
                offsets = json.loads((file.metadata() or {}).get(_OFFSETS, "{}"))
                for name in file.keys():  # noqa: SIM118 (it is no mapping)
                    first = offsets.get(name, {}).get("saved_offsets") or [0]
                    shape = tuple(file.get_slice(name).get_shape())
                    self._pieces.setdefault(name, []).append(_Piece(path, first[0], shape))

    def names(self, prefix: str) -> list[str]:
        """Names that begin with `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self._pieces if name.startswith(prefix)]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor in host memory, or the rows of it from `rows.start` to before `rows.stop`. Raises Damaged."""
        pieces = sorted(self._pieces.get(name, ()), key=lambda piece: piece.offset)
        if not pieces:
            raise Damaged(f"{self._checkpoint} has no {name}")
        if not pieces[0].shape:
            return _rows(pieces[0].file, name, None)
        end = max(piece.offset + piece.shape[0] for piece in pieces)
        wanted = rows or slice(0, end)
        found = [read for piece in pieces if (read := _overlap(piece, name, wanted)) is not None]
        if sum(len(part) for part in found) != wanted.stop - wanted.start:
            raise Damaged(f"{self._checkpoint} lacks rows of {name}")
        whole = torch.cat(found) if found else torch.empty((0, *pieces[0].shape[1:]))
        return whole.clone() if len(found) == 1 else whole


class WholeFile:
    """The same of a plain safetensors file, in which every tensor is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, framework="pt") as file:
            self._names = list(file.keys())

    def names(self) -> Iterator[str]:
        return iter(self._names)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or some rows of one that has any."""
        return _rows(self._path, name, rows)


def _overlap(piece: _Piece, name: str, wanted: slice) -> Tensor | None:
    first = max(wanted.start, piece.offset)
    last = min(wanted.stop, piece.offset + piece.shape[0])
    return _rows(piece.file, name, slice(first - piece.offset, last - piece.offset)) if first < last else None


def _rows(path: Path, name: str, rows: slice | None) -> Tensor:
    """In memory of its own."""
    with safe_open(path, framework="pt") as file:
        part = file.get_slice(name)
        whole = rows is None or not part.get_shape()
        return cast(Tensor, file.get_tensor(name) if whole else part[rows]).clone()
