#!/usr/bin/env bash
# Prints a JobSet manifest for GKE from the values of common.sh: one Job a slice, one pod a host. Runs nothing.
#   IMAGE=registry/image:tag CLAIM=shared-disk SLICES=1 tpu_setup/jobset.sh python -m rl_likelihood.train ... | kubectl apply -f -
# IMAGE holds this repository as its working folder, installed with its extra tpu; CLAIM is a volume claim that all pods
# may write, mounted at /share for workdirs, weights and data. SECRET is a Kubernetes Secret, whose keys (WANDB_API_KEY,
# HF_TOKEN) become the environment of the pods; their values are not in the manifest. RESERVATION with PRICING=reserved.
# How a pod ended    0: done.  2: refused (a bad config), so again would change nothing: the JobSet fails.
#                    anything else, or asked to stop before it was done (143, by worker.sh once): all pods again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

IMAGE="${IMAGE:-}"
CLAIM="${CLAIM:-}"
SECRET="${SECRET:-}"
SLICES="${SLICES:-1}"
RESTARTS="${RESTARTS:-100}" # of all pods together, preemptions included: the run resumes each time

need IMAGE CLAIM
(($# > 0)) || refuse "no command; for example tpu_setup/jobset.sh python -m rl_likelihood.train --config=... --workdir=/share/..."
SHARE=/share
# shellcheck disable=SC2034 # refuse_secrets reads it
KEYS_GO="put it into a Kubernetes Secret (kubectl create secret generic NAME --from-env-file=FILE) and set SECRET=NAME"
need_folders "$@"
refuse_secrets "$@"
hardware
[[ "$PRICING" != reserved ]] || need RESERVATION
need_numbers 1 SLICES RESTARTS
flag="$(pricing_flag)"
for name in IMAGE CLAIM SECRET RESERVATION; do # YAML has no control characters
  [[ ! "${!name}" =~ [[:cntrl:]] ]] || refuse "$name is $(printf %q "${!name}"), with a control character; leave it out"
done
for word in "$@"; do # a command may have several lines, and tabs
  [[ ! "${word//[$'\n\t']/}" =~ [[:cntrl:]] ]] ||
    refuse "the command has $(printf %q "$word"), with a control character; put it into a file of the image or of $SHARE"
done

quoted() { # a JSON string is a YAML string
  local text="${1//\\/\\\\}"
  text="${text//\"/\\\"}"
  printf '"%s"' "${text//$'\n'/\\n}"
}

cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: "$TPU_NAME"
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $RESTARTS
    rules:
    - name: refused
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $SLICES
    template:
      spec:
        parallelism: $HOSTS
        completions: $HOSTS
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: run
              operator: In
              values: [2]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $GKE_CHIP
              cloud.google.com/gke-tpu-topology: ${TOPOLOGY#*:}
YAML
[[ "$flag" != --spot ]] || printf '              cloud.google.com/gke-spot: "true"\n'
[[ "$flag" != --reserved ]] || printf '              cloud.google.com/reservation-name: %s\n' "$(quoted "$RESERVATION")"
cat <<YAML
            containers:
            - name: run
              image: $(quoted "$IMAGE")
              ports:
              - containerPort: 8471
              - containerPort: 8080
              resources:
                limits:
                  google.com/tpu: $CHIPS_PER_HOST
              volumeMounts:
              - name: share
                mountPath: $SHARE
YAML
if [[ -n "$SECRET" ]]; then
  cat <<YAML
              envFrom:
              - secretRef:
                  name: $(quoted "$SECRET")
YAML
fi
printf '              command:\n'

# Kubernetes reads $(NAME) and $$ in a command; each $ twice is that $.
for argument in bash tpu_setup/worker.sh once "${@//\$/\$\$}"; do printf '              - %s\n' "$(quoted "$argument")"; done
cat <<YAML
            volumes:
            - name: share
              persistentVolumeClaim:
                claimName: $(quoted "$CLAIM")
YAML
