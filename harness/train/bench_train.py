"""`ablate bench train` and `ablate bench fit`: what a model trains at here, and the launch settings that do best.

Every figure is measured in a process of its own (`train.measure`), in rounds whose order alternates, so that what the
machine does meanwhile hits all of them; a figure is the median over all updates of all rounds.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.plan.cost import ModelShape, windows_of
from harness.study.errors import UserError
from harness.train.kernels import resolve
from harness.train.measure import Setting, as_json
from harness.train.model import shape_of
from harness.train.numerics import Numerics
from harness.train.shapes import shape_config

FUSED = "fused_linear_cross_entropy"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "torch": {"kernels": "torch"},
    "torch+compile": {"kernels": "torch", "compile": True},
    "chunked": {"kernels": {FUSED: "chunked"}},
    "chunked+compile": {"kernels": {FUSED: "chunked"}, "compile": True},
    "liger": {"kernels": "liger"},
    "liger+compile": {"kernels": {FUSED: "liger"}, "compile": True},  # the compiler fuses the layers itself
}
FORMULAS = {
    "model_flops": "6 N + 6 L d T a token: N parameters of matrix products (with the head, tied or not, without the "
    "embedding look-up), L layers of attention width d, context T, causal",
    "mfu_causal": "model_flops / peak",
    "mfu_full": "(6 N + 12 L d T) / peak: PaLM's count (2204.02311, appendix B), masked half included",
}
# Dense bf16 peak in FLOP/s of one device, by what its name holds; the first that fits.
PEAKS: Sequence[tuple[str, float]] = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
)
AT_ITS_BEST = " at its best"
UPDATES_TO_FIT = 4  # enough to tell sizes apart
Note = Callable[[str], None]


@dataclass(frozen=True)
class Figures:
    """One row of the bench."""

    name: str
    micro_batch: int
    tokens_per_second: float
    tflops: float | None
    mfu_full: float | None
    mfu_causal: float | None
    peak_bytes: int
    loader_share: float
    look_share: float
    activation_checkpointing: str
    ran: Mapping[str, Any]


@dataclass(frozen=True)
class Beside:
    """What is measured beside each variant at one micro-batch. best: each at its own best one. trainer: the peer.
    by_source: each with a mixture of two sources, whose losses are told apart."""

    best: bool = False
    trainer: bool = False
    by_source: bool = False


def bench_train(base: Setting, names: Sequence[str], rounds: int, beside: Beside, note: Note) -> dict[str, Any]:
    """Figures of each variant, and what is asked for beside them.

    names: of VARIANTS, empty for those that run here. Raises UserError for a name that cannot run here.
    """
    variants, left_out = _variants(base, names)
    fitted = {}
    if beside.best:
        fitted = {name: setting for name, (_, setting) in _fitted(base, variants, left_out, note).items()}
    variants = [name for name in variants if name in fitted or not beside.best]
    settings = _settings(_equal(base, fitted), variants, fitted, beside)
    measured = _in_rounds(settings, rounds, left_out, note)
    ours = next(iter(measured.values()))["numerics"]
    config = shape_config(base.model, base.context)
    shape, peak = _shape(config), _peak(ours["processor"])
    found: dict[str, Any] = {
        "bench": "train",
        "device": ours["processor"],
        "torch": ours["torch"],
        "model": base.model,
        "parameters": shape.total,
        "settings": {k: v for k, v in asdict(base).items() if k not in ("model", "kernels", "compile", "trainer")},
        "rounds": rounds,
        "formulas": FORMULAS,
        "peak_flops": peak,
        "equal_micro_batch": settings[variants[0]].micro_batch,
        "rows": [
            asdict(_figures(name, settings[name], one, shape, peak))
            for name, one in measured.items()
            if name != "Trainer"
        ],
        "left_out": left_out,
    }
    if "Trainer" in measured:
        found["trainer"] = _against_the_peer(measured, shape)
    return found


def _fitted(
    base: Setting, variants: Sequence[str], left_out: dict[str, str], note: Note
) -> dict[str, tuple[float, Setting]]:
    """Each variant at its own best, with its tokens/s; what fails is left out. Raises UserError when all do."""
    fitted = {}
    for name in variants:
        note(name)
        try:
            fitted[name] = fit(replace(base, **VARIANTS[name]), note)
        except UserError as error:
            left_out[name] = str(error)
            note(f"{name}: {error}")
    if not fitted:
        raise _nothing(left_out)
    return fitted


def _equal(base: Setting, fitted: Mapping[str, Setting]) -> Setting:
    """`base` as every variant can run it: the smallest micro-batch that was chosen, and what had to be recomputed."""
    sizes = [base.micro_batch] if base.micro_batch else [one.micro_batch or base.batch for one in fitted.values()]
    recomputed = {base.activation_checkpointing, *(one.activation_checkpointing for one in fitted.values())}
    # Not every variant takes `selective`; where one needs anything, `full` serves all.
    most = recomputed.pop() if len(recomputed) == 1 else "full"
    return replace(base, micro_batch=min(sizes, default=base.batch), activation_checkpointing=most)


def _settings(
    equal: Setting, variants: Sequence[str], fitted: Mapping[str, Setting], beside: Beside
) -> dict[str, Setting]:
    """All that is to be measured, by the name of its row."""
    settings = {name: replace(equal, **VARIANTS[name]) for name in variants}
    settings |= {f"{name}{AT_ITS_BEST}": setting for name, setting in fitted.items()}
    if beside.by_source:
        settings |= {f"{name}, 2 sources": replace(settings[name], sources=2) for name in variants}
    if beside.trainer:
        settings["Trainer"] = replace(equal, kernels="torch", trainer=True)
    return settings


def _variants(base: Setting, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Variants that run here, and why the others do not."""
    device = Numerics.resolve(base.device, base.threads).device
    run, left_out = [], {}
    for name, changes in VARIANTS.items():
        if names and name not in names:
            continue
        if name.startswith("chunked") and not names and device == "cuda":
            continue
        refused = _refused(replace(base, **changes))
        if refused is None:
            run.append(name)
        elif names:
            raise UserError(refused)
        else:
            left_out[name] = refused
    return run, left_out


