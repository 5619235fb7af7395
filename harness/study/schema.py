"""The study file as a user writes it: one strict model per block.

Everything is optional that may come from `train`, from an include or from an arm's change; what must be there after
all that is checked where the stages are resolved. Values keep their units here (`TokenCount`, `Rate`); resolved
numbers are in `treatment.py`. `None` means "not written": whether `null` may be written is `NULLABLE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WithJsonSchema

from harness.study import units
from harness.study.blocks import (
    MAPPING,
    TEXT,
    TEXT_OR_MAPPING,
    Block,
    ExactTokens,
    Kept,
    NothingTracked,
    OneSource,
    RateOrTimes,
    Share,
    Size,
    Start,
    TokensOrNone,
    TokensOrRest,
    Zero,
    choice,
)
from harness.study.blocks import Tokens as TokensField
from harness.study.paths import description

NULLABLE = frozenset({"clip", "limit", "checkpoint_every"})  # keys for which `null` has a meaning: none

Positive = Annotated[float, Field(gt=0)]
Unsigned = Annotated[float, Field(ge=0)]
Fraction01 = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[list[Seed], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
Shape = Annotated[
    Literal["constant", "linear", "cosine", "1-sqrt"],
    choice(
        *("constant", "linear", "cosine", "1-sqrt"),
        later=("exponential", "1-square", "inverse-sqrt", "power", "multi-step"),
    ),
]
RopeType = Annotated[Literal["default"], choice("default", later=("linear", "yarn", "llama3", "dynamic"))]


class RopeSpec(Block):
    type: RopeType | None = Field(None, description="default (plain rotary embedding with the given theta)")
    theta: Positive | None = Field(None, description="the base of the rotary frequencies, such as 1.0e+6")


BaseRope = Annotated[Literal["base"], choice("base"), TEXT]


class ContextSpec(Block):
    length: Size | None = Field(None, description="positions per row, such as 2048 or 2^11")
    rope: Annotated[BaseRope | Annotated[RopeSpec, MAPPING], TEXT_OR_MAPPING] | None = Field(
        None, description="base (as the base model has it) or {type: default, theta: 1.0e+6}"
    )
    documents: Annotated[Literal["masked", "joined"], choice("masked", "joined")] | None = Field(
        None, description="masked (no attention between the documents of a row) or joined"
    )
    packing: Annotated[Literal["concat"], choice("concat", later=("best-fit",))] | None = Field(
        None, description="concat (documents one after the other, cut at the row's end)"
    )


class LrSpec(Block):
    shape: Shape | None = Field(None, description="one of constant, linear, cosine, 1-sqrt")
    from_: Start | None = Field(
        None,
        alias="from",
        description="the rate where the shape starts: a number, 0.1x (times optimizer.lr) or base (as base.lr)",
    )
    to: RateOrTimes | None = Field(
        None, description="the rate where the shape ends: a number or 0.1x (times optimizer.lr)"
    )
    warmup: TokensOrNone | None = Field(None, description="tokens of linear warm-up from 0, such as ~50M")


class OptimizerSpec(Block):
    name: Annotated[Literal["adamw"], choice("adamw")] | None = Field(None, description="adamw")
    lr: Positive | None = Field(None, description="the peak learning rate, such as 3e-4")
    betas: Annotated[list[Fraction01], Field(min_length=2, max_length=2)] | None = Field(
        None, description="two numbers from 0 to below 1, such as [0.9, 0.95]"
    )
    eps: Positive | None = Field(None, description="a positive number, such as 1e-8")
    weight_decay: Unsigned | None = Field(None, description="a number from 0, such as 0.1")
    clip: Positive | None = Field(None, description="the largest gradient norm, or null for no clipping")
    z_loss: Zero = Field(0.0, description="0")


class TrainSpec(Block):
    """What every stage inherits."""

    batch_tokens: Size | None = Field(None, description="tokens per optimizer step, such as 2^19")
    mixture: dict[str, Share] | None = Field(None, description="a mapping source: share, shares summing to 1")
    context: ContextSpec | None = Field(None, description="a mapping of length, rope, documents, packing")
    lr: LrSpec | None = Field(None, description="a mapping of shape, from, to, warmup")
    precision: Annotated[Literal["fp32", "bf16-mixed"], choice("fp32", "bf16-mixed")] | None = Field(
        None, description="fp32 or bf16-mixed"
    )
    optimizer: OptimizerSpec | None = Field(None, description="a mapping of name, lr, betas, eps, weight_decay, clip")


class StageSpec(TrainSpec):
    tokens: TokensOrRest | None = Field(None, description="tokens of the stage, such as ~1B, or rest")


class ConfigModel(Block):
    config: dict[str, Any] = Field(
        description="a mapping of model_type and any field of its Hugging Face config, such as hidden_size"
    )


class BpeSpec(Block):
    vocab: Annotated[int, Field(ge=257)] = Field(
        description="the size of the vocabulary: 256 bytes and at least one more, such as 1024"
    )
    sources: Texts = Field(description="a list of the sources that the tokenizer is trained on")


class BpeTokenizer(Block):
    bpe: BpeSpec = Field(description="a mapping of vocab and sources")


class BaseSpec(Block):
    later: ClassVar[frozenset[str]] = frozenset({"run", "tokens_seen"})

    model: Annotated[Annotated[Text, TEXT] | Annotated[ConfigModel, MAPPING], TEXT_OR_MAPPING] = Field(
        description="a folder, a hub id, a .gguf file or {config: {model_type: ...}}"
    )
    revision: Text | None = Field(None, description="a revision of the hub id")
    tokenizer: Annotated[Annotated[Text, TEXT] | Annotated[BpeTokenizer, MAPPING], TEXT_OR_MAPPING] | None = Field(
        None, description="a folder, a hub id or {bpe: {vocab: 1024, sources: [...]}}"
    )
    optimizer: Annotated[Literal["cold", "carried"], choice("cold", "carried")] = Field(
        "cold", description="cold or carried"
    )
    lr: Unsigned | None = Field(None, description="the rate at which the base was left, from 0")


class SourceSpec(Block):
    """One source. Parameters that belong to a built-in source are None elsewhere."""

    later: ClassVar[frozenset[str]] = frozenset({"hf", "min_length"})

    builtin: (
        Annotated[
            Literal["python_code", "python_docs", "arithmetic", "passages"],
            choice("python_code", "python_docs", "arithmetic", "passages"),
        ]
        | None
    ) = Field(None, description="one of python_code, python_docs, arithmetic, passages")
    files: Texts | None = Field(None, description="a list of files or globs relative to the study file")
    text: Text | None = Field(None, description="the field of jsonl or parquet that holds the text")
    documents: Count | None = Field(None, description="a whole number of documents to generate")
    seed: Seed | None = Field(None, description="a whole number from 0")
    distance: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = Field(
        None, description="two whole numbers, the least and the most characters between two occurrences"
    )
    max_epochs: Positive | None = Field(None, description="a positive number: how often the source may be used")
    held_out: Fraction01 = Field(0.02, description="the share of documents kept for evaluation, from 0 to below 1")


class SeedsSpec(Block):
    init: Seeds | None = Field(None, description="a list of whole numbers from 0")
    data: Seeds | None = Field(None, description="a list of whole numbers from 0")
    pair: Annotated[Literal["zip", "product"], choice("zip", "product")] = Field(
        "product", description="zip or product"
    )
    from_: Text | None = Field(None, alias="from", description="the name of a stage that is not the first")


class HeldOutSpec(Block):
    window: Size = Field(description="positions per window, such as 2048")
    by_position: bool = Field(False, description="true or false")
    documents: Count = Field(200, description="the largest number of documents per source")


NoHeldOut = Annotated[Literal["none"], choice("none"), TEXT]


class EvalSpec(Block):
    suites: list[Text] = Field(default_factory=list, description="a list of suites, such as [quickstart@1]")
    tasks: list[Text] = Field(default_factory=list, description="a list of lm-eval task names or paths to task YAML")
    at: Texts = Field(default_factory=lambda: ["end"], description="a list of base, stage names, end or `every 1B`")
    max_length: Size | None = Field(None, description="positions, the same for every arm, such as 2048")
    held_out: Annotated[NoHeldOut | Annotated[HeldOutSpec, MAPPING], TEXT_OR_MAPPING] = Field(
        "none", description="a mapping of window, by_position, documents, or none"
    )
    limit: Count | None = Field(None, description="the largest number of items per task, or null for all")
    batch_size: Count = Field(8, description="a positive whole number of sequences")

    @property
    def every(self) -> int | None:
        """N of `every N`, in tokens; None where nothing is evaluated at an interval."""
        intervals = [units.parse_every(text) for text in self.at]
        return next((int(interval.value) for interval in intervals if interval), None)

    @property
    def labels(self) -> list[str]:
        """`base`, `end` and the names of stages at whose end is evaluated."""
        return [text for text in self.at if units.parse_every(text) is None]


class CompareSpec(Block):
    later: ClassVar[frozenset[str]] = frozenset({"report_also", "not_worse"})

    baseline: Text = Field("default", description="the name of an arm")
    control: Text | None = Field(None, description="the name of an arm")
    equal: Annotated[Literal["tokens", "flops"], choice("tokens", "flops")] = Field(
        "tokens", description="tokens or flops"
    )
    primary: list[Text] = Field(default_factory=list, description="a list of metrics, such as [bpb.web]")
    allow: dict[str, list[Text]] = Field(default_factory=dict, description="a mapping arm: [lint codes]")


class LaunchSpec(Block):
    later: ClassVar[frozenset[str]] = frozenset({"nodes", "gpus", "time", "parallel", "slurm"})

    jobs: Count = Field(1, description="a positive whole number of runs at once")
    threads: Count = Field(1, description="a positive whole number of threads per run")
    device: Annotated[Literal["cpu", "cuda", "auto"], choice("cpu", "cuda", "auto")] = Field(
        "auto", description="cpu, cuda or auto"
    )
    micro_batch: Size | None = Field(None, description="tokens per forward pass, such as 2^14")
    checkpoint_every: ExactTokens | None = Field(None, description="tokens between checkpoints, or null")


class BudgetSpec(Block):
    gpu_hours: Positive | None = Field(None, description="a positive number of GPU-hours")


class KeepSpec(Block):
    checkpoints: Kept = Field("last", description="last or all")


class MixtureAxis(Block):
    """Shares of one source; what it takes or gives is absorbed by another source, or by all in proportion."""

    later: ClassVar[frozenset[str]] = frozenset({"over", "as", "when"})

    stage: Text = Field(description="the name of a stage")
    vary: OneSource = Field(description="the name of a source")
    values: Annotated[list[Share], Field(min_length=1)] = Field(description="a list of shares from 0 to 1")
    absorb: Text = Field(description="the name of a source, or proportional")


AXIS_SCHEMA = {
    "description": "one axis: path: [values], or mixture: {stage, vary, values, absorb}",
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "properties": {"mixture": {"type": "object"}},
    "additionalProperties": {"type": "array", "minItems": 1},
}
Axis = Annotated[dict[str, Any], WithJsonSchema(AXIS_SCHEMA)]
Axes = Annotated[list[Axis], Field(min_length=1)]


class ItemSpec(Block):
    """One item of `ablate`: one of grid, zip, cases, one_at_a_time or mixture; `exclude` belongs to a grid."""

    later: ClassVar[frozenset[str]] = frozenset({"add_one", "leave_one_out", "when", "as", "over"})

    grid: Axes | None = Field(None, description="a list of at least one axis, such as - stages.decay.lr.to: [0, 0.1x]")
    zip: Axes | None = Field(None, description="a list of axes of equal length")
    cases: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] | None = Field(
        None, description="a mapping of at least one name: {path: value}"
    )
    one_at_a_time: Annotated[dict[str, list[Any]], Field(min_length=1)] | None = Field(
        None, description="a mapping of at least one path: [values]"
    )
    mixture: MixtureAxis | None = Field(None, description="a mapping of stage, vary, values, absorb")
    exclude: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = Field(
        None, description="a list of {path or source: value}"
    )


class StudySpec(Block):
    """A whole study, after include and `--set`."""

    later: ClassVar[frozenset[str]] = frozenset({"controls"})

    schema_version: Literal[1] = Field(alias="schema", description="1, the version of this grammar")
    study: Text = Field(description="the study's name")
    question: str | None = Field(None, description="what the study asks, in words")
    notes: str | None = Field(None, description="text")
    include: Texts | None = Field(None, description="a list of files relative to this one; later ones win")
    base: BaseSpec = Field(description="a mapping of model, tokenizer, optimizer, lr")
    sources: Annotated[dict[str, SourceSpec], Field(min_length=1)] = Field(
        description="a mapping of at least one name: source"
    )
    train: TrainSpec = Field(default_factory=TrainSpec, description="a mapping of what every stage inherits")
    lr: LrSpec | None = Field(None, description="one schedule over all stages: shape, from, to, warmup")
    total: TokensField | None = Field(None, description="tokens of all stages together, such as ~10B")
    stages: Annotated[dict[str, StageSpec], Field(min_length=1)] = Field(
        description="an ordered mapping of at least one name: stage"
    )
    ablate: list[ItemSpec] = Field(
        default_factory=list, description="a list of grid, zip, cases, one_at_a_time or mixture items"
    )
    seeds: SeedsSpec = Field(default_factory=SeedsSpec, description="a mapping of init, data, pair, from")
    eval: EvalSpec = Field(default_factory=EvalSpec, description="a mapping of suites, at, max_length, held_out")
    compare: CompareSpec = Field(default_factory=CompareSpec, description="a mapping of baseline, control, ...")
    launch: LaunchSpec = Field(default_factory=LaunchSpec, description="a mapping of jobs, threads, device, ...")
    budget: BudgetSpec = Field(default_factory=BudgetSpec, description="a mapping of gpu_hours")
    keep: KeepSpec = Field(default_factory=KeepSpec, description="a mapping of checkpoints")
    track: NothingTracked = Field("none", description="none")


class BaseChange(Block):
    """What an arm may change of the base."""

    later: ClassVar[frozenset[str]] = frozenset({"model", "revision", "tokenizer", "run", "tokens_seen"})

    optimizer: Annotated[Literal["cold", "carried"], choice("cold", "carried")] | None = Field(
        None, description="cold or carried"
    )
    lr: Unsigned | None = Field(None, description="the rate at which the base was left, from 0")


class ArmSpec(Block):
    """What an arm may change: the science of training. Everything else is the same for every arm."""

    base: BaseChange | None = Field(None, description="a mapping of optimizer, lr")
    train: TrainSpec | None = Field(None, description="a mapping of what every stage inherits")
    lr: LrSpec | None = Field(None, description="one schedule over all stages: shape, from, to, warmup")
    total: TokensField | None = Field(None, description="tokens of all stages together, such as ~10B")
    stages: dict[str, StageSpec] | None = Field(None, description="a mapping of the stages to change")


def description_of(path: Sequence[str | int]) -> str:
    """What is expected at a path of the study, in words."""
    return description(StudySpec, path) or "a value"
