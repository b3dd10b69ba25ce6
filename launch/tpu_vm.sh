#!/usr/bin/env bash
# Create a Cloud TPU VM, run on it, resume after preemption, delete it. See --help.
set -euo pipefail

usage() {
  cat <<'USAGE'
Run on a Cloud TPU VM: one host or a pod slice of many.

  launch/tpu_vm.sh create  NAME [--queued] [--spot]
  launch/tpu_vm.sh setup   NAME [--source DIR|GIT_URL]
  launch/tpu_vm.sh run     NAME -- python -m metricjax.main --config ... --workdir gs://...
  launch/tpu_vm.sh resume  NAME -- the same command
  launch/tpu_vm.sh logs    NAME [--worker N]
  launch/tpu_vm.sh status  NAME
  launch/tpu_vm.sh stop    NAME
  launch/tpu_vm.sh delete  NAME

  create   creates the VM unless it exists
  setup    installs metricjax[tpu] on all workers
  run      starts the command on all workers in the background and returns; its output
           is in ~/metricjax/run.log on each worker
  resume   create, setup and run, each only if needed: a preempted VM is recreated, a
           VM that runs the command is left alone
  logs     follows the log of worker 0; Ctrl-C stops following, not the run
  status   state of the VM, and for each worker whether the command runs
  stop     asks the command to save and exit; keeps the VM
  delete   deletes the VM if it exists; everything outside buckets is lost

  flag               variable           meaning
  --zone ZONE        TPU_VM_ZONE        zone of the VM (required)
  --type TYPE        TPU_VM_TYPE        accelerator type, such as v5litepod-16; needed
                                        by create and resume
  --version VERSION  TPU_VM_VERSION     software of the VM (default: by --type)
  --project PROJECT  TPU_VM_PROJECT     (default: gcloud's)
  --source SOURCE    TPU_VM_SOURCE      a directory to copy, or a git URL, optionally
                                        URL@BRANCH (default: this clone)
  --queued           TPU_VM_QUEUED=1    request a queued resource of the same name and
                                        wait until it is granted
  --spot             TPU_VM_SPOT=1      cheaper, and may be preempted
  --worker N                            for logs (default: 0)
  --dry-run                             print the commands without running them,
                                        assuming that the VM does not exist yet (create,
                                        resume) or exists (others)
  --help                                this text

Exit code: 0 done; 2 for bad input, reported in one sentence; otherwise gcloud's.
USAGE
}

refuse() {
  printf 'tpu_vm.sh: %s\n' "$1" >&2
  exit 2
}

say() { printf 'tpu_vm.sh: %s\n' "$1" >&2; }

# Runs a command, or with --dry-run prints it, quoted for the shell.
call() {
  local words
  if [ -n "$dry_run" ]; then
    words=$(printf '%q ' "$@")
    printf '%s\n' "${words% }"
  else
    "$@"
  fi
}

# The same with retries, because a new VM may not answer yet.
call_patiently() {
  local attempt
  for attempt in 1 2 3; do
    if call "$@"; then return 0; fi
    if [ "$attempt" = 3 ]; then break; fi
    say "the command failed; trying again in $pause s"
    sleep "$pause"
  done
  return 1
}

tpu() { call gcloud compute tpus "$1" "$2" "$name" "${where[@]}" "${@:3}"; }

on_workers() {
  call_patiently gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" \
    "--worker=$1" "--command=$2"
}

# Sets `state` to that of the VM or queued resource, or to `absent` if it does not exist.
# Other errors, such as a missing login, must not be mistaken for an absent VM.
query_state() {
  local kind=$1 format=$2 errors
  if [ -n "$dry_run" ]; then
    tpu "$kind" describe "--format=value($format)"
    state=$3
    return
  fi
  errors=$(mktemp)
  if state=$(tpu "$kind" describe "--format=value($format)" 2>"$errors"); then
    rm -f "$errors"
  elif grep -qi -e NOT_FOUND -e 'was not found' "$errors"; then
    rm -f "$errors"
    state=absent
  else
    cat "$errors" >&2
    rm -f "$errors"
    refuse "gcloud could not report the state of $name: see its message above."
  fi
}

query_vm() { query_state tpu-vm state "$1"; }
query_request() { query_state queued-resources state.state "$1"; }

# The default runtime version of the TPU's generation.
default_version() {
  case "$type" in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) refuse "for --type $type the VM's software is not known: name it with --version." ;;
  esac
}

