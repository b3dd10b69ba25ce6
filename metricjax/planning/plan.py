"""The report of `metricjax plan`: batch contents, memory, time and largest batch.

On present devices a few steps are run and measured. For an absent TPU topology programs
are compiled ahead of time, and times are estimated from published figures.
"""

import itertools
import math
import os
import time
from pathlib import Path

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
from metricjax.runtime import connection, exchange, mesh, program_costs, watchdog
from metricjax.training.run import Run, open_data


def plan(config: RunConfig, name: str) -> None:
    """Print what a run of these settings needs.

    Args:
      config: the settings; `config.plan` are those of the plan itself.
      name: what to call the config.

    Raises:
      InputError: a mistake that would stop the run at its start.
    """
    if config.plan.topology:
        target = hardware.topology(config.plan.topology)
    else:
        connection.connect()
        mesh.keep_freed_memory()
        target = hardware.present_devices()
    with watchdog.watched(config.host_timeout):
        say = exchange.printer()
        check_devices(config, target.mesh.size)
        dataset, notes = _data(config)
        run = Run.build(config, Path(), dataset, target.mesh)
        say(f"plan of {name}: nothing is trained, no workdir is made")
        say(f"devices: {target.title}")
        for note in notes:
            say(note)
        run.print_summary(say)
        _Report(run, target, say).write()


