"""Where training starts: the `base` block, checked across its fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.study.errors import Mistake, nearest
from harness.study.schema import description_of
from harness.study.treatment import Base
from harness.study.units import kind, parse_tokens


def resolve_base(block: Mapping[str, Any], sources: Sequence[str]) -> Base:
    """The base as `Base`. Raises Mistake for what does not fit together."""
    model, tokenizer = block.get("model"), block.get("tokenizer")
    _check_origin(block)
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


def names_a_path(name: str) -> bool:
    """Whether a model's name cannot be an id on the hub."""
    return name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") > 1


def _model(block: Mapping[str, Any]) -> Mapping[str, Any]:
    if "run" in block:
        return {"run": block["run"]}
    revision = {"revision": block["revision"]} if "revision" in block else {}
    if isinstance(block["model"], Mapping):
        return {**block["model"], **revision}
    return {"path": block["model"], **revision}


def _check_from_scratch(block: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    _check_like(config)
    if "like" not in config and (not isinstance(config.get("model_type"), str) or not config["model_type"]):
        path = ("base", "model", "config", "model_type")
        raise Mistake(path, "is missing; expected the type of a transformers model, such as llama")
    if "tokenizer" not in block:
        message = "is missing; a model from a config has none, expected a folder, a hub id or {bpe: {vocab, sources}}"
        raise Mistake(("base", "tokenizer"), message)
    if block.get("optimizer") == "carried":
        message = "is `carried`, but a model from a config has no optimizer state; expected cold"
        raise Mistake(("base", "optimizer"), message)
    for key in ("revision", "lr", "tokens_seen"):
        if key in block and not (key == "revision" and "like" in config):
            raise Mistake(
                ("base", key), "says something of a trained model, but this one is from a config; expected none", True
            )


def _check_like(config: Mapping[str, Any]) -> None:
    """`like` names a model whose configuration the other fields change; its family is its own."""
    if "like" not in config:
        return
    path = ("base", "model", "config", "like")
    if not isinstance(config["like"], str) or not config["like"]:
        raise Mistake(path, f"is {kind(config['like'])}; expected a folder, a .gguf file or a hub id")
    if "model_type" in config:
        message = "says what `like` says, too; expected one of the two"
        raise Mistake((*path[:-1], "model_type"), message, at_key=True)


def _check_origin(block: Mapping[str, Any]) -> None:
    """A model, or a run of another study."""
    if "model" not in block and "run" not in block:
        raise Mistake(("base", "model"), f"is missing; expected {description_of(('base', 'model'))}, or base.run")
    if "revision" in block and isinstance(block.get("model"), str) and names_a_path(block["model"]):
        message = f"is of a model on the hub, and `{block['model']}` is a path; expected none"
        raise Mistake(("base", "revision"), message, at_key=True)
    if "run" not in block:
        return
    if "model" in block:
        raise Mistake(
            ("base", "run"), "stands beside `model`, and weights come from one; expected one of the two", True
        )
    if block["run"].strip("/").count("/") < 2:
        raise Mistake(("base", "run"), f"`{block['run']}` is no run; expected STUDY/ARM/SEEDS")
    if "revision" in block:
        raise Mistake(("base", "revision"), "is of a model on the hub, and the base is a run; expected none", True)
