"""What must fit between the blocks of a study: names, sources, seeds, evaluation, comparison, launch."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.study.errors import Mistake, nearest
from harness.study.mixtures import PROPORTIONAL
from harness.study.paths import Path
from harness.study.schema import CompareSpec, EvalSpec, HeldOutSpec, SeedsSpec, SourceSpec, StudySpec
from harness.study.schema.execution import KernelsSpec, LaunchSpec
from harness.study.schema.slurm import ResourcesRule, without_effect
from harness.study.treatment import SeedSet, Stage
from harness.study.units import Margin, UnitError, parse_every

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
SUITE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)@[1-9][0-9]*")
MAX_NAME = 100
# Names that mean something else where the name is used: rows of the report, `eval.at`, an absorb rule.
RESERVED = {
    "arm": ("default", "base"),
    "stage": ("base", "end", "ema", "every", "rest"),
    "source": (PROPORTIONAL, "mixture"),
}
UNDECLARED_SEEDS = [1]
COMMIT = re.compile(r"[0-9a-f]{40}")
REF = re.compile(r"[A-Za-z0-9._/-]+")  # what may name a branch; a place that is still to be filled in can be planned
SMALLEST_DISTANCE = 8  # of passages, in characters: the mark in front of the second occurrence counts
_GENERATED = ("documents", "seed", "distance")
PARAMETERS: Mapping[str, Mapping[str, Any]] = {  # of the built-in sources, with their defaults
    "arithmetic": {"documents": 20_000, "seed": 0},
    "passages": {"documents": 2_000, "seed": 0, "distance": [200, 1200]},
    "python_code": {},
    "python_docs": {},
}


def check_name(kind: str, name: str, path: Sequence[str | int]) -> None:
    """A name becomes a folder and a part of paths, so it is plain. Raises Mistake."""
    article = "an" if kind in ("arm", "alias") else "a"
    if not NAME.fullmatch(name):
        rule = "expected letters, digits, `.`, `_` and `-`, beginning with none of `.` and `-`"
        raise Mistake(path, f"`{name}` cannot name {article} {kind}; {rule}", at_key=kind != "study")
    if len(name) > MAX_NAME:
        raise Mistake(path, f"the name has {len(name)} characters; expected at most {MAX_NAME}", at_key=kind != "study")
    if name in RESERVED.get(kind, ()) or (kind == "stage" and name.isdigit()):
        raise Mistake(path, f"`{name}` is reserved and cannot name {article} {kind}; expected another", at_key=True)


def check_names(spec: StudySpec) -> None:
    """Names of the study, its sources, stages and cases. Raises Mistake."""
    check_name("study", spec.study, ("study",))
    for name in spec.sources:
        check_name("source", name, ("sources", name))
    for name in spec.stages:
        check_name("stage", name, ("stages", name))
    for index, item in enumerate(spec.ablate):
        for name in item.cases or ():
            check_name("arm", name, ("ablate", index, "cases", name))


def resolve_source(name: str, source: SourceSpec) -> SourceSpec:
    """A source with the parameters of its built-in kind filled in. Raises Mistake for parameters of another kind."""
    path = ("sources", name)
    kinds = [kind for kind in ("builtin", "files", "hf") if getattr(source, kind) is not None]
    if len(kinds) != 1:
        both = f"holds `{'` and `'.join(kinds)}`" if kinds else "says nowhere where its text comes from"
        raise Mistake(path, f"{both}; expected one of builtin, files, hf")
    if source.builtin is not None:
        own, of = PARAMETERS[source.builtin], f"`{source.builtin}`"
    elif source.hf is not None:
        own, of = {"text": "text", "split": "train", "name": None, "revision": None}, "a source of the hub"
        if source.revision is None:
            message = "is missing; expected a commit, 40 hexadecimal digits, so that the study can be repeated"
            raise Mistake((*path, "revision"), message)
        if not COMMIT.fullmatch(source.revision) and REF.fullmatch(source.revision):
            message = (
                f"`{source.revision}` is no commit; expected its 40 hexadecimal digits: a branch or a tag can move"
            )
            raise Mistake((*path, "revision"), message)
    else:
        own, of = {"text": None}, "a source of files"  # unwritten it is `text` where files have fields: .txt have none
    for key in (*_GENERATED, "name", "split", "revision", "text"):
        if getattr(source, key) is not None and key not in own:
            raise Mistake((*path, key), f"{of} takes no `{key}`; {nearest(key, own)}", at_key=True)
    if source.distance and source.distance[0] > source.distance[1]:
        raise Mistake((*path, "distance"), f"{source.distance} runs backwards; expected the smaller number first")
    if source.distance and source.distance[0] < SMALLEST_DISTANCE:
        message = f"{source.distance} begins below {SMALLEST_DISTANCE}, the characters of the mark in front of a repeat"
        raise Mistake((*path, "distance"), f"{message}; expected at least that many")
    missing = {key: value for key, value in own.items() if getattr(source, key) is None}
    return source.model_copy(update=missing)


def resolve_seeds(seeds: SeedsSpec, stages: Sequence[str], from_scratch: bool) -> tuple[SeedSet, ...]:
    """The replicates. Undeclared seeds are 1; none declared is one replicate named `s1`. Raises Mistake."""
    _check_seeds(seeds, stages, from_scratch)
    return replicates(seeds, ("seeds",))


def replicates(seeds: SeedsSpec, path: Path) -> tuple[SeedSet, ...]:
    """The pairs of seeds, named; what `resolve_seeds` does for those of an A/A arm. Raises Mistake."""
    init, data = seeds.init or UNDECLARED_SEEDS, seeds.data or UNDECLARED_SEEDS
    _check_unique(init, (*path, "init"))
    _check_unique(data, (*path, "data"))
    if seeds.pair == "zip" and len(init) != len(data):
        counts = f"{len(init)} init and {len(data)} data seeds"
        raise Mistake((*path, "pair"), f"zip pairs {counts}; expected equally many")
    pairs = zip(init, data, strict=True) if seeds.pair == "zip" else itertools.product(init, data)
    return tuple(
        SeedSet(_seed_name(seeds, one_init, one_data), one_init, one_data, seeds.from_) for one_init, one_data in pairs
    )


def _check_seeds(seeds: SeedsSpec, stages: Sequence[str], from_scratch: bool) -> None:
    if seeds.init and not from_scratch:
        raise Mistake(("seeds", "init"), "changes nothing: the base has weights; expected only `data` seeds", True)
    if seeds.from_ is None:
        return
    if seeds.from_ not in stages:
        raise Mistake(("seeds", "from"), f"there is no stage `{seeds.from_}`; {nearest(seeds.from_, stages)}")
    if seeds.from_ == stages[0]:
        later = nearest("", stages[1:])
        raise Mistake(("seeds", "from"), f"`{seeds.from_}` is the first stage, so nothing is shared before it; {later}")
    if not seeds.data:
        raise Mistake(("seeds", "from"), "changes the data seed from that stage on; expected `data` seeds beside it")
    if len(seeds.init or ()) > 1:
        raise Mistake(("seeds", "init"), "several of them leave no trunk to share; expected one, or no `seeds.from`")


def _seed_name(seeds: SeedsSpec, init: int, data: int) -> str:
    parts = [f"i{init}"] * bool(seeds.init) + [f"d{data}"] * bool(seeds.data)
    return "-".join(parts) or "s1"


def _check_unique(values: Sequence[Any], path: Path) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise Mistake((*path, index), f"{value} is listed twice; expected it once")


def check_eval(spec: EvalSpec, declared: bool, stages: Sequence[str]) -> None:
    """Suites, points and windows. Raises Mistake."""
    _check_suites(spec.suites)
    _check_unique(spec.tasks, ("eval", "tasks"))
    _check_unique(spec.at, ("eval", "at"))
    _check_points(spec.at, stages)
    if spec.continuations and "end" not in spec.labels:
        message = "are written at the end of training, and `at` does not name it; expected `end` in eval.at, or 0"
        raise Mistake(("eval", "continuations"), message)
    if spec.limit is not None and not (spec.suites or spec.tasks):
        message = "is of items of tasks, and there is none; expected suites or tasks beside it, or held_out.documents"
        raise Mistake(("eval", "limit"), message, at_key=True)
    if not (spec.suites or spec.tasks or spec.prompts or isinstance(spec.held_out, HeldOutSpec)):
        if declared:
            raise Mistake(("eval",), "names nothing to evaluate; expected suites, tasks or held_out")
        return
    if spec.max_length is None:
        if spec.suites or spec.tasks or spec.prompts:  # windows of held-out text say their own length
            message = "is missing; expected positions, the same for every arm, such as 2048"
            raise Mistake(("eval", "max_length"), message)
        return
    if isinstance(spec.held_out, HeldOutSpec) and spec.held_out.window > spec.max_length:
        message = f"{spec.held_out.window} is longer than eval.max_length; expected at most {spec.max_length}"
        raise Mistake(("eval", "held_out", "window"), message)


def _check_suites(suites: Sequence[str]) -> None:
    names: dict[str, str] = {}
    for index, suite in enumerate(suites):
        match = SUITE.fullmatch(suite)
        if not match:
            message = f"`{suite}` is not a suite; expected name@version such as {suite.partition('@')[0] or 'base'}@1"
            raise Mistake(("eval", "suites", index), message)
        if match[1] in names:
            raise Mistake(
                ("eval", "suites", index), f"`{suite}` stands beside `{names[match[1]]}`; expected one version"
            )
        names[match[1]] = suite


def _check_points(points: Sequence[str], stages: Sequence[str]) -> None:
    intervals = 0
    for index, point in enumerate(points):
        path = ("eval", "at", index)
        try:
            every = parse_every(point)
        except UnitError as error:
            raise Mistake(path, str(error)) from None
        if every is None:
            if point not in ("base", "end", "ema", *stages):
                valid = nearest(point, ("base", "end", "ema", *stages, "every 1B"))
                raise Mistake(path, f"`{point}` is no point of training; {valid}")
            continue
        intervals += 1
        if every.about or every.value < 1:
            raise Mistake(path, f"`{point}` is no exact interval; expected whole batches, such as every 2^30")
        if intervals > 1:
            raise Mistake(path, f"`{point}` is a second interval; expected one `every`")


def check_compare(spec: CompareSpec, arms: Iterable[str], study: StudySpec) -> None:
    """Arms and metrics that a comparison names. Raises Mistake."""
    names = dict.fromkeys(arms)
    for key in ("baseline", "control"):
        arm = getattr(spec, key)
        if arm in study.merge:
            message = f"`{arm}` is a merge, and every arm is compared with one that is trained; {nearest('', names)}"
            raise Mistake(("compare", key), message)
        if arm is not None and arm not in names:
            raise Mistake(("compare", key), f"there is no arm `{arm}`; {nearest(arm, names)}")
    if spec.control == spec.baseline:
        message = f"`{spec.control}` is the baseline, with which every arm is compared already; expected another arm"
        allowed = f"`allow: {{{spec.baseline}: [no-control]}}` where the baseline itself is the control"
        raise Mistake(("compare", "control"), f"{message}, or {allowed}")
    names |= dict.fromkeys([*study.merge, *(control.name for control in study.controls)])
    for arm in spec.allow:
        if arm not in names:
            raise Mistake(("compare", "allow", arm), f"there is no arm `{arm}`; {nearest(arm, names)}", at_key=True)
    _check_unique(spec.primary, ("compare", "primary"))
    for index, metric in enumerate(spec.primary):
        check_metric(metric, study, ("compare", "primary", index))
    for metric, margin in spec.not_worse.items():
        check_metric(metric, study, ("compare", "not_worse", metric), at_key=True)
        check_margin(metric, margin, ("compare", "not_worse", metric))
    if spec.report_also == spec.equal:
        other = "flops" if spec.equal == "tokens" else "tokens"
        message = f"the arms are compared at equal {spec.equal} already; expected {other}"
        raise Mistake(("compare", "report_also"), message)
    for key in ("primary", "not_worse", "control"):
        if getattr(spec, key) and "end" not in study.eval.labels:
            message = "is compared at the end of training, and `eval.at` does not name it; expected `end` in eval.at"
            raise Mistake(("compare", key), message, at_key=True)


def check_resources(rules: Sequence[ResourcesRule], arms: Iterable[str], stages: Sequence[str]) -> None:
    """What rules of `launch.resources` speak of. Raises Mistake for one that could never be meant, or asks nothing."""
    names = list(arms)
    for index, rule in enumerate(rules):
        place: Path = ("launch", "resources", index)
        if rule.stage is not None and rule.stage not in stages:
            raise Mistake((*place, "stage"), f"there is no stage `{rule.stage}`; {nearest(rule.stage, stages)}")
        if rule.arm is not None and not any(fnmatch.fnmatchcase(name, rule.arm) for name in names):
            raise Mistake((*place, "arm"), f"there is no arm `{rule.arm}`; {nearest(rule.arm, names)}")
        if rule.work == "close" and (rule.arm is not None or rule.stage is not None):
            raise Mistake(place, "the last job belongs to no arm and no stage; expected `work: close` alone")
        if all(asked is None for asked in (rule.nodes, rule.gpus, rule.gpu_type, rule.time)) and not rule.slurm:
            raise Mistake(place, "asks for nothing; expected nodes, gpus, gpu_type, time or slurm")
        idle = without_effect(rule)
        if idle is not None:
            if idle == "gpu_type":
                raise Mistake((*place, idle), "the last job has no GPU; expected `gpus: 1` beside it, or none")
            one = "the last job" if rule.work == "close" else "an evaluation"
            raise Mistake((*place, idle), f"{one} is one process on one machine, with one GPU at most; expected 1")


def check_strategy(launch: LaunchSpec) -> None:
    """Raise Mistake where a model is to be divided among several processes and no run has more than one."""
    asked: list[LaunchSpec | ResourcesRule] = [launch, *launch.resources]
    tasks = [one.slurm["ntasks_per_node"] for one in asked if "ntasks_per_node" in one.slurm]
    several = any((one.nodes or 1) > 1 for one in asked) or any(str(count) != "1" for count in tasks)
    if "ntasks_per_node" not in launch.slurm:  # where it is said, it is the number of processes, whatever the GPUs
        several = several or any((one.gpus or 1) > 1 for one in asked)
    if launch.strategy != "auto" and not several:
        raise Mistake(
            ("launch", "strategy"),
            f"{launch.strategy} divides a run among several processes, and every run has one; expected auto, or "
            "launch.gpus, launch.nodes or launch.slurm.ntasks_per_node above 1",
        )


FUSED_LOSS = "fused_linear_cross_entropy"


def liger_parts(launch: LaunchSpec) -> tuple[str, ...]:
    """The parts for which `launch.kernels` asks for Liger's kernel; none for `auto`, which may choose."""
    if isinstance(launch.kernels, KernelsSpec):
        return tuple(part for part, whose in launch.kernels.model_dump().items() if whose == "liger")
    return tuple(KernelsSpec.model_fields) if launch.kernels == "liger" else ()


