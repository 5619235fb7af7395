"""Tokenizers: the model's own, another one by name, or a byte-level BPE trained on declared sources.

Whatever it came from, a resolved tokenizer is a folder in the shared store, named by its content, that plain
`transformers.AutoTokenizer.from_pretrained(folder)` opens. Tokenizing itself uses the `tokenizers` library on the
folder's tokenizer.json, without importing transformers.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.bpe import train_bpe
from harness.data.cache import build_once, cache_root
from harness.data.documents import summarise, training_documents
from harness.data.sources import Source, declared_sources, file_stamp
from harness.plan.canonical import digest
from harness.store.atomic import read_json, write_json
from harness.store.places import expanded
from harness.study.errors import UserError, nearest

Progress = Callable[[str], None]
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
RECIPE_VERSION = 1
BPE_CHARACTERS = 32_000_000
"""Characters of each source, from its beginning, that a BPE is trained on at most."""
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


def silent(_: str) -> None:
    """A progress callback that says nothing."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """An opened tokenizer. Every document ends with `eos`, and begins with what the tokenizer itself puts in front of a
    text: BOS for Llama 3, Gemma and Mistral, nothing for GPT-NeoX, SmolLM2, OLMo 2 and Qwen. Their models have seen no
    document without it, and evaluation puts it there, too."""

    identity: str
    path: Path
    vocab_size: int
    eos: int
    backend: Any  # tokenizers.Tokenizer
    begin: tuple[int, ...] = ()

    @property
    def added(self) -> int:
        """Tokens of a document that are not of its text."""
        return len(self.begin) + 1

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (int64) of each text, between `begin` and `eos`."""
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([*self.begin, *encoding.ids, self.eos], dtype=np.int64) for encoding in encoded]


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in `path`, a folder with tokenizer.json and tokenizer_config.json. UserError when it has no EOS."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(path / TOKENIZER_FILE))
    # A published tokenizer may carry the cut-off of whoever used it last.
    backend.no_truncation()
    backend.no_padding()
    eos_token = special_tokens(path).get("eos_token")
    eos = backend.token_to_id(eos_token) if eos_token else None
    if eos is None:
        raise UserError(f"the tokenizer in {path} has no end-of-text token (`eos_token`), which documents end with")
    vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    definition = read_json(path / TOKENIZER_FILE)
    return Tokenizer(_identity(definition, path), path, vocab_size, eos, backend, put_in_front(definition))


def special_tokens(path: Path) -> dict[str, str]:
    """Role (`eos_token`, …) to token text, as the folder's tokenizer_config.json declares."""
    config = read_json(path / CONFIG_FILE)
    found = {role: config[role] for role in _ROLES if config.get(role) is not None}
    return {role: token if isinstance(token, str) else token["content"] for role, token in found.items()}


def identity_of(path: Path) -> str:
    """SHA-256 of what decides tokens: tokenizer.json without truncation and padding, the special tokens, and that what
    the tokenizer puts in front of a text stands in front of documents."""
    return _identity(read_json(path / TOKENIZER_FILE), path)


def _identity(definition: Mapping[str, Any], path: Path) -> str:
    science = {name: value for name, value in definition.items() if name not in ("truncation", "padding")}
    in_front = {"in_front": list(ids)} if (ids := put_in_front(definition)) else {}
    return digest({"tokenizer": science, "special": special_tokens(path), **in_front})


