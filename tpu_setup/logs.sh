#!/usr/bin/env bash
# Prints what every worker has logged of RUN_NAME on this slice, in all its starts, or the last TAIL lines of
# each. Values: common.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need PROJECT ZONE
TAIL="${TAIL:-}"
[[ -z "$TAIL" ]] || need_numbers 1 TAIL
on_workers "tail -n ${TAIL:-+1} runs/$RUN_NAME/log | sed \"s/^/[\$(hostname)] /\""
