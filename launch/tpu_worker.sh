#!/usr/bin/env bash
# The part of launch/tpu_vm.sh that runs on each worker of a Cloud TPU VM.
set -euo pipefail

usage() {
  cat <<'USAGE'
Called by launch/tpu_vm.sh on each worker of a Cloud TPU VM; works in ~/metricjax.

  tpu_worker.sh setup                install the source beside this script, with [tpu]
  tpu_worker.sh run COMMAND ...      start the command; its output goes to run.log
  tpu_worker.sh restart COMMAND ...  stop a running command first, then start
  tpu_worker.sh status               report whether it runs, and the last line of the log
  tpu_worker.sh stop                 ask it to save and exit

Exit code: 0 done; 2 unknown command.
USAGE
}

say() { printf '%s: %s\n' "$(hostname)" "$1"; }

running() { [ -f run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null; }

setup() {
  # uv installs Python 3.11, because the system's may be older.
  PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  [ -x venv/bin/python ] || uv venv --quiet --seed --python 3.11 venv
  venv/bin/python -m pip install --quiet -e "source[tpu]"
  say "metricjax[tpu] is installed"
}

# An attribute from this machine's metadata server.
metadata() {
  curl -sf -H "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# Exports the addresses that connect the workers, as jax.distributed detects them.
export_hosts() {
  local workers first
  workers=$(metadata worker-network-endpoints)
  case "$workers" in
    *,*) ;;
    *) return ;;
  esac
  first=${workers%%,*} # An address, or name:number:address.
  JAX_PROCESS_ID=$(metadata agent-worker-number)
  JAX_NUM_PROCESSES=$(printf '%s\n' "$workers" | tr , '\n' | grep -c .)
  export JAX_COORDINATOR_ADDRESS="${first##*:}:8476" JAX_NUM_PROCESSES JAX_PROCESS_ID
}

run() {
  if running; then
    say "the run is already in progress"
    return
  fi
  export_hosts
  export PATH="$PWD/venv/bin:$PATH"
  (
    cd source
    setsid nohup "$@" >>../run.log 2>&1 </dev/null &
    echo $! >../run.pid
  )
  say "started"
}

# Stops what is left of a run whose other workers are gone, even if it hangs.
restart() {
  local waited=0
  if running; then
    kill -TERM "$(cat run.pid)" || true
    while running && [ "$waited" -lt "${TPU_VM_PATIENCE:-60}" ]; do
      sleep 1
      waited=$((waited + 1))
    done
    if running; then kill -KILL "$(cat run.pid)" || true; fi
    rm -f run.pid
  fi
  run "$@"
}

status() {
  local doing='does not run'
  if running; then doing=runs; fi
  say "$doing; $(tail -n 1 run.log 2>/dev/null || true)"
}

stop() {
  if running && kill -TERM "$(cat run.pid)"; then
    say "asked to stop"
  else
    say "nothing runs"
  fi
}

case "${1:-}" in
  --help | -h) usage ;;
  setup | run | restart | status | stop)
    cd "$(dirname "$0")/../.."
    "$@"
    ;;
  *)
    printf 'tpu_worker.sh: %s is no command; see --help.\n' "'${1:-}'" >&2
    exit 2
    ;;
esac
