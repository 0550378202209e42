#!/usr/bin/env bash
# Puts COMMIT of this repository on every worker, with a Python environment. Uncommitted changes stay here.
# Nothing is fetched from a repository host, so no key is needed. Values: common.sh (COMMIT, EXTRAS, SECRETS, NFS, ...).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need PROJECT ZONE
[[ -z "$EXTRAS" || "$EXTRAS" =~ ^[a-z]+(,[a-z]+)*$ ]] || refuse "EXTRAS is '$EXTRAS'; it must be names with commas, such as judge,ray"
extras="$(grep -oE '^ *"[a-z]+": \[' "$HERE/../setup.py" | tr -d ' ":[' | paste -sd ' ')"
for extra in ${EXTRAS//,/ }; do
  [[ " $extras " == *" $extra "* ]] || refuse "EXTRAS has '$extra'; setup.py has these extras: $extras"
done
if [[ -n "$SECRETS" ]]; then
  # gcloud would take it for a flag, or for a path of another machine
  [[ "$SECRETS" != -* && "$SECRETS" != *:* ]] || refuse "SECRETS is '$SECRETS'; write ./ before a -, or rename a path with a colon"
  [[ -f "$SECRETS" ]] || refuse "SECRETS is '$SECRETS', which is no file"
  bad="$(grep -nvE '^([A-Za-z_][A-Za-z0-9_]*=.*|#.*|)$' "$SECRETS" | cut -d: -f1 | head -n 1)" || true
  [[ -z "$bad" ]] || refuse "$SECRETS:$bad is not of the form NAME=VALUE"
  bad="$(grep -nE "^[^#=]*=[\"'].*|"$'\r' "$SECRETS" | cut -d: -f1 | head -n 1)" || true
  [[ -z "$bad" ]] || refuse "$SECRETS:$bad has quotes or a carriage return, which would become part of the value; write NAME=VALUE alone"
fi
root="$(cd "$HERE/.." && pwd)"
commit="$(git -C "$root" rev-parse --verify --quiet "$COMMIT^{commit}")" ||
  refuse "COMMIT is '$COMMIT', which is no commit of this repository; git log shows them"
folder="${TMPDIR:-.}"
if [[ "$DRY_RUN" != 1 ]]; then
  folder="$(mktemp -d)"
  trap 'rm -rf "$folder"' EXIT
fi
archive="$folder/rl_likelihood-${commit:0:12}.tar.gz"

run git -C "$root" archive --format=tar.gz --prefix="$REMOTE_DIR/" --output="$archive" "$commit"
# What fails there exits 1 here, whatever its own code: 2 would say that a value is refused.
run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:code.tar.gz" --project="$PROJECT" --zone="$ZONE" --worker=all || exit 1
if [[ -n "$SECRETS" ]]; then
  on_workers "install -m 600 /dev/null .rl_likelihood_secrets" || exit 1
  run gcloud compute tpus tpu-vm scp "$SECRETS" "$TPU_NAME:.rl_likelihood_secrets" --project="$PROJECT" --zone="$ZONE" --worker=all || exit 1
fi
on_workers "tar -xzf code.tar.gz && echo $commit > $REMOTE_DIR/COMMIT && NFS='$NFS' EXTRAS='$EXTRAS' bash $REMOTE_DIR/tpu_setup/worker.sh setup" || exit 1
# jax counts the devices of all workers: they must start together, and all must say the same.
on_workers "cd $REMOTE_DIR && .venv/bin/python -c 'import jax; jax.distributed.initialize(); print(jax.process_index(), jax.device_count())'" || exit 1
[[ "$DRY_RUN" == 1 ]] || say "$TPU_NAME runs commit ${commit:0:12}; next: tpu_setup/run.sh python -m rl_likelihood.train ..."
