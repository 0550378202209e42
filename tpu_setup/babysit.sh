#!/usr/bin/env bash
# Keeps one command running until it is done: runs it, and when it ends otherwise runs it again after a wait. The
# command must resume by itself, as `train` does with the same --workdir.
#
#   PROJECT=p ZONE=z tpu_setup/babysit.sh python -m rl_likelihood.train --config=... --workdir=../share/first
#       on the slice of common.sh, which is made anew (create.sh, setup.sh) when it is preempted; what a slice that is
#       there already runs is asked to stop first, for the chips serve one run at a time
#   LOCAL=1 [PROCESSES=2] tpu_setup/babysit.sh python -m rl_likelihood.train ... [--process_id={i}]
#       here, as so many processes; {i} in an argument, and PROCESS_ID, is the number of each
#
# How it ended    exit 0: done.  2: refused (a bad config), so again would change nothing: ends with 2.
#                 preemption: the slice is gone, or the process ended by KILL, TERM, INT or HUP, or it is a run that was
#                 asked to stop, and saved (143, by worker.sh once): again, without limit.
#                 failure: anything else, a crash (ABRT, SEGV) too, a slice that cannot be made or set up (nor one that
#                 the cloud gave up to look for, however long it did), a cloud that has not answered once: again,
#                 MAX_FAILURES in a row end with 1.
# Of several processes the first to end badly says how; the others get GRACE seconds, then TERM, then KILL.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

LOCAL="${LOCAL:-0}"
PROCESSES="${PROCESSES:-1}"       # with LOCAL=1
GRACE="${GRACE:-60}"              # seconds; above the heartbeat of the run
MAX_FAILURES="${MAX_FAILURES:-3}" # in a row
BACKOFF="${BACKOFF:-5}"           # seconds before the first restart; doubles
BACKOFF_MAX="${BACKOFF_MAX:-300}"
HEALTHY="${HEALTHY:-600}"         # a run this long, in seconds, begins the counting anew

