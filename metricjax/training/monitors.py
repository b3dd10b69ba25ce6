"""Warnings during training: collapse, dead parameters, data starvation, recompiles.

Most are called as `monitor(step, values)` with the values of a logged step, those of
metrics.jsonl. They return a sentence once the problem has persisted, else None.
"""

import logging
import math
import re
from collections.abc import Mapping

import jax

from metricjax.config.schema import RunConfig

# Warn once a problem has persisted for so many logged steps in a row and so many steps.
_RECORDS, _STEPS = 5, 50
# The distance of unit vectors at a cosine of 0.98.
_NEAR = 0.2
# Positives are nearer than negatives if the ratio of their distances is below this. Not
# 1, because small batches are noisy.
_SEPARATED = 0.7
# Warn if more than this share of the time is spent waiting for batches.
_WAITING = 0.2


class Lasting:
    """Reports once when a condition has persisted.

    Args:
      records: at how many logged steps in a row, at least.
      steps: over how many steps, at least.
    """

    def __init__(self, records: int = _RECORDS, steps: int = _STEPS):
        self._records, self._steps = records, steps
        self._seen, self._over = [], False

    def see(self, step: int, holds: bool) -> tuple[int, int] | None:
        """(first, last) step over which it has persisted, the first time; else None."""
        self._seen = [*self._seen, step] if holds else []
        if self._over or len(self._seen) < self._records:
            return None
        if step - self._seen[0] < self._steps:
            return None
        self._over = True
        return self._seen[0], step


class Collapse:
    """Collapsed embeddings, or embeddings that do not learn.

    Either all pairs are above a cosine of 0.98, those of a class no closer than others;
    or positive and negative distances are equal and a triplet loss stays at the value
    that it has then, such as its margin.

    Args:
      resting: value of each triplet loss, by name, if all distances are equal.
    """

    def __init__(self, resting: Mapping[str, float]):
        self._resting, self._lasting = resting, Lasting()

    def __call__(self, step: int, values: Mapping[str, float]) -> str | None:
        positive, negative = values["positive_distance"], values["negative_distance"]
        near = negative < _NEAR and positive >= _SEPARATED * negative
        equal = abs(negative - positive) <= 0.05 * negative
        at_rest = [
            name
            for name, value in self._resting.items()
            if abs(values.get(name, math.inf) - value) <= 0.02 * value
        ]
        lasted = self._lasting.see(step, near or (equal and bool(at_rest)))
        if not lasted:
            return None
        stuck = "".join(f", {n} stuck at {values[n]:.3g}" for n in at_rest)
        happened = "The embeddings have collapsed" if near else "Nothing is learnt"
        return (
            f"{happened}, from step {lasted[0]} to {lasted[1]}: "
            "images of other classes are as near as those of the same "
            f"(negative_distance {negative:.3g}, positive_distance {positive:.3g}, "
            f"a cosine of {1 - negative**2 / 2:.5f}{stuck}); three remedies: a tenth "
            "of optimizer.learning_rate or some optimizer.warmup_steps; for a triplet "
            "loss mining='semihard' or 'all', or soft=True, instead of the hardest "
            "pairs and a hard margin; pretrained weights, or larger and more varied "
            "batches."
        )


def resting_values(config: RunConfig) -> dict[str, float]:
    """Values of a run's triplet losses if all distances are equal."""
    resting = {}
    for name, _, _, options in config.objective.losses():
        if name in ("triplet", "ee_triplet"):
            of_one = math.log(2) if options.get("soft") else options["margin"]
            resting[name] = of_one * config.model.ensemble
    return resting


class NoGradient:
    """A parameter group of the model that gets no gradient from any loss.

    Args:
      group: name of the group.
    """

    def __init__(self, group: str):
        self._group, self._lasting = group, Lasting()

    def __call__(self, step: int, values: Mapping[str, float]) -> str | None:
        none = values[f"gradient_norm_{self._group}"] == 0 < values["gradient_norm"]
        lasted = self._lasting.see(step, none)
        if not lasted:
            return None
        return (
            f"The parameters of {self._group} got no gradient from step {lasted[0]} to "
            f"{lasted[1]} while others did, so that they do not learn: see which loss "
            "depends on them and whether it is 0, or freeze them with "
            f"optimizer.group_rates.{self._group}=0."
        )


