"""The peer of the speed benches: transformers' Trainer, at its best on the same work.

Fused AdamW, clipping, the same rows in the same order, no logging, no checkpoints, no evaluation. A whole batch is one
forward unless the setting says otherwise (gradient accumulation).
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PretrainedConfig, Trainer, TrainerCallback, TrainingArguments

from harness.data.token_store import TokenSource
from harness.train.shapes import drawn

if TYPE_CHECKING:
    from harness.train.measure import Setting


class _Rows(IterableDataset):  # type: ignore[type-arg]
    """Rows as transformers wants them: labels stand where they are predicted, so nothing shifts them again."""

    def __init__(self, setting: Setting, sources: Mapping[str, TokenSource]) -> None:
        self._setting = setting
        self._sources = sources

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        from harness.train.measure import rows_of

        for row in rows_of(self._setting, self._sources):
            labels = torch.from_numpy(row["labels"])
            fields = {"input_ids": torch.from_numpy(row["input_ids"]), "labels": labels, "shift_labels": labels}
            if self._setting.documents == "masked":
                fields["position_ids"] = torch.from_numpy(row["position_ids"])
            yield fields


class _Clock(TrainerCallback):
    """Seconds of each optimizer step, from the fetch of its batch on."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


class _WithLosses(Trainer):
    """Keeps the loss of each forward on the device."""

    losses: list[Tensor]

    def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
        found = super().compute_loss(*arguments, **keywords)
        self.losses.append((found[0] if isinstance(found, tuple) else found).detach())
        return found


def train(
    setting: Setting, config: PretrainedConfig, path: list[dict[str, Any]], sources: Mapping[str, TokenSource]
) -> dict[str, Any]:
    """The same figures as for the harness's own loop."""
    science = path[0]["science"]
    optimizer = science["optimizer"]
    rows = (setting.micro_batch or setting.batch) // setting.context
    steps = setting.warmup + setting.updates
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=setting.batch // (rows * setting.context),
            learning_rate=science["lr"]["value"],
            lr_scheduler_type="constant",
            weight_decay=optimizer["weight_decay"],
            adam_beta1=optimizer["betas"][0],
            adam_beta2=optimizer["betas"][1],
            adam_epsilon=optimizer["eps"],
            max_grad_norm=optimizer["clip"],
            optim="adamw_torch_fused",
            bf16=setting.precision == "bf16-mixed",
            torch_compile=setting.compile,
            gradient_checkpointing=setting.activation_checkpointing != "off",
            use_cpu=setting.device == "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=setting.device != "cpu",
        )
        trainer = _WithLosses(
            model=drawn(config, setting.device),
            args=arguments,
            train_dataset=_Rows(setting, sources),
            callbacks=[clock],
        )
        trainer.losses = []
        trainer.train()
    per_step = len(trainer.losses) // steps
    losses = torch.stack(trainer.losses).float().view(steps, per_step).sum(dim=1)
    times = clock.times[setting.warmup - 1 :]
    seconds = [after - before for before, after in itertools.pairwise(times)]
    return {"seconds": seconds, "losses": losses.tolist()}
