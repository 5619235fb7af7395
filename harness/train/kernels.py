"""Which kernels run in a model: Liger's fused ones or torch's, chosen by one function, applied by one, and proven.

Liger (Hsu et al., 2410.10989) replaces functions and classes of transformers' modelling modules, for the whole process.
Here that lasts as long as the segment that asked for it: `applied` puts back what it found, so that the evaluation that
follows in the same process runs plain transformers. What was asked for and is not active is an error.

The output head and the loss are fused by `fused`, for every family that has a plain linear head (Pythia and GPT-2
included, which Liger does not know): it takes hidden states, so no logits are ever there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from harness.study.errors import UserError

Choice = Literal["torch", "liger", "chunked"]
IN_THE_LAYERS = ("rope", "rms_norm", "swiglu")
LOSS = "fused_linear_cross_entropy"
# Kernels by what a profiler calls them, any of several names.
SEEN_AS: Mapping[str, tuple[str, ...]] = {
    "rope": ("_triton_rope",),
    "rms_norm": ("rms_norm_forward_kernel",),
    "swiglu": ("swiglu_forward", "geglu_tanh_forward"),
    LOSS: ("liger_cross_entropy_kernel",),
}


@dataclass(frozen=True)
class Kernels:
    """Whose kernel does each part. `chunked`, of the loss alone: torch's, over chunks of rows (`train.fused`).

    why: how `auto` came to it; empty where the study said it.
    """

    rope: Choice = "torch"
    rms_norm: Choice = "torch"
    swiglu: Choice = "torch"
    fused_linear_cross_entropy: Choice = "torch"
    why: str = ""

    @property
    def parts(self) -> dict[str, Choice]:
        """Part → whose kernel."""
        return {name: value for name, value in asdict(self).items() if name != "why"}

    @property
    def liger(self) -> tuple[str, ...]:
        """The parts that are Liger's."""
        return tuple(name for name, value in self.parts.items() if value == "liger")

    @property
    def label(self) -> str:
        """In a word where one says it: `torch`, `liger`, else each part that is not torch's."""
        values = set(self.parts.values())
        if len(values) == 1:
            return values.pop()
        return ", ".join(f"{name} {value}" for name, value in self.parts.items() if value != "torch")


TORCH = Kernels()
Asked = str | Mapping[str, str]


def resolve(
    asked: Asked, config: PretrainedConfig, device: str, compiled: bool = False, recomputed: str = "off"
) -> Kernels:
    """The kernels of a study's `launch.kernels` for a model on a device. compiled: with `launch.compile`; recomputed:
    `launch.activation_checkpointing`.

    `auto` may choose: on a CPU torch's; on a GPU what Liger has for the family, and under compilation its fused loss
    alone, since the compiler fuses the rest itself. Everything else is done or refused. Raises UserError.
    """
    if asked == "torch":
        return TORCH
    if asked == "auto":
        return _auto(config, device, compiled, recomputed)
    wanted = dict.fromkeys((*IN_THE_LAYERS, LOSS), "liger") if asked == "liger" else dict(asked)  # type: ignore[arg-type]
    kernels = Kernels(**wanted)  # type: ignore[arg-type]
    for part in kernels.liger:
        problem = _cannot(part, config, device)
        if problem is not None:
            raise UserError(f"`launch.kernels` asks for Liger's {part}, and {problem}.")
    if compiled and kernels.rms_norm == "liger":
        raise UserError(
            "`launch.kernels` asks for Liger's rms_norm beside `launch.compile: true`: compiled, it is known to "
            "deviate, and the compiler fuses the norms itself. Use `kernels: {fused_linear_cross_entropy: liger}`, or "
            "no compile."
        )
    if kernels.rope == "liger" and _rotated_twice(compiled, recomputed):
        raise UserError(
            "`launch.kernels` asks for Liger's rope beside `launch.activation_checkpointing: selective`: it rotates in "
            "place what selective recomputation keeps, so that a layer done again would rotate it twice. Use `full`, "
            "or torch's rope."
        )
    if kernels.fused_linear_cross_entropy != "torch" and (why := _no_plain_head(config)) is not None:
        raise UserError(f"`launch.kernels.{LOSS}: {kernels.fused_linear_cross_entropy}` cannot serve here: {why}.")
    return kernels


