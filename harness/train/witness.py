"""What really ran: operators and kernels of a first forward pass, as the device saw them.

A patch that is in place may still be passed by. On a GPU the profiler names every kernel that was launched; on a CPU
the dispatcher names every operator. Neither changes a bit of the result, and only the first forward pays for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

from harness.train.kernels import Kernels, check_seen, liger_kernels, version

_SDPA = "_scaled_dot_product_"


class Witness:
    """Sees one forward pass. seen: operators or kernels → how often, None before it and where nobody could look."""

    def __init__(self, device: str, look: bool = True) -> None:
        """look: false where nobody may, such as into what is being compiled."""
        self.seen: Counter[str] | None = None
        self._device = device
        self._done = not look

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around a forward pass; looks at the first."""
        if self._done:
            yield
            return
        self._done = True
        seen: Counter[str] = Counter()
        if self._device == "cuda":
            from torch.profiler import ProfilerActivity, profile

            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                yield
                torch.cuda.synchronize()
            events = list(profiler.events())
            if not any(event.device_type == DeviceType.CUDA for event in events):
                return  # another profiler has the device: nobody could look
            seen.update(event.name for event in events)
        else:
            with _Dispatched(seen):
                yield
        self.seen = seen

    def record(self, kernels: Kernels, attention: str) -> dict[str, Any]:
        """What to say of it in the attempt's events. Raises UserError when a Liger kernel was asked for and none of it
        was launched."""
        said: dict[str, Any] = {"kernels": kernels.label, "why": kernels.why, "attention": attention}
        if kernels.liger:
            said["liger"] = version()
        if self.seen is None:
            return said
        if self._device == "cuda":
            check_seen(kernels, self.seen)
        return said | {"sdpa": _attention(self.seen), "launched": liger_kernels(self.seen)}


def _attention(seen: Mapping[str, int]) -> list[str]:
    """Backends of scaled_dot_product_attention among the operators: flash_attention, efficient_attention, ..."""
    names = {name.rpartition("::")[2] for name in seen if _SDPA in name and "backward" not in name}
    return sorted({name.removeprefix(_SDPA).split(".")[0] for name in names if name.startswith(_SDPA)})


class _Dispatched(TorchDispatchMode):
    """Counts operators below autograd."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._seen[str(operator.name())] += 1
        return operator(*args, **(kwargs or {}))