def on_gpu_alone(parts: Sequence[str]) -> list[str]:
    """Those parts of Liger's that cannot run on a CPU: of them Triton's interpreter can run the fused loss alone."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return [part for part in parts if not (part == FUSED_LOSS and interpreted)]


def check_gpu_type(launch: LaunchSpec) -> None:
    """Raise Mistake where a type of GPU, or in a rule a number of them, is asked for and no GPU is used."""
    if launch.device != "cpu":
        return
    said = "`launch.device` is cpu, and no GPU is asked for; expected neither or cuda"
    if launch.gpu_type is not None:
        raise Mistake(("launch", "gpu_type"), said)
    for index, rule in enumerate(launch.resources):
        for key in ("gpus", "gpu_type"):
            if getattr(rule, key) is not None:
                raise Mistake(("launch", "resources", index, key), said)


def check_kernels(launch: LaunchSpec) -> None:
    """Raise Mistake where Liger's kernels cannot run beside what `launch` says elsewhere, on whatever machine."""
    parts = liger_parts(launch)
    needs_gpu = on_gpu_alone(parts)

    def refuse(part: str, message: str, expected: str) -> None:
        word = launch.kernels == "liger"
        place: Path = ("launch", "kernels") if word else ("launch", "kernels", part)
        raise Mistake(place, f"liger {message}; expected {expected}")

    if launch.device == "cpu" and needs_gpu:
        also = ", chunked" if needs_gpu[0] == FUSED_LOSS and launch.kernels != "liger" else ""
        refuse(
            needs_gpu[0], "needs a GPU, and `launch.device` is cpu", f"torch{also}, or `launch.device: cuda` (or auto)"
        )
    if launch.compile and "rms_norm" in parts:
        refuse(
            "rms_norm",
            "has a norm that is known to deviate under `launch.compile: true`, which fuses norms itself",
            f"`kernels: {{{FUSED_LOSS}: liger}}` or auto, or `launch.compile: false`",
        )
    if launch.activation_checkpointing == "selective" and "rope" in parts and not launch.compile:
        refuse(
            "rope",
            "rotates in place, and `launch.activation_checkpointing: selective` would rotate what it keeps once more",
            "full or off there, or torch's rope",
        )


