#!/usr/bin/env bash
# Copies folders or files of this machine, such as weights and prepared data, to the workers: once onto their share if
# NFS is set (commands see it as ../share/NAME), else onto the disk of each (../NAME). Values: common.sh.
#   NFS=HOST:/SHARE tpu_setup/copy.sh models/llama data/math      then --config.model.path=../share/llama
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need PROJECT ZONE
(($# > 0)) || refuse "nothing to copy; for example tpu_setup/copy.sh models/llama data/math"
for path in "$@"; do
  [[ -e "$path" ]] || refuse "$path does not exist"
  # gcloud would take it for a flag, or for a path of another machine
  [[ "$path" != -* && "$path" != *:* ]] || refuse "$path begins with - or has a colon; write ./ before a -, or rename a path with a colon"
done
target="$TPU_NAME:" worker=all
[[ -z "$NFS" ]] || target="$TPU_NAME:share/" worker=0
run gcloud compute tpus tpu-vm scp --recurse "$@" "$target" --project="$PROJECT" --zone="$ZONE" --worker="$worker"
