"""`launch/tpu_vm.sh` in a cloud that is a script, with workers that are directories."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from launching import LAUNCH, RUN, WORDS, call, install, until, words_of

# Knows VMs and queued resources by their states, in state.json. Commands on a worker
# run for real, with a home directory of its own.
GCLOUD = """\
import json, os, shutil, subprocess, sys
from pathlib import Path

cloud, arguments = Path(os.environ["FAKE_CLOUD"]), sys.argv[1:]
with open(cloud / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(["gcloud", *arguments]) + "\\n")
failures = json.loads((cloud / "failures.json").read_text())
kind, verb = arguments[2:4]
if failures.get(verb):
    message = failures[verb].pop(0)
    (cloud / "failures.json").write_text(json.dumps(failures))
    if message:
        sys.exit(message)
state = json.loads((cloud / "state.json").read_text())
options = dict(a.partition("=")[::2] for a in arguments if a.startswith("--"))
names = [a for a in arguments[4:] if not a.startswith("--")]
name = names[0]

def save():
    (cloud / "state.json").write_text(json.dumps(state))

def remove_disk():
    for pid in cloud.glob("worker*/metricjax/run.pid"):
        try:
            os.kill(int(pid.read_text()), 9)
        except ProcessLookupError:
            pass
    for worker in cloud.glob("worker*"):
        shutil.rmtree(worker)

def make_vm():
    state["tpu-vm"] = "READY"
    for worker in range(2):
        (cloud / f"worker{worker}").mkdir()

def workers():
    if state["tpu-vm"] != "READY":
        sys.exit(f"ERROR: {name} is not ready")
    chosen = options["--worker"]
    return range(2) if chosen == "all" else [int(chosen)]

if verb == "describe":
    if kind == "queued-resources" and state[kind] == "WAITING_FOR_RESOURCES":
        state[kind] = "ACTIVE"
        make_vm()
        save()
        print("WAITING_FOR_RESOURCES")
    elif state[kind] is None:
        sys.exit("ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found.")
    else:
        print(state[kind])
elif verb == "create":
    if state[kind] is not None:
        sys.exit("ERROR: ALREADY_EXISTS")
    if kind == "queued-resources":
        state[kind] = "WAITING_FOR_RESOURCES"
    else:
        make_vm()
    save()
elif verb == "delete":
    remove_disk()
    state.update({"tpu-vm": None, "queued-resources": None})
    save()
elif verb == "start":
    state[kind] = "READY"
    save()
elif verb == "ssh":
    codes = []
    for worker in workers():
        home = cloud / f"worker{worker}"
        environment = os.environ | {"HOME": str(home), "FAKE_WORKER": str(worker)}
        command = ["bash", "-c", options["--command"]]
        codes.append(subprocess.run(command, cwd=home, env=environment).returncode)
    sys.exit(max(codes))
elif verb == "scp":
    for worker in workers():
        shutil.copy(name, cloud / f"worker{worker}" / names[1].partition(":")[2])
else:
    sys.exit(f"ERROR: no such command: {verb}")
"""
# What a worker has: metadata, and an environment in which nothing is really installed.
CURL = """\
import os, sys
entry = sys.argv[-1].rpartition("/")[2]
ours = {"worker-network-endpoints": "n0:8470:10.0.0.7,n1:8470:10.0.0.8",
        "agent-worker-number": os.environ["FAKE_WORKER"]}
