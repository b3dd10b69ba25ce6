"""Finds the largest batch that fits, and settings that save memory, by compiling."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax

from metricjax.config.schema import RunConfig
from metricjax.data.samplers.registry import OF_CLASSES
from metricjax.planning.hardware import amount
from metricjax.runtime import program_costs
from metricjax.training.programs import TrainPrograms

# A batch larger by less than this share is not worth another compilation.
_TOLERANCE = 0.02


@dataclass
class MemoryFit:
    """Compiles programs to find out whether they fit into the memory of a device.

    Attributes:
      programs: the programs of the unchanged settings.
      limit: bytes of a device that programs may use; None: unknown, everything fits.
      say: called with a sentence before and after each compilation.
    """

    programs: TrainPrograms
    limit: float | None
    say: Callable[[str], None]

    def compile(self, config: RunConfig, what: str) -> tuple[Any, float]:
        """Compile the training step of other settings; (program, bytes of a device).

        The program is None if the compiler refuses it as too large.
        """
        began = time.perf_counter()
        self.say(f"compiling the training step with {what} ...")
        programs = replace(self.programs, config=config)
        try:
            program = programs.lower_train_step().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            arguments = size_of(programs.abstract_state)
            arguments += size_of(programs.abstract_batch) // programs.mesh.size
            program = None
            total = float(program_costs.needed(error, arguments) or math.inf)
        else:
            memory = program_costs.memory(program)
            total = float(memory.total) if memory else 0.0
        seconds = time.perf_counter() - began
        result = "fits" if program and self.fits(total) else "does not fit"
        self.say(f"  {amount(total)} a device, {result} ({seconds:.0f} s)")
        return program, total if program else max(total, self.limit or 0.0) + 1

    def fits(self, total: float) -> bool:
        """Whether so many bytes fit into the memory of a device."""
        return self.limit is None or total <= self.limit

    def largest_batch(self, need: float, most: int, tries: int) -> tuple[int, float]:
        """Search for the largest batch that fits; returns (batch, bytes of a device).

        Memory grows almost linearly with the batch, so a secant through two known
        batches gives the next one to compile.

        Args:
          need: bytes of a device with the configured batch.
          most: the largest batch that there is data for.
          tries: maximum number of compilations.

        Returns:
          (0, 0) if no batch that was tried fits.
        """
        config = self.programs.config
        state = float(size_of(self.programs.abstract_state))
        points = {0: state, config.batch_size: need}
        multiple = batch_multiple(config, self.programs.mesh.size)
        for _ in range(tries):
            guess = _next(points, self.limit, multiple, most)
            if guess is None:
                break
            larger = replace(config, batch_size=guess)
            _, points[guess] = self.compile(larger, f"batch_size={guess}")
        fitting = [size for size, total in points.items() if size and self.fits(total)]
        best = max(fitting, default=0)
        return best, points[best] if best else 0.0

    def remedies(self, need: float, temporaries: float) -> Iterator[tuple[str, Any]]:
        """(description, settings) of changes that save memory, the fastest first.

        Args:
          need: bytes of a device with the configured settings.
          temporaries: the part of `need` that shrinks with the micro-batch.
        """
        config = self.programs.config
        bfloat16 = replace(config, model=replace(config.model, dtype="bfloat16"))
        remat = replace(config, model=replace(config.model, remat=True))
        if config.model.dtype != "bfloat16":
            yield "model.dtype=bfloat16", bfloat16
        micro = self._micro_batch(need, temporaries)
        if not config.model.remat:
            yield "model.remat=True", remat
        if micro:
            parts = replace(config, micro_batch_size=micro)
            yield f"micro_batch_size={micro}", parts
            all_three = replace(parts, model=replace(bfloat16.model, remat=True))
            if all_three != parts:
                words = f"micro_batch_size={micro}, model.dtype=bfloat16"
                yield f"{words}, model.remat=True", all_three

    def _micro_batch(self, need: float, temporaries: float) -> int | None:
        """The largest micro-batch that should fit, with 10% of the memory to spare."""
        config, devices = self.programs.config, self.programs.mesh.size
        size, now = config.batch_size, config.micro_batch_size or config.batch_size
        parts = [n for n in range(devices, now, devices) if size % n == 0]
        spare = 0.9 * (self.limit or math.inf) - (need - temporaries)
        fitting = [n for n in parts if temporaries * n / now <= spare]
        return max(fitting, default=min(parts, default=None))


def batch_multiple(config: RunConfig, devices: int) -> int:
    """The number that batches must be a multiple of: whole groups on each device."""
    group = config.instances_per_class if config.sampler in OF_CLASSES else 1
    multiple = devices * (4 if config.sampler == "pairs" else group)
    return math.lcm(multiple, config.micro_batch_size or 1)


def _next(
    points: dict[int, float], limit: float, multiple: int, most: int
) -> int | None:
    """The next batch to try; None once the largest known fit is good enough."""
    most = most // multiple * multiple
    below = max((size for size, total in points.items() if total <= limit), default=0)
    above = min((size for size in points if size > below), default=None)
    guess = _secant(points, limit, most)
    guess = min(guess // multiple * multiple, most)
    if above is not None and guess >= above:
        guess = (below + above) // 2 // multiple * multiple
    return guess if guess > below * (1 + _TOLERANCE) else None


def _secant(points: dict[int, float], limit: float, most: int) -> int:
    """Where a line through the two points nearest to the limit reaches it."""
    known = sorted((size for size, total in points.items() if math.isfinite(total)))
    # The point of 0 images is an estimate, not a compiled program.
    known = known[1:] if len(known) > 2 else known
    if len(known) < 2:
        return most
    known.sort(key=lambda size: abs(points[size] - limit))
    first, second = known[:2]
    slope = (points[second] - points[first]) / (second - first)
    return int(first + (limit - points[first]) / slope) if slope > 0 else most


def size_of(tree: Any) -> int:
    """Bytes of a tree of arrays or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