def _rotated_twice(compiled: bool, recomputed: str) -> bool:
    return recomputed == "selective" and not compiled


def _auto(config: PretrainedConfig, device: str, compiled: bool, recomputed: str) -> Kernels:
    if device == "cpu":
        return replace(TORCH, why="auto on a CPU: plain torch")
    missing = _no_liger(device)
    if missing is not None:
        loss: Choice = "torch" if _no_plain_head(config) else "chunked"
        return Kernels(fused_linear_cross_entropy=loss, why=f"auto: {missing}")
    parts: dict[str, Any] = {part: "liger" for part in IN_THE_LAYERS if not compiled and _knows(part, config)}
    if _rotated_twice(compiled, recomputed):
        parts.pop("rope", None)
    if _no_plain_head(config) is None:
        parts[LOSS] = "liger"
    return Kernels(**parts, why="auto: Liger where it has a kernel" + (", layers compiled" if compiled else ""))


def _cannot(part: str, config: PretrainedConfig, device: str) -> str | None:
    missing = _no_liger(device)
    if missing is not None:
        return missing
    if device == "cpu" and part != LOSS:
        return "the interpreter that stands in for a GPU cannot run it"
    if part != LOSS and not _knows(part, config):
        return f"Liger {version()} has none for a {config.model_type} model"
    return None


def _no_liger(device: str) -> str | None:
    """Why Liger cannot run here; None where it can."""
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed here (`pip install 'midtraining-ablation-harness[liger]'`)"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Liger needs a GPU, and this runs on a CPU"
    return None


# Fields by which families change their logits after the output head, and the value that changes nothing.
_AFTER_THE_HEAD = {
    "final_logit_softcapping": None,
    "logits_soft_cap": None,
    "output_logit_soft_cap": None,
    "logits_scaling": 1,
    "logit_scale": 1,
    "lm_head_multiplier": 1,
}


def _no_plain_head(config: PretrainedConfig) -> str | None:
    """Why logits are more than a linear map of the hidden states; None where they are no more."""
    text = config.get_text_config()
    for name, neutral in _AFTER_THE_HEAD.items():
        if getattr(text, name, neutral) not in (None, neutral):
            return f"a {config.model_type} model changes its logits after the output head (`{name}`)"
    return None


def _patches(config: PretrainedConfig) -> Any:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return MODEL_TYPE_TO_APPLY_LIGER_FN.get(config.model_type)


def _names(part: str, config: PretrainedConfig) -> tuple[str, ...]:
    """Liger's keywords for a part in this family: the gated MLP is `swiglu` in one and `geglu` in another."""
    apply = _patches(config)
    known = () if apply is None else inspect.signature(apply).parameters
    return tuple(name for name in ((part, "geglu") if part == "swiglu" else (part,)) if name in known)


def _knows(part: str, config: PretrainedConfig) -> bool:
    return bool(_names(part, config))


def version() -> str | None:
    """Liger's version, None where it is not installed."""
    try:
        return importlib.metadata.version("liger-kernel")
    except importlib.metadata.PackageNotFoundError:
        return None


@contextmanager
def applied(model: PreTrainedModel, kernels: Kernels) -> Iterator[None]:
    """`model` with its kernels inside the block; the modelling module as it was after it.

    Enter before the model is compiled or sharded. Raises UserError when a kernel that was asked for is not active.
    """
    module = sys.modules[type(model).__module__]
    before = dict(vars(module))
    try:
        _apply(model, kernels)
        yield
    finally:
        for name in [name for name, value in vars(module).items() if before.get(name, _NEW) is not value]:
            if name in before:
                setattr(module, name, before[name])
            else:
                delattr(module, name)


_NEW = object()


