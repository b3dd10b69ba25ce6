"""Everything a run needs: config, data, model, compiled programs, opened once.

Come here for how a config becomes data sets, sampler, weights and programs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from metricjax.config.constraints import check_devices
from metricjax.config.schema import RunConfig
from metricjax.data import datasets, pipeline, splits, transforms
from metricjax.data.samplers import registry
from metricjax.data.samplers.sampler import Sampler
from metricjax.errors import InputError
from metricjax.inference import evaluate_split
from metricjax.inference.embedder import Embedded, Embedder
from metricjax.models import pretrained
from metricjax.models.cost import count_parameters
from metricjax.objectives import class_clustering, hierarchical_proxies
from metricjax.objectives.hierarchical_proxies import Classes
from metricjax.runtime import compilation_cache, mesh, program_costs
from metricjax.training import step
from metricjax.training.programs import TrainPrograms


@dataclass(frozen=True)
class Run:
    """The fixed parts of a run; the training state is not among them.

    Attributes:
      config: the settings.
      workdir: local directory for the run's files.
      dataset: the data set, test split included.
      train, validation: the training split without, and with only, what is held out.
      sampler: which training images each batch contains.
      transform: augmentation and preprocessing.
      programs: model, losses, optimizer and training step.
      skipped: images that could not be read so far.
      weights: pretrained variables on the host; None: random initialization.
      weights_note: what to print about the weights.
    """

    config: RunConfig
    workdir: Path
    dataset: datasets.Dataset
    train: datasets.Split
    validation: datasets.Split
    sampler: Sampler
    transform: transforms.Transform
    programs: TrainPrograms
    skipped: pipeline.SkipLog
    weights: Any = None
    weights_note: str | None = None

    @classmethod
    def open(cls, config: RunConfig, workdir: Path) -> "Run":
        """Open the data and build the model.

        Raises:
          InputError: a mistake in the settings or the data.
        """
        mesh.keep_freed_memory()
        devices = mesh.make_mesh()
        check_devices(config, devices.size)
        return cls.build(config, workdir, open_data(config), devices)

    @classmethod
    def build(
        cls,
        config: RunConfig,
        workdir: Path,
        dataset: datasets.Dataset,
        devices: jax.sharding.Mesh,
    ) -> "Run":
        """Assemble a run from a data set and a mesh, which may be of absent devices.

        Raises:
          InputError: settings and data do not fit together.
        """
        train, validation = _train_and_validation(dataset, config)
        _check_recall_depths(config, validation, dataset.test)
        train = splits.with_turns(train, config.data.turns)
        sampler = registry.build(
            config.sampler,
            train,
            config.batch_size,
            instances_per_class=config.instances_per_class,
            categories_per_batch=config.categories_per_batch,
            seed=config.seed,
        )
        programs = TrainPrograms(config, _classes(train, config), devices)
        weights, weights_note = _weights(programs.model, config)
        programs.check()
        return cls(
            config=config,
            workdir=workdir,
            dataset=dataset,
            train=train,
            validation=validation,
            sampler=sampler,
            transform=transforms.build(config.data.transform),
            programs=programs,
            skipped=pipeline.SkipLog(),
            weights=weights,
            weights_note=weights_note,
        )

    @cached_property
    def _init(self) -> Any:
        replicated = mesh.replicated(self.programs.mesh)
        return jax.jit(
            lambda weights: self.programs.init_state(self.programs.root_key, weights),
            in_shardings=replicated,
            out_shardings=replicated,
        )

    def init_state(self) -> step.TrainState:
        """The state before the first step, created on the devices.

        Deterministic: every call returns the same values.
        """
        return self._init(self.weights)

    def compile_train_step(self) -> tuple[Any, dict[str, float]]:
        """Compile the training step; returns the program and its cost.

        The cost has `compile_seconds`; `cached`, 1.0 if the program came from the
        compilation cache; and if the compiler reports them `gflop` of a step and
        `mebibytes` of memory, both of one device.
        """
        hits, began = compilation_cache.Hits(), time.perf_counter()
        program = self.programs.lower_train_step().compile()
        cost = {"compile_seconds": time.perf_counter() - began}
        cost["cached"] = float(int(hits) > 0)
        flops = (program.cost_analysis() or {}).get("flops", 0)
        if flops > 0 and self.config.parts == 1:  # XLA counts a loop's body once.
            cost["gflop"] = flops / 1e9
        memory = program_costs.memory(program)
        if memory is not None:
            cost["mebibytes"] = memory.total / 2**20
        return program, cost

    def regroup(self, state: step.TrainState, done: int) -> step.TrainState:
        """Cluster the classes of HPL's hierarchy (again) after `done` steps.

        Deterministic given the state, the seed and `done`. Host 0 clusters and
        broadcasts the groups, so that all hosts continue with the same ones.
        """
        name = "hierarchical_proxy"
        proxies, carried = mesh.to_host((state.proxies[name], state.objective[name]))
        # Checked on all hosts: if host 0 alone raised, the others would wait for its
        # broadcast.
        hierarchical_proxies.check_finite(proxies["fine"], done)
        coarse = {level: rows for level, rows in proxies.items() if level != "fine"}
        if jax.process_index() == 0:
            coarse, carried = hierarchical_proxies.regroup(
                self.config.objective.hierarchy,
                proxies,
                carried,
                self.programs.losses.classes.categories,
                seed=self.config.seed,
                step=done,
            )
        coarse, carried = mesh.same_everywhere(self.programs.mesh, (coarse, carried))
        return state.with_losses(
            state.proxies | {name: state.proxies[name] | coarse},
            state.objective | {name: carried},
        )

    @cached_property
    def _embedder(self) -> Embedder:
        batch_size = self.config.evaluation.batch_size
        return Embedder(
            self.programs.model, self.transform, self.programs.mesh, batch_size
        )

    def embed(self, variables: Any, split: datasets.Split) -> Embedded:
        """Embed every image of a split."""
        return self._embedder.embed(
            variables, split, threads=self.config.data.threads, skipped=self.skipped
        )

    def evaluate(self, variables: Any, split: datasets.Split, bootstrap: int) -> dict:
        """Retrieval metrics of a split."""
        embedded, evaluation = self.embed(variables, split), self.config.evaluation
        return evaluate_split.evaluate(
            embedded, split, evaluation, bootstrap, self.programs.mesh
        )

    def print_summary(self, say: Callable[[str], None]) -> None:
        """Print what will be trained on which data, before anything slow starts."""
        config = self.config
        for note in self.dataset.notes:
            say(note)
        if config.evaluation.select_on_test:
            say("warning: the best checkpoint is chosen on the test classes")
        summary = self.dataset_summary()
        for part in ("train", "validation", "test"):
            counts = summary[part]
            say(f"{part}: {counts['images']} images of {counts['classes']} classes")
        if self.weights_note:
            say(self.weights_note)
        parameters = count_parameters(self.programs.abstract_state.variables)
        say(f"model: {parameters / 1e6:.2f} M parameters")
        proxies = count_parameters(self.programs.abstract_state.proxies)
        if proxies:
            say(f"proxies: {proxies:,} parameters")
        for note in self.sampler.notes:
            say(note)
        devices, size = describe_devices(self.programs.mesh), config.batch_size
        say(
            f"loss sees {size} = {devices} x {size // self.programs.mesh.size} = "
            f"{self.sampler.contents}; an epoch is {self.sampler.steps_per_epoch} steps"
        )

    def dataset_summary(self) -> dict[str, Any]:
        """Counts and fingerprint of the data set, as stored in results.json."""

        def counts(split):
            return {"classes": split.num_classes, "images": len(split)}

        return {
            "name": self.dataset.name,
            "train": counts(self.train),
            "validation": counts(self.validation),
            "test": counts(self.dataset.test),
            "closed_set": self.config.data.closed_set,
            "fingerprint": self.dataset.fingerprint,
            "skipped": [
                list(s) for s in (*self.dataset.skipped, *self.skipped.items())
            ],
            "notes": list(self.dataset.notes),
        }


def describe_devices(devices: jax.sharding.Mesh) -> str:
    """Number and kind of the devices: `16 tpu chips`."""
    kind = devices.devices.flat[0].platform
    one = "chip" if kind == "tpu" else "device"
    return f"{devices.size} {kind} {one}{'s' if devices.size > 1 else ''}"


def _train_and_validation(
    dataset: datasets.Dataset, config: RunConfig
) -> tuple[datasets.Split, datasets.Split]:
    """The split to train on, and the one that selects the best checkpoint."""
    if config.evaluation.select_on_test:
        return dataset.train, dataset.test
    data = config.data
    if data.folds:
        return splits.fold(dataset.train, data.folds, data.fold)
    return splits.holdout(dataset.train, data.holdout, config.seed)


def _check_recall_depths(config: RunConfig, *splits: datasets.Split) -> None:
    """Refuse a K of Recall@K that exceeds the gallery, before hours of training."""
    deepest = max(config.evaluation.recall_at)
    available = min(int(split.is_gallery.sum()) - 1 for split in splits)
    if deepest > available:
        raise InputError(
            f"config.evaluation.recall_at asks for {deepest} neighbours, but only "
            f"{available} images can be found among the held-out or the test images: "
            "ask for fewer, or hold out more classes with config.data.holdout."
        )


def _classes(split: datasets.Split, config: RunConfig) -> Classes:
    """The training classes, as the losses need them."""
    wanted = config.objective.hierarchy
    categories = None
    if wanted and wanted.hierarchy == "category" and split.categories is not None:
        categories = class_clustering.from_categories(split.labels, split.categories)
    return Classes(split.num_classes, categories)


def _weights(model: nn.Module, config: RunConfig) -> tuple[Any, str | None]:
    """Pretrained variables on the host, and a sentence about them."""
    path, messages = config.model.pretrained, []
    if path is None:
        return None, None
    shape = config.data.transform.shape
    loaded = pretrained.load(path, model, image_shape=shape, say=messages.append)
    return jax.tree.map(np.asarray, loaded), messages[0]


def open_data(config: RunConfig) -> datasets.Dataset:
    """Open the data set of a run with those options that its kind accepts."""
    data = config.data
    is_local = "://" not in (data.root or "")
    missing = not data.root or (is_local and not Path(data.root).exists())
    if data.source and missing:
        raise InputError(f"data.root={data.root!r} was not found: {data.source}")
    offered = {
        "size": data.transform.image_size,
        "seed": config.seed,
        "channels": data.transform.channels,
        "closed_set": data.closed_set,
    }
    accepted = datasets.options_of(data.name)
    options = {name: value for name, value in offered.items() if name in accepted}
    if data.cropped:  # Never ignored: a data set that cannot crop raises an error.
        options["cropped"] = True
    return datasets.open_dataset(data.name, data.root, **options)
