"""Before a run: what its loss sees, what it needs, and how long it takes.

For the devices that are here a few steps are run and measured; for a TPU topology that
is not, programs are compiled ahead of time and times estimated from published figures.
"""

import itertools
import math
import os
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from metricjax.config.constraints import check_devices
from metricjax.config.schema import RunConfig
from metricjax.data.benchmarks import papers
from metricjax.data.datasets import Dataset, Split
from metricjax.data.samplers.class_balanced import least_images
from metricjax.data.samplers.registry import OF_CLASSES
from metricjax.errors import counted
from metricjax.planning import hardware
from metricjax.planning.batch_size import MemoryFit, size_of
from metricjax.planning.hardware import Target, amount
from metricjax.planning.timing import Timing, run_steps, search_seconds
from metricjax.runtime import connection, mesh, program_costs, watchdog
from metricjax.training.run import Run, open_data


def plan(config: RunConfig, name: str) -> None:
    """Print what a run of these settings needs.

    Args:
      config: the settings; `config.plan` says what to look at.
      name: what to call them.

    Raises:
      InputError: whatever would end the run at its start.
    """
    if config.plan.topology:
        target = hardware.topology(config.plan.topology)
    else:
        connection.connect()
        mesh.keep_freed_memory()
        target = hardware.here()
    with watchdog.watched(config.host_timeout):
        say = partial(print, flush=True) if jax.process_index() == 0 else _silent
        check_devices(config, target.mesh.size)
        dataset, notes = _data(config)
        run = Run.of(config, Path(), dataset, target.mesh)
        say(f"plan of {name}: nothing is trained, no workdir is made")
        say(f"devices: {target.title}")
        for note in notes:
            say(note)
        run.introduce(say)
        _Plan(run, target, say).tell()


def _data(config: RunConfig) -> tuple[Dataset, tuple[str, ...]]:
    """The data set, and what is assumed of one of the papers' that is not here."""
    name, root = config.data.name, config.data.root
    known = papers.KNOWN.get(name)
    if known is None or (root and os.path.exists(os.path.expanduser(root))):
        return open_data(config), ()
    note = (
        f"assumed: {known.title} is not here (data.root={root!r}); its images are "
        "counted as in the papers, and taken to be as many of each class"
    )
    return _counted(name, known.counts), (note,)


def _counted(name: str, counts: papers.Counts) -> Dataset:
    """A data set of which the counts alone are known."""
    asks = np.arange(counts.test_images) < counts.queries
    found = ~asks if counts.queries < counts.test_images else asks
    return Dataset(
        name,
        _even_split(counts.train_images, counts.train_classes),
        _even_split(counts.test_images, counts.test_classes, asks, found),
    )


def _even_split(images, classes, is_query=None, is_gallery=None) -> Split:
    return Split(
        labels=np.arange(images) % classes,
        class_names=tuple(map(str, range(classes))),
        names=tuple(map(str, range(images))),
        reader=lambda index: None,
        is_query=is_query,
        is_gallery=is_gallery,
    )


