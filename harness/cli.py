"""`ablate`: one verb, one function elsewhere. Heavy imports stay with the verb that needs them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

if TYPE_CHECKING:
    from harness.launch.run import Options

DONE, SOME_FAILED, WRONG = 0, 1, 2
Verb = Callable[[argparse.Namespace], int]


class CallError(Exception):
    """A call that the parser does not understand. `UserError` would cost the import of the whole study room."""


class Parser(argparse.ArgumentParser):
    """argparse, with one paragraph for a mistake and the nearest name for a mistyped verb."""

    def error(self, message: str) -> NoReturn:
        raise CallError(f"{message}. See `{self.prog} --help`.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            from harness.study.errors import nearest

            name = "verb" if isinstance(action, argparse._SubParsersAction) else "value"
            raise CallError(
                f"`{value}` is not a {name} of `{self.prog}`; {nearest(str(value), map(str, action.choices))}"
            )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    _open_streams()
    sys.exit(call(sys.argv[1:] if arguments is None else arguments))


def call(arguments: Sequence[str]) -> int:
    """Do what the arguments say: 0 done, 1 some runs failed, 2 the study or the call is wrong, 128 + signal stopped."""
    try:
        options = parser().parse_args(arguments)
        verb: Verb = options.verb
        code = verb(options)
        sys.stdout.flush()  # so that what goes wrong with it goes wrong here
        return code
    except CallError as error:
        return _wrong(error)
    except KeyboardInterrupt:
        print("ablate: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _mute()  # whoever read stdout (`| head`) has left
        return 128 + signal.SIGPIPE
    except Exception as error:
        from harness.launch.failures import of_environment
        from harness.study.errors import UserError

        said = error if isinstance(error, UserError) else of_environment(error)
        if said is None:
            raise
        return _wrong(said)


def _open_streams() -> None:
    """Streams that were closed by the caller (`>&-`) lead nowhere; a file of ours must not get their numbers."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r"))