def _in_rounds(
    settings: Mapping[str, Setting], rounds: int, left_out: dict[str, str], note: Note
) -> dict[str, dict[str, Any]]:
    """Measurements of each setting, updates of all rounds together; the order turns round after round.

    Rows of equal settings are measured once. One that fails is left out, and the rest goes on. Raises UserError when
    all fail.
    """
    first: dict[str, str] = {}  # row → the first row of the same setting
    for name, setting in settings.items():
        first[name] = next(earlier for earlier in settings if settings[earlier] == setting)
    order = [name for name in settings if first[name] == name]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in order}
    for number in range(rounds):
        for name in [name for name in order if name not in left_out]:
            try:
                one = run(settings[name])
                if one.get("oom"):
                    raise UserError(f"out of memory at {settings[name].micro_batch} tokens a forward; use less.")
            except UserError as error:
                left_out[name] = str(error)
                note(f"{name}: {error}")
                continue
            found[name].append(one)
            note(f"round {number + 1} of {rounds}: {name}: {one['tokens_per_second']:,.0f} tokens/s")
        order.reverse()
    kept = {name: first[name] for name in settings if first[name] not in left_out}
    if not any(name != "Trainer" for name in kept):
        raise _nothing(left_out)
    return {name: _together(settings[name], found[same]) for name, same in kept.items()}


def _nothing(left_out: Mapping[str, str]) -> UserError:
    return UserError("nothing could be measured. " + " ".join(f"{name}: {why}" for name, why in left_out.items()))


