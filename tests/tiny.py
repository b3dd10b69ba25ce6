"""A run small enough for tests: shapes to tell apart, settings, the command."""

import os
import random
import shutil
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import pytest
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
        self, workdir, *overrides, before="", devices=1, inside=(), cached=True, **popen
    ) -> subprocess.Popen:
        """`python -m metricjax.main` in the directory of the shapes.

        Args:
          workdir: of the run.
          overrides: `key=value` of the config.
          before: Python to execute first.
          devices: how many the host pretends to have.
          inside: command to run it under.
          cached: whether to use the cache of compiled programs.
        """
        program = ["-c", before + MAIN] if before else ["-m", "metricjax.main"]
        flags = ["--config", self.config, "--workdir", workdir]
        settings = [f"--config.{override}" for override in overrides]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        if not self.optimized:
            environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        if cached:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(self.directory / "compiled")
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
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
