"""What is proven of base, sources, arms and seeds: keys that decide what is trained and are no arm's science."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.proofs.every_key import GONE
from tests.proofs.looks import (
    COMMIT,
    EVALUATED,
    MISSING,
    OTHER_COMMIT,
    SCORED,
    See,
    Shown,
    arms,
    averaged,
    dropped,
    fetched,
    held_out,
    included,
    merged,
    of,
    of_the_hub,
    rows,
    segments,
    several,
    solved,
    texts,
    treatment,
    verdicts,
    weights,
    words,
)
from tests.proofs.science_keys import BATCH, STAGE, WARMUP


def source(see: See, key: str, one: Any, other: Any, **kind: Any) -> Shown:
    """Of a third source of that kind."""
    blocks = [kind | ({} if value is MISSING else {key: value}) for value in (one, other)]
    return Shown(see, *({"sources.third": block} for block in blocks))


TRAINED = {
    "base.model": "BASE0/model",
    "base.tokenizer": "BASE0/model",
    "stages.decay.lr": {"shape": "linear", "to": 0},
    "stages.stable.lr": {"shape": "constant"},
}
TO_ZERO = {"shape": "linear", "to": 0}
MIX = {"stages.decay.mixture": {"sums": 0.2, "more": 0.8}}
FLAT = {"stages.decay.lr": {"shape": "constant"}}
PARTS = {
    "seeds": {"data": [1, 2]},
    "ablate": [{"cases": {"mix": MIX, "flat": FLAT}}],
    "compare.allow": {name: ["schedule-open", "unequal-tokens"] for name in ("default", "flat", "merge")},
}


def merge(key: str, one: Any, other: Any, **rest: Any) -> Shown:
    """Of one merge."""
    both = [rest | ({} if value is MISSING else {key: value}) for value in (one, other)]
    return Shown(merged, *({**PARTS, "merge": {"merge": block}} for block in both))


WSM = {"of": "checkpoints", "arm": "flat", "over": 2 * BATCH, "every": BATCH}
LINEAR_WSM = {**WSM, "decay": "linear"}


def items(one: Mapping[str, Any], other: Mapping[str, Any], see: See = arms, **start: Any) -> Shown:
    """Of two items of `ablate`."""
    return of(see, "ablate", [one], [other], start)


DECAY, WEIGHT = "stages.decay.tokens", "stages.decay.optimizer.weight_decay"
GRID = [{DECAY: [64, 128]}, {WEIGHT: [0.2, 0.3]}]
AXIS = {"stage": "decay", "vary": "more", "values": [0.8], "absorb": "sums"}
THREE = {"sources.third": {"builtin": "passages", "documents": 20}}
ADD = {"of": "stages.decay.mixture", "values": {"third": 0.2}, "absorb": "sums"}
LEAVE = {"of": "stages.decay.mixture", "absorb": "sums"}
OF_THREE = {**THREE, "train.mixture": {"sums": 0.4, "more": 0.4, "third": 0.2}}
CAPPED = {"sources.more.max_epochs": 0.09, **THREE}
OVER: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "": lambda word: {"mixture": AXIS, "over": word},
    "mixture.": lambda word: {"mixture": {**AXIS, "over": word}},
    "add_one.": lambda word: {"add_one": {"changes": MIX, "over": word}},
    "leave_one_out.": lambda word: {"leave_one_out": {**LEAVE, "absorb": "more", "over": word}},
}
AA = {"name": "aa", "same_as": "default", "seeds": {"data": [3, 4]}}
NUMBER = {"arm": "default", "metric": "bpb.sums", "at": "end", "value": 5.0, "tolerance": 0.01}


def control(see: See = verdicts, **blocks: tuple[Any, Any]) -> Shown:
    """Of one control; (one, other) for the key that differs."""
    both: list[dict[str, Any]] = [{}, {}]
    for key, pair in blocks.items():
        for block, value in zip(both, pair, strict=True):
            block.update({} if value is MISSING else {key: value})
    return Shown(see, *({**SCORED, "controls": [block]} for block in both))


def doubled(one: Any, other: Any, seeds: Mapping[str, Any]) -> Shown:
    """Of the seeds of an A/A control."""
    shown = [{**SCORED, "seeds": seeds, "controls": [{**AA, "seeds": block}]} for block in (one, other)]
    return Shown(verdicts, *shown)


def number(key: str, one: Any, other: Any) -> Shown:
    both = [{**SCORED, "controls": [{"name": "n", "reproduce": {**NUMBER, key: value}}]} for value in (one, other)]
    return Shown(verdicts, *both)


AVERAGED = {**EVALUATED, "eval.at": ["ema"], "eval.continuations": 0}
STARTS = {**TRAINED, "base.lr": 0.003}
LINEAR = {"shape": "linear", "from": 0.01, "to": "0.1x", "warmup": WARMUP}
FIRST = "stages.stable.lr"
# A stage without a schedule of its own, before one that has one.
INHERITS = {**{key: value for key, value in STARTS.items() if key != FIRST}}
OWN_LENGTH = {"shape": "inverse-sqrt"}

PROBES: dict[str, Shown] = {
    "schema=1": Shown(treatment, {"schema": 2}, {"schema": 1}),
    "include": of(included, "include", ["ROOT/one.yaml"], ["ROOT/other.yaml"]),
    # base
    "base.model": of(weights, "base.model", "BASE0/model", "BASE1/model", TRAINED),
    "base.model.config": of(weights, "base.model.config", {}, {"rms_norm_eps": 0.1}),
    "base.run": of(weights, "base.run", "PLACE/start/default/i1", "PLACE/start/default/i2", {"base.model": GONE}),
    "base.revision": of(
        of_the_hub, "base.revision", COMMIT, OTHER_COMMIT, {**TRAINED, "base.model": "someone/something"}
    ),
    "base.tokenizer": of(rows, "base.tokenizer", "BASE0/model", "BASE1/tokenizer"),
    "base.tokenizer.bpe.vocab": of(rows, "base.tokenizer.bpe.vocab", 300, 310),
    "base.tokenizer.bpe.sources": of(
        rows,
        "base.tokenizer.bpe.sources",
        ["sums"],
        ["third"],
        {"sources.third": {"builtin": "passages", "documents": 20}},
    ),
    **words(lambda one, other: of(weights, "base.optimizer", one, other, TRAINED), "base.optimizer", "cold", "carried"),
    "base.lr": of(weights, "base.lr", 0.003, 0.006, {**TRAINED, FIRST: {**TO_ZERO, "to": "0.1x", "from": "base"}}),
    "base.tokens_seen": of(weights, "base.tokens_seen", 640, 6400, {**TRAINED, FIRST: OWN_LENGTH}),
    "train.lr.from=base": of(
        weights, "train.lr.from", 0.01, "base", {**INHERITS, "train.lr": {"shape": "linear", "to": "0.1x"}}
    ),
    "stages.NAME.lr.from=base": of(
        weights, f"{FIRST}.from", 0.01, "base", {**STARTS, FIRST: {"shape": "linear", "to": "0.1x"}}
    ),
    "lr.from=base": Shown(
        weights,
        {**STARTS, "lr": {"shape": "linear", "to": "0.1x"}},
        {**STARTS, "lr": {"shape": "linear", "to": "0.1x", "from": "base"}},
    ),
    "train.lr.warmup_from=base": of(weights, "train.lr.warmup_from", 0.001, "base", {**INHERITS, "train.lr": LINEAR}),
    "stages.NAME.lr.warmup_from=base": of(weights, f"{FIRST}.warmup_from", 0.001, "base", {**STARTS, FIRST: LINEAR}),
    "lr.warmup_from=base": Shown(
        weights,
        {**STARTS, "lr": {**LINEAR, "warmup_from": 0.001}},
        {**STARTS, "lr": {**LINEAR, "warmup_from": "base"}},
    ),
    "lr.warmup_from=previous": Shown(treatment, {"lr": LINEAR}, {"lr": {**LINEAR, "warmup_from": "previous"}}),
    # sources
    **words(
        lambda one, other: source(texts, "builtin", one, other),
        "sources.NAME.builtin",
        "python_code",
        "python_docs",
        "arithmetic",
        "passages",
    ),
    "sources.NAME.files": source(texts, "files", ["ROOT/files/a.jsonl"], ["ROOT/files/b.jsonl"]),
    "sources.NAME.files (txt)": source(texts, "files", ["ROOT/files/a*.txt"], ["ROOT/files/b*.txt"]),
    "sources.NAME.text": source(texts, "text", "text", "body", files=["ROOT/files/a.jsonl"]),
    "sources.NAME.hf": source(fetched, "hf", "someone/one", "someone/other", revision=COMMIT, name="small"),
    "sources.NAME.name": source(fetched, "name", "small", "large", hf="someone/one", revision=COMMIT),
    "sources.NAME.split": source(fetched, "split", MISSING, "test", hf="someone/one", revision=COMMIT),
    "sources.NAME.revision": source(fetched, "revision", COMMIT, OTHER_COMMIT, hf="someone/one", name="small"),
    "sources.NAME.min_length": source(rows, "min_length", MISSING, 64, builtin="arithmetic", documents=60),
    "sources.NAME.documents": source(texts, "documents", 20, 10, builtin="arithmetic"),
    "sources.NAME.seed": source(texts, "seed", 2, 3, builtin="arithmetic"),
    "sources.NAME.distance": source(texts, "distance", [100, 200], [300, 400], builtin="passages", documents=20),
    "sources.NAME.max_epochs": of(dropped, "sources.more.max_epochs", 100.0, 0.01),
    "sources.NAME.held_out": source(held_out, "held_out", 0.1, 0.4, builtin="arithmetic", documents=60, seed=7),
    # what an arm trains
    "total": of(weights, "total", 2 * STAGE, 2 * STAGE + BATCH, {"stages.stable.tokens": "rest"}),
    "stages.NAME.tokens=rest": Shown(
        weights,
        {"total": 2 * STAGE, "stages.stable.tokens": "rest", "stages.decay.tokens": 2 * BATCH},
        {"total": 2 * STAGE, "stages.decay.tokens": "rest", "stages.stable.tokens": 2 * BATCH},
    ),
    "stages.NAME.tokens (flops_of)": items(
        {
            "cases": {
                "long": {"stages.stable.tokens": 9 * BATCH},
                "solved": {"stages.decay.tokens": {"flops_of": "long"}},
            }
        },
        {
            "cases": {
                "long": {"stages.stable.tokens": 9 * BATCH},
                "solved": {"stages.decay.tokens": {"flops_of": "default"}},
            }
        },
        solved,
    ),
    "train.optimizer.ema": of(averaged, "train.optimizer.ema", 0.5, 0.9, AVERAGED),
    "stages.NAME.optimizer.ema": of(averaged, "stages.decay.optimizer.ema", 0.5, 0.9, AVERAGED),
    # ablate
    "ablate[ ].grid": items({"grid": GRID}, {"grid": GRID[:1]}),
    "ablate[ ].zip": items({"zip": GRID}, {"zip": GRID[:1]}),
    "ablate[ ].cases": items({"cases": {"mix": MIX}}, {"cases": {"mix": FLAT}}),
    "ablate[ ].one_at_a_time": items({"one_at_a_time": {DECAY: [64]}}, {"one_at_a_time": {DECAY: [128]}}),
    "ablate[ ].add_one.of": items({"add_one": ADD}, {"add_one": {**ADD, "of": "stages.stable.mixture"}}, **THREE),
    "ablate[ ].add_one.values": items({"add_one": ADD}, {"add_one": {**ADD, "values": {"third": 0.3}}}, **THREE),
    "ablate[ ].add_one.absorb": items({"add_one": ADD}, {"add_one": {**ADD, "absorb": "more"}}, **THREE),
    "ablate[ ].add_one.changes": items({"add_one": {"changes": MIX}}, {"add_one": {"changes": FLAT}}),
    "ablate[ ].leave_one_out.of": items(
        {"leave_one_out": LEAVE}, {"leave_one_out": {**LEAVE, "of": "stages.stable.mixture"}}, **OF_THREE
    ),
    "ablate[ ].leave_one_out.absorb": items(
        {"leave_one_out": LEAVE}, {"leave_one_out": {**LEAVE, "absorb": "more"}}, **OF_THREE
    ),
    "ablate[ ].leave_one_out.changes": items(
        {"leave_one_out": {"changes": {**MIX, DECAY: 64}}}, {"leave_one_out": {"changes": {**MIX, DECAY: 128}}}
    ),
    "ablate[ ].mixture.stage": items({"mixture": AXIS}, {"mixture": {**AXIS, "stage": "stable"}}),
    "ablate[ ].mixture.vary": items({"mixture": AXIS}, {"mixture": {**AXIS, "vary": "sums", "absorb": "more"}}),
    "ablate[ ].mixture.values": items({"mixture": AXIS}, {"mixture": {**AXIS, "values": [0.7]}}),
    "ablate[ ].mixture.absorb": items({"mixture": AXIS}, {"mixture": {**AXIS, "absorb": "proportional"}}, **OF_THREE),
    "ablate[ ].mixture.as": items({"mixture": AXIS}, {"mixture": {**AXIS, "as": "dose"}}),
    "ablate[ ].mixture.when": items(
        {"grid": [GRID[0], {"mixture": AXIS}]}, {"grid": [GRID[0], {"mixture": {**AXIS, "when": {DECAY: 64}}}]}
    ),
    "ablate[ ].exclude": items({"grid": GRID}, {"grid": GRID, "exclude": [{DECAY: 64, WEIGHT: 0.2}]}),
    "ablate[ ].when": items({"grid": GRID}, {"grid": GRID, "when": {DECAY: 64}}),
    "ablate[ ].as": items({"zip": GRID}, {"zip": GRID, "as": "size"}),
    **{
        f"ablate[ ].{key}over={word}": of(
            dropped, "ablate", [item("error" if word == "drop" else "drop")], [item(word)], CAPPED
        )
        for key, item in OVER.items()
        for word in ("error", "drop")
    },
    # seeds
    "seeds.init": of(several, "seeds", {"init": [1]}, {"init": [2]}),
    "seeds.data": of(several, "seeds", {"data": [1]}, {"data": [2]}),
    **words(
        lambda one, other: Shown(
            several, *({"seeds": {"init": [1, 2], "data": [1, 2], "pair": word}} for word in (one, other))
        ),
        "seeds.pair",
        "product",
        "zip",
    ),
    "seeds.from": of(segments, "seeds", {"data": [1, 2]}, {"data": [1, 2], "from": "decay"}),
    # merge
    **words(
        lambda one, other: Shown(
            merged,
            *(
                {
                    **PARTS,
                    "merge": {
                        "merge": {"seeds": {"of": "seeds", "arm": "default"}, "checkpoints": WSM}.get(
                            word, {"of": "arms", "arms": ["default", "mix"]}
                        )
                    },
                }
                for word in (one, other)
            ),
        ),
        "merge.NAME.of",
        "seeds",
        "arms",
        "checkpoints",
    ),
    "merge.NAME.arm": merge("arm", "default", "mix", of="seeds"),
    "merge.NAME.arms": merge("arms", ["default", "mix"], ["default", "flat"], of="arms"),
    "merge.NAME.weights": merge("weights", MISSING, [1.0, 3.0], of="seeds", arm="default"),
    "merge.NAME.over": merge("over", 2 * BATCH, 3 * BATCH, **{k: v for k, v in LINEAR_WSM.items() if k != "over"}),
    "merge.NAME.every": merge("every", BATCH, 2 * BATCH, **{k: v for k, v in LINEAR_WSM.items() if k != "every"}),
    **words(
        lambda one, other: merge("decay", one, other, **WSM, to=0.1),
        "merge.NAME.decay",
        "linear",
        "cosine",
        "exponential",
        "1-sqrt",
        "1-square",
    ),
    "merge.NAME.to": merge("to", MISSING, 0.3, **WSM, decay="linear"),
    # controls
    "controls[ ].name": control(name=("aa", "bb"), same_as=("default",) * 2, seeds=({"data": [3, 4]},) * 2),
    "controls[ ].same_as": control(name=("aa",) * 2, same_as=("default", "more=0.8"), seeds=({"data": [3, 4]},) * 2),
    "controls[ ].seeds.data": doubled({"data": [3, 4]}, {"data": [3, 5]}, {"data": [1, 2]}),
    "controls[ ].seeds.init": doubled({"init": [3]}, {"init": [4]}, {"init": [1]}),
    **words(
        lambda one, other: Shown(
            verdicts,
            *(
                {
                    **SCORED,
                    "seeds": {"init": [1], "data": [1]},
                    "controls": [{**AA, "seeds": {"init": [3, 4], "data": [3, 4], "pair": word}}],
                }
                for word in (one, other)
            ),
        ),
        "controls[ ].seeds.pair",
        "product",
        "zip",
    ),
    "controls[ ].reproduce.arm": number("arm", "default", "more=0.8"),
    "controls[ ].reproduce.metric": number("metric", "bpb.sums", "bpb.more"),
    "controls[ ].reproduce.at": number("at", "end", "stable"),
    "controls[ ].reproduce.value": number("value", 5.0, 6.0),
    "controls[ ].reproduce.tolerance": number("tolerance", 0.01, 1000.0),
}
