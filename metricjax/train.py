"""The run: open, compile, resume, loop, evaluate, report. The only stateful file."""

import importlib.metadata
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from metricjax import config as config_module
from metricjax import judging, mesh, models, optimizers, step
from metricjax.checkpoints import Checkpoints, digest
from metricjax.config import RunConfig
from metricjax.data import datasets, pipeline, transforms
from metricjax.data.sampling import PKSampler
from metricjax.errors import InputError
from metricjax.journal import Clock, Journal, duration, read_history, write_atomically
from metricjax.models.cost import count_parameters
from metricjax.reports import page

# Settings that may change between two starts of the same run.
_FREE = ("log_every", "checkpoint_every", "data.root", "data.threads", "data.cache_gib")
# How far the host runs ahead of the devices, in steps.
_AHEAD = 2


@dataclass(frozen=True)
class Run:
    """What a run is made of, opened once at its start; nothing here changes."""

    config: RunConfig
    workdir: Path
    dataset: datasets.Dataset
    train: datasets.Split
    validation: datasets.Split
    sampler: PKSampler
    transform: transforms.Transform
    mesh: jax.sharding.Mesh
    model: nn.Module
    skipped: pipeline.SkipLog

    @classmethod
    def open(cls, config: RunConfig, workdir: Path) -> "Run":
        """Open the data and build the model.

        Raises:
          InputError: whatever is wrong with the settings, the data or the workdir.
        """
        devices = mesh.make_mesh()
        config_module.check_devices(config, devices.size)
        claim(workdir, config)
        dataset = open_data(config)
        train, validation = datasets.holdout(
            dataset.train, config.data.holdout, config.seed
        )
        sampler = PKSampler(
            train.labels, config.batch_size, config.instances_per_class, config.seed
        )
        classes = train.num_classes if config.objective.classifies else None
        return cls(
            config=config,
            workdir=workdir,
            dataset=dataset,
            train=train,
            validation=validation,
            sampler=sampler,
            transform=transforms.build(config.data.transform),
            mesh=devices,
            model=models.build(config.model, classes),
            skipped=pipeline.SkipLog(),
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[h, w, c] of what the network sees."""
        transform = self.config.data.transform
        return (transform.image_size, transform.image_size, transform.channels)

    @property
    def root_key(self) -> jax.Array:
        return jax.random.key(self.config.seed)

    @cached_property
    def optimizer(self):
        shapes = jax.eval_shape(self._init_variables)
        return optimizers.build(
            self.config.optimizer, self.config.steps, shapes["params"]
        )

    def _init_variables(self):
        return step.init_variables(self.model, self.image_shape, self.root_key)

    def untrained_variables(self) -> Any:
        """The variables before the first step; the same whenever it is called."""
        sharding = mesh.replicated(self.mesh)
        return jax.jit(self._init_variables, out_shardings=sharding)()

    @cached_property
    def abstract_state(self) -> step.TrainState:
        """Shapes, types and shardings of the state."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=mesh.replicated(self.mesh)
            ),
            jax.eval_shape(self._init_state),
        )

    def _init_state(self):
        return step.init_state(
            self.model, self.optimizer, self.image_shape, self.root_key
        )

    def init_state(self) -> step.TrainState:
        """The state before the first step, made on the devices it lives on."""
        return jax.jit(self._init_state, out_shardings=mesh.replicated(self.mesh))()

    def compile_train_step(self, say) -> Any:
        """The training step as a program, with a word on what it costs."""
        began = time.perf_counter()
        function = step.make_train_step(
            self.model,
            self.optimizer,
            self.config.objective,
            self.config.data.transform,
        )
        everywhere, split = mesh.replicated(self.mesh), mesh.split(self.mesh)
        size = self.config.batch_size
        batch = {
            "images": jax.ShapeDtypeStruct((size, *self.image_shape), np.uint8),
            "labels": jax.ShapeDtypeStruct((size,), np.int32),
        }
        program = (
            jax.jit(
                function,
                in_shardings=(everywhere, split, everywhere),
                out_shardings=everywhere,
                donate_argnums=0,
            )
            .lower(self.abstract_state, batch, self.root_key)
            .compile()
        )
        say(_cost_sentence(program, time.perf_counter() - began))
        return program

    @cached_property
    def _embed_step(self):
        function = step.make_embed_step(self.model, self.config.data.transform)
        everywhere, split = mesh.replicated(self.mesh), mesh.split(self.mesh)
        return jax.jit(
            lambda variables, batch: (
                function(variables, batch["images"]),
                batch["valid"],
            ),
            in_shardings=(everywhere, split),
            out_shardings=everywhere,
        )

    def embed(self, variables: Any, split: datasets.Split) -> judging.Embedded:
        """Embed every image of a split."""
        rows, valid = [], []
        with pipeline.test_batches(
            split,
            self.transform,
            self.config.evaluation.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=self.config.data.threads,
            skipped=self.skipped,
        ) as batches:
            for batch in batches:
                wanted = {name: batch[name] for name in ("images", "valid")}
                outputs = self._embed_step(
                    variables, mesh.global_batch(self.mesh, wanted)
                )
                embeddings, readable = mesh.to_host(outputs)
                rows.append(embeddings)
                valid.append(readable)
        count = len(split)
        return judging.Embedded(
            np.concatenate(rows)[:count], np.concatenate(valid)[:count]
        )

    def judge(self, variables: Any, split: datasets.Split, bootstrap: int) -> dict:
        """Retrieval metrics of a split."""
        return judging.judge(
            self.embed(variables, split), split, self.config.evaluation, bootstrap
        )