# What is no share in [0, 1], by the words in its name: a margin in percentage points has no meaning there.
_NO_SHARE = ("bits_per_byte", "nats_per_token", "perplexity", "loss")
LARGEST_SHARE = 0.2  # of a score, as a plain number: more was meant to be percent


def check_margin(metric: str, margin: Margin, path: Path) -> None:
    """A margin in the unit of its metric. Raises Mistake."""
    share = not metric.startswith("bpb.") and not any(word in metric for word in _NO_SHARE)
    if margin.points and not share:
        raise Mistake(path, f"`{metric}` is no share of something; expected a number in its own unit, such as 0.01")
    if share and not margin.points and margin.value > LARGEST_SHARE:
        shown = f"{100 * margin.value:g}pp"
        raise Mistake(path, f"{margin.value:g} of a score is {shown}; expected a margin such as {margin.value:g}pp")


def check_metric(metric: str, study: StudySpec, path: Path, at_key: bool = False) -> None:
    """A metric that the study's evaluation yields. Raises Mistake."""
    first, _, rest = metric.partition(".")
    if first == "bpb":
        if study.eval.held_out == "none":
            raise Mistake(path, f"`{metric}` needs held-out text; expected `eval.held_out: {{window: ...}}`", at_key)
        if rest not in study.sources:
            raise Mistake(path, f"there is no source `{rest}`; {nearest(rest, study.sources)}", at_key)
        if study.sources[rest].held_out == 0:
            raise Mistake(path, f"`{rest}` holds nothing out; expected `sources.{rest}.held_out` above 0", at_key)
        return
    suites = [suite.partition("@")[0] for suite in study.eval.suites]
    if not study.eval.tasks and (first not in suites or not rest):
        valid = nearest(metric, [f"{suite}.average" for suite in suites] + [f"bpb.{name}" for name in study.sources])
        message = f"`{metric}` is not measured; {valid} A suite's tasks are named suite.task.metric."
        raise Mistake(path, message, at_key)


