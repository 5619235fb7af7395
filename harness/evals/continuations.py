"""What a model writes: greedy continuations of prompts from held-out documents, to be read beside one another.

Prompts are chosen by the text alone: the sources in the order of their names take turns, and each gives its documents
in the order of the hash of their text, so more prompts are the same ones and further ones. A prompt is the first
`prompt_tokens` tokens of a document of at least twice as many; of a source that has no document so long, the first half
of a shorter one. Before it stands the prefix token of the held-out loss (BOS, or EOS where there is no BOS); the
continuation ends before the end-of-document token or after `new_tokens`.

Prompts of equal length are continued together, at most `TOGETHER` at a time: no padding, and nothing that
`eval.batch_size` could change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.evals.held_out import Document

TOGETHER = 16  # sequences a forward
BROKEN = "\ufffd"  # what a tokenizer decodes a part of a character to
COLUMNS = ("source", "prompt", "reference", "continuation")


@dataclass(frozen=True)
class Prompt:
    """tokens: ids, without the prefix token. reference: ids of how the document goes on, at most `new_tokens`."""

    source: str
    doc_hash: str
    tokens: tuple[int, ...]
    reference: tuple[int, ...]


def choose(
    sources: Mapping[str, tuple[Sequence[Document], Sequence[Sequence[int]]]],
    count: int,
    prompt_tokens: int,
    new_tokens: int,
) -> list[Prompt]:
    """At most `count` prompts by the rules of this module; fewer where the documents do not suffice.

    sources: by name, documents and the token ids of each.
    """
    queues = [_candidates(name, *sources[name], prompt_tokens, new_tokens) for name in sorted(sources)]
    longest = max((len(queue) for queue in queues), default=0)
    in_turn = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return in_turn[:count]


def _candidates(
    source: str,
    documents: Sequence[Document],
    tokens: Sequence[Sequence[int]],
    prompt_tokens: int,
    new_tokens: int,
) -> list[Prompt]:
    pairs = sorted(zip(documents, tokens, strict=True), key=lambda pair: (pair[0].doc_hash, pair[0].doc_id))
    long = [pair for pair in pairs if len(pair[1]) >= 2 * prompt_tokens]
    found: dict[str, Prompt] = {}
    for document, ids in long or [pair for pair in pairs if len(pair[1]) > 1]:
        end = min(prompt_tokens, len(ids) // 2)
        prompt = Prompt(source, document.doc_hash, tuple(ids[:end]), tuple(ids[end : end + new_tokens]))
        found.setdefault(document.doc_hash, prompt)  # the same text again would be the same prompt
    return list(found.values())


@torch.inference_mode()
def write(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    prefix: int,
    end: int | None,
    new_tokens: int,
    device: torch.device,
) -> list[list[int]]:
    """Ids that the model finds likeliest, one after the other, for each prompt; `end` is left out.

    prefix: the token that stands before each prompt. end: the token after which nothing is written; None: there is
    none. Of equally likely tokens torch's argmax decides. The model's own generation settings are not read.
    """
    written: list[list[int]] = [[] for _ in prompts]
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    for group in by_length.values():
        for start in range(0, len(group), TOGETHER):
            rows = group[start : start + TOGETHER]
            ids = torch.tensor([[prefix, *prompts[index]] for index in rows], device=device)
            for index, new in zip(rows, _greedy(model, ids, end, new_tokens), strict=True):
                written[index] = new
    return written


def _greedy(model: torch.nn.Module, ids: torch.Tensor, end: int | None, new_tokens: int) -> list[list[int]]:
    """ids: [rows, length], without padding. Returns the new ids of each row up to `end`."""
    new = ids[:, :0]
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    state: Any = None
    while new.shape[1] < new_tokens and not bool(ended.all()):
        seen = torch.cat([ids, new], dim=1) if state is None else new[:, -1:]
        out = model(input_ids=seen, past_key_values=state, use_cache=True)
        state = out.get("past_key_values")  # None: the model keeps none, and reads everything again
        best = out.logits[:, -1].float().argmax(dim=-1)
        new = torch.cat([new, best[:, None]], dim=1)
        if end is not None:
            ended |= best == end
    return [row[: row.index(end)] if end in row else row for row in new.tolist()]


def texts(tokenizer: Any, prompt: Sequence[int], *after: Sequence[int]) -> tuple[str, ...]:
    """The prompt as text, then what follows it for each of `after`.

    A text is decoded together with its prompt, for some tokenizers drop a leading space. Where the prompt ends inside
    a character, the character goes to what follows.
    """
    shown = _decode(tokenizer, prompt).rstrip(BROKEN)
    whole = [_decode(tokenizer, [*prompt, *ids]) for ids in after]
    parts = zip(whole, after, strict=True)
    return shown, *(text[len(shown) :] if text.startswith(shown) else _decode(tokenizer, ids) for text, ids in parts)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def rows(tokenizer: Any, prompts: Sequence[Prompt], written: Sequence[Sequence[int]]) -> list[dict[str, str]]:
    """One row a prompt: the text columns of the samples."""
    table = []
    for prompt, new in zip(prompts, written, strict=True):
        shown, reference, continuation = texts(tokenizer, prompt.tokens, prompt.reference, new)
        table.append(dict(zip(COLUMNS, (prompt.source, shown, reference, continuation), strict=True)))
    return table