def _together(setting: Setting, measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds = [second for one in measured for second in one["seconds"]]
    whole = {**measured[0], "seconds": seconds, "update_seconds": statistics.median(seconds)}
    for name in ("loader_share", "look_share"):
        if whole.get(name) is not None:
            whole[name] = statistics.median(one[name] for one in measured)
    return {**whole, "tokens_per_second": setting.batch / whole["update_seconds"]}


def run(setting: Setting) -> dict[str, Any]:
    """A measurement in a process of its own. Raises UserError where it fails for another reason than memory."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.train.measure"],
        input=as_json(setting),
        capture_output=True,
        text=True,
        env={"CUDA_VISIBLE_DEVICES": "0", **os.environ},  # the peer would take all that it sees
    )
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    if done.returncode == -9:
        return {"oom": True}  # the machine's memory
    raise UserError(f"measuring {setting.model} failed: {_error(done.stderr)}")


def _error(said: str) -> str:
    """The line of a traceback that names the error: after it a compiler explains how to debug it."""
    lines = said.strip().splitlines() or ["no word"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return named[-1] if named else lines[-1]


def _figures(
    name: str, setting: Setting, measured: Mapping[str, Any], shape: ModelShape, peak: float | None
) -> Figures:
    speed = measured["tokens_per_second"]
    causal = shape.flops_per_token(setting.context)
    full = 2 * causal - 6 * shape.matmul
    masked = setting.documents == "masked"  # what short documents attend to is less than a row's formula says
    return Figures(
        name=name,
        micro_batch=setting.micro_batch or setting.batch,
        tokens_per_second=round(speed, 1),
        tflops=None if masked else speed * causal / 1e12,
        mfu_full=None if peak is None or masked else speed * full / peak,
        mfu_causal=None if peak is None or masked else speed * causal / peak,
        peak_bytes=measured["peak_bytes"],
        loader_share=measured["loader_share"],
        look_share=measured["look_share"],
        activation_checkpointing=setting.activation_checkpointing,
        ran=measured["ran"],
    )


def _against_the_peer(measured: Mapping[str, Mapping[str, Any]], shape: ModelShape) -> dict[str, Any]:
    """transformers' Trainer beside each row: how many times faster ours is, and how far apart the first losses are."""
    peer = measured["Trainer"]
    ratios = {
        name: peer["update_seconds"] / one["update_seconds"] for name, one in measured.items() if name != "Trainer"
    }
    count = min(20, len(peer["losses"]))
    apart = {
        name: max(abs(a - b) / abs(b) for a, b in zip(one["losses"][:count], peer["losses"][:count], strict=True))
        for name, one in measured.items()
        if name != "Trainer" and not name.endswith("2 sources")
    }
    return {
        "tokens_per_second": round(peer["tokens_per_second"], 1),
        "peak_bytes": peer["peak_bytes"],
        "times_faster": ratios,
        "first_losses_compared": count,
        "largest_relative_difference": apart,
    }


def fit(base: Setting, note: Note) -> tuple[float, Setting]:
    """`base` with the micro-batch at which it is fastest, and its tokens/s; where not even one row fits into memory,
    with activations computed again. Sizes shrink from the whole batch down, until smaller is slower. Raises UserError
    when nothing fits."""
    for activations in ("off", "selective", "full"):
        recomputed = replace(base, activation_checkpointing=activations)
        if (refused := _refused(recomputed)) is not None:
            note(f"{activations}: {refused}")
            continue
        best: tuple[float, Setting] | None = None
        for setting in _sizes(recomputed):
            one = run(replace(setting, updates=min(setting.updates, UPDATES_TO_FIT), witness=False))
            if one.get("oom"):
                note(f"{setting.micro_batch} tokens a forward ({activations}): out of memory")
                continue
            speed = one["tokens_per_second"]
            note(f"{setting.micro_batch} tokens a forward ({activations}): {speed:,.0f} tokens/s")
            if best is not None and speed < best[0]:
                break
            best = speed, setting
        if best is not None:
            return best
    raise UserError(f"not one row of {base.context} tokens of {base.model} fits, whatever is computed again.")


def _refused(setting: Setting) -> str | None:
    """Why these kernels cannot run beside this recomputation; None where they can."""
    config, device = shape_config(setting.model, setting.context), Numerics.resolve(setting.device).device
    try:
        resolve(setting.kernels, config, device, setting.compile, setting.activation_checkpointing)
    except UserError as error:
        return str(error)
    return None


def _sizes(base: Setting) -> Iterator[Setting]:
    """Settings with the batch's rows in one forward, then in 2, 4, 8, ... parts, as far as they divide it."""
    each = base.batch // base.context
    while True:
        yield replace(base, micro_batch=each * base.context)
        if each % 2:
            return
        each //= 2


def bench_fit(base: Setting, names: Sequence[str], note: Note) -> dict[str, Any]:
    """The `launch` block at which `base` trains fastest here: kernels, compilation, micro-batch, recomputation.

    names: variants to try, empty for all that run here. Short measurements choose; `bench train` gives figures.
    """
    variants, left_out = _variants(base, names)
    tried = _fitted(base, variants, left_out, note)
    name = max(tried, key=lambda one: tried[one][0])
    chosen = tried[name][1]
    launch = {
        "kernels": chosen.kernels,
        "compile": chosen.compile,
        "micro_batch": chosen.micro_batch,
        "activation_checkpointing": chosen.activation_checkpointing,
    }
    return {
        "bench": "fit",
        "model": base.model,
        "context": base.context,
        "batch": base.batch,
        "chosen": name,
        "launch": launch,
        "tried": {
            one: {"tokens_per_second": round(speed, 1), "micro_batch": setting.micro_batch}
            for one, (speed, setting) in tried.items()
        },
        "left_out": left_out,
    }


def _shape(config: Any) -> ModelShape:
    sizes = shape_of(config)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or sizes.hidden // heads)
    windows = windows_of(config.to_dict(), sizes.layers)
    return ModelShape(sizes.total, sizes.matmul, sizes.layers, width, windows)


def _peak(processor: str) -> float | None:
    """None for a processor whose peak is not known here: no MFU is better than a wrong one."""
    return next((peak for name, peak in PEAKS if name in processor), None)


def save(found: Mapping[str, Any], folder: Path) -> Path:
    """Keep a bench in `<device>.json` of a folder, in place of an earlier one of the same settings."""
    path = folder / f"{re.sub('[^a-z0-9]+', '-', str(found['device']).lower()).strip('-')}.json"
    kept = json.loads(path.read_text()) if path.exists() else {"schema": 1, "device": found["device"], "benches": []}
    same = ("bench", "model", "settings")
    others = [one for one in kept["benches"] if any(one.get(name) != found[name] for name in same)]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**kept, "benches": [*others, found]}, indent=1) + "\n")
    return path


