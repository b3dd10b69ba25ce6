"""What a run is made of: data, model, programs. Opened once, then only used."""

import time
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
    """What a run is made of, opened once at its start; nothing here changes."""

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
          InputError: whatever is wrong with the settings or the data.
        """
        mesh.keep_freed_memory()
        devices = mesh.make_mesh()
        check_devices(config, devices.size)
        return cls.of(config, workdir, open_data(config), devices)

    @classmethod
    def of(
        cls,
        config: RunConfig,
        workdir: Path,
        dataset: datasets.Dataset,
        devices: jax.sharding.Mesh,
    ) -> "Run":
        """A run of a data set on some devices, which need not be there.

        Raises:
          InputError: whatever does not fit together.
        """
        train, validation = _divided(dataset, config)
        _check_depths(config, validation, dataset.test)
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
        everywhere = mesh.replicated(self.programs.mesh)
        return jax.jit(
            lambda weights: self.programs.init_state(self.programs.root_key, weights),
            in_shardings=everywhere,
            out_shardings=everywhere,
        )

    def init_state(self) -> step.TrainState:
        """The state before the first step, made on the devices it lives on.

        It is the same whenever it is called.
        """
        return self._init(self.weights)

    def compile_train_step(self) -> tuple[Any, dict[str, float]]:
        """The training step as a program, and what it costs.

        The cost: `compile_seconds`; `cached`, 1.0 if it was compiled by an earlier
        start, see `compilation_cache`; `gflop` of a step on one device, and `mebibytes`
        of a device's memory that it needs, as the compiler counts them.
        """
        hits, began = compilation_cache.Hits(), time.perf_counter()
        program = self.programs.lower_train_step().compile()
        cost = {"compile_seconds": time.perf_counter() - began}
        cost["cached"] = float(int(hits) > 0)
        flops = (program.cost_analysis() or {}).get("flops", 0)
        if flops > 0 and self.config.parts == 1:  # It counts a loop once.
            cost["gflop"] = flops / 1e9
        memory = program_costs.memory(program)
        if memory is not None:
            cost["mebibytes"] = memory.total / 2**20
        return program, cost

    def regrouped(self, state: step.TrainState, done: int) -> step.TrainState:
        """The state after `done` steps with the groups of the hierarchy made (anew).

        A function of the state, the seed and `done`. One host groups, all go on with
        what it found.
        """
        name = "hierarchical_proxy"
        proxies, carried = mesh.to_host((state.proxies[name], state.objective[name]))
        hierarchical_proxies.check_finite(
            proxies["fine"], done
        )  # on all hosts, or the others wait
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

    def introduce(self, say) -> None:
        """What will be trained on what, before anything slow happens."""
        config = self.config
        for note in self.dataset.notes:
            say(note)
        if config.evaluation.select_on_test:
            say("warning: the best checkpoint is chosen on the test classes")
        counts = self.describe()
        for part in ("train", "validation", "test"):
            of = counts[part]
            say(f"{part}: {of['images']} images of {of['classes']} classes")
        if self.weights_note:
            say(self.weights_note)
        parameters = count_parameters(self.programs.abstract_state.variables)
        say(f"model: {parameters / 1e6:.2f} M parameters")
        proxies = count_parameters(self.programs.abstract_state.proxies)
        if proxies:
            say(f"proxies: {proxies:,} parameters")
        for note in self.sampler.notes:
            say(note)
        devices, size = in_words(self.programs.mesh), config.batch_size
        say(
            f"loss sees {size} = {devices} x {size // self.programs.mesh.size} = "
            f"{self.sampler.contents}; an epoch is {self.sampler.steps_per_epoch} steps"
        )

    def describe(self) -> dict[str, Any]:
        """The data set in numbers, as results.json holds it."""

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


def in_words(devices: jax.sharding.Mesh) -> str:
    """How many devices of what kind: `16 tpu chips`."""
    kind = devices.devices.flat[0].platform
    one = "chip" if kind == "tpu" else "device"
    return f"{devices.size} {kind} {one}{'s' if devices.size > 1 else ''}"


def _divided(
    dataset: datasets.Dataset, config: RunConfig
) -> tuple[datasets.Split, datasets.Split]:
    """What is trained on, and what chooses the best checkpoint."""
    if config.evaluation.select_on_test:
        return dataset.train, dataset.test
    data = config.data
    if data.folds:
        return splits.fold(dataset.train, data.folds, data.fold)
    return splits.holdout(dataset.train, data.holdout, config.seed)


def _check_depths(config: RunConfig, *splits: datasets.Split) -> None:
    """Refuse a K that validation or test could not answer after all the training."""
    deepest = max(config.evaluation.recall_at)
    found = min(int(split.is_gallery.sum()) - 1 for split in splits)
    if deepest > found:
        raise InputError(
            f"config.evaluation.recall_at asks for {deepest} neighbours, but only "
            f"{found} images can be found among the held-out or the test images: ask "
            "for fewer, or hold out more classes with config.data.holdout."
        )


def _classes(split: datasets.Split, config: RunConfig) -> Classes:
    """What the losses must know of the classes that are learnt."""
    wanted = config.objective.hierarchy
    categories = None
    if wanted and wanted.hierarchy == "category" and split.categories is not None:
        categories = class_clustering.from_categories(split.labels, split.categories)
    return Classes(split.num_classes, categories)


def _weights(model: nn.Module, config: RunConfig) -> tuple[Any, str | None]:
    """Variables from a file, on the host, and a sentence on them."""
    path, said = config.model.pretrained, []
    if path is None:
        return None, None
    shape = config.data.transform.shape
    loaded = pretrained.load(path, model, image_shape=shape, say=said.append)
    return jax.tree.map(np.asarray, loaded), said[0]


def open_data(config: RunConfig) -> datasets.Dataset:
    """The data set of a run, opened with the options that its kind takes."""
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
    if data.cropped:  # Never passed over in silence: who cannot crop refuses.
        options["cropped"] = True
    return datasets.open_dataset(data.name, data.root, **options)
