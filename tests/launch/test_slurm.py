"""`launch/slurm.sh` in a cluster whose srun and scontrol are scripts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from launching import LAUNCH, RUN, WORDS, call, install, words_of

# Runs the command once for each node, and hands signals on, as srun does.
SRUN = """\
import json, os, signal, subprocess, sys
with open(os.environ["FAKE_CALLS"], "a") as calls:
    calls.write(json.dumps(["srun", *sys.argv[1:]]) + "\\n")
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = [
    subprocess.Popen(words, env=os.environ | {"SLURM_PROCID": str(node)})
    for node in range(int(os.environ["SLURM_JOB_NUM_NODES"]))
]
def forward(number, frame):
    for task in tasks:
        task.send_signal(number)
signal.signal(signal.SIGTERM, forward)
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """\
import json, os, sys
with open(os.environ["FAKE_CALLS"], "a") as calls:
    calls.write(json.dumps(["scontrol", *sys.argv[1:]]) + "\\n")
if sys.argv[1] == "show":
    print("gpu-a7\\ngpu-b1")
"""


@pytest.fixture
def cluster(tmp_path):
    """Starts `slurm.sh` as SLURM does in a job of two nodes with four GPUs each."""
    programs = install(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL)
    (tmp_path / "run.py").write_text(RUN)
    # SLURM runs a copy of its own, elsewhere.
    script = shutil.copy(LAUNCH / "slurm.sh", tmp_path / "slurm_script")
    started = []

    def start(**environment):
        started.append(
            subprocess.Popen(
                [script, sys.executable, "run.py", *WORDS],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ
                | {
                    "PATH": f"{programs}:{os.environ['PATH']}",
                    "FAKE_CALLS": str(tmp_path / "calls.jsonl"),
                    "SLURM_JOB_ID": "31234567",
                    "SLURM_JOB_NUM_NODES": "2",
                    "SLURM_JOB_NODELIST": "gpu-a7,gpu-b1",
                    "SLURM_GPUS_ON_NODE": "4",
                }
                | environment,
            )
        )
        return started[-1], tmp_path / "calls.jsonl"

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        process.stdout.close()


def test_slurm_starts_a_process_a_node(cluster):
    process, calls = cluster(FAKE_SECONDS="0")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    hosts = sorted(
        (json.loads(line) for line in out.splitlines()),
        key=lambda said: said[1]["JAX_PROCESS_ID"],
    )
    for number, (_, given, words) in enumerate(hosts):
        assert given == {
            "JAX_COORDINATOR_ADDRESS": "gpu-a7:24567",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
            "JAX_LOCAL_DEVICE_IDS": "0,1,2,3",
        }
        assert words == WORDS
    assert len(hosts) == 2
    made = [json.loads(line) for line in calls.read_text().splitlines()]
    assert made[0] == ["scontrol", "show", "hostnames", "gpu-a7,gpu-b1"]
    assert made[1][:4] == ["srun", "--ntasks-per-node=1", "--nodes=2"] + [
        "--kill-on-bad-exit=1"
    ]
    assert len(made) == 2


@pytest.mark.parametrize(
    ("number", "code", "requeued"),
    [
        # The time is nearly up: back to the queue, unless there is something to mend.
        (signal.SIGUSR1, 0, True),
        (signal.SIGUSR1, 1, True),
        (signal.SIGUSR1, 2, False),
        # Cancelled, or preempted by SLURM, which puts it back itself.
        (signal.SIGTERM, 0, False),
    ],
)
def test_slurm_ends_and_goes_back_to_the_queue(cluster, number, code, requeued):
    process, calls = cluster(FAKE_CODE=str(code))
    for _ in range(2):  # Both runs are at work.
        assert process.stdout.readline().startswith("[")
    process.send_signal(number)
    assert process.stdout.read().splitlines() == ["saved", "saved"]
    assert process.wait(60) == code
    last = json.loads(calls.read_text().splitlines()[-1])
    assert (last == ["scontrol", "requeue", "31234567"]) == requeued


def test_slurm_head_asks_for_what_the_script_counts_on():
    text = (LAUNCH / "slurm.sh").read_text()
    asked = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    assert "--requeue" in asked and "--open-mode=append" in asked
    assert "--ntasks-per-node=1" in asked
    assert any(re.fullmatch(r"--signal=B:USR1@\d+", option) for option in asked)
    # sbatch stops looking at the first command.
    assert text.index("#SBATCH --signal") < text.index("set -euo pipefail")


def test_slurm_dry_run():
    result = call(
        "slurm.sh", "--dry-run", "python", "a b", env={"PATH": "/usr/bin:/bin"}
    )
    assert result.returncode == 0, result.stderr
    show, run, requeue = map(words_of, result.stdout.splitlines())
    assert show[:3] == ["scontrol", "show", "hostnames"]
    assert "srun" in run and run[-2:] == ["python", "a b"]
    assert requeue[:2] == ["scontrol", "requeue"]
