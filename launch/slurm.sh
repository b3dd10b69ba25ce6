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
# A run on GPU nodes of a SLURM cluster. See launch/slurm.sh --help.
set -euo pipefail

usage() {
  cat <<'USAGE'
Run on GPU nodes of a SLURM cluster: one process per node, which uses all its GPUs.

  sbatch [--nodes=N --gpus-per-node=G ...] launch/slurm.sh COMMAND ...
  launch/slurm.sh --dry-run COMMAND ...

for example

  sbatch --nodes=2 launch/slurm.sh python -m metricjax.main \
    --config configs/cgd_resnet50.py:sop --workdir /shared/runs/sop

The command runs on every node in the directory where sbatch was called, so activate
the virtual environment first. The workdir must be visible to all nodes, or gs://.
Options of sbatch override the defaults of this file (one node, 8 GPUs, 24 h).

Three minutes before the time limit the run gets SIGTERM, saves and exits, and the job
is requeued; it resumes at the very next batch. SLURM itself requeues a job that it
preempts. A run that finishes or fails is not requeued, nor is one stopped by scancel.

  --dry-run   print the commands without running them; outside a job, those for two
              nodes with 8 GPUs each
  --help      this text

Exit code: that of the run; 2 for bad input, reported in one sentence.
USAGE
}

# Prints a command, quoted for the shell.
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

# One process per node: its threads share one cache of decoded images, and each image is
# read once per node. By default JAX gives a SLURM process one GPU, by its local rank;
# JAX_LOCAL_DEVICE_IDS gives it all of them.
# shellcheck disable=SC2016  # Expanded by the shell on the node.
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

# Derived from the job id, so that two jobs on one node do not collide; below the
# ephemeral port range.
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

# SLURM sends USR1 to this shell before the time limit (see --signal above). Not TERM,
# because scancel sends that too, and a cancelled job must not be requeued.
time_limit_near='' child=''
# shellcheck disable=SC2317  # Called by the traps below.
forward() {
  interrupted=1
  kill -TERM "$child" 2>/dev/null || true
}
trap 'time_limit_near=1; forward' USR1
trap forward TERM INT
"${steps[@]}" &
child=$!
interrupted=1
while [ -n "$interrupted" ]; do # A signal interrupts `wait` before the run has ended.
  interrupted='' code=0
  wait "$child" || code=$?
done
if [ -n "$time_limit_near" ] && [ "$code" != 2 ]; then
  "${requeue[@]}"
fi
exit "$code"
