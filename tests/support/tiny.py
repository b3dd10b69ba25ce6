"""A run small enough for tests: shapes to tell apart, settings, the command."""

import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import pytest
from devices import xla_flags
from PIL import Image, ImageDraw

CONFIG = """\
from metricjax.config import default_config, terms


def get_config():
    config = default_config()
    config.steps = 30
    config.batch_size = 8
    config.instances_per_class = 2
    config.log_every = 2
    config.eval_every = 10
    config.checkpoint_every = 5
    config.data.name = "folder"
    config.data.root = "shapes"
    config.data.holdout = 0.4
    config.data.transform.recipe = "affine"
    config.data.transform.image_size = 16
    config.data.transform.channels = 1
    config.model.backbone = "convnet"
    config.model.widths = (8, 16)
    config.model.descriptors = "G"
    config.model.dim = 16
    config.evaluation.batch_size = 16
    config.evaluation.bootstrap = 50
    config.objective.terms = terms(triplet={}, softmax={})
    config.optimizer.learning_rate = 3e-2
    return config
"""
# The same with losses that keep something: proxies, groups of classes, a memory.
KEEPING = CONFIG.replace(
    "terms(triplet={}, softmax={})",
    """terms(
        contrastive={},
        hierarchical_proxy={"clusters": (2,), "warmup": 8, "every": 9},
    )
    config.objective.memory.size = 20
    config.objective.memory.start_step = 4
    config.optimizer.group_rates.proxies = 3.0""",
)
SETTINGS = {"steps": 30, "log_every": 2, "eval_every": 10, "checkpoint_every": 5}
TRAIN, VALIDATION, TEST = 4, 3, 7
CLASSES, IMAGES = TRAIN + VALIDATION + TEST, 6

# `python -c` of this is `python -m metricjax.main` with something done before.
MAIN = "\nimport sys\nfrom metricjax.main import main\nsys.exit(main())\n"


def draw_shapes(root):
    """Polygons in folders by class, of 3 to 9 corners; those to test on are grey."""
    rng = random.Random(0)
    for label in range(CLASSES):
        folder = Path(root) / f"class{label:02d}"
        folder.mkdir(parents=True)
        for number in range(IMAGES):
            image = Image.new("L", (24, 24), 255)
            place = (rng.randint(8, 14), rng.randint(8, 14), 7)
            ImageDraw.Draw(image).regular_polygon(
                place,
                3 + label % 7,
                fill=0 if label < 7 else 120,
                rotation=rng.randint(0, 20),
            )
            image.save(folder / f"{number}.png")
    return Path(root)


