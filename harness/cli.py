"""`ablate`: one verb, one function elsewhere. Heavy imports stay with the verb that needs them."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harness import verbs as do
from harness.verbs import CallError

WRONG = 2
UPDATES, OFF = 8, "off"  # what `bench train` does unless it is told
Verb = Callable[[argparse.Namespace], int]


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
    """Streams that were closed by the caller (`>&-`) lead nowhere; a file of ours must not get their numbers. What the
    terminal's encoding lacks, such as a minus in ASCII, is shown as an escape."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
        _cancel,
        _retry,
        _gc,
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
        "--executor",
        choices=("local", "debug", "slurm"),
        default="local",
        help="worker processes, this very process, or jobs of a cluster",
    )
    made.add_argument("--jobs", type=_positive, metavar="N", help="runs at once (launch.jobs of the study)")


def _wait_argument(made: argparse.ArgumentParser) -> None:
    about = "wait for another `ablate` that is at work in the folder; with slurm, also until the jobs have ended"
    made.add_argument("--wait", action="store_true", help=about)


def _plan(verbs: Any) -> None:
    made = _verb(verbs, "plan", "what would run and why, and what it costs", do.plan)
    _study_arguments(made)
    _output(made)
    made.add_argument("--curves", type=Path, metavar="FILE.csv", help="write a row per arm and update")
    made.add_argument("--every", type=_positive, metavar="N", help="with --curves: only every Nth update")
    made.add_argument(
        "--sbatch", action="store_true", help="the text of every sbatch file that a cluster would be given"
    )


def _run(verbs: Any) -> None:
    made = _verb(verbs, "run", "train, evaluate and report what is not there yet", do.run)
    _study_arguments(made)
    _output(made)
    _executor_arguments(made)
    made.add_argument("--smoke", action="store_true", help="a few updates of each shape, a restore, a few items")
    made.add_argument("--no-share", action="store_true", help="train every run by itself, in an empty folder")
    made.add_argument("--yes", action="store_true", help="run although it costs more than the study's budget")
    _wait_argument(made)


def _status(verbs: Any) -> None:
    made = _verb(verbs, "status", "a line per run", do.status)
    _folder_argument(made)
    made.add_argument("--watch", action="store_true", help="show it again every two seconds, and keep Slurm at work")


def _logs(verbs: Any) -> None:
    made = _verb(verbs, "logs", "what the work on a run has printed", do.logs, machine_readable=False)
    _folder_argument(made)
    made.add_argument("run", metavar="RUN", help="an arm with its seeds, such as default/d1")
    made.add_argument("-f", dest="follow", action="store_true", help="go on showing what is printed")


def _cancel(verbs: Any) -> None:
    made = _verb(verbs, "cancel", "take jobs out of Slurm, with what waits for them", do.cancel)
    _folder_argument(made)
    made.add_argument("runs", nargs="*", metavar="RUN", help="arms, or arms with seeds, such as default/d1 (all)")


def _retry(verbs: Any) -> None:
    made = _verb(verbs, "retry", "submit again what failed, was cancelled or is held", do.retry)
    _folder_argument(made)
    made.add_argument("runs", nargs="*", metavar="RUN", help="arms, or arms with seeds, such as default/d1 (all)")
    made.add_argument("--class", dest="kind", metavar="C", help="only what failed in this way, such as oom_gpu")


def _gc(verbs: Any) -> None:
    made = _verb(verbs, "gc", "show what nothing needs any more, with its bytes, and remove it with --yes", do.gc)
    _folder_argument(made)
    made.add_argument("--yes", action="store_true", help="remove it")


def _verify(verbs: Any) -> None:
    made = _verb(verbs, "verify", "check every checksum, or train one run alone and compare its weights", do.verify)
    _folder_argument(made)
    made.add_argument("run", nargs="?", metavar="RUN", help="an arm with its seeds, such as default/d1")


def _eval(verbs: Any) -> None:
    about = "evaluate what is trained and not evaluated yet, or a model from outside; trains nothing"
    made = _verb(verbs, "eval", about, do.evaluate)
    made.add_argument("folder", type=Path, metavar="DIR", nargs="?", help="a results folder; with --model, use -o")
    made.add_argument("--model", metavar="M", help="a folder, a .gguf file or a hub id: a row of the table of -o DIR")
    made.add_argument("--name", metavar="NAME", help="with --model: what its row is called (the model's own name)")
    made.add_argument("--revision", metavar="COMMIT", help="with --model: the commit of a model on the hub")
    made.add_argument("-o", dest="out", type=Path, metavar="DIR", help="with --model: the results folder")
    made.add_argument("--suite", action="append", default=[], metavar="S", help="a suite more, such as quickstart@1")
    _executor_arguments(made)
    _wait_argument(made)


