"""What an attempt leaves of its updates: a line of metrics each, and now and then a word to whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from harness.plan.cost import ModelShape
from harness.store.attempts import Attempt
from harness.store.metrics import MetricsWriter
from harness.train.loop import Piece, Update, piece_at

PROGRESS_SECONDS = 0.3

Progress = Callable[[Mapping[str, Any]], None]


class Recorder:
    """Writes the metrics of one attempt, which began at path token `tokens`, and reports progress."""

    def __init__(
        self,
        attempt: Attempt,
        segment: Mapping[str, Any],
        shape: ModelShape,
        tokens: int,
        progress: Progress,
    ) -> None:
        self.steps = 0
        self.flops = 0
        self.seconds = 0.0
        self.last: Update | None = None
        self._began_at = tokens
        self._tokens = tokens
        self._segment = segment
        self._shape = shape
        self._progress = progress
        self._metrics = MetricsWriter(attempt.folder / "metrics.jsonl")
        self._clock = time.perf_counter()
        self._reported = self._clock

    def updates(self, seen: list[Update]) -> None:
        """Take in the updates of one look; they share its time, since a device's work ends when it is fetched."""
        if not seen:
            return
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self.seconds += seconds
        speed = (seen[-1].tokens - self._tokens) / seconds
        stamp = round(time.time(), 3)
        for update in seen:
            piece = piece_at(self._segment["pieces"], self._tokens)
            self.steps += 1
            self.flops += _flops(self._shape, piece)
            self._tokens = update.tokens
            self._metrics.write(_line(update, speed, self.flops, stamp))
        self.last = seen[-1]
        if now - self._reported >= PROGRESS_SECONDS or self._tokens >= self._segment["tokens_to"]:
            self._reported = now
            self._progress(
                {
                    "segment": self._segment["id"],
                    "tokens": self._tokens,
                    "tokens_from": self._segment["tokens_from"],
                    "tokens_to": self._segment["tokens_to"],
                    "loss": self.last.loss,
                    "tokens_per_second": self.tokens_per_second,
                }
            )

    def pause(self) -> None:
        """Have the time up to now count for no update: call after a checkpoint was written."""
        self._clock = time.perf_counter()

    def flush(self) -> None:
        """Write every line that is still in memory."""
        self._metrics.flush()

    @property
    def tokens_per_second(self) -> float:
        """Over the whole attempt, checkpoints left out."""
        return (self._tokens - self._began_at) / self.seconds if self.seconds else 0.0

    def summary(self) -> dict[str, Any]:
        """What `DONE.json` keeps of the attempt that finished."""
        return {
            "loss": self.last.loss if self.last else None,
            "loss_by_source": dict(self.last.loss_by_source) if self.last else {},
            "steps_of_last_attempt": self.steps,
            "seconds_of_last_attempt": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
        }


def _flops(shape: ModelShape, piece: Piece) -> int:
    science = piece["science"]
    return shape.flops_per_token(science["context"]["length"]) * int(science["batch_tokens"])


def _line(update: Update, speed: float, flops: int, stamp: float) -> dict[str, Any]:
    return {
        "tokens": update.tokens,
        "step": update.step,
        "loss": update.loss,
        "loss_by_source": dict(update.loss_by_source),
        "grad_norm": update.grad_norm,
        "lr": update.lr,
        "labels": update.labels,
        **({} if update.z_loss is None else {"z_loss": update.z_loss}),
        **({"skipped": True} if update.skipped else {}),
        "tokens_per_second": round(speed, 1),
        "flops": flops,
        "time": stamp,
    }
