"""`launch/local.sh`, for real."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from launching import LAUNCH, RUN, call, install, words_of


def test_local_dry_run():
    arguments = ("--processes", 2, "--devices", 3, "--port=1234", "--dry-run")
    env = {"XLA_FLAGS": "--some_flag=1"}
    result = call("local.sh", *arguments, "echo", "a b", "$x", env=env)
    assert result.returncode == 0
    flags = "XLA_FLAGS=--some_flag=1 --xla_force_host_platform_device_count=3"
    assert [shlex.split(line) for line in result.stdout.splitlines()] == [
        [
            "env",
            "JAX_COORDINATOR_ADDRESS=127.0.0.1:1234",
            "JAX_NUM_PROCESSES=2",
            f"JAX_PROCESS_ID={number}",
            "JAX_PLATFORMS=cpu",
            flags,
            "echo",
            "a b",
            "$x",
        ]
        for number in range(2)
    ]


@pytest.mark.parametrize(
    ("processes", "visible", "shares"),
    [
        (2, "0,2,4,6", ["0,2", "4,6"]),
        (4, None, ["0", "1", "2", "3"]),
        (3, None, None),
    ],
)
def test_local_gpus_are_divided(processes, visible, shares, tmp_path):
    programs = install(tmp_path / "bin", **{"nvidia-smi": "print('0\\n1\\n2\\n3')"})
    env = {"PATH": f"{programs}:{os.environ['PATH']}"}
    env["CUDA_VISIBLE_DEVICES"] = visible or ""
    arguments = ("--gpus", "--processes", processes, "--dry-run", "train")
    result = call("local.sh", *arguments, env=env)
    if shares is None:
        assert result.returncode == 2 and "cannot share 4 GPUs" in result.stderr
        return
    words = [words_of(line) for line in result.stdout.splitlines()]
    found = [word for line in words for word in line if word.startswith("CUDA")]
    assert found == [f"CUDA_VISIBLE_DEVICES={share}" for share in shares]
    assert "xla_force" not in result.stdout


def test_local_lines_have_the_number_of_their_host():
    program = 'echo "out $1 $JAX_PROCESS_ID"; echo err >&2; printf "no end"'
    result = call("local.sh", "--", "bash", "-c", program, "bash", "a  b")
    assert result.returncode == 0
    for number in range(2):
        mine = [x for x in result.stdout.splitlines() if x.startswith(f"[{number}]")]
        assert mine == [f"[{number}] out a  b {number}", f"[{number}] no end"]
    assert sorted(result.stderr.splitlines()) == ["[0] err", "[1] err"]


# Host 1 fails; the others go on, and what they do when told to end is their argument.
FAILING = """
if [ "$JAX_PROCESS_ID" = 1 ]; then exit 7; fi
trap "$1" TERM
for i in $(seq 600); do sleep 0.1; done
"""


@pytest.mark.parametrize(
    ("answer", "said"), [("echo told; exit 0", "[0] told"), ("", None)]
)
def test_local_ends_all_where_one_fails(answer, said):
    began = time.monotonic()
    arguments = ("--processes", 3, "--grace", 1, "bash", "-c", FAILING, "bash", answer)
    result = call("local.sh", *arguments)
    assert result.returncode == 7
    assert "host 1 ended with code 7; the others have 1 s" in result.stderr
    assert time.monotonic() - began < 30
    if said:
        assert said in result.stdout.splitlines()
    else:
        assert "killing the remaining processes" in result.stderr
    assert "line " not in result.stderr  # Nothing of the shell's own.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on(number, tmp_path):
    program = tmp_path / "run.py"
    program.write_text(RUN.replace("SIGTERM", number.name))
    process = subprocess.Popen(
        [LAUNCH / "local.sh", "--", sys.executable, program],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"FAKE_CODE": "3"},
    )
    try:
        for _ in range(2):
            assert process.stdout.readline()[4] == "["
        process.send_signal(number)
        rest = process.stdout.read().splitlines()
        assert sorted(rest) == ["[0] saved", "[1] saved"]
        assert process.wait(60) == 3
    finally:
        process.kill()
        process.stdout.close()


def test_local_leaves_no_files(tmp_path):
    assert call("local.sh", "true", env={"TMPDIR": str(tmp_path)}).returncode == 0
    assert call("local.sh", "false", env={"TMPDIR": str(tmp_path)}).returncode == 1
    assert list(tmp_path.iterdir()) == []


TWO_BY_TWO = [LAUNCH / "local.sh", "--processes", "2", "--devices", "2"]


@pytest.mark.slow
def test_local_training_is_that_of_one_process(tiny, tmp_path):
    """Two processes of two devices each as one process of four."""
    settings = ("steps=10", "eval_every=10", "checkpoint_every=10")
    one = tiny.run(tmp_path / "one", *settings, devices=4)
    assert one.returncode == 0, one.stderr
    two = tiny.run(tmp_path / "two", *settings, inside=[*TWO_BY_TWO, "--"])
    assert two.returncode == 0, two.stderr
    for said in (one.stdout, two.stdout):
        assert "loss sees 8 = 4 " in said

    def losses(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        lines = [json.loads(line) for line in lines]
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    expected = losses("one")
    assert len(expected) == 5 and losses("two") == pytest.approx(expected, rel=1e-4)
    expected, found = (
        json.loads((tmp_path / name / "results.json").read_text())
        for name in ("one", "two")
    )
    assert found["map@r"] == pytest.approx(expected["map@r"], abs=0.01)


DYING = """
import os, signal
from metricjax.training.step_metrics import StepMetrics

add = StepMetrics.add


def dying(self, done, *rest):
    if done == 4 and os.environ["JAX_PROCESS_ID"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return add(self, done, *rest)


StepMetrics.add = dying
"""


@pytest.mark.slow
def test_local_host_that_is_killed_ends_all(tiny, tmp_path):
    inside = [*TWO_BY_TWO, "--grace", "20", "--"]
    result = tiny.run(tmp_path / "run", before=DYING, inside=inside)
    assert result.returncode == 128 + signal.SIGKILL
    assert "host 1 ended with code 137" in result.stderr
    assert "[0] step 2/30" in result.stdout
    assert not (tmp_path / "run" / "report.html").exists()
