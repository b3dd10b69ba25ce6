"""How large a batch memory has room for, and what would make room: by compiling."""

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

# A larger batch within this share of one that fits is not worth another program.
_CLOSE = 0.02


@dataclass
class MemoryFit:
    """The memory of a device, and the programs that were compiled to fit it.

    Attributes:
      blueprint: of the settings as they are.
      limit: bytes of a device that programs may use; None: unknown, all fits.
      say: what is told of what is being compiled.
    """

    blueprint: TrainPrograms
    limit: float | None
    say: Callable[[str], None]

    def compile(self, config: RunConfig, what: str) -> tuple[Any, float]:
        """The training step of other settings, and the bytes of a device it needs.

        The program is None where its compiler refuses it as too large.
        """
        began = time.perf_counter()
        self.say(f"compiling the training step with {what} ...")
        blueprint = replace(self.blueprint, config=config)
        try:
            program = blueprint.lower_train_step().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            given = size_of(blueprint.abstract_state)
            given += size_of(blueprint.abstract_batch) // blueprint.mesh.size
            program = None
            total = float(program_costs.needed(error, given) or math.inf)
        else:
            found = program_costs.memory(program)
            total = float(found.total) if found else 0.0
        seconds = time.perf_counter() - began
        verdict = "fits" if program and self.has(total) else "does not fit"
        self.say(f"  {amount(total)} a device, {verdict} ({seconds:.0f} s)")
        return program, total if program else max(total, self.limit or 0.0) + 1

    def has(self, total: float) -> bool:
        """Whether there is room for so many bytes."""
        return self.limit is None or total <= self.limit

    def largest_batch(self, need: float, most: int, tries: int) -> tuple[int, float]:
        """The largest batch of these settings that was seen to fit, and its bytes.

        A line through what two batches need leads to the next, which is compiled.

        Args:
          need: bytes of a device with the batch as it is.
          most: the largest batch that there is data for.
          tries: how many programs to compile at most.

        Returns:
          Batch and bytes; (0, 0) where none of those tried fits.
        """
        config = self.blueprint.config
        state = float(size_of(self.blueprint.abstract_state))
        points = {0: state, config.batch_size: need}
        multiple = batch_multiple(config, self.blueprint.mesh.size)
        for _ in range(tries):
            guess = _next(points, self.limit, multiple, most)
            if guess is None:
                break
            larger = replace(config, batch_size=guess)
            _, points[guess] = self.compile(larger, f"batch_size={guess}")
        fitting = [size for size, total in points.items() if size and self.has(total)]
        best = max(fitting, default=0)
        return best, points[best] if best else 0.0

    def remedies(self, need: float, temporaries: float) -> Iterator[tuple[str, Any]]:
        """(words, settings) of what may make room, the cheapest in time first.

        Args:
          need: bytes of a device with the settings as they are.
          temporaries: those of them that shrink with the part of the batch that goes
            through the network at a time.
        """
        config = self.blueprint.config
        lean = replace(config, model=replace(config.model, dtype="bfloat16"))
        kept = replace(config, model=replace(config.model, remat=True))
        if config.model.dtype != "bfloat16":
            yield "model.dtype=bfloat16", lean
        micro = self._micro_batch(need, temporaries)
        if not config.model.remat:
            yield "model.remat=True", kept
        if micro:
            parts = replace(config, micro_batch_size=micro)
            yield f"micro_batch_size={micro}", parts
            all_three = replace(parts, model=replace(lean.model, remat=True))
            if all_three != parts:
                words = f"micro_batch_size={micro}, model.dtype=bfloat16"
                yield f"{words}, model.remat=True", all_three

    def _micro_batch(self, need: float, temporaries: float) -> int | None:
        """The largest part of the batch that there should well be room for."""
        config, devices = self.blueprint.config, self.blueprint.mesh.size
        size, now = config.batch_size, config.micro_batch_size or config.batch_size
        parts = [n for n in range(devices, now, devices) if size % n == 0]
        spare = 0.9 * (self.limit or math.inf) - (need - temporaries)
        fitting = [n for n in parts if temporaries * n / now <= spare]
        return max(fitting, default=min(parts, default=None))


def batch_multiple(config: RunConfig, devices: int) -> int:
    """What batches must be a multiple of: whole groups on every device."""
    group = config.instances_per_class if config.sampler in OF_CLASSES else 1
    multiple = devices * (4 if config.sampler == "pairs" else group)
    return math.lcm(multiple, config.micro_batch_size or 1)


def _next(
    points: dict[int, float], limit: float, multiple: int, most: int
) -> int | None:
    """The next batch to try; None where one that fits is as good as the largest."""
    most = most // multiple * multiple
    below = max((size for size, total in points.items() if total <= limit), default=0)
    above = min((size for size in points if size > below), default=None)
    guess = _on_line(points, limit, most)
    guess = min(guess // multiple * multiple, most)
    if above is not None and guess >= above:
        guess = (below + above) // 2 // multiple * multiple
    return guess if guess > below * (1 + _CLOSE) else None


def _on_line(points: dict[int, float], limit: float, most: int) -> int:
    """Where a line through the two points next to the limit reaches it."""
    known = sorted((size for size, total in points.items() if math.isfinite(total)))
    known = known[1:] if len(known) > 2 else known  # 0 images were never compiled
    if len(known) < 2:
        return most
    known.sort(key=lambda size: abs(points[size] - limit))
    first, second = known[:2]
    slope = (points[second] - points[first]) / (second - first)
    return int(first + (limit - points[first]) / slope) if slope > 0 else most


def size_of(tree: Any) -> int:
    """Bytes of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
