"""From a config file to frozen settings, every mistake in a sentence.

A config file builds on `default_config()`, which lists every setting with its default,
and `from_config_dict` turns the result into dataclasses. Library code sees only those.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict, config_dict

from metricjax.chips import PlanConfig
from metricjax.cross_checks import check_run
from metricjax.data.transforms import TransformConfig
from metricjax.errors import InputError, suggestion
from metricjax.models.embedder import ModelConfig
from metricjax.objectives.objective import LOSSES, ObjectiveConfig, Term
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
      folds: parts of the training classes of which one is held out instead, see
        `datasets.fold` and `--mode folds`; 0: none.
      fold: which of them, 0 to folds - 1.
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
    folds: int = 0
    fold: int = 0
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
      select_on_test: choose it on the test classes, and train on all others. Such
        numbers are too good; results and report are stamped.
      bootstrap: resamples of the classes for the intervals.
      clustering_restarts: first guesses of the k-means whose NMI, AMI and F1 stand
        beside the metrics of the test classes; 0: none.
    """

    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    batch_size: int = 256
    select_by: str = "map@r"
    select_on_test: bool = False
    bootstrap: int = 1000
    clustering_restarts: int = 0

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
        if self.clustering_restarts < 0:
            raise InputError(
                f"config.evaluation.clustering_restarts is {self.clustering_restarts}: "
                "it must be 0 or more."
            )


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
      seed: of initialisation, data order, augmentation, held-out classes.
      steps: optimizer steps.
      batch_size: images of the global batch, all devices together.
      micro_batch_size: how many of them go through the network at a time, all devices
        together; None: all. The losses see the whole batch all the same, and the
        gradient is that of the whole, but batch normalisation goes by the statistics
        of each part. For batches that memory has no room for.
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
      host_timeout: of several hosts, for how long one may give no sign of life before
        the others end, in seconds.
      data, model, objective, optimizer, evaluation: the parts.
      plan: what `--mode plan` looks at.
    """

    objective: ObjectiveConfig
    seed: int = 0
    steps: int = 1000
    batch_size: int = 128
    micro_batch_size: int | None = None
    sampler: str = "classes"
    instances_per_class: int = 4
    categories_per_batch: int = 1
    log_every: int = 20
    eval_every: int = 250
    checkpoint_every: int = 250
    host_timeout: float = 60.0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = EvaluationConfig()
    plan: PlanConfig = PlanConfig()

    def __post_init__(self):
        counts = ("steps", "batch_size", "instances_per_class", "categories_per_batch")
        for name in (*counts, "log_every", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"config.{name} is {getattr(self, name)}: it must be 1 or more."
                )
        if self.seed < 0:
            raise InputError(f"config.seed is {self.seed}: it must be 0 or more.")
        if self.host_timeout < 5:
            raise InputError(
                f"config.host_timeout is {self.host_timeout}: it must be 5 seconds or "
                "more, or a host that is merely busy would pass for a lost one."
            )
        check_run(self)

    @property
    def parts(self) -> int:
        """In how many turns a batch goes through the network."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)


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


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    found = {}
    for name, value in tree.items():
        where = f"{path}.{name}" if path else name
        found |= flat(value, where) if isinstance(value, dict) else {where: value}
    return found


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