def train(config: RunConfig, workdir: Path, name: str) -> bool:
    """Train, or go on training, and finish with results.json and report.html.

    Args:
      config: the settings.
      workdir: the run's directory; made if absent, resumed from if it holds a run of
        the same settings.
      name: what to call the config in results and report.

    Returns:
      False if the run was asked to stop (SIGTERM, Ctrl-C) and saved itself instead.

    Raises:
      InputError: whatever the user can mend.
    """
    began = time.perf_counter()
    run = Run.open(config, workdir)
    first = jax.process_index() == 0
    select_by = config.evaluation.select_by
    with Checkpoints(workdir / "checkpoints", select_by) as checkpoints:
        say = print if first else _silent
        _introduce(run, say)
        floor = judging.pixel_floor(run.dataset.test, run.transform, run.skipped)
        say(f"raw pixels, nearest neighbour by cosine: Recall@1 {floor:.3f}")
        restored = checkpoints.restore_latest(run.abstract_state, say)
        start, state = restored or (0, run.init_state())
        if restored:
            say(f"resuming after step {start} of {config.steps}")
        with Journal(workdir, config.steps, start, active=first) as journal:
            state, stopped = _loop(run, state, start, checkpoints, journal)
        if stopped:
            return False
        checkpoints.wait()
        selected = checkpoints.restore_best(run.abstract_state)
        _finish(run, state, selected, floor, name, began, say)
    return True