def _data(config: RunConfig) -> tuple[Dataset, tuple[str, ...]]:
    """The data set; if a benchmark is absent, its published counts and a note."""
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
    """A data set without images that has the published counts."""
    is_query = np.arange(counts.test_images) < counts.queries
    is_gallery = ~is_query if counts.queries < counts.test_images else is_query
    return Dataset(
        name,
        _even_split(counts.train_images, counts.train_classes),
        _even_split(counts.test_images, counts.test_classes, is_query, is_gallery),
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


class _Report:
    """Finds out what a run needs and prints it, sentence by sentence."""

    def __init__(self, run: Run, target: Target, say):
        self._run, self._target, self._say = run, target, say
        self._devices = target.mesh.size
        self._noun = "chip" if target.spec else "device"
        self._memory_fit = MemoryFit(run.programs, target.memory, say)
        self._flops = run.programs.step_flops()

    def write(self) -> None:
        """Print the whole report, quick parts first."""
        self._write_lengths()
        began = time.perf_counter()
        config = self._run.config
        program, need = self._memory_fit.compile(
            config, f"batch_size={config.batch_size}"
        )
        compiling = time.perf_counter() - began
        temporaries = self._write_memory(program, need)
        self._write_work(program)
        if program and self._memory_fit.fits(need):
            seconds = self._write_step(program)
            self._write_hours(seconds, compiling)
        else:
            self._say("time of a step: unknown, as it does not fit")
            self._write_remedies(need, temporaries)
        self._write_largest(need)

    def _write_lengths(self) -> None:
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

    def _write_memory(self, program, need: float) -> float:
        """Memory of one device, needed and available; returns the temporaries."""
        state = size_of(self._run.programs.abstract_state)
        batch = size_of(self._run.programs.abstract_batch) / self._devices
        memory = program and program_costs.memory(program)
        temporaries = memory.temporaries if memory else need - state - batch
        outputs = memory.outputs if memory else 0
        rest = f", results {amount(outputs)}" if outputs else ""
        has = (
            "" if self._target.memory is None else f" of {amount(self._target.memory)}"
        )
        self._say(
            f"memory of a {self._noun}: {amount(need)}{has}: state {amount(state)}, "
            f"batch {amount(batch)}, activations and other temporaries "
            f"{amount(temporaries)}{rest}"
        )
        return temporaries

    def _write_work(self, program) -> None:
        each = self._flops / self._devices
        self._say(
            f"products of a step: {self._flops / 1e12:.3g} TFLOP, {each / 1e12:.3g} a "
            f"{self._noun} (the losses' {self._run.programs.loss_flops() / 1e12:.2g})"
        )
        if program and self._devices > 1:
            traffic = program_costs.traffic(program.as_text(), self._devices)
            kinds = ", ".join(f"{n} {kind}" for kind, n in traffic.counts.items())
            self._say(
                f"between {self._noun}s: each sends {traffic.total / 2**20:.3g} MiB a "
                f"step as on a ring ({kinds}; the largest gathered array has "
                f"{traffic.gathered / 2**20:.3g} MiB)"
            )

    def _write_step(self, program) -> float:
        """The time of a step, measured or estimated, in seconds."""
        if self._target.spec is None:
            return self._write_measured(run_steps(self._run, program), program)
        flops = self._flops / self._devices
        in_float32 = self._run.config.objective.matmul_dtype == "float32"
        utilization = self._run.config.plan.utilization
        estimate = hardware.estimate_step(
            self._target.spec,
            utilization,
            flops=flops,
            loss_flops=self._run.programs.loss_flops() / self._devices * in_float32,
            moved=program_costs.moved(program, flops),
            sent=program_costs.traffic(program.as_text(), self._devices).total,
        )
        self._say(
            f"time of a step: {estimate.total:.3g} s, estimated, not measured, from "
            f"published figures: the longer of products {estimate.products:.3g} s (at "
            f"an assumed {utilization:.0%} of the peak, float32 in {hardware.PASSES} "
            f"passes) and memory {estimate.memory:.3g} s, and {estimate.between:.2g} s "
            "between chips"
        )
        return estimate.total

    def _write_measured(self, timing: Timing, program) -> float:
        size = self._run.config.batch_size
        self._say(
            f"time of a step: {timing.seconds:.3g} s, {size / timing.seconds:.3g} "
            f"images/s, measured over {counted(timing.steps, 'step')} on random images"
        )
        if timing.memory is not None:
            compiled = program_costs.memory(program)
            times = f", {timing.memory / compiled.total:.2f} x" if compiled else ""
            self._say(
                f"memory of a device in them, measured: {amount(timing.memory)}"
                f"{times} what the compiler counts"
            )
        return timing.seconds

    def _write_hours(self, seconds: float, compiling: float) -> None:
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
        known = "measured" if self._target.spec is None else "estimated"
        self._say(
            f"whole run: {_time(steps + embedding + searching + compiling)}, of which "
            f"{_time(steps)} are steps ({known}) and {_time(compiling)} compiling; "
            "whether images are decoded as fast is not checked"
        )

    def _search_seconds(self, dim: int, queries: int, gallery: int) -> float:
        """Time of one nearest-neighbour search, which runs on one device."""
        if self._target.spec is None:
            return search_seconds(dim, queries, gallery)
        rate = self._target.spec.flops * self._run.config.plan.utilization
        return hardware.PASSES * 2 * dim * queries * gallery / rate

    def _write_remedies(self, need: float, temporaries: float) -> None:
        tries, fitting = self._run.config.plan.compiles, []
        remedies = self._memory_fit.remedies(need, temporaries)
        for words, config in itertools.islice(remedies, tries):
            program, total = self._memory_fit.compile(config, words)
            if program and self._memory_fit.fits(total):
                fitting.append(f"{words} ({amount(total)} a {self._noun})")
        if fitting:
            self._say(f"this batch would fit with {' or with '.join(fitting)}")
        elif tries:
            self._say("none of these makes room: take a smaller batch or more devices")

    def _write_largest(self, need: float) -> None:
        tries = self._run.config.plan.compiles
        if not tries or self._target.memory is None:
            return
        most = self._most()
        best, total = self._memory_fit.largest_batch(need, most, tries)
        if not best:
            self._say(f"largest batch: none of the {tries} tried fits")
            return
        bound = "" if best < most * 0.98 else ", and there is data for no larger one"
        self._say(
            f"largest batch of these settings seen to fit: {best} "
            f"({amount(total)} a {self._noun}){bound}"
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
