"""Small studies for the tests: a results folder with a base, sources and segments, as planning would have left them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.loader import Loader
from harness.data.token_store import STORE_VERSION, TokenSource
from harness.plan.canonical import digest
from harness.plan.fingerprint import base_state, state_at
from harness.plan.science import DEFAULTS_VERSION, read_pieces
from harness.store import manifests, states
from harness.store.layout import Folder, StateFolder
from harness.study.treatment import Base
from harness.train.base import describe_base, prepare_base
from harness.train.loop import Loop
from harness.train.model import build_model, config_from_fields
from harness.train.numerics import Numerics
from harness.train.optimizer import build_optimizer
from harness.train.segment import Outcome, TrainSettings, train_segment

VOCABULARY = 64
LENGTH = 16
BATCH = 64
EOS = 0

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "attention_dropout": 0.1,
}
NUMERICS = Numerics.resolve("cpu", threads=1)


def config_fields(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    """A tiny configuration of a family, with its vocabulary."""
    fields = {**LLAMA, "model_type": model_type, "vocab_size": VOCABULARY, "eos_token_id": EOS, "bos_token_id": EOS}
    fields["pad_token_id"] = None
    if model_type == "qwen3":
        fields["head_dim"] = 8
    if model_type in ("gpt_neox", "gpt2"):
        fields.pop("num_key_value_heads")
    if model_type == "gpt2":
        fields = {key: value for key, value in fields.items() if key not in ("intermediate_size", "attention_dropout")}
        fields["attn_pdrop"] = 0.1
    return {**fields, **changes}


def model(model_type: str = "llama", seed: int = 1, **changes: Any) -> Any:
    return build_model(config_from_fields(config_fields(model_type, **changes)), seed)


def science(**changes: Any) -> dict[str, Any]:
    """A piece's science; `lr` a number means a constant."""
    value: dict[str, Any] = {
        "lr": {"shape": "constant", "value": 1e-2},
        "mixture": {"words": "3/4", "sums": "1/4"},
        "blend_from": 0,
        "sources": {"words": identity("words"), "sums": identity("sums")},
        "data_seed": 1,
        "batch_tokens": BATCH,
        "context": {"length": LENGTH, "documents": "masked", "packing": "concat", "rope": {"type": "base"}},
        "optimizer": {"name": "adamw", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0},
        "precision": "fp32",
    }
    for name, change in changes.items():
        whole = name not in value or not isinstance(change, Mapping) or name in ("lr", "mixture", "sources")
        value[name] = change if whole else {**value[name], **change}
    if isinstance(value["lr"], float):
        value["lr"] = {"shape": "constant", "value": value["lr"]}
    return value


def piece(start: int, end: int, stage: str = "stable", **changes: Any) -> dict[str, Any]:
    return {"start": start, "end": end, "stage": stage, "science": science(**changes)}


def identity(name: str) -> str:
    return digest({"source": name})


def token_source(name: str, documents: int = 40) -> TokenSource:
    """Documents of 1 to 39 tokens, each ending with EOS; a function of the name."""
    draw = np.random.default_rng(sum(map(ord, name)))
    lengths = draw.integers(1, 40, size=documents)
    tokens = draw.integers(1, VOCABULARY, size=int(lengths.sum())).astype("<u2")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens[offsets[1:] - 1] = EOS
    return TokenSource(identity(name), tokens, offsets)


def token_sources() -> dict[str, TokenSource]:
    return {name: token_source(name) for name in ("words", "sums")}


def loop(pieces: Sequence[Mapping[str, Any]], numerics: Numerics = NUMERICS, trained: Any = None) -> Loop:
    """A loop from token 0 over in-memory sources."""
    trained = trained or model()
    optimizer = build_optimizer(trained, pieces[0]["science"]["optimizer"])
    return Loop(trained, optimizer, Loader(pieces, token_sources()), pieces, numerics)


