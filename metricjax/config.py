"""From a config file to frozen settings: every check across parts, in sentences.

A config file builds on `default_config()`, which lists every setting with its default,
and `from_config_dict` turns the result into dataclasses. Library code sees only those.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict, config_dict

from metricjax.data.samplers import OF_CLASSES, SAMPLERS
from metricjax.data.sampling import check_categories
from metricjax.data.transforms import TransformConfig
from metricjax.errors import InputError
from metricjax.models.embedder import ModelConfig
from metricjax.objectives import LOSSES, Loss, ObjectiveConfig, Term
from metricjax.optimizers import GROUP_RATES, OptimizerConfig


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they come.

    Attributes:
      name: a data set of `data.open_dataset`.
      root: where its files are; None where it needs none.
      source: where one gets the files; said when they are missing.
      closed_set: allow classes that stand in both train and test.
      cropped: crop the images to the official bounding boxes, of `cub` and `cars`.
      holdout: share of the training classes held out for validation.
      turns: 1 to 4 quarter turns of the training images, each a class of its own, see
        `datasets.with_turns`.
      transform: how images are prepared and augmented.
      threads: that prepare batches; None: one per processor.
      cache_gib: memory for decoded images, in GiB.
    """

    name: str = "glyphs"
    root: str | None = None
    source: str = ""
    closed_set: bool = False
    cropped: bool = False
    holdout: float = 0.15
    turns: int = 1
    transform: TransformConfig = TransformConfig()
    threads: int | None = None
    cache_gib: float = 1.0

    def __post_init__(self):
        for name in ("threads", "cache_gib"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(
                    f"config.data.{name} is {getattr(self, name)}: it must be 0 or "
                    "more."
                )


@dataclass(frozen=True)
class EvaluationConfig:
    """How embeddings are judged.

    Attributes:
      recall_at: the K of Recall@K.
      batch_size: images embedded at a time.
      select_by: validation metric by which the best checkpoint is chosen.
      bootstrap: resamples of the classes for the intervals.
    """

    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    batch_size: int = 256
    select_by: str = "map@r"
    bootstrap: int = 1000

    def __post_init__(self):
        if 1 not in self.recall_at or min(self.recall_at) < 1:
            raise InputError(
                f"config.evaluation.recall_at is {self.recall_at}: each K must be 1 or "
                "more, and 1 one of them."
            )
        for name in ("batch_size", "bootstrap"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"config.evaluation.{name} is {getattr(self, name)}: it must be 1 "
                    "or more."
                )


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
      seed: of initialisation, data order, augmentation, held-out classes.
      steps: optimizer steps.
      batch_size: images of the global batch, all devices together.
      sampler: which images stand in a batch. "classes": P classes of K images;
        "distinct": the same without classes of fewer than K images, so that no image
        is twice in a batch; "categories": P x K, the classes from few categories;
        "pairs": images at random, half of them beside another of their class, half
        beside one of another; "images": images at random. See `data.samplers`.
      instances_per_class: images of each class in a batch, K of P x K; "pairs" and
        "images" have none.
      categories_per_batch: of "categories": 1 for negatives of one's own category
        alone, P for as many categories as classes.
      log_every, eval_every, checkpoint_every: in steps.
      data, model, objective, optimizer, evaluation: the parts.
    """

    objective: ObjectiveConfig
    seed: int = 0
    steps: int = 1000
    batch_size: int = 128
    sampler: str = "classes"
    instances_per_class: int = 4
    categories_per_batch: int = 1
    log_every: int = 20
    eval_every: int = 250
    checkpoint_every: int = 250
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self):
        counts = ("steps", "batch_size", "instances_per_class", "categories_per_batch")
        for name in (*counts, "log_every", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"config.{name} is {getattr(self, name)}: it must be 1 or more."
                )
        if self.seed < 0:
            raise InputError(f"config.seed is {self.seed}: it must be 0 or more.")
        _check_sampler(self)
        _check_batch(self, 1)
        _check_losses(self)
        metrics = [f"recall@{k}" for k in self.evaluation.recall_at]
        metrics += ["r_precision", "map@r"]
        if self.evaluation.select_by not in metrics:
            raise InputError(
                f"config.evaluation.select_by is {self.evaluation.select_by!r}: choose "
                f"one of {', '.join(metrics)}."
            )


def check_devices(config: RunConfig, devices: int) -> None:
    """Raise `InputError` unless the batches can be split over the devices."""
    _check_batch(config, devices)
    size = config.evaluation.batch_size
    if size % devices:
        raise InputError(
            f"config.evaluation.batch_size is {size}, which {devices} devices cannot "
            f"share equally: the nearest value that they can is "
            f"{_nearest(size, devices)}."
        )


def _check_losses(config: RunConfig) -> None:
    """Raise `InputError` unless the batches and the steps are what the losses need."""
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
    config: RunConfig, name: str, loss: Loss, options: Mapping[str, Any]
) -> None:
    """Raise `InputError` unless the sampler gives a loss the pairs that it compares."""
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


def _check_sampler(config: RunConfig) -> None:
    if config.sampler not in SAMPLERS:
        raise InputError(
            f"config.sampler is {config.sampler!r}"
            f"{suggestion(config.sampler, SAMPLERS)}: choose one of "
            f"{', '.join(SAMPLERS)}."
        )


def _check_batch(config: RunConfig, devices: int) -> None:
    """Raise `InputError` unless the batch is whole groups, and equal shares."""
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


def _nearest(value: int, multiple: int) -> int:
    return max(multiple, round(value / multiple) * multiple)


def default_config() -> ConfigDict:
    """Every setting with its default, as config files start from it.

    `objective.terms` is empty: a config says what it minimises with `terms`.
    """
    tree = {f.name: _default(f) for f in dataclasses.fields(RunConfig)[1:]}
    objective = {f.name: _default(f) for f in dataclasses.fields(ObjectiveConfig)[1:]}
    tree["objective"] = {"terms": {}, **objective}
    tree["optimizer"]["group_rates"] = {"backbone": 1.0, **GROUP_RATES}
    return ConfigDict(tree)


def _default(field: dataclasses.Field) -> Any:
    default = field.default
    if default is dataclasses.MISSING:
        default = field.default_factory()
    if dataclasses.is_dataclass(default):
        return {f.name: _default(f) for f in dataclasses.fields(type(default))}
    if default is None:
        return config_dict.placeholder(typing.get_args(field.type)[0])
    return default


def terms(**losses: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The objective's losses for a config file, their unnamed settings filled in.

    `terms(triplet={"margin": 0.1}, softmax={"weight": 0.5})`.
    """
    return {
        name: {"weight": 1.0, **_defaults(name), **options}
        for name, options in losses.items()
    }


def _defaults(name: str) -> Mapping[str, Any]:
    return LOSSES[name].options if name in LOSSES else {}


def choose_variant(config: str, variant: str, variants: Sequence[str]) -> str:
    """Raise `InputError` unless `variant` is one of a config file's variants."""
    if variant not in variants:
        raise InputError(
            f"Config {config!r} has no variant {variant!r}"
            f"{suggestion(variant, variants)}; it has {', '.join(variants)}."
        )
    return variant


# The data sets of the papers, and a folder of one's own.
DATA_VARIANTS = ("folder", "cub", "cars", "sop", "inshop")
_RECALL_AT = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30, 40, 50)}


