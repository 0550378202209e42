#!/usr/bin/env bash
# Runs one command on every worker of the slice at once, and gathers what they print in LOGS/RUN_NAME.log, each line
# with its worker's name. If the command runs already it is followed, not started again; a lost connection ends
# only the following. Values: common.sh (RUN_NAME, LOGS, ...); RESTART=1 ends first what runs under RUN_NAME.
#   tpu_setup/run.sh python -m rl_likelihood.train --config=configs/smollm2.py --workdir=../share/first
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need PROJECT ZONE
(($# > 0)) || refuse "no command; for example tpu_setup/run.sh python -m rl_likelihood.train --config=... --workdir=..."
need_folders "$@"
refuse_secrets "$@"
verb=run
[[ "${RESTART:-0}" != 1 ]] || verb=restart
printf -v command '%q ' "$@"
remote="bash $REMOTE_DIR/tpu_setup/worker.sh $verb $RUN_NAME ${command% }"
if [[ "$DRY_RUN" == 1 ]]; then
  on_workers "$remote"
  exit 0
fi

mkdir -p "$LOGS"
log="$LOGS/$RUN_NAME.log"
began="$( (wc -l < "$log") 2>/dev/null || echo 0)"
code=0
on_workers "$remote" 2>&1 | tee -a "$log" || code="${PIPESTATUS[0]}"
# gcloud's own code says little: the first worker that ended badly said why; none did if the connection was lost.
worst="$(tail -n +"$((began + 1))" "$log" | sed -n 's/^\[[^]]*\] exit \([1-9][0-9]*\)$/\1/p' | head -n 1)"
[[ -n "$worst" || "$code" != 0 ]] || exit 0
exit "${worst:-255}"