def text(found: Mapping[str, Any]) -> str:
    """The bench as a table of at most 80 columns."""
    from harness.plan.render import table

    head = ["", "micro-batch", "tokens/s", "TFLOP/s", "MFU full", "causal", "memory", "loader"]
    rows = [head]
    for one in found["rows"]:
        mfu = [f"{100 * one[name]:.1f} %" if one[name] is not None else "-" for name in ("mfu_full", "mfu_causal")]
        name = one["name"].replace(AT_ITS_BEST, " *")
        size = f"{one['peak_bytes'] / 2**30:.1f} GiB"
        tflops = "-" if one["tflops"] is None else f"{one['tflops']:.3g}"
        figures = [f"{one['micro_batch']:,}", f"{one['tokens_per_second']:,.0f}", tflops]
        rows.append([name, *figures, *mfu, size, f"{100 * one['loader_share']:.1f} %"])
    lines = [f"{found['model']}, {found['parameters']:,} parameters, on {found['device']}"]
    lines.append(table(rows, right=range(1, len(head)), width=80))
    if not found["settings"]["deterministic"]:
        lines.append("without deterministic algorithms, which training always has")
    lines += ["* at its own best micro-batch"] if any(AT_ITS_BEST in one["name"] for one in found["rows"]) else []
    if "trainer" in found:
        peer = found["trainer"]
        lines.append(f"transformers' Trainer: {peer['tokens_per_second']:,.0f} tokens/s; ours is faster by")
        lines += [f"  {times:.2f}  {name}" for name, times in peer["times_faster"].items()]
        apart, count = max(peer["largest_relative_difference"].values()), peer["first_losses_compared"]
        lines.append(f"the first {count} losses differ by at most {apart:.0e} of themselves")
    lines += [f"left out: {name}: {why}" for name, why in found["left_out"].items()]
    return "\n".join(lines)


def fit_text(found: Mapping[str, Any]) -> str:
    """What was tried, and the block to put into the study."""
    lines = [f"{one}: {it['tokens_per_second']:,.0f} tokens/s" for one, it in found["tried"].items()]
    launch = ", ".join(f"{name}: {_yaml(value)}" for name, value in found["launch"].items())
    return "\n".join([*lines, "", f"launch: {{{launch}}}"])


def _yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_yaml(inner)}" for name, inner in value.items()) + "}"
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
