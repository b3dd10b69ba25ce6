#!/usr/bin/env bash
#SBATCH --job-name=metricjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@180
# A run on GPU nodes of a SLURM cluster; `launch/slurm.sh --help` says how.
set -euo pipefail

usage() {
  cat <<'USAGE'
A run on GPU nodes of a SLURM cluster: one process a node, which uses all its GPUs.

  sbatch [--nodes=N --gpus-per-node=G ...] launch/slurm.sh COMMAND ...
  launch/slurm.sh --dry-run COMMAND ...

for example

  sbatch --nodes=2 launch/slurm.sh python -m metricjax.main \
    --config configs/cgd_resnet50.py:sop --workdir /shared/runs/sop

The command runs on every node in the directory of the sbatch call, so activate the
virtual environment before; the workdir must be one that all nodes see, or gs://.
Options of sbatch change what the head of this file asks for (one node, 8 GPUs, 24 h).

Three minutes before the time is up the run gets SIGTERM, saves itself and ends, and
the job goes back to the queue, from where it resumes at the very next batch. A job
that SLURM preempts is put back by SLURM itself. A run that ends by itself, well or not,
is not put back, nor is one that scancel ends.

  --dry-run   print the commands and run none; outside of a job, as for one of two
              nodes of 8 GPUs
  --help      this text

Exit code: that of the run; 2 something to mend, told in one sentence.
USAGE
}

# Prints a command as it could be typed.
show() {
  local words
  words=$(printf '%q ' "$@")
  printf '%s\n' "${words% }"
}

refuse() {
  printf 'slurm.sh: %s\n' "$1" >&2
  exit 2
}

dry_run=
while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 && shift ;;
    --) shift && break ;;
    -*) refuse "$1 is no flag; see --help." ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || refuse "there is no command to run; see --help."

# One process a node: its threads share one cache of decoded images, and images are read
# once a node. JAX by itself gives a process of a SLURM job one GPU, that of its number
# on the node; JAX_LOCAL_DEVICE_IDS says that it is all of them.
# shellcheck disable=SC2016  # It is the node's shell that expands these.
on_each_node='export JAX_PROCESS_ID=$SLURM_PROCID
gpus=${SLURM_GPUS_ON_NODE:-0}
if [ "$gpus" -gt 0 ]; then
  export JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((gpus - 1)))
fi
exec "$@"'

if [ -n "$dry_run" ]; then
  : "${SLURM_JOB_ID:=1}" "${SLURM_JOB_NUM_NODES:=2}" "${SLURM_JOB_NODELIST:=node[1-2]}"
  show scontrol show hostnames "$SLURM_JOB_NODELIST"
  first=FIRST_OF_THEM
else
  [ -n "${SLURM_JOB_ID:-}" ] || refuse "this is no SLURM job: start it with sbatch; see --help."
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  first=${first%%$'\n'*}
  [ -n "$first" ] || refuse "scontrol names no host of the job's nodes $SLURM_JOB_NODELIST."
fi

# By the job's number, so that two jobs on a node do not meet; below the ports that the
# system hands out itself.
port=$((20000 + SLURM_JOB_ID % 10000))
steps=(env "JAX_COORDINATOR_ADDRESS=$first:$port" "JAX_NUM_PROCESSES=$SLURM_JOB_NUM_NODES"
  srun --ntasks-per-node=1 "--nodes=$SLURM_JOB_NUM_NODES" --kill-on-bad-exit=1 --label
  bash -c "$on_each_node" bash "$@")
requeue=(scontrol requeue "$SLURM_JOB_ID")

if [ -n "$dry_run" ]; then
  show "${steps[@]}"
  show "${requeue[@]}"
  exit 0
fi

# SLURM sends USR1 to this shell ahead of the end of the time (see --signal above); not
# TERM, which scancel sends as well, and a cancelled job must not come back.
time_is_up='' child=''
# shellcheck disable=SC2317  # Called by the traps below.
pass_on() {
  interrupted=1
  kill -TERM "$child" 2>/dev/null || true
}
trap 'time_is_up=1; pass_on' USR1
trap pass_on TERM INT
"${steps[@]}" &
child=$!
interrupted=1
while [ -n "$interrupted" ]; do # A signal ends `wait` before the run has ended.
  interrupted='' code=0
  wait "$child" || code=$?
done
if [ -n "$time_is_up" ] && [ "$code" != 2 ]; then
  "${requeue[@]}"
fi
exit "$code"
