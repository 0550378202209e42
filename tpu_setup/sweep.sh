#!/usr/bin/env bash
# Runs the points of an experiments file on the slice, one after the other, all hosts together at one point, which
# babysit.sh keeps going. The commands are those of `sweep --runner=print`, for which this package is installed here
# too. The same command goes on with a sweep that was broken off: a point that is done ends at once. Points that are
# refused or fail too often are left and named at the end.
#   PROJECT=p ZONE=z ROOT=../share/runs/NAME tpu_setup/sweep.sh experiments/NAME.py [--only KEY=VALUE ...]
#   LOCAL=1 ROOT=runs/NAME tpu_setup/sweep.sh experiments/NAME.py     here, as with babysit.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ROOT="${ROOT:-}"           # folder of the runs, the same on all workers
PYTHON="${PYTHON:-python}" # here
LOCAL="${LOCAL:-0}"

if [[ "$LOCAL" == 1 ]]; then need ROOT; else need PROJECT ZONE ROOT; fi
(($# > 0)) || refuse "no experiments file; for example tpu_setup/sweep.sh experiments/paper_verifiable.py"
need_folders "--root=$ROOT"
cd "$HERE/.."
lines="$("$PYTHON" -m rl_likelihood.sweep "$@" --run --runner=print "--root=$ROOT")" || exit "$?"

number=0 words=()
left=()
while IFS= read -r line; do
  eval "words=($line)" # quoted for a shell
  code=0
  RUN_NAME="point-$number" run "$HERE/babysit.sh" "${words[@]}" < /dev/null || code="$?"
  ((code < 128)) || exit "$code"
  ((code == 0)) || left+=("${words[*]: -1} (exit $code)")
  number=$((number + 1))
done <<< "$lines"
((${#left[@]} == 0)) || {
  say "left:"
  printf '  %s\n' "${left[@]}" >&2
  exit 1
}
