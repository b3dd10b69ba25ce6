"""Constraints between settings of a run: sampler and loss, batch and devices.

Come here for checks that involve several settings; ranges of one are in `schema`.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

from metricjax.data.samplers.class_balanced import check_categories
from metricjax.data.samplers.registry import OF_CLASSES, SAMPLERS
from metricjax.errors import InputError, suggestion
from metricjax.objectives.objective import Loss


class Settings(Protocol):
    """The settings that constrain each other, a part of `schema.RunConfig`."""

    steps: int
    batch_size: int
    micro_batch_size: int | None
    sampler: str
    instances_per_class: int
    categories_per_batch: int
    data: Any
    objective: Any
    evaluation: Any


def check_run(config: Settings) -> None:
    """Raise `InputError` if settings of a run contradict each other."""
    _check_sampler(config)
    _check_batch(config, 1)
    _check_micro_batch(config, 1)
    _check_losses(config)
    _check_selection(config)


def check_devices(config: Settings, devices: int) -> None:
    """Raise `InputError` unless batches divide evenly among the devices."""
    _check_batch(config, devices)
    _check_micro_batch(config, devices)
    size = config.evaluation.batch_size
    if size % devices:
        raise InputError(
            f"config.evaluation.batch_size is {size}, which {devices} devices cannot "
            f"share equally: the nearest value that they can is "
            f"{_nearest(size, devices)}."
        )


def _check_losses(config: Settings) -> None:
    """Raise `InputError` if batch size, steps or sampler do not suit the losses."""
    memory = config.objective.memory
    if 0 < memory.size < config.batch_size:
        raise InputError(
            f"config.objective.memory.size is {memory.size}: it must hold at least a "
            f"batch, {config.batch_size} images, or be 0 for no memory."
        )
    if memory.size and memory.start_step >= config.steps:
        raise InputError(
            f"config.objective.memory.start_step is {memory.start_step}, but the run "
            f"has {config.steps} steps: let the memory count earlier."
        )
    for name, loss, _, options in config.objective.losses():
        _check_pairs(config, name, loss, options)
    hierarchy = config.objective.hierarchy
    if hierarchy and hierarchy.warmup >= config.steps:
        raise InputError(
            f"config.objective.terms.hierarchical_proxy.warmup is {hierarchy.warmup}, "
            f"but the run has {config.steps} steps: group the classes earlier."
        )


def _check_pairs(
    config: Settings, name: str, loss: Loss, options: Mapping[str, Any]
) -> None:
    """Raise `InputError` unless batches contain the pairs that a loss compares."""
    sampler, instances = config.sampler, config.instances_per_class
    if options.get("among") == "adjacent" and sampler != "pairs":
        raise InputError(
            f"config.objective.terms.{name}.among is 'adjacent', which takes the pairs "
            f"that config.sampler='pairs' puts side by side, but config.sampler is "
            f"{sampler!r}: change one of the two."
        )
    if sampler in OF_CLASSES:
        alone = instances == 1 and loss.compares and not config.objective.memory.size
        if alone or instances % loss.instances:
            needed = "an even number" if loss.instances == 2 else "2 or more"
            raise InputError(
                f"config.instances_per_class is {instances}, but the {name} loss "
                f"compares images of a class in pairs: make it {needed}."
            )
    elif loss.instances > 1:
        raise InputError(
            f"config.sampler is {sampler!r}, but the {name} loss takes images of one "
            "class two by two: choose distinct or classes."
        )
    elif sampler == "images" and loss.compares and not config.objective.memory.size:
        raise InputError(
            f"config.sampler is 'images', which leaves it to chance whether a batch "
            f"has two images of a class, but the {name} loss compares such: choose "
            "another sampler, or a loss to proxies."
        )


def _check_sampler(config: Settings) -> None:
    if config.sampler not in SAMPLERS:
        raise InputError(
            f"config.sampler is {config.sampler!r}"
            f"{suggestion(config.sampler, SAMPLERS)}: choose one of "
            f"{', '.join(SAMPLERS)}."
        )


def _check_batch(config: Settings, devices: int) -> None:
    """Raise `InputError` unless the batch divides into classes and among devices."""
    size, multiple, of = config.batch_size, 1, ""
    if config.sampler in OF_CLASSES:
        multiple = config.instances_per_class
        of = f"config.instances_per_class={multiple}"
    elif config.sampler == "pairs":
        multiple, of = 4, "4, as config.sampler='pairs' needs it"
    nearest = _nearest(size, math.lcm(multiple, devices))
    if size % multiple:
        raise InputError(
            f"config.batch_size is {size}, which is not a multiple of {of}: the "
            f"nearest value that is is {nearest}."
        )
    if size % devices:
        raise InputError(
            f"config.batch_size is {size}, which {devices} devices cannot share "
            f"equally: the nearest value that they can is {nearest}."
        )
    if config.sampler == "categories":
        check_categories(size // multiple, config.categories_per_batch)


def _check_micro_batch(config: Settings, devices: int) -> None:
    """Raise `InputError` unless micro-batches divide the batch and the devices them."""
    size, micro = config.batch_size, config.micro_batch_size
    if micro is None or (micro > 0 and size % micro == 0 and micro % devices == 0):
        return
    fitting = [n for n in range(devices, size + 1, devices) if size % n == 0]
    nearest = min(fitting, key=lambda n: abs(n - micro))
    raise InputError(
        f"config.micro_batch_size is {micro}: it must divide config.batch_size={size} "
        f"and be a multiple of the number of devices, {devices}; the nearest value "
        f"that does is {nearest}."
    )


def _check_selection(config: Settings) -> None:
    metrics = [f"recall@{k}" for k in config.evaluation.recall_at]
    metrics += ["r_precision", "map@r"]
    if config.evaluation.select_by not in metrics:
        raise InputError(
            f"config.evaluation.select_by is {config.evaluation.select_by!r}: choose "
            f"one of {', '.join(metrics)}."
        )
    data = config.data
    if data.folds and not (data.folds > 1 and 0 <= data.fold < data.folds):
        raise InputError(
            f"config.data.folds is {data.folds} and config.data.fold {data.fold}: "
            "there must be 2 folds or more, numbered from 0."
        )
    if data.fold and not data.folds:
        raise InputError(
            f"config.data.fold is {data.fold}, but config.data.folds is 0: say how "
            "many folds there are."
        )
    if data.folds and config.evaluation.select_on_test:
        raise InputError(
            "config.evaluation.select_on_test holds out no training classes, but "
            f"config.data.folds={data.folds} does: choose one of the two."
        )


def _nearest(value: int, multiple: int) -> int:
    return max(multiple, round(value / multiple) * multiple)