class _Plan:
    """What is found out about a run, told sentence by sentence."""

    def __init__(self, run: Run, target: Target, say):
        self._run, self._target, self._say = run, target, say
        self._devices = target.mesh.size
        self._one = "chip" if target.figures else "device"
        self._room = MemoryFit(run.programs, target.memory, say)
        self._flops = run.programs.step_flops()

    def tell(self) -> None:
        """All of it; what takes long comes after what does not."""
        self._tell_lengths()
        began = time.perf_counter()
        config = self._run.config
        program, need = self._room.compile(config, f"batch_size={config.batch_size}")
        compiling = time.perf_counter() - began
        temporaries = self._tell_memory(program, need)
        self._tell_work(program)
        if program and self._room.has(need):
            seconds = self._tell_step(program)
            self._tell_hours(seconds, compiling)
        else:
            self._say("time of a step: unknown, as it does not fit")
            self._tell_remedies(need, temporaries)
        self._tell_largest(need)

    def _tell_lengths(self) -> None:
        run, config = self._run, self._run.config
        epochs = config.steps / run.sampler.steps_per_epoch
        state = amount(size_of(run.programs.abstract_state))
        self._say(
            f"run: {config.steps} steps = {epochs:.3g} epochs, "
            f"{self._evaluations} validations\n"
            f"checkpoint: {state}, three are kept (the latest two and the best)"
        )

    @property
    def _evaluations(self) -> int:
        return math.ceil(self._run.config.steps / self._run.config.eval_every)

    def _tell_memory(self, program, need: float) -> float:
        """Memory of one device against what it has; returns the temporaries."""
        state = size_of(self._run.programs.abstract_state)
        batch = size_of(self._run.programs.abstract_batch) / self._devices
        found = program and program_costs.memory(program)
        temporaries = found.temporaries if found else need - state - batch
        rest = f", results {amount(found.outputs)}" if found and found.outputs else ""
        has = (
            "" if self._target.memory is None else f" of {amount(self._target.memory)}"
        )
        self._say(
            f"memory of a {self._one}: {amount(need)}{has}: state {amount(state)}, "
            f"batch {amount(batch)}, activations and other temporaries "
            f"{amount(temporaries)}{rest}"
        )
        return temporaries

    def _tell_work(self, program) -> None:
        each = self._flops / self._devices
        self._say(
            f"products of a step: {self._flops / 1e12:.3g} TFLOP, {each / 1e12:.3g} a "
            f"{self._one} (the losses' {self._run.programs.loss_flops() / 1e12:.2g})"
        )
        if program and self._devices > 1:
            found = program_costs.traffic(program.as_text(), self._devices)
            kinds = ", ".join(f"{n} {kind}" for kind, n in found.counts.items())
            self._say(
                f"between {self._one}s: each sends {found.total / 2**20:.3g} MiB a "
                f"step as on a ring ({kinds}; the largest gathered array has "
                f"{found.gathered / 2**20:.3g} MiB)"
            )

    def _tell_step(self, program) -> float:
        """The time of a step, measured or estimated, in seconds."""
        if self._target.figures is None:
            return self._measured(run_steps(self._run, program), program)
        flops = self._flops / self._devices
        in_float32 = self._run.config.objective.matmul_dtype == "float32"
        utilization = self._run.config.plan.utilization
        found = hardware.expected(
            self._target.figures,
            utilization,
            flops=flops,
            loss_flops=self._run.programs.loss_flops() / self._devices * in_float32,
            moved=program_costs.moved(program, flops),
            sent=program_costs.traffic(program.as_text(), self._devices).total,
        )
        self._say(
            f"time of a step: {found.total:.3g} s, estimated, not measured, from "
            f"published figures: the longer of products {found.products:.3g} s (at an "
            f"assumed {utilization:.0%} of the peak, float32 in {hardware.PASSES} "
            f"passes) and memory {found.memory:.3g} s, and {found.between:.2g} s "
            "between chips"
        )
        return found.total

    def _measured(self, trial: Timing, program) -> float:
        size = self._run.config.batch_size
        self._say(
            f"time of a step: {trial.seconds:.3g} s, {size / trial.seconds:.3g} "
            f"images/s, measured over {counted(trial.steps, 'step')} on random images"
        )
        if trial.memory is not None:
            compiled = program_costs.memory(program)
            times = f", {trial.memory / compiled.total:.2f} x" if compiled else ""
            self._say(
                f"memory of a device in them, measured: {amount(trial.memory)}"
                f"{times} what the compiler counts"
            )
        return trial.seconds

    def _tell_hours(self, seconds: float, compiling: float) -> None:
        run, config = self._run, self._run.config
        test, held = run.dataset.test, len(run.validation)
        each, rate = run.programs.embedding_flops(), self._flops / seconds
        embedding = (self._evaluations * held + 2 * len(test)) * each / rate
        asked = int(test.is_query.sum()), int(test.is_gallery.sum())
        searching = 2 * self._search_seconds(config.model.dim, *asked)
        self._say(
            f"evaluation: {held} images at each validation, {len(test)} twice at the "
            f"end, {each / 1e9:.3g} GFLOP an image: {_time(embedding)} as fast as "
            f"training; neighbours of {asked[0]} among {asked[1]}: {_time(searching)}"
        )
        steps = config.steps * seconds
        known = "measured" if self._target.figures is None else "estimated"
        self._say(
            f"whole run: {_time(steps + embedding + searching + compiling)}, of which "
            f"{_time(steps)} are steps ({known}) and {_time(compiling)} compiling; "
            "whether data come as fast is not looked at"
        )

    def _search_seconds(self, dim: int, queries: int, gallery: int) -> float:
        """To find the neighbours once, which is done on one device."""
        if self._target.figures is None:
            return search_seconds(dim, queries, gallery)
        rate = self._target.figures.flops * self._run.config.plan.utilization
        return hardware.PASSES * 2 * dim * queries * gallery / rate

    def _tell_remedies(self, need: float, temporaries: float) -> None:
        tries, fitting = self._run.config.plan.compiles, []
        remedies = self._room.remedies(need, temporaries)
        for words, config in itertools.islice(remedies, tries):
            program, total = self._room.compile(config, words)
            if program and self._room.has(total):
                fitting.append(f"{words} ({amount(total)} a {self._one})")
        if fitting:
            self._say(f"this batch would fit with {' or with '.join(fitting)}")
        elif tries:
            self._say("none of these makes room: take a smaller batch or more devices")

    def _tell_largest(self, need: float) -> None:
        tries = self._run.config.plan.compiles
        if not tries or self._target.memory is None:
            return
        most = self._most()
        best, total = self._room.largest_batch(need, most, tries)
        if not best:
            self._say(f"largest batch: none of the {tries} tried fits")
            return
        bound = "" if best < most * 0.98 else ", and there is data for no larger one"
        self._say(
            f"largest batch of these settings seen to fit: {best} "
            f"({amount(total)} a {self._one}){bound}"
        )

    def _most(self) -> int:
        """The largest batch that there is data for."""
        run, config = self._run, self._run.config
        most = len(run.train)
        if config.sampler in OF_CLASSES:
            each = config.instances_per_class
            least = least_images(each, config.sampler == "distinct")
            most = int((np.bincount(run.train.labels) >= least).sum()) * each
        remembered = config.objective.memory.size
        return min(most, remembered) if remembered else most


def _time(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"


def _silent(sentence: str) -> None:
    """Hosts but the first say nothing."""