print(ours[entry], end="")
"""
UV = f"""\
import sys
from pathlib import Path
binaries = Path(sys.argv[-1]) / "bin"
binaries.mkdir(parents=True)
python = binaries / "python"
python.write_text('''#!/usr/bin/env bash
if [ "$2" = pip ]; then
  echo "$@" >> "$HOME/installed"
  exit 0
fi
exec {sys.executable} "$@"
''')
python.chmod(0o755)
"""
HOSTNAME = """\
import os
print("w" + os.environ["FAKE_WORKER"])
"""


class Cloud:
    """A cloud with no VM yet, and `tpu_vm.sh` in it."""

    def __init__(self, directory):
        self.directory = directory / "cloud"
        self.directory.mkdir()
        self.programs = install(
            directory / "bin", gcloud=GCLOUD, curl=CURL, uv=UV, hostname=HOSTNAME
        )
        self.source = directory / "my source"
        self.source.mkdir()
        (self.source / "pyproject.toml").write_text("")
        (self.source / "run.py").write_text(RUN)
        shutil.copytree(LAUNCH, self.source / "launch")
        self.command = ["python", "run.py", *WORDS]
        self.set_state(None)
        self.fail()

    def set_state(self, state, request=None):
        text = json.dumps({"tpu-vm": state, "queued-resources": request})
        (self.directory / "state.json").write_text(text)

    @property
    def states(self):
        return json.loads((self.directory / "state.json").read_text())

    def fail(self, **messages):
        """Let calls of a verb fail: a message for each call in turn."""
        (self.directory / "failures.json").write_text(json.dumps(messages))

    def calls(self):
        """The calls since this was last asked."""
        path = self.directory / "calls.jsonl"
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in text.splitlines()]

    def verbs(self):
        return [call[4] for call in self.calls()]

    def log(self, worker=0):
        path = self.directory / f"worker{worker}" / "metricjax" / "run.log"
        return path.read_text().splitlines() if path.exists() else []

    def said(self, worker=0):
        """What the last run of a worker was given."""
        lines = [line for line in self.log(worker) if line.startswith("[")]
        return json.loads(lines[-1]) if lines else None

    def __call__(self, action, *arguments, code=0, runs=False):
        command = ["--", *self.command] if runs else []
        result = call(
            "tpu_vm.sh",
            action,
            "my-tpu",
            *arguments,
            *command,
            env={
                "PATH": f"{self.programs}:{os.environ['PATH']}",
                "FAKE_CLOUD": str(self.directory),
                "TPU_VM_ZONE": "zone-a",
                "TPU_VM_TYPE": "v5litepod-16",
                "TPU_VM_PROJECT": "my project",
                "TPU_VM_SOURCE": str(self.source),
                "TPU_VM_PAUSE": "0.01",
                "TPU_VM_PATIENCE": "5",
            },
        )
        assert result.returncode == code, result.stderr
        return result


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    for path in cloud.directory.glob("worker*/metricjax/run.pid"):
        try:
            os.kill(int(path.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_a_run_on_a_tpu_vm_is_made_preempted_and_made_again(cloud):
    cloud("create", "--spot")
    calls = cloud.calls()
    assert [c[4] for c in calls] == ["describe", "create"]
    for flag in ("--spot", "--version=v2-alpha-tpuv5-lite", "--zone=zone-a"):
        assert flag in calls[1]
    assert "--project=my project" in calls[0] and "my-tpu" in calls[0]
    assert "exists already" in cloud("create").stderr
    assert cloud.verbs() == ["describe"]

    for _ in range(2):
        cloud("setup")
    home = cloud.directory / "worker1"
    assert (home / "metricjax" / "source" / "run.py").read_text() == RUN
    assert (home / "installed").read_text().splitlines() == [
        "-m pip install --quiet -e source[tpu]"
    ] * 2
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("metricjax-source.*"))

    assert cloud("run", runs=True).stdout.split("\n")[:2] == [
        "w0: started",
        "w1: started",
    ]
    for worker in range(2):
        where, given, words = until(lambda worker=worker: cloud.said(worker))
        assert where == str(
            cloud.directory / f"worker{worker}" / "metricjax" / "source"
        )
        assert given["JAX_COORDINATOR_ADDRESS"] == "10.0.0.7:8476"
        assert given["JAX_NUM_PROCESSES"] == "2"
        assert given["JAX_PROCESS_ID"] == str(worker)
        assert words == cloud.command[2:]
    assert "w1: the run is already in progress" in cloud("run", runs=True).stdout
    assert "w0: runs; [" in cloud("status").stdout
    cloud.calls()
    assert "the run is already in progress" in cloud("resume", runs=True).stderr
    assert cloud.verbs() == ["describe", "ssh"]
    assert len(cloud.log()) == 1

    cloud.set_state("PREEMPTED")
    assert cloud("status").stdout == "my-tpu: PREEMPTED\n"
    cloud.calls()
    assert "is PREEMPTED; recreating it" in cloud("resume", runs=True).stderr
    made = ["describe", "delete", "create", "ssh", "scp", "ssh", "ssh"]
    assert cloud.verbs() == made
    assert until(cloud.said)[2] == cloud.command[2:]

    assert cloud("stop").stdout == "w0: asked to stop\nw1: asked to stop\n"
    until(lambda: cloud.log()[-1] == "saved")
    until(lambda: cloud("status").stdout.count("does not run; saved") == 2)
    assert cloud("stop").stdout == "w0: nothing runs\nw1: nothing runs\n"

    cloud("delete")
    assert cloud.states["tpu-vm"] is None
    assert "there is no VM my-tpu" in cloud("delete").stderr


def test_a_worker_that_lost_its_run_starts_with_the_others(cloud):
    cloud("resume", runs=True)
    until(lambda: cloud.said(0) and cloud.said(1))
    pid = cloud.directory / "worker1" / "metricjax" / "run.pid"
    os.kill(int(pid.read_text()), signal.SIGKILL)
    until(lambda: "w1: does not run" in cloud("status").stdout)
    cloud("resume", runs=True)
    until(lambda: len(cloud.log(1)) == 2)
    until(lambda: len(cloud.log(0)) == 3)
    assert cloud.log(0)[1] == "saved"


def test_what_would_be_done_is_what_is_done(cloud):
    printed = cloud("resume", "--dry-run", runs=True)
    assert cloud.calls() == [] and cloud.states["tpu-vm"] is None
    planned = [words_of(line) for line in printed.stdout.splitlines()]
    cloud("resume", runs=True)
    done = cloud.calls()
    archive = planned[2][2]
    assert [words[0] for words in planned].count("tar") == 1
    planned = [words for words in planned if words[0] != "tar"]
    copied = next(words for words in done if words[4] == "scp")
    copied[5] = archive  # Its name ends in letters drawn at random.
    assert planned == done


def test_every_dry_run_runs_nothing(cloud):
    for action in ("create", "setup", "logs", "status", "stop", "delete"):
        assert cloud(action, "--dry-run").stdout.startswith(("gcloud", "tar"))
    assert cloud("run", "--dry-run", runs=True).stdout.startswith("gcloud")
    assert cloud.calls() == []


def test_a_queued_vm(cloud):
    cloud("create", "--queued")
    calls = cloud.calls()
    assert [c[4] for c in calls] == ["describe", "create", "describe", "describe"]
    assert "--node-id=my-tpu" in calls[1]
    assert "--runtime-version=v2-alpha-tpuv5-lite" in calls[1]
    cloud.set_state(None, "SUSPENDED")
    shutil.rmtree(cloud.directory / "worker0")
    assert "is SUSPENDED; requesting it again" in cloud("create", "--queued").stderr
    made = ["describe", "delete", "create", "describe", "describe"]
    assert cloud.verbs() == made
    cloud("delete", "--queued")
    assert cloud.states == {"tpu-vm": None, "queued-resources": None}
    assert "no queued resource" in cloud("delete", "--queued").stderr


def test_other_states_of_a_vm(cloud):
    cloud.set_state("STOPPED")
    cloud("create")
    assert cloud.verbs() == ["describe", "start"]
    cloud.set_state("FAILED")
    cloud("create")
    assert cloud.verbs() == ["describe", "delete", "create"]


def test_gcloud_that_fails(cloud):
    """No login is not taken for no VM; a new VM that does not answer is asked again."""
    cloud.fail(describe=["ERROR: Reauthentication failed."])
    result = cloud("create", code=2)
    assert "Reauthentication failed" in result.stderr
    assert "could not report the state of my-tpu" in result.stderr
    assert cloud.verbs() == ["describe"]
    cloud.fail(create=["ERROR: no more capacity in the zone"])
    assert "no more capacity" in cloud("create", code=1).stderr
    cloud.set_state(None)
    cloud.fail(ssh=["ERROR: connection refused"] * 2)
    result = cloud("resume", runs=True)
    assert result.stderr.count("trying again") == 2
    cloud.fail(ssh=["ERROR: connection refused"] * 3)
    result = cloud("resume", code=2, runs=True)
    assert "workers of my-tpu do not answer" in result.stderr
    assert "started" not in result.stdout
    cloud.fail(ssh=["ERROR: connection refused"] * 3)
    assert "connection refused" in cloud("stop", code=1).stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://host/a.git", "clone --quiet https://host/a.git "),
        ("https://host/a.git@dev", "clone --quiet --branch=dev https://host/a.git "),
        ("git@host:me/a.git", "clone --quiet git@host:me/a.git "),
        ("git@host:me/a.git@dev", "clone --quiet --branch=dev git@host:me/a.git "),
    ],
)
def test_source_from_git(cloud, source, expected):
    printed = cloud("setup", "--source", source, "--dry-run").stdout.splitlines()
    assert len(printed) == 1 and expected in words_of(printed[0])[-1]


def test_a_workdir_that_is_lost_with_the_vm(cloud):
    cloud.command[2:] = ["--workdir", "runs/here"]
    assert "names no gs:// address" in cloud("run", "--dry-run", runs=True).stderr