def stage_check(spec: StudySpec) -> Callable[[Stage, int], None]:
    """A check of what is the same for every arm against one stage that starts at a token. It raises Mistake."""
    micro_batch, every = spec.launch.micro_batch, spec.eval.every
    where = spec.eval.at.index(next(text for text in spec.eval.at if parse_every(text))) if every else 0

    def check(stage: Stage, start: int) -> None:
        if micro_batch is not None:
            _check_micro_batch(micro_batch, stage)
        if every and (every % stage.batch_tokens or start % stage.batch_tokens):
            raise Mistake(
                ("eval", "at", where),
                f"{every:,} tokens do not always end a batch of {stage.batch_tokens:,} in `{stage.name}`; "
                "expected a multiple of every stage's batch",
            )

    return check


def _check_micro_batch(micro_batch: int, stage: Stage) -> None:
    path = ("launch", "micro_batch")
    if stage.batch_tokens % micro_batch:
        message = f"{micro_batch} does not divide the {stage.batch_tokens} tokens of a batch of `{stage.name}`"
        raise Mistake(path, f"{message}; expected a divisor")
    if micro_batch % stage.context.length:
        message = f"{micro_batch} is not a whole number of rows of {stage.context.length} in `{stage.name}`"
        raise Mistake(path, f"{message}; expected a multiple of every context length")