create() {
  local spot_flag=()
  [ -n "$type" ] || refuse "--type is missing: name the accelerator, such as v5litepod-16."
  if [ -z "$version" ]; then version=$(default_version); fi
  if [ -n "$spot" ]; then spot_flag=(--spot); fi
  if [ -n "$queued" ]; then
    create_queued
    return
  fi
  query_vm absent
  case "$state" in
    READY) say "$name exists already" ;;
    STOPPED) tpu tpu-vm start ;;
    CREATING | STARTING | RESTARTING | REPAIRING | UNHIDING) wait_for_vm ;;
    *)
      if [ "$state" != absent ]; then # Preempted or terminated.
        say "$name is $state; recreating it"
        tpu tpu-vm delete --quiet
      fi
      made=1
      tpu tpu-vm create "--accelerator-type=$type" "--version=$version" \
        ${spot_flag[@]+"${spot_flag[@]}"}
      ;;
  esac
}

wait_for_vm() {
  until [ "$state" = READY ]; do
    say "$name is $state; checking again in $pause s"
    sleep "$pause"
    query_vm READY
    if [ "$state" = absent ]; then
      refuse "$name disappeared while it was being created: run the same command again."
    fi
  done
}

create_queued() {
  query_request absent
  case "$state" in
    SUSPENDED | SUSPENDING | FAILED)
      say "the queued resource $name is $state; requesting it again"
      tpu queued-resources delete --force --quiet
      state=absent
      ;;
  esac
  if [ "$state" = absent ]; then
    made=1
    tpu queued-resources create "--node-id=$name" "--accelerator-type=$type" \
      "--runtime-version=$version" ${spot_flag[@]+"${spot_flag[@]}"}
    query_request ACTIVE
  fi
  until [ "$state" = ACTIVE ]; do
    case "$state" in
      FAILED | SUSPENDED | absent)
        refuse "the queued resource $name is $state: run the same command again, or try another --zone."
        ;;
    esac
    say "the queued resource $name is $state; checking again in $pause s"
    sleep "$pause"
    query_request ACTIVE
  done
}

setup() {
  local make=""
  # shellcheck disable=SC2088  # Expanded on the worker.
  local unpack="~/metricjax/source.tar.gz -C ~/metricjax/source"
  if [ ! -d "$source" ]; then
    make="git clone --quiet $(git_arguments) ~/metricjax/source"
  else
    archive=$(archive_name)
    COPYFILE_DISABLE=1 call tar -czf "$archive" --exclude=.git --exclude=.venv \
      --exclude=runs --exclude=build --exclude='*.egg-info' --exclude=__pycache__ \
      -C "$source" .
    on_workers all 'mkdir -p ~/metricjax'
    call_patiently gcloud compute tpus tpu-vm scp "$archive" \
      "$name:metricjax/source.tar.gz" "${where[@]}" --worker=all
    make="mkdir ~/metricjax/source && tar -xzf $unpack"
  fi
  on_workers all "mkdir -p ~/metricjax && rm -rf ~/metricjax/source && $make && $(worker_does setup)"
}

# A call of tpu_worker.sh with its arguments quoted, for the remote shell.
worker_does() {
  printf 'bash ~/metricjax/source/launch/tpu_worker.sh'
  printf ' %q' "$@"
}

archive_name() {
  if [ -n "$dry_run" ]; then
    echo "${TMPDIR:-/tmp}/metricjax-source.tar.gz"
  else
    mktemp "${TMPDIR:-/tmp}/metricjax-source.XXXXXX"
  fi
}

# URL@BRANCH as arguments of git clone; the @ in git@host:path starts no branch.
git_arguments() {
  local branch=${source##*@}
  case "$source" in
    *@*) ;;
    *) branch= ;;
  esac
  case "$branch" in
    '' | *:* | *//*) printf '%q' "$source" ;;
    *) printf '%q %q' "--branch=$branch" "${source%@*}" ;;
  esac
}

run() {
  check_command
  on_workers all "$(worker_does run "${command[@]}")"
}

check_command() {
  [ "${#command[@]}" -gt 0 ] || refuse "there is no command to $action: write it after --."
  case " ${command[*]} " in
    *gs://*) ;;
    *) say "the command names no gs:// address: its output is lost with the VM" ;;
  esac
}

