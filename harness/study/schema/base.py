"""Where training starts, and the text that it sees."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.study.blocks import MAPPING, TEXT, TEXT_OR_MAPPING, Block, Size, TokensSeen, choice
from harness.study.schema.scalars import Count, Fraction01, Positive, Seed, Text, Texts, Unsigned
from harness.study.units import LARGEST


class ConfigModel(Block):
    config: dict[str, Any] = Field(
        description="a mapping of model_type (or like: a folder, .gguf file or hub id whose configuration is taken) "
        "and any field of its Hugging Face config, such as hidden_size"
    )


class BpeSpec(Block):
    vocab: Annotated[int, Field(ge=257, le=LARGEST)] = Field(
        description="the size of the vocabulary: 256 bytes and at least one more, such as 1024"
    )
    sources: Texts = Field(description="a list of the sources that the tokenizer is trained on")


class BpeTokenizer(Block):
    bpe: BpeSpec = Field(description="a mapping of vocab and sources")


class BaseSpec(Block):
    model: Annotated[Annotated[Text, TEXT] | Annotated[ConfigModel, MAPPING], TEXT_OR_MAPPING] | None = Field(
        None, description="a folder, a hub id, a .gguf file or {config: {model_type: ...}}"
    )
    run: Text | None = Field(
        None, description="STUDY/ARM/SEEDS, a finished run of another study whose weights are taken, instead of a model"
    )
    revision: Text | None = Field(None, description="a revision of the hub id")
    tokenizer: Annotated[Annotated[Text, TEXT] | Annotated[BpeTokenizer, MAPPING], TEXT_OR_MAPPING] | None = Field(
        None, description="a folder, a hub id or {bpe: {vocab: 1024, sources: [...]}}"
    )
    optimizer: Annotated[Literal["cold", "carried"], choice("cold", "carried")] = Field(
        "cold", description="cold or carried"
    )
    lr: Unsigned | None = Field(None, description="the rate at which the base was left, from 0")
    tokens_seen: TokensSeen | None = Field(
        None, description="tokens that the base was trained on, such as 600B (inverse-sqrt and power go on from there)"
    )


class SourceSpec(Block):
    """One source: `builtin`, `files` or `hf`, with what belongs to it. What belongs to another kind is refused."""

    builtin: (
        Annotated[
            Literal["python_code", "python_docs", "arithmetic", "passages"],
            choice("python_code", "python_docs", "arithmetic", "passages"),
        ]
        | None
    ) = Field(None, description="one of python_code, python_docs, arithmetic, passages")
    files: Texts | None = Field(None, description="a list of files or globs relative to the study file")
    hf: Text | None = Field(None, description="the id of a data set on the Hugging Face hub, with a revision")
    name: Text | None = Field(None, description="hf: the configuration of the data set, such as sample-10BT")
    split: Text | None = Field(None, description="hf: the split of the data set (default: train)")
    revision: Text | None = Field(None, description="hf: the commit of the data set, 40 hexadecimal digits")
    text: Text | None = Field(None, description="the field of jsonl or parquet that holds the text")
    min_length: Size | None = Field(
        None,
        description="the fewest tokens of a document, such as 2^13; views of one pool count its repetitions together",
    )
    documents: Count | None = Field(None, description="a whole number of documents to generate")
    seed: Seed | None = Field(None, description="a whole number from 0")
    distance: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = Field(
        None, description="two whole numbers, the least and the most characters between two occurrences"
    )
    max_epochs: Positive | None = Field(None, description="a positive number: how often the source may be used")
    held_out: Fraction01 = Field(0.02, description="the share of documents kept for evaluation, from 0 to below 1")