(($# > 0)) || refuse "no command; for example tpu_setup/babysit.sh python -m rl_likelihood.train --config=... --workdir=..."
need_numbers 1 PROCESSES MAX_FAILURES
need_numbers 0 GRACE BACKOFF BACKOFF_MAX HEALTHY
need_folders "$@"
refuse_secrets "$@"
[[ "$LOCAL" == 1 ]] || need PROJECT ZONE
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || refuse "this is bash $BASH_VERSION; babysit.sh needs 5.1 or later"

pids=()
stopping=""
killer=""

# To every process, its children too.
signal_all() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done
}

on_signal() {
  stopping="$1"
  signal_all "$1"
  [[ -z "$killer" ]] || kill "$killer" 2>/dev/null || true
}
trap 'on_signal TERM' TERM
trap 'on_signal INT' INT

# Runs PROCESSES of the command; code: that of the first which ended badly, 0 if none did.
run_here() {
  local i ended status arguments
  pids=()
  code=0
  for ((i = 0; i < PROCESSES; i++)); do
    arguments=("${@//\{i\}/$i}")
    PROCESS_ID="$i" setsid bash "$HERE/worker.sh" once "${arguments[@]}" &
    pids+=("$!")
  done
  while ((${#pids[@]} > 0)); do
    ended="" status=0
    wait -n -p ended "${pids[@]}" || status=$?
    [[ -n "${ended:-}" ]] || continue # a signal to us interrupted the wait, and has been passed on
    for i in "${!pids[@]}"; do [[ "${pids[i]}" != "$ended" ]] || unset "pids[i]"; done
    pids=("${pids[@]}")
    if ((status != 0 && code == 0)); then
      code="$status"
      if ((${#pids[@]} > 0)); then
        (
          trap - TERM INT
          sleep "$GRACE"
          signal_all TERM
          sleep "$GRACE"
          signal_all KILL
        ) > /dev/null 2>&1 &
        killer="$!"
      fi
    fi
  done
  [[ -z "$killer" ]] || kill "$killer" 2>/dev/null || true
  killer=""
}

# The slice's state; what was put on a slice that is no longer ready is as good as lost.
look() {
  state="$(slice_state)"
  case "$state" in
    READY) answered=1 ;;
    UNKNOWN) ;;
    *) answered=1 set_up=0 ;;
  esac
}

# Makes the slice and sets it up; code: 0, 143 if the slice was lost meanwhile, or that of the script that failed.
make_slice() {
  if [[ "$state" == LOST || "$state" == FAILED ]]; then
    bash "$HERE/delete.sh" || say "babysit: the lost slice could not be deleted"
  elif [[ "$state" == READY ]]; then
    on_workers "[ ! -f $REMOTE_DIR/tpu_setup/worker.sh ] || bash $REMOTE_DIR/tpu_setup/worker.sh stop" ||
      say "babysit: what runs on the slice could not be stopped"
  fi
  bash "$HERE/create.sh" || code=$?
  if ((code == 0)); then
    bash "$HERE/setup.sh" || code=$?
    case "$code" in
      0) set_up=1 ;;
      2) ;;
      *)
        look
        [[ "$state" != LOST ]] || code=75
        ;;
    esac
  fi
  ((code != 75)) || code=143
}

# Runs the command on the slice, made first if need be; code as above, or 143 if the slice was lost.
run_on_slice() {
  code=0
  look
  if [[ "$state" == UNKNOWN ]]; then
    code=$((answered ? 143 : 1)) # an outage, or no login, no permission
    return 0
  fi
  ((set_up)) || make_slice
  began=$SECONDS # of the run: a long wait for a slice is no sign of health
  ((code == 0)) || return 0
  RESTART="$restart" bash "$HERE/run.sh" "$@" || code=$?
  look
  [[ "$state" == READY || "$code" == 2 ]] || code=143
  # 255: the connection broke, and the run may be going on: follow it again.
  restart=1
  if ((code == 255)); then
    restart=0
    code=143
  fi
}

if [[ "$DRY_RUN" == 1 ]]; then
  if [[ "$LOCAL" == 1 ]]; then
    for ((i = 0; i < PROCESSES; i++)); do run env "PROCESS_ID=$i" bash "$HERE/worker.sh" once "${@//\{i\}/$i}"; done
  else
    bash "$HERE/create.sh"
    bash "$HERE/setup.sh"
    bash "$HERE/run.sh" "$@"
  fi
  exit 0
fi

runs=0
preemptions=0
failures=0
in_a_row=0
wait_for="$BACKOFF"
restart=0
state=""   # of the slice, at the last look
answered=0 # 1: the cloud has said a state
set_up=0   # 1: the slice has code and environment
while true; do
  runs=$((runs + 1))
  began=$SECONDS
  say "babysit: run $runs"
  if [[ "$LOCAL" == 1 ]]; then run_here "$@"; else run_on_slice "$@"; fi
  lasted=$((SECONDS - began))
  if [[ -n "$stopping" ]]; then
    say "babysit: stopped by $stopping; $preemptions preemptions, $failures failures"
    [[ "$stopping" == TERM ]] && exit 143
    exit 130
  fi
  if ((lasted >= HEALTHY)); then
    in_a_row=0
    wait_for="$BACKOFF"
  fi
  case "$code" in
    0)
      say "babysit: done after $runs runs, $preemptions preemptions, $failures failures"
      exit 0
      ;;
    2)
      say "babysit: the command refused its input (exit 2), so it is not run again"
      exit 2
      ;;
    129 | 130 | 137 | 143)
      preemptions=$((preemptions + 1))
      what="preempted (exit $code)"
      ;;
    *)
      failures=$((failures + 1))
      in_a_row=$((in_a_row + 1))
      what="failed (exit $code), $in_a_row in a row"
      ;;
  esac
  if ((in_a_row >= MAX_FAILURES)); then
    say "babysit: run $runs $what: giving up; $preemptions preemptions, $failures failures"
    exit 1
  fi
  say "babysit: run $runs $what after $lasted s; $preemptions preemptions, $failures failures; again in $wait_for s"
  sleep "$wait_for" > /dev/null 2>&1 & # in the foreground it would keep a signal waiting
  wait "$!" || kill "$!" 2>/dev/null || true
  if [[ -n "$stopping" ]]; then
    say "babysit: stopped by $stopping; $preemptions preemptions, $failures failures"
    [[ "$stopping" == TERM ]] && exit 143
    exit 130
  fi
  wait_for=$((wait_for * 2 < BACKOFF_MAX ? wait_for * 2 : BACKOFF_MAX))
done
