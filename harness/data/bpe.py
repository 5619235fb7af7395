"""Training a byte-level BPE."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.store.atomic import write_json
from harness.study.errors import UserError

END = "<|end|>"
"""Ends a document; also stands in front of a text that is scored without context (BOS), and pads."""
SMALLEST_VOCAB = 257  # every byte, and END


def train_bpe(folder: Path, vocab: int, texts: Iterable[str]) -> None:
    """Write a tokenizer of exactly `vocab` tokens into `folder`, in the Hugging Face layout.

    Byte-level BPE (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2): any text
    is representable, white space is kept. UserError when `vocab` is too small, or too large for what the texts hold.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab < SMALLEST_VOCAB:
        raise UserError(f"base.tokenizer: a byte-level BPE has at least {SMALLEST_VOCAB} tokens, got {vocab}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab:
        raise UserError(
            f"base.tokenizer: the sources hold only {tokenizer.get_vocab_size()} different tokens, "
            f"vocab asks for {vocab}"
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    # Written by hand: its content does not change with the version of transformers.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", config)