def _loop(run, state, start, checkpoints, journal) -> tuple[step.TrainState, bool]:
    """The steps from `start` on; returns the state and whether it was told to stop."""
    config = run.config
    if start >= config.steps:
        return state, False
    program = run.compile_train_step(journal.say)
    rate = optimizers.schedule(config.optimizer, config.steps)
    pending, clock = _Pending(), Clock()
    began = time.perf_counter()
    batches = pipeline.train_batches(
        run.train,
        run.sampler,
        run.transform,
        seed=config.seed,
        start_step=start,
        num_steps=config.steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
        cache_bytes=int(config.data.cache_gib * 2**30),
        skipped=run.skipped,
    )
    with batches, _stop_requests() as asked_to_stop:
        for done in range(start + 1, config.steps + 1):
            asked = time.perf_counter()
            batch = next(batches)
            clock.waited(time.perf_counter() - asked, config.batch_size)
            inputs = {name: batch[name] for name in ("images", "labels")}
            state, metrics = program(
                state, mesh.global_batch(run.mesh, inputs), run.root_key
            )
            pending.add(metrics)
            last = done == config.steps
            if done % config.log_every == 0 or last:
                values = pending.read() | clock.read()
                values["learning_rate"] = float(rate(done - 1))
                journal.record(done, "train", values)
                each = (time.perf_counter() - began) / (done - start)
                journal.progress(done, values, each * (config.steps - done))
            stop = asked_to_stop.is_set()
            metrics = None
            if done % config.eval_every == 0 or last:
                metrics = run.judge(state.variables, run.validation, bootstrap=0)
                values = {k: v for k, v in metrics.items() if isinstance(v, float)}
                metrics = values
                journal.record(done, "validation", values)
                select_by = config.evaluation.select_by
                journal.validated(done, select_by, values[select_by])
            if metrics or stop or done % config.checkpoint_every == 0:
                checkpoints.save(done, state, metrics)
            if stop and not last:
                checkpoints.wait()
                journal.say(
                    f"stopped after step {done}; run the same command again to go on"
                )
                return state, True
    return state, False


class _Pending:
    """Metrics of the last steps, still on the devices.

    The host runs a few steps ahead of the devices and no further; the values it reads
    are those of a step that is done, so reading them does not stall the next one.
    """

    def __init__(self):
        self._metrics = []

    def add(self, metrics: dict) -> None:
        self._metrics.append(metrics)
        if len(self._metrics) > _AHEAD:
            jax.block_until_ready(self._metrics.pop(0))

    def read(self) -> dict[str, float]:
        sums = mesh.to_host(self._metrics[0])
        return {
            name: float(total) / max(float(count), 1e-12)
            for name, (total, count) in sums.items()
        }


def _finish(run, state, selected, floor, name, began, say) -> None:
    """Judge the selected parameters on the test classes; write results and report."""
    selected_step, chosen = selected or (run.config.steps, state)
    test, evaluation = run.dataset.test, run.config.evaluation
    untrained = run.embed(run.untrained_variables(), test)
    trained = run.embed(chosen.variables, test)
    results = judging.judge(trained, test, evaluation, evaluation.bootstrap)
    history = read_history(run.workdir / "metrics.jsonl")
    results |= {
        "floor": floor,
        "untrained": judging.judge(untrained, test, evaluation, evaluation.bootstrap),
        "validation": _validation_at(history, selected_step),
        "selected_step": selected_step,
        "selected_by": f"{evaluation.select_by} on held-out training classes",
        "parameters_sha256": digest(mesh.to_host(state.variables)),
        "config": name,
        "seed": run.config.seed,
        "steps": run.config.steps,
        "dataset": _describe(run),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": _versions(),
    }
    if jax.process_index() != 0:
        return
    results_path = run.workdir / "results.json"
    write_atomically(results_path, json.dumps(results, indent=1) + "\n")
    report = run.workdir / "report.html"
    queries = judging.sample_queries(trained, test, run.config.seed)
    page.write(
        report,
        results=results,
        history=history,
        config=config_module.to_dict(run.config),
        galleries={
            "before": judging.gallery(untrained, test, queries),
            "after": judging.gallery(trained, test, queries),
        },
        image=test.read,
        name=lambda index: test.names[index],
    )
    low, high = results["intervals"]["recall@1"]
    say(
        f"unseen classes: Recall@1 {results['recall@1']:.3f} (95% interval {low:.3f} to "
        f"{high:.3f}), untrained {results['untrained']['recall@1']:.3f}, raw pixels "
        f"{floor:.3f}"
    )
    if len(run.skipped):
        unreadable = run.skipped.items()
        say(f"{len(unreadable)} images could not be read, the first {unreadable[0][0]}")
    say(f"results: {results_path}\nreport: {report}")


