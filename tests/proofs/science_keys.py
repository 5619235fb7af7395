"""What each key of the science is proven with: pairs of arms that differ in it alone, over one tiny study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.proofs.every_key import Probe

BATCH, LENGTH = 64, 32
WARMUP, STAGE = 2 * BATCH, 6 * BATCH
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
# Six updates in each of two stages, whose schedule is that of `train`.
STUDY: dict[str, Any] = {
    "schema": 1,
    "study": "keys",
    "base": {"model": {"config": CONFIG}, "tokenizer": {"bpe": {"vocab": 300, "sources": ["sums"]}}},
    "sources": {
        "sums": {"builtin": "arithmetic", "documents": 60},
        "more": {"builtin": "arithmetic", "documents": 60, "seed": 1},
    },
    "train": {
        "batch_tokens": BATCH,
        "context": {"length": LENGTH},
        "optimizer": {"lr": 0.01},
        "mixture": {"sums": 0.5, "more": 0.5},
        "lr": {"shape": "linear", "to": "0.5x", "warmup": WARMUP},
    },
    "stages": {"stable": {"tokens": STAGE}, "decay": {"tokens": STAGE}},
}


def choices(key: str, values: Mapping[str, Any], first: str) -> dict[str, Probe]:
    """A probe for each word of a choice: what is written with it, against the first word (which is held against the
    second)."""
    second = next(word for word in values if word != first)
    return {f"{key}={word}": Probe(values[second if word == first else first], values[word]) for word in values}


def rope(**keys: Any) -> dict[str, Any]:
    return {"context.rope": keys}


def shape(name: str, **keys: Any) -> dict[str, Any]:
    return {"": {"shape": name, "warmup": WARMUP, **keys}}


# Of `lr`, wherever it stands; "" is the block itself.
LR: dict[str, Probe] = {
    **choices(
        "shape",
        {
            **{name: shape(name, to="0.1x") for name in ("linear", "cosine", "exponential", "1-sqrt", "1-square")},
            **{name: shape(name) for name in ("constant", "inverse-sqrt", "power")},
            "multi-step": shape("multi-step", milestones=[0.5], factors=[0.5]),
        },
        "linear",
    ),
    "from": Probe(shape("linear", to="0.1x"), shape("linear", to="0.1x", **{"from": 0.004})),
    "to": Probe(shape("linear", to="0.1x"), shape("linear", to="0.2x")),
    "warmup": Probe(shape("linear", to="0.1x"), {"": {"shape": "linear", "to": "0.1x", "warmup": 3 * BATCH}}),
    "warmup_from": Probe(shape("linear", to="0.1x"), shape("linear", to="0.1x", warmup_from=0.0005)),
    "exponent": Probe(shape("power"), shape("power", exponent=-1.0)),
    "milestones": Probe(
        shape("multi-step", milestones=[0.5], factors=[0.5]), shape("multi-step", milestones=[0.75], factors=[0.5])
    ),
    "factors": Probe(
        shape("multi-step", milestones=[0.5], factors=[0.5]), shape("multi-step", milestones=[0.5], factors=[0.25])
    ),
}
YARN = {"type": "yarn", "factor": 4.0, "original": 16, "theta": 10.0}
LLAMA3 = {"type": "llama3", "factor": 4.0, "original": 64}
SGD = {"optimizer.name": "sgd"}
STEEP = {**SGD, "optimizer.z_loss": 1.0}  # gradients above the usual clip
SPIKES = "optimizer.skip_spikes"


def spikes(**keys: Any) -> dict[str, Any]:
    """Beside a rate at which the loss rises, so that there are some."""
    return {SPIKES: keys, "lr": {"shape": "constant", "from": 0.5}}


# Of `train`, and of a stage.
TRAIN: dict[str, Probe] = {
    "batch_tokens": Probe({}, {"batch_tokens": BATCH // 2}),
    "mixture": Probe({}, {"mixture": {"sums": 0.25, "more": 0.75}}),
    "context.length": Probe({}, {"context.length": 2 * LENGTH}),
    "context.rope=base": Probe(rope(type="default", theta=500.0), {"context.rope": "base"}),
    **choices(
        "context.rope.type",
        {
            "default": rope(type="default", theta=500.0),
            "linear": rope(type="linear", factor=2.0),
            "ntk": rope(type="ntk", factor=2.0),
            "dynamic": rope(type="dynamic", factor=2.0, original=16),
            "yarn": rope(type="yarn", factor=2.0, original=16),
            "llama3": rope(type="llama3", factor=2.0, original=16),
        },
        "default",
    ),
    "context.rope.theta": Probe(rope(type="linear", factor=2.0), rope(type="linear", factor=2.0, theta=500.0)),
    "context.rope.factor": Probe(rope(type="linear", factor=2.0), rope(type="linear", factor=3.0)),
    "context.rope.factor=auto": Probe(
        rope(type="yarn", factor=3.0, original=8), rope(type="yarn", factor="auto", original=8)
    ),
    "context.rope.original": Probe(
        rope(type="linear", factor="auto", original=4), rope(type="linear", factor="auto", original=8)
    ),
    "context.rope.beta_fast": Probe(rope(**YARN, beta_fast=32.0), rope(**YARN, beta_fast=1.2)),
    "context.rope.beta_slow": Probe(rope(**YARN, beta_slow=0.5), rope(**YARN, beta_slow=0.1)),
    "context.rope.attention_factor": Probe(rope(**YARN), rope(**YARN, attention_factor=2.0)),
    "context.rope.low_freq_factor": Probe(rope(**LLAMA3), rope(**LLAMA3, low_freq_factor=0.5)),
    "context.rope.high_freq_factor": Probe(rope(**LLAMA3), rope(**LLAMA3, high_freq_factor=20.0)),
    **choices("context.documents", {word: {"context.documents": word} for word in ("masked", "joined")}, "masked"),
    **choices("context.packing", {word: {"context.packing": word} for word in ("concat", "best-fit")}, "concat"),
    **{f"lr.{key}": probe for key, probe in LR.items()},
    **choices("precision", {word: {"precision": word} for word in ("fp32", "bf16-mixed")}, "fp32"),
    **choices("optimizer.name", {word: {"optimizer.name": word} for word in ("adamw", "lion", "muon", "sgd")}, "adamw"),
    "optimizer.lr": Probe({}, {"optimizer.lr": 0.02}),
    "optimizer.betas": Probe({}, {"optimizer.betas": [0.5, 0.95]}),
    "optimizer.eps": Probe({}, {"optimizer.eps": 0.01}),
    "optimizer.momentum": Probe(SGD, {**SGD, "optimizer.momentum": 0.5}),
    "optimizer.weight_decay": Probe({}, {"optimizer.weight_decay": 1.0}),
    "optimizer.decay_embeddings": Probe({}, {"optimizer.decay_embeddings": False}),
    "optimizer.clip": Probe(STEEP, {**STEEP, "optimizer.clip": None}),
    "optimizer.z_loss": Probe({}, {"optimizer.z_loss": 0.1}),
    "optimizer.label_smoothing": Probe({}, {"optimizer.label_smoothing": 0.2}),
    **choices("optimizer.state", {word: {"optimizer.state": word} for word in ("carried", "cold")}, "carried"),
    f"{SPIKES}.window": Probe(spikes(window=2, sigma=0.01), spikes(window=6, sigma=0.01)),
    f"{SPIKES}.sigma": Probe(spikes(window=2, sigma=0.01), spikes(window=2, sigma=1000.0)),
}


def placed(place: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """What is written of a block that stands at `place`."""
    return {f"{place}.{key}".replace("..", ".").rstrip("."): value for key, value in written.items()}


def _probes(place: str, table: Mapping[str, Probe], at: str) -> dict[str, Probe]:
    return {f"{at}.{key}": Probe(placed(place, p.one), placed(place, p.other)) for key, p in table.items()}


def _with_lr(table: Mapping[str, Probe]) -> dict[str, Probe]:
    """Probes of `train` with those of `lr` written as `lr` itself."""

    def of_block(written: Mapping[str, Any]) -> dict[str, Any]:
        return {"lr" if key == "" else key: value for key, value in written.items()}

    return {key: Probe(of_block(p.one), of_block(p.other)) for key, p in table.items()}


AGAIN = {"shape": "linear", "from": 0.02, "to": "0.1x", "warmup": WARMUP}
OTHERS: dict[str, Probe] = {
    "train.lr.warmup_from=previous": Probe(
        {"train.lr": AGAIN, "stages.stable.lr": {"shape": "constant"}},
        {"train.lr": {**AGAIN, "warmup_from": "previous"}, "stages.stable.lr": {"shape": "constant"}},
    ),
    "stages.NAME.lr.warmup_from=previous": Probe(
        {"stages.decay.lr": AGAIN}, {"stages.decay.lr": {**AGAIN, "warmup_from": "previous"}}
    ),
    "stages.NAME.tokens": Probe({}, {"stages.decay.tokens": STAGE - BATCH}),
}
# Every pair is two arms of one study.
PROBES: dict[str, Probe] = {
    **_probes("train", _with_lr(TRAIN), "train"),
    **_probes("stages.decay", _with_lr(TRAIN), "stages.NAME"),
    **_probes("lr", LR, "lr"),
    **OTHERS,
}