@contextmanager
def stopping(after: int | None) -> Iterator[None]:
    """While entered, this process is asked to stop in the update with that number; None: never."""
    with pytest.MonkeyPatch.context() as patch:
        plain, count = Loop.update, [0]

        def update(loop: Loop) -> None:
            count[0] += 1
            if count[0] == after:
                signal.raise_signal(signal.SIGTERM)
            plain(loop)

        patch.setattr(Loop, "update", update)
        yield


class StudyFolder:
    """A results folder under `root` in which segments can be declared and trained."""

    def __init__(self, root: Path, fields: Mapping[str, Any] | None = None, base: Base | None = None) -> None:
        self.root = root
        self.folder = Folder(root / "results")
        self.tokenizer = self._tokenizer()
        self._sources()
        declared = base or Base({"config": fields or LLAMA}, {"path": "unused"}, "cold", None)
        manifests.write_base(self.folder, describe_base(declared, root, self.tokenizer))
        self.manifest = manifests.read_base(self.folder)
        assert self.manifest is not None
        self.science: dict[str, Any] = {
            "weights": self.manifest["identity"],
            "tokenizer": self.tokenizer["identity"],
            "optimizer": declared.optimizer,
            "defaults": DEFAULTS_VERSION,
            **({"init_seed": 1} if declared.from_scratch else {}),
        }
        self.base = base_state(self.science)
        fields_of_base = {"id": self.base, "kind": "base", "parent": None, "stage": "base", "tokens_from": 0}
        states.write_segment(
            self.folder.state(self.base), {**fields_of_base, "tokens_to": 0, "base": self.science, "pieces": []}
        )
        prepare_base(self.folder, self.base)

    def declare(self, pieces: Sequence[Mapping[str, Any]], cuts: Sequence[int], stage: str = "stable") -> list[str]:
        """Segments of the path `pieces` cut at `cuts` (ascending, the last one its end); their ids."""
        parent, start, ids = self.base, 0, []
        for end in cuts:
            path = [{**p, "end": min(p["end"], end)} for p in pieces if p["start"] < end]
            name = state_at(self.base, *read_pieces(path), end)
            segment = {"id": name, "kind": "train", "parent": parent, "stage": stage}
            segment |= {"tokens_from": start, "tokens_to": end, "base": self.science, "pieces": path}
            states.write_segment(self.folder.state(name), segment)
            ids.append(name)
            parent, start = name, end
        return ids

    def train(
        self, segment: str, numerics: Numerics = NUMERICS, stop_after: int | None = None, **settings: Any
    ) -> Outcome:
        """stop_after: as `stopping` has it."""
        with stopping(stop_after):
            return train_segment(self.folder, segment, TrainSettings(numerics, **settings))

    def state(self, segment: str) -> StateFolder:
        return self.folder.state(segment)

    def hashes(self, segment: str) -> dict[str, str]:
        """SHA-256 of the files of a finished segment's last checkpoint that hold tensors."""
        done = states.verify_state(self.state(segment))
        assert done is not None and done.checkpoint is not None
        marker = states.final_checkpoint(self.state(segment), done)
        return {
            name: record["sha256"]
            for name, record in marker.files.items()
            if name.endswith(".safetensors") or name == "cursor.json"
        }

    def _tokenizer(self) -> dict[str, Any]:
        path = self.root / "tokenizer"
        path.mkdir(parents=True, exist_ok=True)
        (path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
        (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
        return {"identity": "t" * 64, "path": str(path), "vocab_size": VOCABULARY, "eos_token_id": EOS}

    def _sources(self) -> None:
        for name, source in token_sources().items():
            path = self.root / "tokens" / name
            path.mkdir(parents=True, exist_ok=True)
            (path / "tokens.bin").write_bytes(source.ids.tobytes())
            np.save(path / "offsets.npy", source.offsets)
            (path / "held_out.jsonl").write_text("")
            sizes = {file.name: file.stat().st_size for file in path.iterdir()}
            meta = {"version": STORE_VERSION, "source": source.identity, "dtype": "<u2", "sizes": sizes}
            (path / "meta.json").write_text(json.dumps(meta))
            manifests.write_source(self.folder, name, {"name": name, "identity": source.identity, "tokens": str(path)})


def gradients(trained: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}
