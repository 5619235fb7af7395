"""TensorBoard: event files in `track/tensorboard/<run>`; `tensorboard --logdir` shows them. Steps are tokens.

A process that opens a run writes it anew, from its first row: the metrics are at hand, and a reader of two files with
the same steps would draw both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from harness.store.atomic import writing
from harness.store.layout import Folder
from harness.track.tracker import OpenRun, Row, TrackedRun


class TensorboardTracker:
    """Event files of a results folder, a folder a run."""

    live = True

    def __init__(self, folder: Folder) -> None:
        self._root = folder.track / "tensorboard"

    def open(self, run: TrackedRun) -> OpenRun:
        place = self._root / run.name
        with writing(place):
            if place.exists():
                shutil.rmtree(place)
            place.mkdir(parents=True)
            return _Run(EventFileWriter(str(place)), run)


class _Run:
    held = 0

    def __init__(self, writer: EventFileWriter, run: TrackedRun) -> None:
        self._writer = writer
        config = {"kind": run.kind, "tags": ", ".join(run.tags), "id": run.id, **run.config}
        first = {name: value for name, value in run.config.items() if name.startswith(("changes.", "seeds."))}
        self._add(hparams.hparams_pb({name: _plain(value) for name, value in first.items()}, trial_id=run.id), 0)
        self._add(_text("config", json.dumps(config, indent=1, sort_keys=False)), 0)

    def log(self, row: Row) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.values.items()]
        self._add(Summary(value=values), row.tokens)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, summary: Mapping[str, Any], ended: bool) -> None:
        """The summary's numbers are in the rows; what is no number of them is kept as text."""
        words = {name: value for name, value in summary.items() if not isinstance(value, float)}
        if words:
            self._add(_text("summary", json.dumps(words, indent=1)), 0)
        self._writer.close()

    def abandon(self) -> None:
        try:
            self._writer.close()
        except Exception:
            return

    def _add(self, summary: Summary, step: int) -> None:
        self._writer.add_event(Event(step=step, summary=summary))


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _text(tag: str, text: str) -> Summary:
    """A text that the dashboard shows as code."""
    data = TensorProto(dtype=DT_STRING, string_val=["\n".join(f"    {line}" for line in text.split("\n")).encode()])
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=data)])
