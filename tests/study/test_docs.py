"""The pieces of studies that the documentation shows are accepted, each within a study that is otherwise sound."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from harness.study import load_study
from harness.study.includes import merge

DOCS = Path(__file__).parents[2] / "docs"
SOUND = """
schema: 1
study: shown
base:
  model: {config: {model_type: llama, hidden_size: 64}}
  tokenizer: {bpe: {vocab: 1024, sources: [web]}}
sources: {web: {builtin: python_docs, max_epochs: 4}, code: {builtin: python_code}, math: {builtin: arithmetic}}
train:
  batch_tokens: 2^19
  mixture: {web: 0.6, code: 0.1, math: 0.3}
  context: {length: 2048}
  optimizer: {lr: 6.0e-4}
total: ~4B
stages:
  stable: {tokens: rest, lr: {shape: constant, warmup: ~20M}}
  decay: {tokens: ~1B, lr: {shape: linear, to: 0}}
"""
# What its page shows on top of something else: another kind of source, an item of a list, a word for a name.
ELSEWHERE = {("sources.md", 0), ("first-study.md", 0), ("lint.md", 0), ("slurm.md", 0)}


def read(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text.replace("…", "{shape: constant}"))


def shown() -> list[tuple[str, int, str]]:
    pages = sorted(DOCS.glob("*.md"))
    blocks = [(page.name, re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)) for page in pages]
    found = [(page, index, block) for page, inside in blocks for index, block in enumerate(inside)]
    return [one for one in found if one[:2] not in ELSEWHERE]


@pytest.mark.parametrize(("page", "index", "block"), shown(), ids=lambda value: str(value)[:20])
def test_what_the_documentation_shows_is_accepted(page: str, index: int, block: str, tmp_path: Path) -> None:
    study, piece = read(SOUND), read(block)
    own = piece.get("stages", {})
    if own and not own.keys() & study["stages"].keys():  # stages of its own, shortened
        study["stages"] = {name: {"tokens": "~1B", "lr": {"shape": "linear", "to": 0}} for name in own}
        del study["total"]
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(merge(study, piece)))
    load_study(path)


def test_most_pages_show_something() -> None:
    assert len({page for page, _, _ in shown()}) >= 8
