"""What each verb of `ablate` does: calls one function elsewhere and prints what it gives. Heavy imports stay inside."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.launch.run import ExecutorName, Options, Report
    from harness.train.measure import Setting

DONE, SOME_FAILED = 0, 1


class CallError(Exception):
    """A call that the parser does not understand. `UserError` would cost the import of the whole study room."""


def plan(options: argparse.Namespace) -> int:
    from harness.launch import prepare

    if options.every is not None and options.curves is None:
        raise CallError("`--every` says how many rows `--curves` writes; give a file with `--curves`.")
    if options.sbatch and options.json:
        raise CallError("`--sbatch` prints the sbatch files, `--json` one object; use one of them.")
    with _no_garbage_collection():
        study = prepare.load(options.study, options.set)
        prepared = prepare.planned(study, prepare.folder_of(study, options.folder))
    if options.curves is not None:
        from harness.launch.plan_files import write_curves

        write_curves(prepared.study, options.curves, options.every or 1)
    if options.sbatch:
        from harness.launch.slurm.preview import texts

        return _say("\n".join(texts(prepared)))
    if options.json:
        return _json(prepared.plan.to_json())
    from harness.plan import render

    print(render.text(prepared.plan, prepared.pools, shared=prepared.shared_pools))
    if prepared.seen.record:
        print(render.record(str(prepared.folder.root)))
    elif prepared.seen.damage:
        print(render.damage(prepared.seen.damage))
    return DONE


def run(options: argparse.Namespace) -> int:
    from harness.launch.run import Options

    asked = Options(
        study=options.study,
        folder=options.folder,
        overrides=tuple(options.set),
        executor=_executor(options),
        jobs=options.jobs,
        share=not options.no_share,
        yes=options.yes,
        wait=options.wait,
    )
    if not options.smoke:
        return reconcile(asked, options.json)
    if asked.executor == "slurm":
        raise CallError("`--smoke` rehearses the study on this machine; leave `--executor slurm` away with it.")
    if asked.wait:
        raise CallError("`--smoke` works in a folder of its own, in which nobody else is; leave `--wait` away with it.")
    return smoke(asked, options.json)


def smoke(asked: Options, as_json: bool) -> int:
    from harness.launch.progress import listener_for
    from harness.launch.smoke import smoke, text

    result = smoke(asked, listener_for(as_json))
    return _json(result.to_json(), result.exit_code) if as_json else _say(text(result), result.exit_code)


def evaluate(options: argparse.Namespace) -> int:
    if options.model is not None:
        return evaluate_outside(options)
    for option, value in (("--name", options.name), ("--revision", options.revision), ("-o", options.out)):
        if value is not None:
            raise CallError(f"`{option}` goes with `--model`; a study's folder is evaluated by `ablate eval DIR`.")
    if options.folder is None:
        raise CallError("the results folder is missing: `ablate eval DIR`, or `ablate eval --model M -o DIR`.")
    from harness.launch.plan_files import evaluation_options

    asked = evaluation_options(options.folder, options.suite, _executor(options), options.jobs)
    return reconcile(replace(asked, wait=options.wait), options.json)


def evaluate_outside(options: argparse.Namespace) -> int:
    if options.folder is not None:
        raise CallError(
            f"`ablate eval DIR` evaluates what {options.folder} has trained, `--model` another model; for a row in its "
            f"table, name the folder with `-o {options.folder}`."
        )
    if options.out is None:
        raise CallError("`--model` needs `-o DIR`: the results folder in whose table the model is to be a row.")
    if options.executor == "slurm":
        raise CallError("`--model` is evaluated in this process; leave `--executor slurm` away, or call it in a job.")
    if options.jobs is not None:
        raise CallError("`--model` is one model, evaluated in this one process, so `--jobs` has no meaning with it.")
    from harness.launch.outside import Asked, evaluate_outside
    from harness.launch.progress import listener_for

    asked = Asked(options.model, options.out, options.name, options.revision, tuple(options.suite), options.wait)
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        done = evaluate_outside(asked, listener_for(options.json))
    code = DONE if done.failed is None else SOME_FAILED
    if options.json:
        return _json(done.to_json(), code)
    if done.failed is not None:
        print(f"failed: {done.failed}", file=sys.stderr)
    return _say(f"evaluated {done.name} on {done.evaluated} tasks\nreport: {done.report}", code)


def reconcile(asked: Options, as_json: bool) -> int:
    from harness.launch import outcome, served
    from harness.launch.progress import listener_for, tokens
    from harness.launch.run import run as bring_to_plan

    # What the work prints in this process (`--executor debug`) must not get between a reader and the JSON.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        done = bring_to_plan(asked, listener_for(as_json))
    ended = done.ended
    if as_json:
        return _json(done.to_json(), ended.exit_code)
    if ended.signal is not None:
        print(outcome.stopped_line(ended, asked.command()), file=sys.stderr)
        return ended.exit_code
    if ended.failed:
        again = asked.command() if done.ticked is None else f"ablate retry {shlex.quote(str(done.folder.root))}"
        print(outcome.failure_table(ended.failed, str(done.folder.root), again))
    if done.held is not None:
        print(done.held)
    if done.ticked is not None:
        return _say(_slurm_text(done), ended.exit_code)
    if done.trained_tokens:
        print(served.text(done.folder))
    print(f"trained {tokens(done.trained_tokens)} tokens, evaluated {done.evaluated} states; {outcome.counts(ended)}")
    if done.report is not None:
        print(f"report: {done.report}")
    return ended.exit_code


def _slurm_text(done: Report) -> str:
    from harness.launch import outcome
    from harness.launch.slurm.bring import hours_line

    assert done.ticked is not None
    lines = [hours_line(done.ticked)] if any(done.ticked.hours) else []
    lines += [done.ticked.refused] if done.ticked.refused is not None else []
    lines.append(outcome.counts(done.ended))
    if done.report is not None:
        lines.append(f"report: {done.report}")
    else:
        lines.append(f"to follow: ablate status {shlex.quote(str(done.folder.root))} --watch")
    return "\n".join(lines)


def cancel(options: argparse.Namespace) -> int:
    from harness.launch.slurm import people
    from harness.store.layout import Folder

    done = people.cancel(Folder(options.folder), options.runs)
    return _json(done.to_json()) if options.json else _say(done.text())


def retry(options: argparse.Namespace) -> int:
    from harness.launch.plan_files import recorded_options
    from harness.launch.slurm import people
    from harness.store.layout import Folder

    people.retry(Folder(options.folder), options.runs, options.kind)
    return reconcile(replace(recorded_options(options.folder), executor="slurm"), options.json)


def gc(options: argparse.Namespace) -> int:
    from harness.launch.gc import collect, garbage
    from harness.launch.lock import locked
    from harness.launch.status import read_plan
    from harness.store.layout import Folder

    folder = Folder(options.folder)
    if not options.yes:
        found = garbage(folder)
        return _json(found.to_json()) if options.json else _say(found.text())
    read_plan(folder)  # before a folder is made to hold the lock of
    with locked(folder):
        found = garbage(folder)
        if not options.json:
            print(found.text(remove=True), flush=True)
        collect(found)
    return _json(found.to_json(removed=True)) if options.json else DONE


def status(options: argparse.Namespace) -> int:
    from harness.launch import status as look
    from harness.launch.slurm.watch import LOOK_SECONDS, Ticker
    from harness.store.layout import Folder

    folder = Folder(options.folder)
    if options.watch and options.json:
        raise CallError("`--watch` shows a table again and again, `--json` prints one object; use one of them.")
    ticker = Ticker(folder)
    with contextlib.suppress(KeyboardInterrupt) if options.watch else contextlib.nullcontext():  # the way to end it
        while True:
            if options.watch:
                ticker.tick()
            runs, problem = look.look(folder)
            if options.json:
                return _json(look.to_json(folder, runs, problem))
            if options.watch and sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")
            blind = [] if problem is None else [f"without a look at the queue: {problem}"]
            print(look.text(runs, [*blind, *look.tracking(folder), *ticker.said]), flush=True)
            if not options.watch:
                break
            time.sleep(LOOK_SECONDS if ticker.used else 2.0)
    return DONE


def logs(options: argparse.Namespace) -> int:
    from harness.launch.logs import show
    from harness.store.layout import Folder

    with contextlib.suppress(KeyboardInterrupt):  # the way to end `-f`
        show(Folder(options.folder), options.run, sys.stdout, options.follow)
    return DONE


def verify(options: argparse.Namespace) -> int:
    from harness.launch import verify as check
    from harness.store.layout import Folder

    folder = Folder(options.folder)
    if options.run is not None:
        points = check.alone(folder, options.run, options.json)
        equal = all(point.equal for point in points)
        if options.json:
            return _json(check.points_json(options.run, points), DONE if equal else SOME_FAILED)
        print("\n".join(check.lines(points)))
        return DONE if equal else SOME_FAILED
    checked, damage = check.damage(folder)
    if options.json:
        return _json({"checked": checked, "damage": damage}, SOME_FAILED if damage else DONE)
    print("\n".join([*(f"damaged: {sentence}" for sentence in damage), f"{checked} checked, {len(damage)} damaged"]))
    return SOME_FAILED if damage else DONE


def export(options: argparse.Namespace) -> int:
    from harness.launch.export import export as copy
    from harness.store.layout import Folder

    out = copy(Folder(options.folder), options.arm, options.out)
    return _json({"exported": str(out)}) if options.json else _say(f"exported to {out}")


def report(options: argparse.Namespace) -> int:
    from analysis.report import build

    page = build(options.folder)
    return _json({"report": str(page)}) if options.json else _say(f"report: {page}")


def compare(options: argparse.Namespace) -> int:
    from analysis.compare import compare as paired
    from analysis.compare import compare_text

    found = paired(options.folder, options.arm_a, options.arm_b)
    return _json(found) if options.json else _say(compare_text(found))


def sync(options: argparse.Namespace) -> int:
    from harness.launch.progress import listener_for
    from harness.launch.tracking import sync as send

    found = send(options.folder, options.to, options.jobs, listener_for(options.json).note, options.wait)
    code = DONE if all(standing.sent == standing.of for standing in found) else SOME_FAILED
    if options.json:
        return _json({"trackers": [asdict(standing) for standing in found]}, code)
    return _say("\n".join(standing.line for standing in found), code)


def schema(options: argparse.Namespace) -> int:
    if options.markdown:
        from harness.study.reference import reference

        print(reference(), end="")
        return DONE
    from harness.study import json_schema

    return _json(json_schema())


def bench_loop(options: argparse.Namespace) -> int:
    from harness.train.bench import bench_loop as measure

    return _figures(measure(), options)


def bench_plan(options: argparse.Namespace) -> int:
    from harness.launch.bench_plan import bench

    return _figures(bench(), options)


def bench_share(options: argparse.Namespace) -> int:
    from harness.launch.bench_share import bench
    from harness.launch.progress import listener_for
    from harness.launch.run import Options

    if options.executor == "slurm":
        raise CallError("`bench share` measures this machine; choose the executor local or debug.")
    asked = Options(options.study, None, tuple(options.set), _executor(options), options.jobs)
    return _figures(bench(asked, listener_for(options.json)), options)


def bench_train(options: argparse.Namespace) -> int:
    from harness.launch.progress import listener_for
    from harness.train import bench_train as bench

    beside = bench.Beside(options.best, options.trainer, options.by_source)
    note = listener_for(options.json).note
    found = bench.bench_train(_speed_setting(options), _variants(options), options.rounds, beside, note)
    if options.save is not None:
        note(f"kept in {bench.save(found, options.save)}")
    return _json(found) if options.json else _say(bench.text(found))


def bench_fit(options: argparse.Namespace) -> int:
    from harness.launch.progress import listener_for
    from harness.train import bench_train as bench

    found = bench.bench_fit(_speed_setting(options), _variants(options), listener_for(options.json).note)
    return _json(found) if options.json else _say(bench.fit_text(found))


def _variants(options: argparse.Namespace) -> list[str]:
    from harness.study.errors import nearest
    from harness.train.bench_train import VARIANTS

    for name in options.kernels:
        if name not in VARIANTS:
            raise CallError(f"`--kernels {name}` is not known; {nearest(name, VARIANTS)}")
    return list(options.kernels)


def _speed_setting(options: argparse.Namespace) -> Setting:
    from harness.train.measure import Setting
    from harness.train.numerics import Numerics

    device = Numerics.resolve(options.device).device
    rows = 4 if device == "cpu" else max(1, (1 << 15) // options.context)
    setting = Setting(
        model=options.model,
        context=options.context,
        batch=options.batch or rows * options.context,
        micro_batch=options.micro_batch,
        precision=options.precision or ("fp32" if device == "cpu" else "bf16-mixed"),
        documents=options.documents,
        device=device,
        threads=options.threads,
        updates=options.updates,
        activation_checkpointing=options.activation_checkpointing,
        deterministic=not options.nondeterministic,
    )
    if setting.batch % setting.context:
        raise CallError(f"`--batch {setting.batch}` is no whole number of rows of {setting.context} tokens.")
    micro_batch = setting.micro_batch or setting.batch
    if micro_batch % setting.context or setting.batch % micro_batch:
        raise CallError(f"`--micro-batch {micro_batch}` must divide {setting.batch} into rows of {setting.context}.")
    return setting


def _figures(found: dict[str, Any], options: argparse.Namespace) -> int:
    return _json(found) if options.json else _say(json.dumps(found, indent=1))


def doctor(options: argparse.Namespace) -> int:
    from harness.launch import doctor as look

    found = look.checks(options.study, options.folder)
    code = DONE if look.passed(found) else SOME_FAILED
    return _json(look.to_json(found), code) if options.json else _say(look.text(found), code)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A plan of 10,000 arms makes millions of objects and no cycles: looking for cycles takes a sixth of its time."""
    import gc

    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _executor(options: argparse.Namespace) -> ExecutorName:
    if options.executor == "debug" and options.jobs is not None:
        raise CallError("`--executor debug` works in this one process, so `--jobs` has no meaning with it.")
    if options.executor == "slurm" and options.jobs is not None:
        raise CallError("`--jobs` is for this machine; on a cluster `launch.parallel` says how many run at once.")
    name: ExecutorName = options.executor
    return name


def _json(value: Any, code: int = DONE) -> int:
    import orjson  # a plan of 10,000 arms is 40 MB, of which the standard library makes a second

    try:
        text = orjson.dumps(value).decode()
        text.encode(sys.stdout.encoding or "utf-8")
    except (TypeError, UnicodeEncodeError):  # a sum beyond 64 bits; letters that stdout cannot show
        text = json.dumps(value)
    sys.stdout.write(text + "\n")
    return code


def _say(text: str, code: int = DONE) -> int:
    print(text)
    return code
