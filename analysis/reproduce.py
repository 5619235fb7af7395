"""`report/reproduce.sh`: the commands that make these results again, and a check of what would differ.

The script rests on what the attempts recorded: the source tree's hash, the commit, versions and numerics. Every value
from the study is quoted for the shell.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence

from analysis import appendix
from analysis.appendix import Environment
from analysis.frame import Frame
from analysis.outside import Outside

# What is compared when the script has run: both name the weights that every number rests on.
COMPARED = ("table.csv", "claims.json")
VERSIONS = {"numerics.torch": "torch"}  # recorded facts that are versions of packages; `versions.X` are, too


def script(frame: Frame) -> str:
    """The text of `reproduce.sh`."""
    environments = appendix.environments(frame)
    trees = _distinct(environments, "code.tree")
    asked = frame.plan.get("asked") or {}
    text = appendix.study_text(frame)
    values = {
        "study": shlex.quote(frame.study),
        "original": shlex.quote(str(asked.get("file") or "")),
        "digest": hashlib.sha256(text.encode()).hexdigest() if text else "''",
        "trees": " ".join(map(shlex.quote, trees)),
        "versions": " ".join(shlex.quote(pair) for pair in _versions(environments)),
        "arguments": " ".join(map(shlex.quote, _arguments(frame))),
        "out": shlex.quote(f"results/{frame.study}-again"),
        "compared": " ".join(COMPARED),
        "models": "".join(map(_outside_command, frame.outside)),
    }
    comments = [*_usage(frame), "", *_code(environments), "", *_numerics(environments)]
    head = "\n".join(f"# {_line(comment)}".rstrip() for comment in comments)
    body = re.sub(r"@(\w+)@", lambda match: values[match[1]], BODY)
    return f"#!/usr/bin/env bash\n{head}\n{body}"


def _line(text: str) -> str:
    """One line of a comment, whatever the study is called."""
    return "".join(character if character.isprintable() else " " for character in text)


def _usage(frame: Frame) -> list[str]:
    return [
        f"Makes the results of the study {frame.study} again. Run it in a checkout of the harness:",
        "",
        "  reproduce.sh --check          how this checkout and its packages differ from those of the results",
        "  reproduce.sh [OUT [ARG...]]   run the study into OUT, with further arguments of `ablate run` such as",
        "                                --jobs 2, then compare its tables with these",
        "",
        "PYTHON names the interpreter of the environment (.venv/bin/python); STUDY another copy of the study file.",
        "Exit codes: 0 nothing differs, 1 something differs, 2 it cannot be run here.",
    ]


def _code(environments: Sequence[Environment]) -> list[str]:
    commits, trees = _distinct(environments, "code.commit"), _distinct(environments, "code.tree")
    if not trees:
        return ["Code: no attempt has recorded it."]
    lines = [f"Code: source tree {' and '.join(trees)} (SHA-256 over the sources of both packages)"]
    for commit in commits:
        if re.fullmatch(r"[0-9a-f]{40}", commit):
            lines.append(f"  git checkout {commit} && make venv    # packages as constraints.txt has them")
    dirty = set(_distinct(environments, "code.dirty"))
    if "true" in dirty:
        lines.append("  That checkout held changes that no commit has: --check will say that the trees differ.")
    elif "null" in dirty or len(dirty) < 1:
        lines.append("  Whether that checkout held uncommitted changes was not recorded; --check compares the trees.")
    if len(trees) > 1:
        lines.append("  The attempts ran with different code; the report lists which arms that concerns.")
    return lines


def _numerics(environments: Sequence[Environment]) -> list[str]:
    lines = ["Equal bits need equal numerics. The attempts ran with:"]
    for environment in environments:
        facts = [f"{name} {value}" for name, value in environment.facts.items() if not name.startswith("code.")]
        noun = "attempt" if environment.attempts == 1 else "attempts"
        lines.append(f"  {environment.attempts} {noun}: {', '.join(facts) or 'nothing recorded'}")
    return lines if environments else ["No attempt has been made yet."]


def _distinct(environments: Sequence[Environment], name: str) -> list[str]:
    return list(dict.fromkeys(e.facts[name] for e in environments if name in e.facts))


def _versions(environments: Sequence[Environment]) -> list[str]:
    """`package=version` of each version that was recorded."""
    pairs: dict[str, None] = {}
    for environment in environments:
        for name, value in _versions_of(environment.facts).items():
            pairs[f"{name}={value}"] = None
    return list(pairs)


def _versions_of(facts: Mapping[str, str]) -> dict[str, str]:
    named = {package: facts[fact] for fact, package in VERSIONS.items() if fact in facts}
    return named | {k.removeprefix("versions."): v for k, v in facts.items() if k.startswith("versions.")}


def _arguments(frame: Frame) -> list[str]:
    """What `ablate run` was called with beside the study, the folder and how many runs at once."""
    words = [word for override in appendix.overrides(frame) for word in ("--set", override)]
    return words if frame.plan.get("share", True) else [*words, "--no-share"]


def _outside_command(model: Outside) -> str:
    """Lines that evaluate an outside model again. One that is on no hub may lie elsewhere by now."""
    words = ["eval", "--model", model.model, "--name", model.name]
    words += ["--revision", model.revision] if model.revision else []
    words += [word for suite in model.suites for word in ("--suite", suite)]
    missing = shlex.quote(f"the outside model {model.name} cannot be evaluated here: its rows will be missing")
    return f'"$python" -m harness.cli {shlex.join(words)} -o "$out" || echo {missing}\n'


BODY = r"""
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
name=@study@
original=@original@
digest=@digest@
trees=(@trees@)
versions=(@versions@)
arguments=(@arguments@)
python=${PYTHON:-.venv/bin/python}