class Tiny:
    """Shapes and a config in a directory, and runs of it as processes.

    All share a cache of compiled programs: what is compiled once is compiled for all.

    Args:
      directory: to work in.
      optimized: whether programs are compiled as they are for users; otherwise in a
        third of the time.
      config: the text of the config file.
    """

    def __init__(self, directory: Path, optimized: bool = False, config: str = CONFIG):
        self.directory = directory
        self.optimized = optimized
        self.shapes = draw_shapes(directory / "shapes")
        self.config = directory / "tiny.py"
        self.config.write_text(config)

    def start(
        self,
        workdir,
        *overrides,
        before="",
        devices=1,
        inside=(),
        cached=True,
        variables=None,
        **popen,
    ) -> subprocess.Popen:
        """`python -m metricjax.main` in the directory of the shapes.

        Args:
          workdir: of the run.
          overrides: `key=value` of the config.
          before: Python to execute first.
          devices: how many the host pretends to have.
          inside: command to run it under.
          cached: whether to use a cache of compiled programs.
          variables: of the environment.
        """
        program = ["-c", before + MAIN] if before else ["-m", "metricjax.main"]
        flags = ["--config", self.config, "--workdir", workdir]
        settings = [f"--config.{override}" for override in overrides]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags(devices),
        }
        if not self.optimized:
            environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        if cached:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(self.directory / "compiled")
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        else:
            environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        # The tests' own jax has set it for itself.
        environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
        environment |= variables or {}
        return subprocess.Popen(
            [*inside, sys.executable, *program, *flags, *settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **{"cwd": self.directory, "env": environment, **popen},
        )

    def run(self, workdir, *overrides, **options) -> subprocess.CompletedProcess:
        """The same, waited for."""
        process = self.start(workdir, *overrides, **options)
        try:
            out, err = process.communicate(timeout=600)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @contextmanager
    def nursery(self, *overrides) -> Iterator["Nursery"]:
        """Runs that start in a moment, as all that they import is imported already."""
        server = self.start(
            "workdir",
            *overrides,
            before=NURSERY,
            stdin=subprocess.PIPE,
            variables={"PYTHONUNBUFFERED": "1"},
        )
        try:
            yield Nursery(server)
        finally:
            server.kill()
            server.communicate()

    def start_hosts(
        self, workdir, *overrides, count=2, of_host=None, **options
    ) -> "Hosts":
        """The same on several hosts of two devices each, beside each other here.

        Args:
          workdir: of the run.
          overrides: as of `start`.
          count: of hosts.
          of_host: by number of a host, what it is started with instead: options of
            `start`, and `workdir` and `overrides`.
          options: of all hosts.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = []
        for number in range(count):
            own = {"workdir": workdir, "overrides": overrides, "devices": 2, **options}
            own |= (of_host or {}).get(number, {})
            announced = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
            }
            own["variables"] = announced | (own.get("variables") or {})
            place, changes = own.pop("workdir"), own.pop("overrides")
            processes.append(self.start(place, *changes, **own))
        return Hosts(processes)

    @cached_property
    def finished(self) -> Path:
        """The workdir of a run that nothing disturbed."""
        workdir = self.directory / "finished"
        result = self.run(workdir)
        assert result.returncode == 0, result.stderr
        (self.directory / "finished.txt").write_text(result.stdout)
        return workdir

    @cached_property
    def said(self) -> str:
        """What that run printed."""
        assert self.finished
        return (self.directory / "finished.txt").read_text()


# Forks for every line that it reads, before jax knows of any device.
# Steps take 60 ms at least, so that checkpoints are written between them.
NURSERY = """
import os, sys, time
from metricjax.training import host_checks, loop
from metricjax import main
from metricjax.runtime import connection, watchdog
wait_for = loop.StepMetrics.wait_for
def wait_longer(meter, batches):
    time.sleep(0.06)
    return wait_for(meter, batches)
loop.StepMetrics.wait_for = wait_longer
arguments = sys.argv[1:]
for line in sys.stdin:
    workdir, out = line.split()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        arguments[arguments.index("--workdir") + 1] = workdir
        sys.exit(main.main(arguments))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
sys.exit()
"""


class Nursery:
    """One run at a time, each a fork of a process that has imported all it needs."""

    def __init__(self, server: subprocess.Popen):
        self._server = server

    def start(self, workdir: Path, out: Path) -> int:
        """`python -m metricjax.main` that prints into a file; its process id."""
        out.unlink(missing_ok=True)
        self._server.stdin.write(f"{workdir} {out}\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        """Its exit code."""
        return int(self._server.stdout.readline())


class Hosts:
    """Processes that run as one; use as a context manager, so that none is left.

    What they print is collected: a full pipe would hold them up.
    """

    def __init__(self, processes: list[subprocess.Popen]):
        self.processes = processes
        self._printed = [[[], []] for _ in processes]
        self._readers = []
        for process, lines in zip(processes, self._printed, strict=True):
            for stream, kept in zip(
                (process.stdout, process.stderr), lines, strict=True
            ):
                reader = threading.Thread(target=kept.extend, args=(stream,))
                reader.start()
                self._readers.append(reader)

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()
        self.wait()

    def wait(self, timeout: float = 300) -> list[int]:
        """Their exit codes."""
        codes = [process.wait(timeout) for process in self.processes]
        for reader in self._readers:
            reader.join()
        return codes

    def wait_for(self, text: str, host: int = 0, timeout: float = 300) -> None:
        """Wait until a host has printed a text."""
        until = time.monotonic() + timeout
        while text not in self.out(host):
            ended = self.processes[host].poll() is not None
            assert time.monotonic() < until and not ended, (
                f"{text!r} never came: {self.out(host)}{self.err(host)}"
            )
            time.sleep(0.02)

    def out(self, host: int) -> str:
        return "".join(self._printed[host][0])

    def err(self, host: int) -> str:
        return "".join(self._printed[host][1])


def on_small_disk(directory, size) -> list[str]:
    """What to put before a command so that `directory` is a small file system to it.

    `size` as tmpfs takes it ("400k"). Skips the test where a user may not mount one.
    """
    mount = f'mount -t tmpfs -o size={size} none "$1" && shift && exec "$@"'
    inside = ["unshare", "-rm", "sh", "-c", mount, "sh", str(directory)]
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare to mount a small file system with")
    trial = subprocess.run([*inside, "true"], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"no small file system may be mounted here: {trial.stderr.strip()}")
    return inside
