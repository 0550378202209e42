# shellcheck shell=bash
# What the scripts share: every value with its default, and how a command is run or, under DRY_RUN=1, printed.
# A value is changed by an environment variable of its name: ZONE=us-west4-a tpu_setup/create.sh

PROJECT="${PROJECT:-}"                    # the cloud project; has no default
ZONE="${ZONE:-}"                          # a zone that has the chips; has no default
TPU_NAME="${TPU_NAME:-rl-likelihood}"     # of the slice, and of its queued resource
TOPOLOGY="${TOPOLOGY:-v5e:4x4}"           # as for `python -m rl_likelihood.plan --topology=`
RUNTIME="${RUNTIME:-}"                    # image of the workers; by default the one for these chips
CHIPS_PER_HOST="${CHIPS_PER_HOST:-}"      # of a node, for jobset.sh; by default 4, and 8 of a slice of 8
PRICING="${PRICING:-spot}"                # spot | on-demand | reserved
RESERVATION="${RESERVATION:-}"            # of PRICING=reserved on GKE, for jobset.sh: the reservation's name
QUEUED="${QUEUED:-1}"                     # 1: wait in the queue for the slice; 0: take it now or fail
POLL="${POLL:-30}"                        # seconds between looks at the slice
COMMIT="${COMMIT:-HEAD}"                  # what of this repository the workers get
EXTRAS="${EXTRAS:-}"                      # what they install besides tpu, such as judge,ray (setup.py lists all)
SECRETS="${SECRETS:-}"                    # file here of lines NAME=VALUE, such as WANDB_API_KEY=...; for commands there
REMOTE_DIR="${REMOTE_DIR:-rl_likelihood}" # folder on the workers, under the home folder
NFS="${NFS:-}"                            # HOST:/SHARE mounted on all workers as ~/share, for workdirs; or nothing
RUN_NAME="${RUN_NAME:-run}"               # of a command's logs, here and on the workers
LOGS="${LOGS:-logs}"                      # folder here for gathered logs
DRY_RUN="${DRY_RUN:-0}"                   # 1: print what would be done, and do nothing

export HERE # for the scripts that source this
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

say() { printf '%s\n' "$*" >&2; }

refuse() {
  say "error: $*"
  exit 2
}

# The named variables must be whole numbers of at least $1.
need_numbers() {
  local least="$1" name
  shift
  for name in "$@"; do
    if [[ ! "${!name}" =~ ^(0|[1-9][0-9]{0,8})$ ]] || ((${!name} < least)); then
      refuse "$name is '${!name}'; it must be a whole number from $least"
    fi
  done
}