def open_data(config: RunConfig) -> datasets.Dataset:
    """The data set of a run, opened with the options that its kind takes."""
    data = config.data
    options = {
        "glyphs": {"size": data.transform.image_size, "seed": config.seed},
        "folder": {
            "channels": data.transform.channels,
            "closed_set": data.closed_set,
        },
    }
    return datasets.open_dataset(data.name, data.root, **options.get(data.name, {}))


def claim(workdir: Path, config: RunConfig) -> None:
    """Make the workdir this config's, or check that it is.

    Raises:
      InputError: it holds a run of another config, or cannot be written.
    """
    path = workdir / "config.json"
    mine = json.loads(json.dumps(config_module.to_dict(config)))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        theirs = json.loads(path.read_text()) if path.exists() else None
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"--workdir {workdir} cannot be used ({error}): choose another directory."
        ) from error
    if theirs is not None:
        differences = _differences(theirs, mine)
        if differences:
            setting, old, new = differences[0]
            more = f" and {len(differences) - 1} more" if differences[1:] else ""
            raise InputError(
                f"{workdir} belongs to a run with another config ({setting} is {old!r} "
                f"there and {new!r} now{more}): choose another --workdir."
            )
    if jax.process_index() == 0:
        write_atomically(path, json.dumps(mine, indent=1) + "\n")


def _differences(theirs, mine, path="") -> list[tuple[str, Any, Any]]:
    """(setting, their value, my value) wherever two configs differ and may not."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        found = []
        for name in sorted({*theirs, *mine}):
            where = f"{path}.{name}" if path else name
            found += _differences(theirs.get(name), mine.get(name), where)
        return found
    return [] if theirs == mine or path in _FREE else [(path, theirs, mine)]


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets; a second Ctrl-C interrupts as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number, frame):
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _introduce(run: Run, say) -> None:
    """What will be trained on what, before anything slow happens."""
    config, counts = run.config, _describe(run)
    for note in run.dataset.notes:
        say(note)
    for part in ("train", "validation", "test"):
        say(
            f"{part}: {counts[part]['images']} images of {counts[part]['classes']} classes"
        )
    shapes = jax.eval_shape(run.untrained_variables)
    say(f"model: {count_parameters(shapes) / 1e6:.2f} M parameters")
    devices = run.mesh.size
    say(
        f"loss sees {config.batch_size} = "
        f"{config.batch_size // config.instances_per_class} classes x "
        f"{config.instances_per_class}, on {devices} "
        f"{run.mesh.devices.flat[0].platform} device{'s' if devices > 1 else ''}; an "
        f"epoch is {run.sampler.steps_per_epoch} steps"
    )


def _cost_sentence(program, seconds: float) -> str:
    cost, memory = program.cost_analysis(), program.memory_analysis()
    words = [f"compiled the training step in {seconds:.1f} s"]
    if cost and cost.get("flops", 0) > 0:
        words.append(f"{cost['flops'] / 1e9:.2f} GFLOP")
    if memory is not None:
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        words.append(f"{used / 2**20:.0f} MiB a device")
    return ", ".join(words)


def _describe(run: Run) -> dict[str, Any]:
    """The data set in numbers, as results.json holds it."""

    def counts(split):
        return {"classes": split.num_classes, "images": len(split)}

    return {
        "name": run.dataset.name,
        "train": counts(run.train),
        "validation": counts(run.validation),
        "test": counts(run.dataset.test),
        "closed_set": run.config.data.closed_set,
        "skipped": [list(s) for s in (*run.dataset.skipped, *run.skipped.items())],
        "notes": list(run.dataset.notes),
    }


def _validation_at(history, step_number) -> dict[str, float]:
    """What validation found at a step."""
    for line in reversed(history):
        if line["kind"] == "validation" and line["step"] == step_number:
            return {k: v for k, v in line.items() if k not in ("kind",)}
    return {}


def _versions() -> dict[str, str]:
    names = ("metricjax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def _silent(sentence: str) -> None:
    """Hosts but the first say nothing."""


__all__ = ["Run", "duration", "train"]
