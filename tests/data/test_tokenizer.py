"""Tokenizers: trained or loaded, pinned by content, opened by plain transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from harness.data import open_tokenizer, resolve_tokenizer
from harness.data.bpe import END, train_bpe
from harness.data.tokenizer import identity_of, special_tokens
from harness.plan.canonical import digest
from harness.study.errors import UserError

VOCAB = 400
SMALLER = 300
HARD = ["def f(x):\n\treturn  x[0] != '日本'\n\n\n", " naïve — 12 + 345 = 357.\n", "a\r\nb\x00c", "   "]


def study(folder: Path, tokenizer: dict[str, Any], model: dict[str, Any] | None = None) -> Any:
    model = model or {"config": {"model_type": "llama"}}
    base = SimpleNamespace(tokenizer=tokenizer, model=model, from_scratch="config" in model)
    sources = {
        "facts": {"builtin": "arithmetic", "documents": 300},
        "long": {"builtin": "passages", "documents": 20},
    }
    return SimpleNamespace(
        path=folder / "study.yaml",
        sources=sources,
        arms=[SimpleNamespace(treatment=SimpleNamespace(base=base))],
    )


BPE = {"bpe": {"vocab": VOCAB, "sources": ["facts", "long"]}}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_trained_tokenizer_is_the_same_in_another_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve_tokenizer(study(cache.parent, BPE))
    monkeypatch.setenv("ABLATE_CACHE", str(cache.parent / "other"))
    second = resolve_tokenizer(study(cache.parent, BPE))
    assert first["identity"] == second["identity"]
    assert first["path"] != second["path"]
    assert first["vocab_size"] == VOCAB


def test_plain_transformers_opens_it_and_gives_the_same_tokens(cache: Path, tmp_path: Path) -> None:
    manifest = resolve_tokenizer(study(tmp_path, BPE))
    ours = open_tokenizer(Path(manifest["path"]))
    exported = tmp_path / "exported"
    shutil.copytree(manifest["path"], exported)
    # As in a checkpoint: a model's configuration must not make transformers build another tokenizer.
    (exported / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": VOCAB}))
    for folder in (Path(manifest["path"]), exported):
        plain = AutoTokenizer.from_pretrained(folder)
        assert (plain.eos_token, plain.bos_token, plain.pad_token) == (END, END, END)
        assert plain.eos_token_id == manifest["eos_token_id"] == ours.eos
        assert len(plain) == VOCAB
        for text, ids in zip(HARD, ours.encode(HARD), strict=True):
            assert plain(text)["input_ids"] == ids[:-1].tolist(), "and no special token is added by itself"
            assert ids[-1] == ours.eos
            assert plain.decode(ids[:-1].tolist()) == text


def test_an_unchanged_declaration_is_answered_from_the_manifest(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = json.loads(json.dumps(resolve_tokenizer(study(tmp_path, BPE))))
    monkeypatch.setattr("harness.data.tokenizer._trained", None)  # training again would raise
    assert resolve_tokenizer(study(tmp_path, BPE), known) == known


def test_a_damaged_tokenizer_in_the_cache_is_replaced(cache: Path, tmp_path: Path) -> None:
    manifest = resolve_tokenizer(study(tmp_path, BPE))
    (Path(manifest["path"]) / "tokenizer.json").write_text("{}")
    again = resolve_tokenizer(study(tmp_path, BPE), manifest)
    assert again == manifest
    assert identity_of(Path(again["path"])) == manifest["identity"]


def test_a_folder_is_read_again_when_its_tokenizer_changes(cache: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(resolve_tokenizer(study(tmp_path, BPE))["path"], model)
    declared = study(tmp_path, {"of": "model"}, {"path": "model"})
    first = resolve_tokenizer(declared)
    assert resolve_tokenizer(declared, first) == first
    smaller = {"bpe": {"vocab": SMALLER, "sources": ["facts"]}}
    shutil.copytree(resolve_tokenizer(study(tmp_path, smaller))["path"], model, dirs_exist_ok=True)
    changed = resolve_tokenizer(declared, first)
    assert changed["identity"] != first["identity"]
    assert changed["vocab_size"] == SMALLER


def test_identity_is_blind_to_where_it_lies_and_to_cut_offs_and_sees_the_special_tokens(
    cache: Path, tmp_path: Path
) -> None:
    path = Path(resolve_tokenizer(study(tmp_path, BPE))["path"])
    definition = json.loads((path / "tokenizer.json").read_text())
    config = json.loads((path / "tokenizer_config.json").read_text())
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (copy / "tokenizer.json").write_text(json.dumps({**definition, "truncation": cut}))
    assert identity_of(copy) == path.name
    assert len(open_tokenizer(copy).encode(["a long text that is not cut off"])[0]) > 5
    (copy / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "a"}))
    assert identity_of(copy) != path.name


def with_bos(folder: Path, template: str) -> Path:
    """A tokenizer as that of Llama 3 (`chained`) or Gemma, which puts BOS in front of a text by itself."""
    train_bpe(folder, 280, ["some text to train on, " * 30 + "and more of it, with other words in it too"])
    definition = json.loads((folder / "tokenizer.json").read_text())
    bos = len(definition["model"]["vocab"])
    special = {"id": bos, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False}
    definition["added_tokens"].append({**special, "normalized": False, "special": True})
    first, text = ({"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}})
    tokens = {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}}
    processor = {"type": "TemplateProcessing", "single": [first, text], "pair": [first, text], "special_tokens": tokens}
    if template == "chained":
        plain = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
        processor = {"type": "Sequence", "processors": [plain, processor]}
    (folder / "tokenizer.json").write_text(json.dumps({**definition, "post_processor": processor}))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<s>"}))
    return folder


def of_files_alone(folder: Path) -> str:
    """What a tokenizer was called before documents began with what it puts in front of a text."""
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition = {name: value for name, value in definition.items() if name not in ("truncation", "padding")}
    return digest({"tokenizer": definition, "special": special_tokens(folder)})


@pytest.mark.parametrize("template", ["alone", "chained"])
def test_a_document_begins_with_the_bos_that_its_tokenizer_puts_in_front_of_a_text(
    cache: Path, tmp_path: Path, template: str
) -> None:
    """Evaluation encodes a text with the tokenizer's own special tokens: training must begin documents alike."""
    (tmp_path / "own").mkdir()
    with_bos(tmp_path / "own", template)
    manifest = resolve_tokenizer(study(tmp_path, {"path": "own"}))
    ours, plain = open_tokenizer(Path(manifest["path"])), AutoTokenizer.from_pretrained(manifest["path"])
    assert plain.bos_token == "<s>" and plain.bos_token_id != plain.eos_token_id
    for text, ids in zip(HARD, ours.encode(HARD), strict=True):
        assert ids.tolist() == [*plain(text)["input_ids"], plain.eos_token_id]
        assert ids[0] == plain.bos_token_id
        assert len(ids) - ours.added == len(plain(text, add_special_tokens=False)["input_ids"])
    assert manifest["identity"] != of_files_alone(Path(manifest["path"])), (
        "states that were trained on documents without it have another name"
    )


def test_a_tokenizer_that_puts_nothing_in_front_keeps_its_name(cache: Path, tmp_path: Path) -> None:
    path = Path(resolve_tokenizer(study(tmp_path, BPE))["path"])
    assert identity_of(path) == of_files_alone(path)
    assert open_tokenizer(path).begin == ()


def test_a_vocabulary_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 257"):
        train_bpe(tmp_path, 200, ["text"])
    with pytest.raises(UserError, match="hold only"):
        train_bpe(tmp_path, 5000, ["a small text"])


def test_what_cannot_be_opened_is_one_paragraph(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for declared, message in (
        (study(tmp_path, {"path": "empty"}), "cannot be opened"),
        (study(tmp_path, {"bpe": {"vocab": 300, "sources": ["fact"]}}), "did you mean `facts`"),
        (study(tmp_path, {"of": "model"}), "declare one"),
    ):
        with pytest.raises(UserError, match=message):
            resolve_tokenizer(declared)


def test_a_tokenizer_without_end_of_text_is_refused(cache: Path, tmp_path: Path) -> None:
    train_bpe(tmp_path, 280, ["some text to train on, " * 30 + "and more of it, with other words in it too"])
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="no end-of-text token"):
        open_tokenizer(tmp_path)