def _export(verbs: Any) -> None:
    made = _verb(verbs, "export", "copy a run's final model to a folder, with a card", do.export)
    _folder_argument(made)
    made.add_argument("arm", metavar="ARM[/SEEDS][@POINT]", help="POINT: such as ema")
    made.add_argument("out", type=Path, metavar="OUT")


def _report(verbs: Any) -> None:
    _folder_argument(_verb(verbs, "report", "build the report from what is there", do.report))


def _compare(verbs: Any) -> None:
    made = _verb(verbs, "compare", "two arms, paired, on everything that was evaluated", do.compare)
    _folder_argument(made)
    made.add_argument("arm_a", metavar="ARM_A")
    made.add_argument("arm_b", metavar="ARM_B")


def _sync(verbs: Any) -> None:
    made = _verb(verbs, "sync", "send to the trackers what they have not got", do.sync)
    _folder_argument(made)
    made.add_argument("--to", metavar="TRACKER", help="wandb, trackio or tensorboard (track of the study)")
    made.add_argument("--jobs", type=_positive, default=4, metavar="N", help="runs sent at once (4)")
    _wait_argument(made)


def _schema(verbs: Any) -> None:
    about = "the JSON Schema of a study file, for editors"
    verb = _verb(verbs, "schema", about, do.schema, machine_readable=False)
    verb.add_argument("--markdown", action="store_true", help="the reference of the study file instead, for readers")


def _bench(verbs: Any) -> None:
    benches = verbs.add_parser("bench", help="measured figures", description="measured figures")
    kinds = benches.add_subparsers(metavar="BENCH", required=True, parser_class=Parser)
    _verb(kinds, "loop", "the training loop against a bare PyTorch loop", do.bench_loop)
    _verb(kinds, "plan", "the plan of 10,000 arms, the whole command", do.bench_plan)
    made = _verb(kinds, "share", "a study with and without sharing, wall-clock", do.bench_share)
    _study_arguments(made)
    _executor_arguments(made)
    made = _verb(kinds, "train", "tokens/s, FLOP/s and memory of a model, kernels side by side", do.bench_train)
    _speed_arguments(made)
    made.add_argument("--micro-batch", type=_positive, metavar="N", help="tokens of a forward")
    made.add_argument(
        "--updates", type=_positive, default=UPDATES, metavar="N", help=f"timed in each round ({UPDATES})"
    )
    made.add_argument(
        "--activation-checkpointing", choices=("off", "selective", "full"), default=OFF, help="computed again (off)"
    )
    made.add_argument("--best", action="store_true", help="each of the kernels at its own best micro-batch, too")
    made.add_argument("--by-source", action="store_true", help="with the losses of two sources told apart, too")
    made.add_argument("--trainer", action="store_true", help="transformers' Trainer on the same work beside them")
    made.add_argument("--rounds", type=_positive, default=2, metavar="N", help="rounds, whose order alternates (2)")
    made.add_argument("--save", type=Path, metavar="DIR", help="keep the figures in DIR/<device>.json")
    made = _verb(kinds, "fit", "the launch settings with which a model trains fastest here", do.bench_fit)
    _speed_arguments(made)
    made.set_defaults(micro_batch=None, updates=UPDATES, activation_checkpointing=OFF)  # which it finds by itself


def _speed_arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("--model", required=True, metavar="M", help="a shape such as SmolLM2-135M, a folder or a .gguf")
    made.add_argument("--context", type=_positive, required=True, metavar="N", help="positions of a row")
    made.add_argument("--batch", type=_positive, metavar="N", help="tokens of an update")
    made.add_argument(
        "--kernels", action="append", default=[], metavar="K", help="torch, chunked or liger, each with +compile too"
    )
    made.add_argument("--documents", choices=("joined", "masked"), default="joined", help="random documents or none")
    made.add_argument("--precision", choices=("fp32", "bf16-mixed"), help="bf16-mixed on a GPU, fp32 elsewhere")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where (auto)")
    made.add_argument("--threads", type=_positive, default=1, metavar="N", help="of this process (1)")
    made.add_argument(
        "--nondeterministic", action="store_true", help="without the equal bits that training always has: their price"
    )


def _doctor(verbs: Any) -> None:
    made = _verb(verbs, "doctor", "what is missing here, and how to get it", do.doctor)
    made.add_argument("study", type=Path, metavar="STUDY.yaml", nargs="?", help="check what this study needs")
    _output(made)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    main()
