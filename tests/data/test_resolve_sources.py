"""Token stores and manifests: once, whole, and again only when something changed."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.data import TokenSource, open_tokenizer, resolve_sources, resolve_tokenizer
from harness.data.documents import split, summarise
from harness.data.resolve import _long_enough
from harness.data.sources import declared_source
from harness.data.token_store import build_token_store, is_complete
from harness.store.layout import Folder
from harness.study.errors import UserError

TEXTS = [f"Document {number}: naïve words, {number * 7} of them.\n" for number in range(60)]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    write(tmp_path, TEXTS)
    base = SimpleNamespace(
        tokenizer={"bpe": {"vocab": 300, "sources": ["facts"]}}, model={"config": {}}, from_scratch=True
    )
    return SimpleNamespace(
        path=tmp_path / "study.yaml",
        sources={
            "web": {"files": ["web.jsonl"], "held_out": 0.2, "max_epochs": 3},
            "facts": {"builtin": "arithmetic", "documents": 200},
        },
        arms=[SimpleNamespace(treatment=SimpleNamespace(base=base))],
    )


def held_out_texts(store: str) -> list[str]:
    return [json.loads(line)["text"] for line in (Path(store) / "held_out.jsonl").read_text().split("\n")[:-1]]


def write(folder: Path, texts: list[str]) -> None:
    (folder / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def resolve(study: Any, folder: Path) -> dict[str, dict[str, Any]]:
    base = {"tokenizer": resolve_tokenizer(study)}
    return resolve_sources(study, base, Folder(folder))


def test_the_store_holds_every_training_document_and_the_held_out_ones_as_text(study: Any, tmp_path: Path) -> None:
    manifest = resolve(study, tmp_path / "results")["web"]
    parted = [(text, held_out) for text, _, held_out in split(TEXTS, Fraction(1, 5))]
    training = [text for text, held_out in parted if not held_out]
    kept = [text for text, held_out in parted if held_out]
    assert training
    assert kept
    source = TokenSource.open(manifest["tokens"])
    tokenizer = open_tokenizer(Path(resolve_tokenizer(study)["path"]))
    assert source.documents == len(training)
    for document, ids in enumerate(tokenizer.encode(training)):
        np.testing.assert_array_equal(source.tokens(document), ids)
        assert source.length(document) == len(ids)
        assert source.tokens(document)[-1] == tokenizer.eos
    assert held_out_texts(manifest["tokens"]) == kept
    assert source.ids.dtype == np.uint16
    assert source.identity == manifest["identity"]
    assert {name: value for name, value in manifest["train"].items() if name != "beyond"} == {
        "documents": len(training),
        "tokens": source.tokens_total,
        "bytes": sum(len(text.encode()) for text in training),
    }
    assert manifest["held_out"]["documents"] == len(kept)
    assert manifest["held_out"]["tokens"] == sum(map(len, tokenizer.encode(kept)))


def test_resolved_again_unchanged_files_are_not_read(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve(study, tmp_path / "results")
    monkeypatch.setattr("harness.data.resolve.resolve_source", None)  # reading again would raise
    assert resolve_sources(study, {"tokenizer": resolve_tokenizer(study)}, Folder(tmp_path / "results")) == first


def test_a_changed_file_gives_a_new_identity_and_an_added_held_out_document_only_a_new_store(
    study: Any, tmp_path: Path
) -> None:
    first = resolve(study, tmp_path / "results")["web"]
    held_out = next(t for t in (f"extra {n}" for n in range(99)) if next(split([t], Fraction(1, 5)))[2])
    write(tmp_path, [*TEXTS, held_out])
    second = resolve(study, tmp_path / "results")["web"]
    assert second["identity"] == first["identity"], "training sees the same documents"
    assert second["held_out"]["identity"] != first["held_out"]["identity"]
    assert held_out_texts(second["tokens"])[-1] == held_out
    write(tmp_path, TEXTS[1:])
    assert resolve(study, tmp_path / "results")["web"]["identity"] != first["identity"]


def test_a_touched_file_with_the_same_text_keeps_identity_and_store(study: Any, tmp_path: Path) -> None:
    first = resolve(study, tmp_path / "results")["web"]
    os.utime(tmp_path / "web.jsonl", ns=(1, 1))
    second = resolve(study, tmp_path / "results")["web"]
    assert (second["identity"], second["tokens"]) == (first["identity"], first["tokens"])
    assert second["files"][0]["mtime_ns"] == 1


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "held_out.jsonl", "meta.json"])
def test_a_torn_store_is_noticed_and_built_again(study: Any, tmp_path: Path, name: str) -> None:
    store = Path(resolve(study, tmp_path / "results")["web"]["tokens"])
    whole = {path.name: path.read_bytes() for path in store.iterdir()}
    (store / name).write_bytes(whole[name][:-3])
    with pytest.raises(UserError, match="missing or damaged"):
        TokenSource.open(store)
    resolve(study, tmp_path / "results")
    assert {path.name: path.read_bytes() for path in store.iterdir()} == whole


def test_a_build_that_fails_leaves_nothing_behind(study: Any, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(Path(resolve_tokenizer(study)["path"]))
    summary = summarise(TEXTS, Fraction(1, 5))
    with pytest.raises(UserError, match="changed while"):
        build_token_store(lambda: iter(TEXTS[1:]), summary, tokenizer, lambda _: None)
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def _build(folder: str, barrier: Any) -> None:
    tokenizer = open_tokenizer(next(Path(folder, "tokenizers").glob("?" * 64)))
    texts = TEXTS * 30
    summary = summarise(texts, Fraction(1, 5))
    barrier.wait()
    build_token_store(lambda: iter(texts), summary, tokenizer, lambda _: None)


def test_two_processes_that_build_one_store_at_once_leave_one_whole_store(study: Any, tmp_path: Path) -> None:
    resolve_tokenizer(study)
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    workers = [spawn.Process(target=_build, args=(str(tmp_path / "cache"), barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    (store,) = (tmp_path / "cache" / "tokens").iterdir()
    assert is_complete(store)
    assert TokenSource.open(store).documents == summarise(TEXTS * 30, Fraction(1, 5)).train.documents


def test_a_large_vocabulary_takes_four_bytes_a_token(study: Any, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(Path(resolve_tokenizer(study)["path"]))
    for size, dtype in ((2**16, np.uint16), (2**16 + 1, np.uint32)):
        claimed = type(tokenizer)(f"vocab {size}", tokenizer.path, size, tokenizer.eos, tokenizer.backend)
        store = build_token_store(lambda: iter(TEXTS), summarise(TEXTS, Fraction(0)), claimed, lambda _: None)
        assert TokenSource.open(store).ids.dtype == dtype


def test_an_empty_source_is_refused_by_name(study: Any, tmp_path: Path) -> None:
    write(tmp_path, ["", "  \n"])
    with pytest.raises(UserError, match="source `web`: it has no text"):
        resolve(study, tmp_path / "results")
    study.sources["web"]["held_out"] = 0.999999
    write(tmp_path, ["one document"])
    with pytest.raises(UserError, match="all of its 1 documents are held out"):
        resolve(study, tmp_path / "results")


def test_files_are_found_beside_the_study_and_progress_is_told(study: Any, tmp_path: Path) -> None:
    told: list[str] = []
    base = {"tokenizer": resolve_tokenizer(study, progress=told.append)}
    resolve_sources(study, base, Folder(tmp_path / "results"), told.append)
    assert any("training a tokenizer" in line for line in told)
    assert "tokenizing web: 60 of 60 documents" in told
    assert declared_source("web", study.sources["web"], tmp_path).paths() == [tmp_path / "web.jsonl"]


def test_a_view_holds_the_long_documents_and_its_pool_s_name(study: Any, tmp_path: Path) -> None:
    texts = [f"Number {number}. " * (1 + number % 7) for number in range(60)]
    write(tmp_path, texts)
    study.sources["long"] = {**study.sources["web"], "min_length": 20}
    found = resolve(study, tmp_path / "results")
    tokenizer = open_tokenizer(Path(resolve_tokenizer(study)["path"]))
    kept = [text for text, _, held_out in split(texts, Fraction(1, 5)) if not held_out]
    long = [text for text, ids in zip(kept, tokenizer.encode(kept), strict=True) if len(ids) - 1 >= 20]
    assert 0 < len(long) < len(kept)
    assert found["long"]["train"]["documents"] == len(long)
    assert found["web"]["train"]["documents"] == len(kept)
    assert found["long"]["pool"] == found["web"]["pool"] != found["facts"]["pool"]
    assert found["long"]["identity"] != found["web"]["identity"]
    assert resolve(study, tmp_path / "results") == found, "a second look reads nothing again"
    study.sources["long"]["min_length"] = 10_000
    with pytest.raises(UserError, match="none of its documents has 10,000 tokens"):
        resolve(study, tmp_path / "results")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"files": ["web.jsonl"]}, {"files": ["*.jsonl"], "min_length": 20}),
        (
            {"builtin": "arithmetic", "documents": 200, "seed": 3},
            {"builtin": "arithmetic", "documents": 100, "seed": 3},
        ),
    ],
)
def test_what_one_source_holds_out_is_not_trained_on_through_another(
    study: Any, tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    study.sources |= {"one": {**one, "held_out": 0.2}, "other": {**other, "held_out": 0.1}}
    del study.sources["web"]
    with pytest.raises(UserError, match=r"`one` and `other` read the same documents.*bpb\.one .*through `other`"):
        resolve(study, tmp_path / "results")
    study.sources["other"]["held_out"] = 0.2
    found = resolve(study, tmp_path / "results")
    trained = set()
    for name in ("one", "other"):
        documents = declared_source(name, study.sources[name], tmp_path).documents()
        trained |= {text for text, _, held_out in split(documents, Fraction(1, 5)) if not held_out}
    kept = {text for name in ("one", "other") for text in held_out_texts(found[name]["tokens"])}
    assert kept and not kept & trained


def test_min_length_counts_the_tokens_of_the_text_alone(study: Any, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(Path(resolve_tokenizer(study)["path"]))
    (length,) = (len(ids) - 1 for ids in tokenizer.encode([TEXTS[0]]))
    source = declared_source("web", {**study.sources["web"], "min_length": length}, tmp_path)
    longer = replace(source, min_length=length + 1)
    for begin in ((), (5,)):
        opened = replace(tokenizer, begin=begin)
        assert TEXTS[0] in _long_enough(source, opened)()
        assert TEXTS[0] not in _long_enough(longer, opened)()


def test_the_manifest_says_how_much_of_a_source_lies_beyond_each_length(study: Any, tmp_path: Path) -> None:
    manifest = resolve(study, tmp_path / "results")["facts"]
    lengths = TokenSource.open(manifest["tokens"]).lengths
    beyond = manifest["train"]["beyond"]
    assert beyond["16"] == sum(max(0, int(length) - 16) for length in lengths)
    assert list(beyond) == sorted(beyond, key=int)
    assert int(list(beyond)[-1]) < lengths.max() <= 2 * int(list(beyond)[-1])
