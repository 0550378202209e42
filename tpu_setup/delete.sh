#!/usr/bin/env bash
# Deletes the slice, and with it everything on its workers' disks. Values: common.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need PROJECT ZONE
where=(--project="$PROJECT" --zone="$ZONE" --quiet)
if [[ "$QUEUED" == 1 ]]; then
  run gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force # its node goes with it
else
  run gcloud compute tpus tpu-vm delete "$TPU_NAME" "${where[@]}"
fi
