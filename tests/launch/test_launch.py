"""The scripts of launch/: clean, with help, and bad input told in a sentence."""

import os
import re
import shutil
import subprocess

import pytest
from launching import LAUNCH, call, install

SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_clean(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run(
        ["shellcheck", LAUNCH / script], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_started_and_help(script):
    assert os.access(LAUNCH / script, os.X_OK)
    result = call(script, "--help")
    assert result.returncode == 0 and result.stderr == ""
    assert "exit code" in result.stdout.lower() and script in result.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("tpu_vm.sh", "creat x", "'creat' is no command: choose one of create"),
        ("tpu_vm.sh", "create --zone z", "name of the VM is missing"),
        ("tpu_vm.sh", "create x", "--zone is missing"),
        ("tpu_vm.sh", "create x --zone", "--zone has no value"),
        ("tpu_vm.sh", "create x --zone z", "--type is missing"),
        ("tpu_vm.sh", "create x --zone z --type w9-8", "name it with --version"),
        ("tpu_vm.sh", "create x y --zone z", "two names, x and y"),
        ("tpu_vm.sh", "create x --zone z --sppt 1", "--sppt is no flag"),
        ("tpu_vm.sh", "setup x --zone z --source /nowhere", "/nowhere holds no"),
        ("tpu_vm.sh", "run x --zone z", "no command to run"),
        ("tpu_vm.sh", "resume x --zone z --", "no command to resume"),
        ("tpu_vm.sh", "logs x --zone z --worker one", "--worker one is no number"),
        ("tpu_worker.sh", "begin", "'begin' is no command"),
        ("slurm.sh", "", "no command to run"),
        ("slurm.sh", "python x", "this is no SLURM job: start it with sbatch"),
        ("slurm.sh", "--nodes=2 python x", "--nodes=2 is no flag"),
        ("local.sh", "", "no command to run"),
        ("local.sh", "--processes 0 true", "--processes is 0"),
        ("local.sh", "--processes two true", "--processes is 'two'"),
        ("local.sh", "--devices=0 true", "--devices is 0"),
        ("local.sh", "--port", "--port has no value"),
        ("local.sh", "--process 2 true", "--process is no flag"),
        ("local.sh", "--gpus --devices 2 true", "leave one out"),
    ],
)
def test_bad_input_is_told_in_a_sentence(script, arguments, words, tmp_path):
    programs = install(tmp_path / "bin", gcloud="raise SystemExit('I was called')")
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": ""}
    result = call(script, *arguments.split(), env=path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"{script}: ") and result.stderr.count("\n") == 1
    assert words in result.stderr


def test_no_gcloud(tmp_path):
    """A machine that has the usual commands, but not this one."""
    for name in ("bash", "dirname", "cat"):
        (tmp_path / name).symlink_to(shutil.which(name))
    result = call(
        "tpu_vm.sh", "status", "x", "--zone", "z", env={"PATH": str(tmp_path)}
    )
    assert result.returncode == 2 and "gcloud was not found" in result.stderr


def test_sky_task():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert set(task) == {
        "name",
        "workdir",
        "num_nodes",
        "resources",
        "envs",
        "setup",
        "run",
    }
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["strategy"] == "EAGER_NEXT_REGION"
    # SkyPilot asks for a variable that is null.
    assert task["envs"]["WORKDIR"] is None
    repository = LAUNCH.parent
    assert (repository / task["envs"]["CONFIG"].partition(":")[0]).is_file()
    for part in ("setup", "run"):
        checked = subprocess.run(["bash", "-n", "-c", task[part]], capture_output=True)
        assert checked.returncode == 0, checked.stderr
        known = {*task["envs"], "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK"}
        used = set(re.findall(r"\$\{?([A-Z_]+)", task[part]))
        assert used <= {*known, "SKYPILOT_NODE_IPS"}