case "${1:-}" in
  -h | --help) # the comment at the head of the script
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
esac
case "${0##*/}" in
  create.sh | delete.sh | setup.sh | logs.sh) # without this, delete.sh NAME would delete another slice
    (($# == 0)) || refuse "unknown argument '$1'; ${0##*/} reads environment variables alone (tpu_setup/common.sh lists them)"
    ;;
esac
need_numbers 0 POLL
for name in DRY_RUN QUEUED LOCAL RESTART; do # DRY_RUN=true must not run the commands
  [[ "${!name:-0}" =~ ^[01]$ ]] || refuse "$name is '${!name}'; it must be 0 or 1"
done
[[ "$TPU_NAME" =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  refuse "TPU_NAME is '$TPU_NAME'; it must be at most 40 lower-case letters, digits and -, and begin with a letter"
[[ "$RUN_NAME" =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] ||
  refuse "RUN_NAME is '$RUN_NAME'; it must be letters, digits, _, - and ."

[[ "$REMOTE_DIR" =~ ^[A-Za-z0-9_./-]+$ ]] ||
  refuse "REMOTE_DIR is '$REMOTE_DIR'; it must be letters, digits, _, -, . and /"
[[ -z "$NFS" || "$NFS" =~ ^[A-Za-z0-9_.-]+:/[A-Za-z0-9_.-][A-Za-z0-9_./-]*$ ]] ||
  refuse "NFS is '$NFS'; it must be HOST:/SHARE of a file server, of letters, digits, _, -, . and /"

# The named variables must have values; the missing ones are named together.
need() {
  local name missing=()
  for name in "$@"; do [[ -n "${!name}" ]] || missing+=("$name"); done
  ((${#missing[@]} == 0)) || refuse "not set: ${missing[*]}; for example $1=... ${0##*/} (tpu_setup/common.sh lists all)"
}

SHARE="" # jobset.sh sets it

# The words of a command, one a line, also those within the text of bash -c 'TEXT'.
words_of() { tr -s ' \t\n;&|()' '\n' <<< "$*" | tr -d "\"'"; }

# A workdir must be a folder, so a bucket must be mounted. If SHARE is set, the workdir must be below it.
need_folders() {
  local word before="" folder
  while IFS= read -r word; do
    if [[ "${before:+$before=}$word" =~ ^--?(workdir|root|out)=(.*) ]]; then
      folder="${BASH_REMATCH[2]}"
      [[ ! "$folder" =~ ^[a-z0-9]+:// ]] ||
        refuse "$word is no folder; mount it (a bucket with gcsfuse) on all workers and give that path"
      [[ -z "$SHARE" || ("$folder" == "$SHARE/"* && "$folder/" != */../*) ]] ||
        refuse "$word would be lost with its pod; give a folder below $SHARE"
    fi
    before=""
    [[ ! "$word" =~ ^--?(workdir|root|out)$ ]] || before="$word"
  done < <(words_of "$@")
}

# A key on a command line would enter logs. It is known by its look (hf_..., or 40 hexadecimal digits as Weights & Biases
# makes them) or by the name of its variable or flag. Its value is not printed here either.
refuse_secrets() {
  local word what=""
  while IFS= read -r word; do
    [[ "$word" != -* || "$word" == *=* ]] || word+="=" # its value is the next word
    if [[ "${word^^}" =~ (^|[^A-Z0-9_])([A-Z0-9_]*(KEY|TOKEN|SECRET|PASSWORD|PASSWD|_PAT)[0-9]*)= && "${word,,}" != key=* ]]; then
      what="${BASH_REMATCH[2]}"
    elif [[ "$word" =~ (^|[=:])(hf_[A-Za-z0-9]{20,}|[0-9a-f]{40})$ ]]; then
      what="a word that looks like a key (${BASH_REMATCH[2]:0:3}...)"
    fi
    [[ -z "$what" ]] || refuse "$what is on the command line, which is logged; ${KEYS_GO:-write it into a file and set SECRETS=FILE}"
  done < <(words_of "$@")
}

# A command, run; or under DRY_RUN=1 printed so that a shell would read it back.
run() {
  if [[ "$DRY_RUN" == 1 ]]; then
    printf '%q ' "$@" | sed 's/ $//'
    printf '\n'
  else
    "$@"
  fi
}

# CHIPS, ACCELERATOR_TYPE, RUNTIME (here), HOSTS, CHIPS_PER_HOST, GKE_CHIP of the TOPOLOGY.
hardware() {
  local kind="${TOPOLOGY%%:*}" shape="${TOPOLOGY#*:}" size known
  [[ "$TOPOLOGY" =~ ^(v4|v5e|v5p|v6e):[0-9]+(x[0-9]+){1,2}$ ]] ||
    refuse "TOPOLOGY is '$TOPOLOGY'; it is a chip (v4, v5e, v5p, v6e) and a shape, such as v5e:4x4 or v5p:2x2x1"
  # Those of `plan`. The cloud is told the number of chips alone, of which it makes this shape and no other.
  case "$kind" in
    v5e | v6e) known="1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16" ;;
    v4 | v5p) known="2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16" ;;
  esac
  [[ " $known " == *" $shape "* ]] || refuse "TOPOLOGY is '$TOPOLOGY', which is not known; $kind has ${known// /, }"
  CHIPS=1
  for size in ${shape//x/ }; do CHIPS=$((CHIPS * size)); done
  case "$kind" in
    v5e) ACCELERATOR_TYPE="v5litepod-$CHIPS" RUNTIME="${RUNTIME:-v2-alpha-tpuv5-lite}" GKE_CHIP=tpu-v5-lite-podslice ;;
    v6e) ACCELERATOR_TYPE="v6e-$CHIPS" RUNTIME="${RUNTIME:-v2-alpha-tpuv6e}" GKE_CHIP=tpu-v6e-slice ;;
    v5p) ACCELERATOR_TYPE="v5p-$((2 * CHIPS))" RUNTIME="${RUNTIME:-v2-alpha-tpuv5}" GKE_CHIP=tpu-v5p-slice ;;
    v4) ACCELERATOR_TYPE="v4-$((2 * CHIPS))" RUNTIME="${RUNTIME:-tpu-ubuntu2204-base}" GKE_CHIP=tpu-v4-podslice ;;
  esac
  local most=4 words=4 # of a machine; a v5e or v6e of eight chips is one
  [[ "$shape" != 2x4 ]] || most=8 words="8 or 4"
  ((CHIPS >= 4)) || words="$CHIPS"
  CHIPS_PER_HOST="${CHIPS_PER_HOST:-$((CHIPS < most ? CHIPS : most))}"
  [[ " $words " == *" $CHIPS_PER_HOST "* ]] ||
    refuse "CHIPS_PER_HOST is '$CHIPS_PER_HOST'; a machine of $TOPOLOGY has $words chips"
  HOSTS=$((CHIPS / CHIPS_PER_HOST))
  export CHIPS ACCELERATOR_TYPE RUNTIME GKE_CHIP CHIPS_PER_HOST HOSTS
}

# The word for PRICING on the command line; nothing for on-demand.
pricing_flag() {
  case "$PRICING" in
    spot | reserved) printf -- '--%s' "$PRICING" ;;
    on-demand) ;;
    *) refuse "PRICING is '$PRICING'; it must be spot, on-demand or reserved" ;;
  esac
}

# A command line, the same on every worker of the slice.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" --project="$PROJECT" --zone="$ZONE" --worker=all --command="$1"
}

# READY, WAITING (it will come), LOST (it will not come back), FAILED (the request was taken and could not be met),
# ABSENT, or UNKNOWN (the cloud did not say).
slice_state() {
  local state
  if [[ "$QUEUED" == 1 ]]; then
    state="$(described queued-resources 'value(state.state)')"
    case "$state" in
      ACTIVE) ;; # then its node says more
      SUSPENDING | SUSPENDED | DELETING) printf LOST && return ;;
      FAILED | ABSENT | UNKNOWN) printf '%s' "$state" && return ;;
      *) printf WAITING && return ;;
    esac
  fi
  state="$(described tpu-vm 'value(state)')"
  case "$state" in
    READY | UNKNOWN) printf '%s' "$state" ;;
    CREATING | STARTING | RESTARTING | REPAIRING | REIMAGING) printf WAITING ;;
    ABSENT) if [[ "$QUEUED" == 1 ]]; then printf LOST; else printf ABSENT; fi ;; # a queue that lost its node
    *) printf LOST ;;
  esac
}

# A field of the slice ($1: queued-resources or tpu-vm); ABSENT where the cloud knows of none.
described() {
  local out
  if out="$(gcloud compute tpus "$1" describe "$TPU_NAME" --project="$PROJECT" --zone="$ZONE" --format="$2" 2>&1)"; then
    printf '%s' "${out##*$'\n'}"
  elif [[ "$out" == *NOT_FOUND* || "$out" == *"not found"* ]]; then
    printf ABSENT
  else
    say "gcloud: $out"
    printf UNKNOWN
  fi
}
