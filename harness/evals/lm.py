"""The exported model folder as an lm-eval model. Imports torch, transformers and lm-eval; import it lazily."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from harness.evals.settings import DTYPE, SEEDS, EvalSettings
from harness.study.errors import UserError


class ObservedLM(HFLM):
    """lm-eval's own Hugging Face model, which also remembers how long each scored request was.

    positions: by (context, continuation), the positions that the request needs before anything is cut; a request that
        generates is (context, "") and needs those of all the tokens that it may generate.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.positions: dict[tuple[str, str], int] = {}

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        for context, options in (request.args for request in requests):
            longest = normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
            if longest >= self.max_length:
                raise UserError(
                    f"This task generates up to {longest} tokens, which do not fit into a max_length of "
                    f"{self.max_length}: raise eval.max_length."
                )
            self.positions[context, ""] = len(self.tok_encode(context)) + longest
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **options: Any) -> list[tuple[float, bool]]:
        for pair, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"A text to be scored has {len(continuation)} tokens, more than a max_length of {self.max_length}: "
                    "raise eval.max_length."
                )
            if pair is not None:  # None: a window of a rolling text, which is never cut
                self.positions[pair] = len(context) + len(continuation) - 1
        return super()._loglikelihood_tokens(requests, *args, **options)


def load(model: Path, settings: EvalSettings) -> ObservedLM:
    """The model folder in plain transformers, in fp32, on the settings' device; no code of the folder's is run."""
    if settings.threads is not None and torch.get_num_threads() != settings.threads:
        torch.set_num_threads(settings.threads)
    with quiet():
        return ObservedLM(
            pretrained=str(model),
            dtype=DTYPE,
            device=device(settings.device),
            batch_size=settings.batch_size,
            max_length=settings.max_length,
            trust_remote_code=False,
        )


def device(name: str) -> str:
    """`cpu` or `cuda`; `auto` takes the GPU when there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars that transformers and lm-eval write to stderr, and lm-eval's notes.

    Errors are raised, not printed, so none is lost.
    """
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def seeded() -> Iterator[None]:
    """lm-eval's seeds for the block; the process's random states are put back after it."""
    before = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        random.seed(SEEDS["python"])
        np.random.seed(SEEDS["numpy"])
        torch.manual_seed(SEEDS["torch"])
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