resume() {
  check_command
  create
  # Never reinstall under a running command. If any worker lost its process, the others
  # only wait for it, so all are restarted.
  if [ -z "$made" ]; then
    if on_all_workers_runs; then
      say "the run is already in progress"
      return
    fi
  fi
  setup
  on_workers all "$(worker_does restart "${command[@]}")"
}

# Fails if any worker does not answer: unreachable is not the same as idle.
on_all_workers_runs() {
  local said
  # shellcheck disable=SC2016  # Expanded on the worker.
  said=$(on_workers all 'kill -0 "$(cat ~/metricjax/run.pid 2>/dev/null)" 2>/dev/null && echo worker-runs || echo worker-is-idle') ||
    refuse "the workers of $name do not answer: see the message above."
  case "$said" in
    *worker-is-idle*) return 1 ;;
  esac
}

logs() {
  call gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$worker" \
    '--command=tail -n 100 -F ~/metricjax/run.log'
}

status() {
  query_vm READY
  if [ -z "$dry_run" ]; then echo "$name: $state"; fi
  if [ "$state" = READY ]; then on_workers all "$(worker_does status)"; fi
}

stop() { on_workers all "$(worker_does stop)"; }

delete() {
  if [ -n "$queued" ]; then
    query_request ACTIVE
    if [ "$state" = absent ]; then
      say "there is no queued resource $name"
    else
      tpu queued-resources delete --force --quiet
    fi
    return
  fi
  query_vm READY
  if [ "$state" = absent ]; then
    say "there is no VM $name"
  else
    tpu tpu-vm delete --quiet
  fi
}

if [ $# = 0 ]; then
  usage >&2
  exit 2
fi
for argument in "$@"; do
  case "$argument" in
    --help | -h) usage && exit 0 ;;
    --) break ;;
  esac
done

action=$1
shift
case "$action" in
  create | setup | run | resume | logs | status | stop | delete) ;;
  *) refuse "'$action' is no command: choose one of create, setup, run, resume, logs, status, stop, delete." ;;
esac

name=
zone=${TPU_VM_ZONE:-} type=${TPU_VM_TYPE:-} version=${TPU_VM_VERSION:-}
project=${TPU_VM_PROJECT:-} queued=${TPU_VM_QUEUED:-} spot=${TPU_VM_SPOT:-}
source=${TPU_VM_SOURCE:-$(cd "$(dirname "$0")/.." && pwd)}
pause=${TPU_VM_PAUSE:-15} # Seconds between two checks.
worker=0 dry_run='' made='' archive='' command=()

while [ $# -gt 0 ]; do
  flag=$1 value=
  shift
  case "$flag" in
    --)
      command=("$@")
      break
      ;;
    --queued | --spot | --dry-run) ;;
    --*=*)
      value=${flag#*=}
      flag=${flag%%=*}
      ;;
    --*)
      [ $# -gt 0 ] || refuse "$flag has no value; see --help."
      value=$1
      shift
      ;;
  esac
  case "$flag" in
    --zone) zone=$value ;;
    --type) type=$value ;;
    --version) version=$value ;;
    --project) project=$value ;;
    --source) source=$value ;;
    --worker) worker=$value ;;
    --queued) queued=1 ;;
    --spot) spot=1 ;;
    --dry-run) dry_run=1 ;;
    -*) refuse "$flag is no flag; see --help." ;;
    *)
      [ -z "$name" ] || refuse "there are two names, $name and $flag: the command to run comes after --."
      name=$flag
      ;;
  esac
done

[ -n "$name" ] || refuse "the name of the VM is missing; see --help."
[ -n "$zone" ] || refuse "--zone is missing: name the zone of the VM, such as us-west4-a."
case "$worker" in
  '' | *[!0-9]*) refuse "--worker $worker is no number." ;;
esac
case "$source" in
  *://* | *@*:*) ;;
  *) [ -f "$source/pyproject.toml" ] || refuse "--source $source holds no pyproject.toml: name a clone of metricjax, or a git URL." ;;
esac
if [ -z "$dry_run" ] && ! command -v gcloud >/dev/null; then
  refuse "gcloud was not found: install the Google Cloud CLI and run gcloud auth login."
fi
trap 'if [ -n "$archive" ] && [ -z "$dry_run" ]; then rm -f "$archive"; fi' EXIT
where=("--zone=$zone")
if [ -n "$project" ]; then where+=("--project=$project"); fi

"$action"