def _mute() -> None:
    """Nothing more can be written to stdout; Python must not try at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wrong(error: Exception) -> int:
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _mute()
    with contextlib.suppress(OSError):  # a terminal that was closed
        print(f"ablate: {error}", file=sys.stderr)
    return WRONG


def parser() -> Parser:
    """The whole command line."""
    root = Parser(prog="ablate", description="One YAML study in, trained, evaluated and compared arms out.")
    verbs = root.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    for add in (
        _plan,
        _run,
        _status,
        _logs,
        _verify,
        _eval,
        _export,
        _report,
        _compare,
        _sync,
        _schema,
        _bench,
        _doctor,
    ):
        add(verbs)
    return root


def _verb(verbs: Any, name: str, does: str, verb: Verb, machine_readable: bool = True) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(name, help=does, description=does)
    made.set_defaults(verb=verb)
    if machine_readable:
        made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return made


def _study_arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("study", type=Path, metavar="STUDY.yaml")
    made.add_argument("--set", action="append", default=[], metavar="a.b=v", help="change a value of the study")


def _folder_argument(made: argparse.ArgumentParser) -> None:
    made.add_argument("folder", type=Path, metavar="DIR", help="a results folder")


def _output(made: argparse.ArgumentParser) -> None:
    made.add_argument("-o", dest="folder", type=Path, metavar="DIR", help="results folder (results/<study>)")


def _executor_arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--executor", choices=("local", "debug"), default="local", help="worker processes, or this very process"
    )
    made.add_argument("--jobs", type=_positive, metavar="N", help="runs at once (launch.jobs of the study)")


def _wait_argument(made: argparse.ArgumentParser) -> None:
    made.add_argument("--wait", action="store_true", help="wait for another `ablate` that is at work in the folder")


def _plan(verbs: Any) -> None:
    made = _verb(verbs, "plan", "what would run and why, and what it costs", plan)
    _study_arguments(made)
    _output(made)
    made.add_argument("--curves", type=Path, metavar="FILE.csv", help="write a row per arm and update")
    made.add_argument("--every", type=_positive, metavar="N", help="with --curves: only every Nth update")


def _run(verbs: Any) -> None:
    made = _verb(verbs, "run", "train, evaluate and report what is not there yet", run)
    _study_arguments(made)
    _output(made)
    _executor_arguments(made)
    made.add_argument("--smoke", action="store_true", help="a few updates of each shape, a restore, a few items")
    made.add_argument("--no-share", action="store_true", help="train every run by itself, in an empty folder")
    made.add_argument("--yes", action="store_true", help="run although it costs more than the study's budget")
    _wait_argument(made)


def _status(verbs: Any) -> None:
    made = _verb(verbs, "status", "a line per run", status)
    _folder_argument(made)
    made.add_argument("--watch", action="store_true", help="show it again every two seconds")


def _logs(verbs: Any) -> None:
    made = _verb(verbs, "logs", "what the work on a run has printed", logs, machine_readable=False)
    _folder_argument(made)
    made.add_argument("run", metavar="RUN", help="an arm with its seeds, such as default/d1")
    made.add_argument("-f", dest="follow", action="store_true", help="go on showing what is printed")


def _verify(verbs: Any) -> None:
    made = _verb(verbs, "verify", "check every checksum, or train one run alone and compare its weights", verify)
    _folder_argument(made)
    made.add_argument("run", nargs="?", metavar="RUN", help="an arm with its seeds, such as default/d1")


def _eval(verbs: Any) -> None:
    made = _verb(verbs, "eval", "evaluate what is trained and not evaluated yet; trains nothing", evaluate)
    _folder_argument(made)
    made.add_argument("--suite", action="append", default=[], metavar="S", help="a suite more, such as quickstart@1")
    _executor_arguments(made)
    _wait_argument(made)


def _export(verbs: Any) -> None:
    made = _verb(verbs, "export", "copy a run's final model to a folder, with a card", export)
    _folder_argument(made)
    made.add_argument("arm", metavar="ARM[/SEEDS][@POINT]", help="POINT: such as ema")
    made.add_argument("out", type=Path, metavar="OUT")


def _report(verbs: Any) -> None:
    _folder_argument(_verb(verbs, "report", "build the report from what is there", report))


def _compare(verbs: Any) -> None:
    made = _verb(verbs, "compare", "two arms, paired, on everything that was evaluated", compare)
    _folder_argument(made)
    made.add_argument("arm_a", metavar="ARM_A")
    made.add_argument("arm_b", metavar="ARM_B")


def _sync(verbs: Any) -> None:
    made = _verb(verbs, "sync", "send to the trackers what they have not got", sync)
    _folder_argument(made)
    made.add_argument("--to", metavar="TRACKER", help="wandb, trackio or tensorboard (track of the study)")
    made.add_argument("--jobs", type=_positive, default=4, metavar="N", help="runs sent at once (4)")
    _wait_argument(made)


def _schema(verbs: Any) -> None:
    about = "the JSON Schema of a study file, for editors"
    verb = _verb(verbs, "schema", about, schema, machine_readable=False)
    verb.add_argument("--markdown", action="store_true", help="the reference of the study file instead, for readers")


def _bench(verbs: Any) -> None:
    benches = verbs.add_parser("bench", help="measured figures", description="measured figures")
    kinds = benches.add_subparsers(metavar="BENCH", required=True, parser_class=Parser)
    _verb(kinds, "loop", "the training loop against a bare PyTorch loop", bench_loop)
    _verb(kinds, "plan", "the plan of 10,000 arms, the whole command", bench_plan)
    made = _verb(kinds, "share", "a study with and without sharing, wall-clock", bench_share)
    _study_arguments(made)
    _executor_arguments(made)


def _doctor(verbs: Any) -> None:
    made = _verb(verbs, "doctor", "what is missing here, and how to get it", doctor)
    made.add_argument("study", type=Path, metavar="STUDY.yaml", nargs="?", help="check what this study needs")
    _output(made)


def plan(options: argparse.Namespace) -> int:
    from harness.launch import prepare

    if options.every is not None and options.curves is None:
        raise CallError("`--every` says how many rows `--curves` writes; give a file with `--curves`.")
    with _no_garbage_collection():
        study = prepare.load(options.study, options.set)
        prepared = prepare.planned(study, prepare.folder_of(study, options.folder))
    if options.curves is not None:
        from harness.launch.plan_files import write_curves

        write_curves(study, options.curves, options.every or 1)
    if options.json:
        return _json(prepared.plan.to_json())
    from harness.plan import render

    print(render.text(prepared.plan, prepared.pools, shared=prepared.shared_pools))
    for damage in prepared.seen.damage:
        print(f"damaged: {damage}")
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
    return smoke(asked, options.json) if options.smoke else reconcile(asked, options.json)


def smoke(asked: Options, as_json: bool) -> int:
    from harness.launch.progress import listener_for
    from harness.launch.smoke import smoke, text

    result = smoke(asked, listener_for(as_json))
    return _json(result.to_json(), result.exit_code) if as_json else _say(text(result), result.exit_code)


def evaluate(options: argparse.Namespace) -> int:
    from harness.launch.plan_files import evaluation_options

    asked = evaluation_options(options.folder, options.suite, _executor(options), options.jobs)
    return reconcile(replace(asked, wait=options.wait), options.json)


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
        print(outcome.failure_table(ended.failed, str(done.folder.root), asked.command()))
    if done.held is not None:
        print(done.held)
    if done.trained_tokens:
        print(served.text(done.folder))
    print(f"trained {tokens(done.trained_tokens)} tokens, evaluated {done.evaluated} states; {outcome.counts(ended)}")
    if done.report is not None:
        print(f"report: {done.report}")
    return ended.exit_code


def status(options: argparse.Namespace) -> int:
    from harness.launch import status as look
    from harness.store.layout import Folder

    folder = Folder(options.folder)
    if options.watch and options.json:
        raise CallError("`--watch` shows a table again and again, `--json` prints one object; use one of them.")
    while True:
        runs = look.status(folder)
        if options.json:
            return _json(look.to_json(folder, runs))
        if options.watch and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print(look.text(runs, look.tracking(folder)), flush=True)
        if not options.watch or not _slept(2.0):
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

    asked = Options(options.study, None, tuple(options.set), _executor(options), options.jobs)
    return _figures(bench(asked, listener_for(options.json)), options)


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


def _executor(options: argparse.Namespace) -> Literal["local", "debug"]:
    if options.executor == "debug" and options.jobs is not None:
        raise CallError("`--executor debug` works in this one process, so `--jobs` has no meaning with it.")
    return "debug" if options.executor == "debug" else "local"


def _slept(seconds: float) -> bool:
    """Wait; False when Ctrl-C ended it, which is the way to end `--watch`."""
    import time

    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        return False
    return True


def _json(value: Any, code: int = DONE) -> int:
    import orjson  # a plan of 10,000 arms is 40 MB, of which the standard library makes a second

    sys.stdout.write(orjson.dumps(value).decode() + "\n")
    return code


def _say(text: str, code: int = DONE) -> int:
    print(text)
    return code


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    main()