fail() {
  printf 'reproduce.sh: %s\n' "$1" >&2
  exit 2
}

sha256() {
  "$python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"
}

# The file as it was run lies in the results; the original beside its sources and includes is better where it is there.
find_study() {
  study=${STUDY:-$here/../study.yaml}
  if [ -z "${STUDY:-}" ] && [ -n "$original" ] && [ -f "$here/../$original" ]; then
    if [ -z "$digest" ] || [ "$(sha256 "$here/../$original")" = "$digest" ]; then
      study=$here/../$original
    fi
  fi
  [ -f "$study" ] || fail "the study file is not there: $study; name it with STUDY=..."
}

# Prints what differs from the results; its status says whether anything does.
check() {
  local differs=0 tree wanted found package known=0
  tree=$("$python" -c 'from harness.launch.code import tree_hash; print(tree_hash())')
  for wanted in ${trees[@]+"${trees[@]}"}; do
    if [ "$tree" = "$wanted" ]; then known=1; fi
  done
  if [ "$known" = 1 ]; then
    echo "code: the same ($tree)"
  else
    echo "code: differs; this checkout is $tree, the results are of ${trees[*]:-nothing recorded}"
    differs=1
  fi
  for wanted in ${versions[@]+"${versions[@]}"}; do
    package=${wanted%%=*}
    found=$("$python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$package" || true)
    if [ "$found" = "${wanted#*=}" ]; then
      echo "$package: the same ($found)"
    else
      echo "$package: differs; ${found:-none} here, ${wanted#*=} there"
      differs=1
    fi
  done
  if [ -n "$digest" ] && [ "$(sha256 "$study")" != "$digest" ]; then
    echo "study: differs; $study is not the file that was run"
    differs=1
  fi
  return "$differs"
}

command -v "$python" >/dev/null || fail "there is no $python here; run \`make venv\`, or name another with PYTHON=..."
find_study
if [ "${1:-}" = --check ]; then
  check
  exit
fi
out=${1:-@out@}
[ "$#" -eq 0 ] || shift
check || echo "going on with what is here: bits may differ, conclusions should not"
"$python" -m harness.cli run "$study" -o "$out" ${arguments[@]+"${arguments[@]}"} "$@"
@models@status=0
for file in @compared@; do
  if cmp -s "$here/$file" "$out/report/$file"; then
    echo "equal: $file of $name, to the bit"
  else
    echo "differs: $here/$file and $out/report/$file"
    status=1
  fi
done
exit "$status"
"""