def use_data(config: ConfigDict, variant: str) -> None:
    """Set a data set of the papers, and the K that its tables have."""
    config.data.name = variant
    config.evaluation.recall_at = _RECALL_AT.get(variant, (1, 2, 4, 8))


def suggestion(name: str, known: Sequence[str]) -> str:
    """` (did you mean 'x'?)` where a known name is near, else nothing."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def from_config_dict(config: Mapping[str, Any]) -> RunConfig:
    """The frozen settings of a run.

    Raises:
      InputError: a setting that does not exist, of another type, or out of its range.
    """
    tree = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    objective = dict(tree.get("objective") or {})
    objective["terms"] = {
        name: _term(name, options)
        for name, options in (objective.get("terms") or {}).items()
    }
    if not objective["terms"]:
        raise InputError(
            "config.objective.terms is empty: name at least one loss to minimise, such "
            "as terms(triplet={})."
        )
    return _build(RunConfig, {**tree, "objective": objective}, "config")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The settings as config.json holds them; `from_config_dict` reads them back."""
    tree = _plain(dataclasses.asdict(config))
    tree["objective"]["terms"] = {
        name: _plain({"weight": term.weight, **_defaults(name), **term.options})
        for name, term in config.objective.terms.items()
    }
    return tree


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _term(name: str, options: Mapping[str, Any]) -> Term:
    if name not in LOSSES:
        raise InputError(
            f"config.objective.terms names {name!r}, but the losses are "
            f"{', '.join(sorted(LOSSES))}{suggestion(name, list(LOSSES))}."
        )
    where = f"config.objective.terms.{name}"
    options = dict(options)
    weight = options.pop("weight", 1.0)
    loss = LOSSES[name]
    for option, value in options.items():
        if option not in loss.options:
            raise InputError(
                f"{where}.{option} is no setting of that loss"
                f"{suggestion(option, list(loss.options))}; it has "
                f"{', '.join(loss.options)}."
            )
        options[option] = _like(value, loss.options[option], f"{where}.{option}")
        choices = loss.choices.get(option, (value,))
        if value not in choices:
            raise InputError(
                f"{where}.{option} is {value!r}{suggestion(value, choices)}: choose "
                f"one of {', '.join(choices)}."
            )
    _check_type(weight, float, f"{where}.weight")
    return Term(float(weight), options)


def _like(value: Any, default: Any, path: str) -> Any:
    """The value if it is of the default's type, a list as a tuple."""
    if not isinstance(default, tuple):
        _check_type(value, type(default), path)
        return value
    return _convert(value, tuple[type(default[0]), ...], path)


def _build(cls: type, tree: Any, path: str) -> Any:
    """A dataclass from a dictionary; every key and type is checked."""
    if dataclasses.is_dataclass(tree):
        return tree
    if not isinstance(tree, Mapping):
        raise InputError(f"{path} is {tree!r}: it must be a group of settings.")
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    for name in tree:
        if name not in fields:
            raise InputError(
                f"{path}.{name} is no setting{suggestion(name, list(fields))}; "
                f"{path} has {', '.join(fields)}."
            )
    return cls(
        **{
            name: _convert(value, fields[name], f"{path}.{name}")
            for name, value in tree.items()
        }
    )


def _convert(value: Any, kind: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise InputError(f"{path} is {value!r}: it must be a tuple.")
        item = typing.get_args(kind)[0]
        return tuple(_convert(v, item, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is types.UnionType:
        return (
            None if value is None else _convert(value, typing.get_args(kind)[0], path)
        )
    if origin is not None:
        return dict(value)
    _check_type(value, kind, path)
    return float(value) if kind is float else value


def _check_type(value: Any, kind: type, path: str) -> None:
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (kind is not bool and value is True):
        raise InputError(f"{path} is {value!r}: it must be of type {kind.__name__}.")
    if kind is float and not math.isfinite(value):
        raise InputError(f"{path} is {value}: it must be a finite number.")
