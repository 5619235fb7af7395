#!/usr/bin/env bash
# Makes the results of the study quickstart again. Run it in a checkout of the harness:
#
#   reproduce.sh --check          how this checkout and its packages differ from those of the results
#   reproduce.sh [OUT [ARG...]]   run the study into OUT, with further arguments of `ablate run` such as
#                                 --jobs 2, then compare its tables with these
#
# PYTHON names the interpreter of the environment (.venv/bin/python); STUDY another copy of the study file.
# Exit codes: 0 nothing differs, 1 something differs, 2 it cannot be run here.
#
# Code: source tree 4d51364af71f439d3705b66f8ced4eeab4fee2213293cfb9445801734255297d (SHA-256 over the sources of both packages)
#   git checkout 5df265020784fef926f00524c3dcd430086440ab && make venv    # packages as constraints.txt has them
#
# Equal bits need equal numerics. The attempts ran with:
#   27 attempts: numerics.device cpu, numerics.kernels torch, numerics.micro_batch null, numerics.processor AMD EPYC, numerics.threads 1, numerics.torch 2.13.0+cpu, numerics.world 1, versions.transformers 5.23.0

set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
name=quickstart
original=../../sweeps/quickstart.yaml
digest=b562c76ffc43505d60ced953cbc9f26b91138d65148745c9da6ff02ae14c0114
trees=(4d51364af71f439d3705b66f8ced4eeab4fee2213293cfb9445801734255297d)
versions=(torch=2.13.0+cpu transformers=5.23.0)
arguments=()
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
out=${1:-results/quickstart-again}
[ "$#" -eq 0 ] || shift
check || echo "going on with what is here: bits may differ, conclusions should not"
"$python" -m harness.cli run "$study" -o "$out" ${arguments[@]+"${arguments[@]}"} "$@"
status=0
for file in table.csv claims.json; do
  if cmp -s "$here/$file" "$out/report/$file"; then
    echo "equal: $file of $name, to the bit"
  else
    echo "differs: $here/$file and $out/report/$file"
    status=1
  fi
done
exit "$status"
