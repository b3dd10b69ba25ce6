"""Parse a config file or config.json into frozen dataclasses, with readable errors.

A config file builds on `default_config()`, which lists every setting with its default;
`from_config_dict` turns the result into the dataclasses of `schema`. Library code sees
only those.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from metricjax.config.schema import RunConfig
from metricjax.errors import InputError, suggestion
from metricjax.objectives.objective import LOSSES, ObjectiveConfig, Term
from metricjax.optimizers import GROUP_RATES


def default_config() -> ConfigDict:
    """Every setting with its default, the starting point of config files.

    `objective.terms` is empty: a config names its losses with `terms`.
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
    """The losses of the objective for a config file, with defaults filled in.

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


# The data sets of the papers, and a folder of the user's images.
DATA_VARIANTS = ("folder", "cub", "cars", "sop", "inshop")
_RECALL_AT = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30, 40, 50)}


def use_data(config: ConfigDict, variant: str) -> None:
    """Select a data set of the papers and the K of its Recall@K tables."""
    config.data.name = variant
    config.evaluation.recall_at = _RECALL_AT.get(variant, (1, 2, 4, 8))


def from_config_dict(config: Mapping[str, Any]) -> RunConfig:
    """The frozen settings of a run.

    Raises:
      InputError: an unknown setting, a wrong type, or a value out of range.
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
    leaves = {}
    for name, value in tree.items():
        where = f"{path}.{name}" if path else name
        leaves |= flat(value, where) if isinstance(value, dict) else {where: value}
    return leaves


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
    """Check that a value has the type of the default; lists become tuples."""
    if not isinstance(default, tuple):
        _check_type(value, type(default), path)
        return value
    return _convert(value, tuple[type(default[0]), ...], path)


def _build(cls: type, tree: Any, path: str) -> Any:
    """Build a dataclass from a dictionary, checking every key and type."""
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