class Starvation:
    """Devices that wait for batches; call `pause` after anything but training."""

    def __init__(self):
        self._lasting, self._shares, self._paused = Lasting(), [], True

    def pause(self) -> None:
        """Ignore the next values: batches have just started, or queued up meanwhile."""
        self._paused = True

    def __call__(self, step: int, values: Mapping[str, float]) -> str | None:
        if self._paused:
            self._paused = False
            return None
        share = values["data_wait"]
        self._shares = [*self._shares, share] if share > _WAITING else []
        lasted = self._lasting.see(step, share > _WAITING)
        if not lasted:
            return None
        mean = sum(self._shares) / len(self._shares)
        return (
            f"From step {lasted[0]} to {lasted[1]} training spent {mean:.0%} of its "
            "time waiting for images: raise data.threads to the number of cores, or "
            "data.cache_gib until the images fit, pack them once with "
            "`python -m metricjax.prepare`, or set data.transform.resizer=opencv."
        )


class Recompilation(logging.Filter):
    """Programs that are recompiled after the first validation.

    A filter of the logger to which JAX writes compilations at level DEBUG. It reads
    them there and lets only those records pass that would have been shown anyway.
    """

    _LOGGER = logging.getLogger("jax._src.interpreters.pxla")

    def __init__(self):
        super().__init__()
        self._shapes, self._sentences, self._reported = {}, [], set()
        self._complete = False

    def listen(self) -> None:
        """Observe all compilations until `close`."""
        self._level = self._LOGGER.level
        self._shown = self._LOGGER.getEffectiveLevel()
        self._LOGGER.addFilter(self)
        self._LOGGER.setLevel(logging.DEBUG)

    def close(self) -> None:
        """Restore JAX's logger."""
        self._LOGGER.setLevel(self._level)
        self._LOGGER.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Read a log record; pass it if it would be shown without this filter."""
        if str(record.msg).startswith("Compiling %s with") and len(record.args) > 1:
            name, shapes = map(str, record.args[:2])
            self.see(name, re.findall(r"\w+\[[\d,]*\]", shapes))
        return record.levelno >= self._shown

    def everything_is_compiled(self) -> None:
        """From now on, a second compilation of any program is worth a warning."""
        self._complete = True

    def see(self, name: str, shapes: list[str]) -> None:
        """Record that a program was compiled for arguments of these shapes."""
        if _is_one_operation(name):
            return
        before = self._shapes.get(name)
        self._shapes[name] = shapes
        if self._complete and before is not None and name not in self._reported:
            self._reported.add(name)
            self._sentences.append(_recompiled(name, before, shapes))

    def sentences(self) -> list[str]:
        """Warnings since the last call, one for each program."""
        sentences, self._sentences = self._sentences, []
        return sentences


def _is_one_operation(name: str) -> bool:
    """Whether this is a single operation outside `jit`, which compiles quickly.

    Saving a checkpoint runs some for every shape in the state.
    """
    function = re.sub(r"^jit\(_?(.*)\)$", r"\1", name)
    return hasattr(jax.lax, function) or hasattr(jax.numpy, function)


def _recompiled(name: str, before: list[str], now: list[str]) -> str:
    if before == now:
        change = f"for the same shapes ({_some(now)})"
    else:
        pairs = list(zip(before, now, strict=False))
        new = [f"{b} instead of {a}" for a, b in pairs if a != b]
        change = f"for {_some(new or now)}"
    return (
        f"{name} was compiled again during the run, {change}, which costs more than a "
        "step each time: give it arguments of the same shapes and types, and keep the "
        "jitted function instead of creating it again."
    )


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
