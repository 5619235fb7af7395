"""Where training starts: the `base` block, checked across its fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.study.errors import Mistake, nearest
from harness.study.treatment import Base
from harness.study.units import parse_tokens


def resolve_base(block: Mapping[str, Any], sources: Sequence[str]) -> Base:
    """The base as `Base`. Raises Mistake for what does not fit together."""
    model, tokenizer = block["model"], block.get("tokenizer")
    if isinstance(model, Mapping):
        _check_from_scratch(block, model["config"])
    if isinstance(tokenizer, Mapping):
        for index, name in enumerate(tokenizer["bpe"]["sources"]):
            if name not in sources:
                path = ("base", "tokenizer", "bpe", "sources", index)
                raise Mistake(path, f"there is no source `{name}`; {nearest(name, sources)}")
    return Base(
        model=_model(block),
        tokenizer={"of": "model"}
        if tokenizer is None
        else {"path": tokenizer}
        if isinstance(tokenizer, str)
        else tokenizer,
        optimizer=block.get("optimizer", "cold"),
        lr=None if block.get("lr") is None else float(block["lr"]),
        tokens_seen=None if block.get("tokens_seen") is None else int(parse_tokens(block["tokens_seen"]).value),
    )


def _model(block: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(block["model"], Mapping):
        return dict(block["model"])
    revision = {"revision": block["revision"]} if "revision" in block else {}
    return {"path": block["model"], **revision}


def _check_from_scratch(block: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    if "like" in config:
        raise Mistake(("base", "model", "config", "like"), "`like` is not supported yet", at_key=True)
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        path = ("base", "model", "config", "model_type")
        raise Mistake(path, "is missing; expected the type of a transformers model, such as llama")
    if "tokenizer" not in block:
        message = "is missing; a model from a config has none, expected a folder, a hub id or {bpe: {vocab, sources}}"
        raise Mistake(("base", "tokenizer"), message)
    if block.get("optimizer") == "carried":
        message = "is `carried`, but a model from a config has no optimizer state; expected cold"
        raise Mistake(("base", "optimizer"), message)
    for key in ("revision", "lr", "tokens_seen"):
        if key in block:
            raise Mistake(
                ("base", key), "says something of a trained model, but this one is from a config; expected none", True
            )
