#!/usr/bin/env bash
# Runs on a worker; setup.sh and run.sh call it there.
#   worker.sh setup              Python environment with EXTRAS, and the share if NFS is set
#   worker.sh run NAME COMMAND   start COMMAND under NAME, or follow it if it runs already; its exit code at the end
#   worker.sh restart NAME COMMAND   the same, but end first what runs under NAME
#   worker.sh stop [NAME]        ask it, or all that run, to stop (they save), then make them
#   worker.sh once COMMAND       COMMAND, in the folder we are in; its exit code. It has STOPPED_EXIT=143, so that a run
#                                that is asked to stop, and saves, ends with 143. Otherwise it would end with 0.
# A command outlives the connection that started it.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
RUNS="${RUNS:-$HOME/runs}"              # a folder for each NAME: log (of all starts), starts, began, pid, exit
SECRETS="${SECRETS:-$HOME/.rl_likelihood_secrets}" # lines NAME=VALUE for the environment of commands, if it is there
STOP_SECONDS="${STOP_SECONDS:-120}"     # for a step to end and be saved

setup() {
  local python
  if ! python="$(command -v python3.12 || command -v python3.11)"; then
    sudo apt-get -q update
    sudo apt-get -qy install python3.11 python3.11-venv
    python="$(command -v python3.11)"
  fi
  if [[ -n "${NFS:-}" ]] && ! mountpoint -q "$HOME/share"; then
    sudo apt-get -qy install nfs-common
    mkdir -p "$HOME/share"
    sudo mount -t nfs "$NFS" "$HOME/share"
  fi
  cd "$root"
  "$python" -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt ".[tpu${EXTRAS:+,$EXTRAS}]"
}

# Into the environment and nowhere else: neither a command line nor a log has them.
load_secrets() {
  local line
  [[ -f "$SECRETS" ]] || return 0
  while IFS= read -r line || [[ -n "$line" ]]; do
    [[ ! "$line" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || export "${line?}"
  done < "$SECRETS"
}

alive() { [[ -f "$1/pid" ]] && kill -0 -- "-$(<"$1/pid")" 2>/dev/null; }

stop() {
  local dir="$RUNS/$1" i
  alive "$dir" || return 0
  kill -TERM -- "-$(<"$dir/pid")" || true
  for ((i = 0; i < STOP_SECONDS * 5; i++)); do
    alive "$dir" || return 0
    sleep 0.2
  done
  kill -KILL -- "-$(<"$dir/pid")" || true
}

once() {
  local child ended="" code=0
  export STOPPED_EXIT=143
  # A group is told as a whole, but of a pod only its first process. Elsewhere the command is not in the background:
  # bash may lose the exit code of one for which it waits while a signal comes.
  if (($$ != 1)); then
    trap : TERM INT HUP
    "$@" || code="$?"
  else
    # shellcheck disable=SC2154 # assigned below
    trap 'kill -TERM "$child"' TERM INT HUP
    "$@" &
    child="$!"
    until [[ -n "$ended" ]]; do # a signal to us ends the wait, not the command
      code=0
      wait -n -p ended "$child" || code="$?"
      ended="${ended:-}"
    done
  fi
  return "$code"
}

# A session of its own, so that neither a hang-up nor our end reaches it, and one signal reaches all of it.
start() {
  local dir="$1" starts
  shift
  mkdir -p "$dir"
  rm -f "$dir/exit"
  # The log goes on below that of a run that crashed; began: the line of this start.
  starts=$(($(cat "$dir/starts" 2>/dev/null || echo 0) + 1))
  echo "$starts" > "$dir/starts"
  touch "$dir/log"
  [[ -z "$(tail -c 1 "$dir/log")" ]] || echo >> "$dir/log"
  echo "$(($(wc -l < "$dir/log") + 1))" > "$dir/began"
  echo "== start $starts, $(date -u +%FT%TZ): $*" >> "$dir/log"
  # shellcheck disable=SC2016 # it is the inner shell that reads them
  PATH="$root/.venv/bin:$PATH" setsid nohup bash -c \
    'trap : TERM INT HUP; dir="$1"; shift; code=0; bash "$@" || code=$?; echo "$code" > "$dir/exit.part"; mv "$dir/exit.part" "$dir/exit"' \
    worker "$dir" "$root/tpu_setup/worker.sh" once "$@" >> "$dir/log" 2>&1 < /dev/null &
  echo "$!" > "$dir/pid"
}

follow() {
  local dir="$1" code=255 began
  began="$(cat "$dir/began" 2>/dev/null || echo 1)"
  tail -n "+$began" -F -s 0.2 --pid="$(<"$dir/pid")" "$dir/log" 2>/dev/null | sed -u "s/^/[$(hostname)] /" || true
  [[ -f "$dir/exit" ]] && code="$(<"$dir/exit")" || code=137 # it could not even say: killed
  echo "[$(hostname)] exit $code"
  return "$code"
}

usage() {
  echo "error: worker.sh setup | run NAME COMMAND | restart NAME COMMAND | stop [NAME] | once COMMAND" >&2
  exit 2
}

verb="${1:-}"
name="${2:-}"
words=1 # of the command
case "$verb" in
  setup | stop) ;;
  once) words=2 ;;
  run | restart) words=3 ;;
  -h | --help) # the comment at the head of the script
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
  *) usage ;;
esac
(($# >= words)) || usage
if [[ "$verb" == once ]]; then
  shift
  code=0
  once "$@" || code="$?"
  exit "$code"
fi
cd "$root"
case "$verb" in
  setup) setup ;;
  stop)
    if [[ -n "$name" ]]; then
      stop "$name"
    else
      for dir in "$RUNS"/*/; do stop "$(basename "$dir")"; done
    fi
    ;;
  run | restart)
    shift 2
    [[ "$verb" == run ]] || stop "$name"
    if alive "$RUNS/$name"; then
      echo "[$(hostname)] $name is running already; following it"
    else
      load_secrets
      start "$RUNS/$name" "$@"
    fi
    follow "$RUNS/$name"
    ;;
esac
