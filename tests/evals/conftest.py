"""A tiny random llama with a tiny byte-level BPE, exported as a state of a results folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.data import arithmetic, passages
from harness.evals.suites import load_suite
from harness.evals.task_files import OWN_TASKS
from harness.store import checkpoints, states
from harness.store.atomic import staging_folder
from harness.store.layout import Folder

EOS = "<|end|>"
NON_ASCII = "Größe, naïve café, 数学 и слова: ∑ ½ 😀. "
STATE = "a" * 64
TRAINED_LENGTH = 64
LIMIT = 24  # items per task that the stock command evaluates


@dataclass(frozen=True)
class Exported:
    """A results folder with one finished state."""

    folder: Folder
    model: Path
    weights: str


def texts() -> list[str]:
    sums = list(arithmetic.generate(200, seed=0))
    return [*sums, *(document.text for document in passages.generate(20, 0, (200, 600))), NON_ASCII * 5]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS)


def export_model(folder: Path, seed: int = 0) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    words = tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        initializer_range=0.3,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)


def add_state(folder: Folder, state_id: str, seed: int) -> Exported:
    state = folder.state(state_id)
    staged = staging_folder(state.checkpoint(512))
    export_model(staged / "model", seed)
    marker = checkpoints.seal(staged, state.checkpoint(512), state_id, 512, 1)
    weights = checkpoints.weights_hash(marker.files)
    piece = {"start": 0, "end": 512, "stage": "stable", "science": {"context": {"length": TRAINED_LENGTH}}}
    states.write_segment(state, {"id": state_id, "kind": "train", "pieces": [piece]})
    states.write_done(state, "trained", 512, 1, weights, 512, {})
    return Exported(folder, marker.model, weights)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return add_state(Folder(tmp_path_factory.mktemp("results")), STATE, seed=0)


@dataclass(frozen=True)
class StockCommand:
    """The stock `lm_eval` command, running."""

    process: subprocess.Popen[str]
    out: Path

    def finished(self) -> Path:
        """The folder that it wrote."""
        assert self.process.wait() == 0, (self.out / "log").read_text("utf-8")[-3000:]
        return self.out


@pytest.fixture(scope="session")
def stock_command(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockCommand]:
    """The command on the exported folder, batch size 1 so that its tasks, which it batches together, share no batch."""
    out = tmp_path_factory.mktemp("stock")
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "1"]
    command += ["--model_args", f"pretrained={exported.model},dtype=float32,max_length=512"]
    tasks = ",".join(task.task for task in load_suite("quickstart@1").tasks)
    command += ["--include_path", str(OWN_TASKS), "--tasks", tasks, "--limit", str(LIMIT)]
    command += ["--log_samples", "--output_path", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with (out / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=out, env=environment, stdout=log, stderr=log, text=True)
    yield StockCommand(process, out)
    process.kill()
    process.wait()


@pytest.fixture(scope="session", autouse=True)
def start_early(request: pytest.FixtureRequest) -> None:
    """The command indexes thousands of task files first; where its tests are to run, that overlaps with the others."""
    wanted = any("stock_agreement" in item.nodeid for item in request.session.items)
    if wanted and "PYTEST_XDIST_WORKER" not in os.environ:
        request.getfixturevalue("stock_command")


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A source of eight held-out documents, one of them not ASCII."""
    tokens = tmp_path_factory.mktemp("tokens")
    held_out = [document.text[:700] for document in passages.generate(6, 99, (200, 600))]
    held_out += [NON_ASCII * 7, "One.\n"]
    (tokens / "held_out.jsonl").write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in held_out), "utf-8"
    )
    size = sum(len(text.encode()) for text in held_out)
    return {
        "identity": "b" * 64,
        "tokens": str(tokens),
        "held_out": {"documents": len(held_out), "tokens": 1000, "bytes": size, "content": "c" * 64},
    }