def put_in_front(definition: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that a tokenizer puts in front of a single text by itself, from its tokenizer.json."""
    processor = definition.get("post_processor") or {}
    ids: list[int] = []
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing":
            for part in step["single"]:
                if "SpecialToken" not in part:
                    break
                ids += step["special_tokens"][part["SpecialToken"]["id"]]["ids"]
        elif "cls" in step:  # BERT's and RoBERTa's
            ids.append(step["cls"][1])
    return tuple(ids)


def resolve_tokenizer(
    study: Any, known: Mapping[str, Any] | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """The tokenizer of the study's base, as the `tokenizer` entry of manifests/base.json.

    known: the entry of an earlier manifest; it is given back as it is while the declaration, the files and the folder
    are what they were. Returns {"identity", "path", "vocab_size", "eos_token_id", "declared", "stamp"}. UserError when
    the tokenizer cannot be opened, or a BPE not be trained.
    """
    base = study.arms[0].treatment.base
    folder = Path(study.path).absolute().parent
    declared = _declared(base)
    sources = declared_sources(study)
    stamp = _stamp(declared, sources, folder)
    if known and known.get("declared") == declared and known.get("stamp") == stamp and _complete_known(known):
        return dict(known)
    if "bpe" in declared:
        path = _trained(declared["bpe"], sources, progress)
    else:
        path = _loaded(declared, folder, progress)
    return {**_described(path), "declared": declared, "stamp": stamp}


def tokenizer_of(path: str, revision: str | None = None, of_study: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The tokenizer of a model that no study declares, as `resolve_tokenizer` describes one.

    path: a folder, a `.gguf` file or a hub id, from the working directory. of_study: a study's own entry, which is
    given back where the folder holds that very tokenizer: opened and saved again, it might be written differently.
    UserError when it cannot be opened.
    """
    if of_study is not None and _complete_known(of_study) and _identity_in(Path(path)) == of_study["identity"]:
        return dict(of_study)
    declared = {"path": path, **({"revision": revision} if revision else {})}
    return {**_described(_loaded(declared, Path(), silent)), "declared": declared}


def _identity_in(folder: Path) -> str | None:
    try:
        return identity_of(folder)
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


def _described(path: Path) -> dict[str, Any]:
    opened = open_tokenizer(path)
    return {
        "identity": opened.identity,
        "path": str(path),
        "vocab_size": opened.vocab_size,
        "eos_token_id": opened.eos,
    }


def _declared(base: Any) -> dict[str, Any]:
    if "bpe" in base.tokenizer:
        bpe = base.tokenizer["bpe"]
        return {"bpe": {"vocab": bpe["vocab"], "sources": list(bpe["sources"])}}
    if "path" in base.tokenizer:
        return {"path": str(base.tokenizer["path"])}
    if base.from_scratch:
        raise UserError("base.tokenizer: a model from scratch has no tokenizer of its own; declare one")
    return {"path": str(base.model["path"]), **_revision(base.model)}


def _revision(model: Mapping[str, Any]) -> dict[str, Any]:
    return {"revision": model["revision"]} if model.get("revision") else {}


def _stamp(declared: Mapping[str, Any], sources: Mapping[str, Source], folder: Path) -> Any:
    """What can be seen of the tokenizer's origin without opening it."""
    if "bpe" in declared:
        return {name: source.stamp() for name, source in _bpe_sources(declared["bpe"], sources).items()}
    here = folder / expanded(declared["path"])
    if here.is_dir():
        return [file_stamp(path) for path in sorted(here.iterdir()) if "token" in path.name and path.is_file()]
    return [file_stamp(here)] if here.is_file() else []


def _complete_known(known: Mapping[str, Any]) -> bool:
    path = Path(known["path"])
    return path.name == known["identity"] and _complete(path)


def _complete(path: Path) -> bool:
    try:
        return identity_of(path) == path.name
    except (OSError, ValueError):
        return False


def _entry(identity: str) -> Path:
    return cache_root() / "tokenizers" / identity


def _keep(folder: Path) -> Path:
    """Put a copy of a tokenizer folder into the store, under its identity."""

    def fill(staged: Path) -> None:
        for path in folder.iterdir():
            shutil.copyfile(path, staged / path.name)

    return build_once(_entry(identity_of(folder)), _complete, fill)


# --- trained


def _bpe_sources(bpe: Mapping[str, Any], sources: Mapping[str, Source]) -> dict[str, Source]:
    for name in bpe["sources"]:
        if name not in sources:
            raise UserError(f"base.tokenizer: there is no source `{name}`; {nearest(name, sources)}")
    return {name: sources[name] for name in bpe["sources"]}


def _trained(bpe: Mapping[str, Any], sources: Mapping[str, Source], progress: Progress) -> Path:
    chosen = _bpe_sources(bpe, sources)
    identities = sorted(summarise(source.documents(), source.held_out).identity for source in chosen.values())
    recipe = {"version": RECIPE_VERSION, "vocab": bpe["vocab"], "sources": identities}
    pinned = cache_root() / "tokenizers" / "recipes" / f"{digest(recipe)}.json"
    if pinned.exists() and _complete(path := _entry(read_json(pinned)["identity"])):
        return path
    progress(f"training a tokenizer of {bpe['vocab']} tokens on {', '.join(chosen)}")
    with tempfile.TemporaryDirectory() as folder:
        train_bpe(Path(folder), bpe["vocab"], _bpe_texts(chosen.values()))
        path = _keep(Path(folder))
    write_json(pinned, {"identity": path.name, "recipe": recipe})
    return path


def _bpe_texts(sources: Iterable[Source]) -> Iterator[str]:
    """Training documents only: text that is held out must not shape the tokenizer it is measured with."""
    for source in sources:
        left = BPE_CHARACTERS
        for text in training_documents(source.documents(), source.held_out):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break


# --- loaded


def _loaded(declared: Mapping[str, Any], folder: Path, progress: Progress) -> Path:
    """Open a tokenizer with transformers and keep it as a folder."""
    name = declared["path"]
    progress(f"opening the tokenizer of {name}")
    with tempfile.TemporaryDirectory() as saved:
        tokenizer = _from_pretrained(name, folder, declared.get("revision"))
        tokenizer.save_pretrained(saved)
        if not (Path(saved) / TOKENIZER_FILE).exists():
            raise UserError(f"the tokenizer of {name} has no tokenizer.json form, which fast tokenizers have")
        _check_agreement(tokenizer, open_tokenizer(Path(saved)), name)
        return _keep(Path(saved))


def _from_pretrained(name: str, folder: Path, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    here = folder / expanded(name)
    options: dict[str, Any] = {"trust_remote_code": False, **({"revision": revision} if revision else {})}
    try:
        if name.endswith(".gguf"):
            return AutoTokenizer.from_pretrained(str(here.parent), gguf_file=here.name, **options)
        return AutoTokenizer.from_pretrained(str(here) if here.exists() else name, **options)
    except (OSError, ValueError, ImportError, KeyError) as reason:
        raise UserError(f"the tokenizer of `{name}` cannot be opened: {' '.join(str(reason).split())}") from reason


_PROBE = (
    "The year 2024 — naïve café, 12 + 345 = 357.\n",
    "def f(x):\n\treturn  x[0] != '日本'\n\n\n",
    " leading and trailing ",
)


def _check_agreement(plain: Any, opened: Tokenizer, name: str) -> None:
    """Training and evaluation must see the same tokens: the saved form against what transformers does, of the text and
    of what stands in front of it."""
    ours = [ids[:-1].tolist() for ids in opened.encode(_PROBE)]
    theirs = [plain(text, add_special_tokens=False)["input_ids"] for text in _PROBE]
    whole = [plain(text)["input_ids"] for text in _PROBE]
    same = all(
        mine == [*opened.begin, *ids] == all_ids[: len(mine)]
        for mine, ids, all_ids in zip(ours, theirs, whole, strict=True)
    )
    if not same:
        raise UserError(
            f"the tokenizer of `{name}` gives other tokens through its tokenizer.json than through transformers, "
            "so training and evaluation would not see the same text; save it as a fast tokenizer first"
        )
