#!/usr/bin/env bash
# Several hosts on one machine: runs a command as N connected JAX processes. See --help.
set -euo pipefail

usage() {
  cat <<'USAGE'
Run a command as several connected processes on this machine, one per simulated host.

  launch/local.sh [--processes N] [--devices D | --gpus] [--] COMMAND ...

for example

  launch/local.sh --processes 2 --devices 2 python -m metricjax.main \
    --config configs/quickstart.py

  --processes N   number of processes (default: 2)
  --devices D     simulated CPU devices per process (default: 1)
  --gpus          divide this machine's GPUs among the processes instead
  --port P        port of the coordinator (default: a free one)
  --grace S       after one process fails: seconds until the others get SIGTERM, and as
                  many again until SIGKILL (default: 30)
  --dry-run       print the commands without running them
  --help          this text

Each line of output is prefixed with the number of its host. SIGTERM and Ctrl-C are
forwarded, so the run saves and exits; the same command resumes it.

Exit code: 0 if all succeed; otherwise that of the first process that failed; 2 for bad
input, reported in one sentence.
USAGE
}

refuse() {
  printf 'local.sh: %s\n' "$1" >&2
  exit 2
}

say() { printf 'local.sh: %s\n' "$1" >&3; }

# Connecting to a free port fails, because nothing listens on it.
free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 10000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
}

# The GPUs of this machine, restricted by CUDA_VISIBLE_DEVICES.
visible_gpus() {
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    printf '%s\n' "$CUDA_VISIBLE_DEVICES" | tr , '\n'
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=index --format=csv,noheader
  fi
}

# Sets `own` to the environment variables of process $1.
environment_of() {
  own=("JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$processes"
    "JAX_PROCESS_ID=$1")
  if [ -n "$gpus" ]; then
    local share=("${ids[@]:$(($1 * devices)):$devices}") IFS=,
    own+=("CUDA_VISIBLE_DEVICES=${share[*]}")
  else
    own+=("JAX_PLATFORMS=cpu"
      "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices")
  fi
}

# Copies stdin to stdout, each line prefixed with its host number.
number_lines() {
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

start() {
  local number=$1 pipe="$pipes/$1"
  mkfifo "$pipe.out" "$pipe.err"
  # Job control gives each its own process group: Ctrl-C reaches only this script,
  # which forwards it, and a whole group can be signalled at once.
  number_lines "$number" <"$pipe.out" &
  printers+=("$!")
  number_lines "$number" <"$pipe.err" >&2 &
  printers+=("$!")
  env "${own[@]}" "${command[@]}" >"$pipe.out" 2>"$pipe.err" </dev/null &
  pids+=("$!")
}

signal_all() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill "-$1" -- "-$pid" 2>/dev/null || true
  done
}

is_running() { kill -0 "$1" 2>/dev/null; }

# Sets `running` to the number of running processes, and `failed` to the exit code of
# the first that failed.
poll_processes() {
  local number code
  running=0
  for number in "${!pids[@]}"; do
    if [ -n "${ended[number]:-}" ]; then continue; fi
    if is_running "${pids[number]}"; then
      running=$((running + 1))
      continue
    fi
    code=0
    wait "${pids[number]}" 2>/dev/null || code=$?
    ended[number]=1
    if [ "$code" != 0 ] && [ "$failed" = 0 ]; then
      failed=$code
      since=$SECONDS
      if [ "$processes" -gt 1 ]; then
        say "host $number ended with code $code; the others have $grace s"
      fi
    fi
  done
}

# After a failure: SIGTERM to the other processes after $grace s, SIGKILL after twice that.
stop_survivors() {
  if [ "$failed" = 0 ]; then return; fi
  local waited=$((SECONDS - since))
  if [ "$waited" -ge $((2 * grace)) ] && [ "$pressed" != KILL ]; then
    pressed=KILL
    say "killing the remaining processes"
    signal_all KILL
  elif [ "$waited" -ge "$grace" ] && [ -z "$pressed" ]; then
    pressed=TERM
    signal_all TERM
  fi
}

is_number() {
  case "$1" in
    '' | *[!0-9]*) return 1 ;;
  esac
}

processes=2 devices='' gpus='' port='' grace=30 dry_run='' command=()
while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h) usage && exit 0 ;;
    --gpus) gpus=1 ;;
    --dry-run) dry_run=1 ;;
    --processes | --devices | --port | --grace)
      [ $# -gt 1 ] || refuse "$1 has no value; see --help."
      is_number "$2" || refuse "$1 is '$2': it must be a whole number."
      printf -v "${1#--}" %s "$((10#$2))"
      shift
      ;;
    --processes=* | --devices=* | --port=* | --grace=*)
      flag=${1%%=*} value=${1#*=}
      shift
      set -- "$flag" "$value" "$@"
      continue
      ;;
    --) shift && break ;;
    -*) refuse "$1 is no flag; see --help." ;;
    *) break ;;
  esac
  shift
done
command=("$@")

[ "${#command[@]}" -gt 0 ] || refuse "there is no command to run; see --help."
[ "$processes" -ge 1 ] || refuse "--processes is 0: it must be at least 1."
if [ -n "$gpus" ]; then
  [ -z "$devices" ] || refuse "--devices is for CPU, and --gpus was given: leave one out."
  ids=()
  while IFS= read -r id; do ids+=("$id"); done < <(visible_gpus)
  [ "${#ids[@]}" -gt 0 ] || refuse "--gpus: nvidia-smi shows no GPU here: use --devices for CPU devices."
  devices=$((${#ids[@]} / processes))
  if [ "$devices" = 0 ] || [ $((devices * processes)) != "${#ids[@]}" ]; then
    refuse "--processes $processes cannot share ${#ids[@]} GPUs equally: choose a number that divides them."
  fi
fi
: "${devices:=1}"
[ "$devices" -ge 1 ] || refuse "--devices is 0: it must be at least 1."
: "${port:=$(free_port)}"

if [ -n "$dry_run" ]; then
  for ((number = 0; number < processes; number++)); do
    environment_of "$number"
    words=$(printf '%q ' env "${own[@]}" "${command[@]}")
    printf '%s\n' "${words% }"
  done
  exit 0
fi

pids=() printers=() ended=() failed=0 since=0 pressed='' running=$processes
pipes=$(mktemp -d "${TMPDIR:-/tmp}/metricjax-hosts.XXXXXX")
trap 'signal_all KILL; rm -rf "$pipes"' EXIT
trap 'signal_all TERM' TERM
trap 'signal_all INT' INT
exec 3>&2
set -m # One process group per process, see start.
for ((number = 0; number < processes; number++)); do
  environment_of "$number"
  start "$number"
done
set +m
exec 2>/dev/null # Silence the shell's own messages about killed jobs.
while true; do
  poll_processes
  if [ "$running" = 0 ]; then break; fi
  stop_survivors
  sleep 0.2 || true # Ctrl-C interrupts it.
done
pids=()
# Let the last output through, but do not wait for orphaned children that hold a pipe.
for ((tries = 0; tries < 25; tries++)); do
  left=0
  for pid in "${printers[@]}"; do
    if is_running "$pid"; then left=$((left + 1)); fi
  done
  if [ "$left" = 0 ]; then break; fi
  sleep 0.2 || true
done
exit "$failed"
