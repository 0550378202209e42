#!/usr/bin/env bash
# Creates the slice and waits until it is ready. Values: common.sh (PROJECT, ZONE, TOPOLOGY, PRICING, QUEUED, ...).
#   PROJECT=p ZONE=us-west4-a TOPOLOGY=v5e:4x4 tpu_setup/create.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

lost() {
  say "error: $TPU_NAME $1; take it away with tpu_setup/delete.sh, then create it again"
  exit 75
}

failed() {
  say "error: the cloud could not make $TPU_NAME: $(described queued-resources 'value(state.failedData.error.message)')"
  say "take it away with tpu_setup/delete.sh before you ask again"
  exit 1
}

need PROJECT ZONE
hardware
flag="$(pricing_flag)"
options=(--project="$PROJECT" --zone="$ZONE" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME")
[[ -z "$flag" ]] || options+=("$flag")

state=ABSENT
[[ "$DRY_RUN" == 1 ]] || state="$(slice_state)"
case "$state" in
  ABSENT)
    if [[ "$QUEUED" == 1 ]]; then
      run gcloud compute tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" "${options[@]}"
    else
      run gcloud compute tpus tpu-vm create "$TPU_NAME" "${options[@]}"
    fi
    ;;
  LOST) lost "is lost (preempted)" ;;
  FAILED) failed ;;
  UNKNOWN)
    say "error: the cloud does not say whether $TPU_NAME exists (its words are above); nothing was created"
    exit 1
    ;;
  *) say "$TPU_NAME exists already: $state" ;;
esac
[[ "$DRY_RUN" == 1 ]] && exit 0

absent=0
until state="$(slice_state)" && [[ "$state" == READY ]]; do
  [[ "$state" != LOST ]] || lost "was lost before it was ready"
  [[ "$state" != FAILED ]] || failed
  # A request shows at once, as a rule; one that has been deleted never does.
  if [[ "$state" == ABSENT ]]; then absent=$((absent + 1)); else absent=0; fi
  (( absent < 5 )) || lost "is gone: its request was deleted"
  say "$TPU_NAME: $state; looking again in $POLL s"
  sleep "$POLL"
done
say "$TPU_NAME is ready: $ACCELERATOR_TYPE, $CHIPS chips; next: tpu_setup/setup.sh"