def _apply(model: PreTrainedModel, kernels: Kernels) -> None:
    config = model.config
    layers = [part for part in kernels.liger if part in IN_THE_LAYERS]
    if layers:
        from liger_kernel.transformers import monkey_patch

        every = [*IN_THE_LAYERS, "geglu", "layer_norm", "relu_squared", "cross_entropy", LOSS]
        chosen = dict.fromkeys(every, False) | {name: True for part in layers for name in _names(part, config)}
        monkey_patch._apply_liger_kernel_to_instance(model=model, **chosen)
        if "rms_norm" in layers:
            _complete_norms(model)
    for part in layers:
        inactive = _inactive(part, model)
        if inactive is not None:
            raise UserError(f"Liger's {part} was asked for and is not active: {inactive}.")


_OF_A_NORM = ("offset", "casting_mode", "variance_epsilon", "in_place", "row_mode", "impl", "mode")


def _complete_norms(model: PreTrainedModel) -> None:
    """Liger 0.8 passes over some norms of a built model (those of OLMo 2's queries and keys), though its patch of the
    class would take them: they are given what their siblings of the same class were given."""
    norms = [child for child in model.modules() if type(child).__name__.endswith("RMSNorm")]
    done = {type(child): child for child in norms if _is_ligers(child.forward)}
    for child in norms:
        sibling = done.get(type(child))
        if sibling is None or _is_ligers(child.forward):
            continue
        for name in _OF_A_NORM:
            if name in vars(sibling) and name not in vars(child):
                setattr(child, name, getattr(sibling, name))
        child.forward = sibling.forward.__func__.__get__(child)
        child._get_name = sibling._get_name.__func__.__get__(child)


def _inactive(part: str, model: PreTrainedModel) -> str | None:
    """What of a part still runs without Liger; None when all of it is Liger's."""
    if part == "rope":
        rotary = getattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb", None)
        return None if _is_ligers(rotary) else "the modelling module rotates with its own function"
    suffix = "RMSNorm" if part == "rms_norm" else "MLP"
    found = [(name, child) for name, child in model.named_modules() if type(child).__name__.endswith(suffix)]
    plain = [name for name, child in found if not _is_ligers(child.forward)]
    if not found:
        return f"the model has no {suffix}"
    return f"{len(plain)} of {len(found)} modules are not, such as {plain[0]}" if plain else None


def _is_ligers(function: Any) -> bool:
    code = getattr(function, "__func__", function)
    return str(getattr(code, "__module__", "")).startswith("liger_kernel")


def check_seen(kernels: Kernels, seen: Mapping[str, int]) -> None:
    """Raise UserError unless every Liger kernel was launched. seen: kernels of a first update, name → launches."""
    for part in kernels.liger:
        if not any(name in launched for name in SEEN_AS[part] for launched in seen):
            raise UserError(
                f"Liger's {part} was asked for, and the first update launched no kernel of it "
                f"({' or '.join(SEEN_AS[part])}); nothing was trained."
            )


def liger_kernels(seen: Mapping[str, int]) -> dict[str, int]:
    """Of the kernels that a profiler saw, those that stand for a part: name → launches."""
    names = [name for known in SEEN_AS.values() for name in known]
    return {kernel: count for kernel, count in seen.items() if any(name in kernel for name in names)}


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise UserError unless logits are the output head's of the hidden states: what a fused loss takes for granted."""
    head, device = output_head(model), next(model.parameters()).device
    ids = torch.arange(8, device=device).unsqueeze(0) % model.config.get_text_config().vocab_size
    logits = model(input_ids=ids, use_cache=False).logits
    plain = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(logits, plain, rtol=1e-4, atol=1e-5):
        raise UserError(
            f"a {model.config.model_type} model does more to its logits than its output head says, so the loss cannot "
            f"be fused with it. Use `launch.kernels: {{{LOSS}: torch}}`."
        )


def output_head(model: PreTrainedModel) -> nn.Linear:
    """The linear map from hidden states to logits. Raises UserError for a model that has none."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UserError(f"a {model.config.model_type} model has no linear output head that could be fused.")
    return head
