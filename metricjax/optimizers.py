"""Optimizers as optax chains: schedules, parameter groups, freezing, clipping."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
from optax import contrib

from metricjax.errors import InputError

# Default learning rates of parameter groups, as multiples of `learning_rate`.
GROUP_RATES = {"proxies": 100.0}
METHODS = ("adam", "adamw", "muon", "sgd")
SCHEDULES = ("constant", "step", "cosine")
_NOT_NEGATIVE = (
    "warmup_steps", "step_decay", "final_rate", "weight_decay", "momentum",
)  # fmt: skip


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimizer.

    Attributes:
      method: "adam" (weight decay added to the gradient), "adamw" (decoupled), "muon"
        (orthogonalised momentum for kernels larger than 1x1 after the first layer,
        "adamw" for the rest) or "sgd" (momentum, decay added to the gradient).
      learning_rate: the peak, for every group not named in `group_rates`.
      schedule: "constant", "step" (times `step_decay` at each of `step_boundaries`) or
        "cosine" (down to `final_rate` times the peak after the last step).
      warmup_steps: steps of linear warm-up from 0 to the peak.
      step_boundaries: steps at which "step" decays.
      step_decay: its factor.
      final_rate: final rate of "cosine", as a fraction of the peak.
      weight_decay: on kernels only; never on biases, normalisation or GeM's exponent.
      momentum: of "sgd" and "muon".
      muon_rate: learning rate of orthogonalised kernels, as a multiple of
        `learning_rate`, above 0.
      clip_norm: largest global norm of the gradient, above 0; None: unbounded.
      group_rates: learning rate of a parameter group as a multiple of
        `learning_rate`; the groups are the top-level names of the model's parameters
        ("backbone", "classifier", ...) and, for all parameters of the losses,
        "proxies", 100 unless it is named. 0 freezes the group.
    """

    method: str = "adam"
    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup_steps: int = 0
    step_boundaries: tuple[int, ...] = ()
    step_decay: float = 0.1
    final_rate: float = 0.0
    weight_decay: float = 0.0
    momentum: float = 0.9
    muon_rate: float = 8.0
    clip_norm: float | None = None
    group_rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        for name, choices in (("method", METHODS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"optimizer.{name} is {getattr(self, name)!r}: choose one of "
                    f"{', '.join(choices)}."
                )
        if self.learning_rate <= 0:
            raise InputError(
                f"optimizer.learning_rate is {self.learning_rate}: it must be above 0."
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise InputError(
                f"optimizer.clip_norm is {self.clip_norm}: it must be above 0, or None "
                "for no clipping."
            )
        if self.muon_rate <= 0:
            raise InputError(
                f"optimizer.muon_rate is {self.muon_rate}: it must be above 0."
            )
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise InputError(
                    f"optimizer.{name} is {getattr(self, name)}: it must be 0 or more."
                )
        if list(self.step_boundaries) != sorted(set(self.step_boundaries)):
            raise InputError(
                f"optimizer.step_boundaries are {self.step_boundaries}: they must "
                "increase."
            )
        for group, rate in self.group_rates.items():
            if rate < 0:
                raise InputError(
                    f"optimizer.group_rates.{group} is {rate}: it must be 0 (frozen) "
                    "or more."
                )


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate at each step of a run of `steps` steps."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if warmup >= steps:
        raise InputError(
            f"optimizer.warmup_steps is {warmup}, but the run has {steps} steps: warm "
            "up for fewer steps than the run has."
        )
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, steps - warmup, config.final_rate)
    elif config.schedule == "step":
        factors = {b - warmup: config.step_decay for b in config.step_boundaries}
        after = optax.piecewise_constant_schedule(peak, factors)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup), after], [warmup]
    )


def build(
    config: OptimizerConfig, steps: int, parameters: Any
) -> optax.GradientTransformation:
    """The optimizer of a run.

    Args:
      config: the settings.
      steps: length of the run, for the schedules.
      parameters: the parameter tree, or its shapes; its top-level names are the groups.

    Raises:
      InputError: an unknown group, every group frozen, or a warm-up as long as the
        run.
    """
    groups = sorted(parameters)
    unknown = sorted(set(config.group_rates) - set(groups) - set(GROUP_RATES))
    if unknown:
        raise InputError(
            f"optimizer.group_rates names {unknown[0]!r}, but the parameter groups of "
            f"this model are {', '.join(groups)}."
        )
    named = {**GROUP_RATES, **config.group_rates}
    rates = {group: named.get(group, 1.0) for group in groups}
    if not any(rates.values()):
        raise InputError(
            "optimizer.group_rates freezes every parameter group: leave one above 0."
        )
    base = schedule(config, steps)

    def group_chain(rate: float) -> optax.GradientTransformation:
        if rate == 0:
            return optax.set_to_zero()
        return optax.chain(
            *_direction(config),
            optax.scale_by_learning_rate(lambda step: rate * base(step)),
        )

    labels = {
        group: jax.tree.map(lambda _, group=group: group, parameters[group])
        for group in groups
    }
    clip = [] if config.clip_norm is None else [_clip(config, rates)]
    chains = {group: group_chain(rate) for group, rate in rates.items()}
    return optax.chain(*clip, optax.partition(chains, labels))


def _clip(
    config: OptimizerConfig, rates: Mapping[str, float]
) -> optax.GradientTransformation:
    """Clip by the global norm over the groups that are not frozen."""
    moving = {group for group, rate in rates.items() if rate}

    def mask(tree):
        return {
            group: jax.tree.map(lambda _, group=group: group in moving, branch)
            for group, branch in tree.items()
        }

    return optax.masked(optax.clip_by_global_norm(config.clip_norm), mask)


def _direction(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    decay = []
    if config.weight_decay:
        decay = [optax.add_decayed_weights(config.weight_decay, mask=_kernels)]
    if config.method == "sgd":
        return [*decay, optax.trace(config.momentum)]
    if config.method == "adam":
        return [*decay, optax.scale_by_adam()]
    adamw = optax.chain(optax.scale_by_adam(), *decay)
    if config.method == "adamw":
        return [adamw]
    muon = optax.chain(
        contrib.scale_by_muon(
            beta=config.momentum, weight_dimension_numbers=_dimension_numbers
        ),
        optax.scale(config.muon_rate),
    )
    return [optax.partition({"muon": muon, "adamw": adamw}, _by_method)]


def _by_method(tree: Any) -> Any:
    """ "muon" for kernels [k, k, i, o] with k > 1 whose input is not an image."""
    return jax.tree.map(
        lambda leaf: (
            "muon"
            if leaf.ndim == 4 and leaf.shape[0] > 1 and leaf.shape[2] > 4
            else "adamw"
        ),
        tree,
    )


def _dimension_numbers(tree: Any) -> Any:
    return jax.tree.map(lambda _: contrib.MuonDimensionNumbers((0, 1, 2), 3), tree)


def _kernels(tree: Any) -> Any:
    """True for the kernels of convolutions and linear layers."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", tree
    )
