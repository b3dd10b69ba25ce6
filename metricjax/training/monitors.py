"""What to warn of while a run goes on, as small objects that are fed and asked.

Most are called as `detector(step, values)` with the values of a logged step, as they
stand in metrics.jsonl, and return a sentence once they have seen enough, else None.
"""

import logging
import math
import re
from collections.abc import Mapping

import jax

from metricjax.config.schema import RunConfig

# A warning waits until it has held at so many logged steps in a row, and for so long.
_RECORDS, _STEPS = 5, 50
# A mean distance of unit vectors that is a cosine of 0.98.
_NEAR = 0.2
# Small batches scatter: positives are nearer than negatives if their ratio is below.
_TOLD_APART = 0.7
# Share of the time spent on waiting for batches that is worth a warning.
_WAITING = 0.2


class Lasting:
    """Whether something has held for a while; says so once.

    Args:
      records: at how many logged steps in a row, at least.
      steps: over how many steps, at least.
    """

    def __init__(self, records: int = _RECORDS, steps: int = _STEPS):
        self._records, self._steps = records, steps
        self._seen, self._over = [], False

    def see(self, step: int, holds: bool) -> tuple[int, int] | None:
        """(from, to): the steps over which it has held, when that is long enough."""
        self._seen = [*self._seen, step] if holds else []
        if self._over or len(self._seen) < self._records:
            return None
        if step - self._seen[0] < self._steps:
            return None
        self._over = True
        return self._seen[0], step


class Collapse:
    """Embeddings that are all the same, whatever the image, or learn nothing.

    All are within a cosine of 0.98, those of a class as much as any; or positive and
    negative distances are equal, and a triplet loss rests where that leaves it.

    Args:
      resting: the value of each triplet loss, by its name, where all distances are
        equal.
    """

    def __init__(self, resting: Mapping[str, float]):
        self._resting, self._lasting = resting, Lasting()

    def __call__(self, step: int, values: Mapping[str, float]) -> str | None:
        positive, negative = values["positive_distance"], values["negative_distance"]
        near = negative < _NEAR and positive >= _TOLD_APART * negative
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
    """What the triplet losses of a run come to where all distances are equal."""
    resting = {}
    for name, _, _, options in config.objective.losses():
        if name in ("triplet", "ee_triplet"):
            of_one = math.log(2) if options.get("soft") else options["margin"]
            resting[name] = of_one * config.model.ensemble
    return resting


class NoGradient:
    """A group of the model's parameters to which no loss leads.

    Args:
      group: its name.
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
    """Devices that wait for batches; call `pause` where something else took time."""

    def __init__(self):
        self._lasting, self._shares, self._paused = Lasting(), [], True

    def pause(self) -> None:
        """What is reported next does not count: batches began anew, or had piled up."""
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
    """Programs that are compiled again after all of them had been.

    It hears of them where JAX logs them at level DEBUG, and prints nothing of that.
    """

    _LOGGER = logging.getLogger("jax._src.interpreters.pxla")

    def __init__(self):
        super().__init__()
        self._shapes, self._sentences, self._said = {}, [], set()
        self._complete = False

    def listen(self) -> None:
        """Hear of all that JAX compiles, until `close`."""
        self._level = self._LOGGER.level
        self._shown = self._LOGGER.getEffectiveLevel()
        self._LOGGER.addFilter(self)
        self._LOGGER.setLevel(logging.DEBUG)

    def close(self) -> None:
        """Leave JAX's logger as it was."""
        self._LOGGER.setLevel(self._level)
        self._LOGGER.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Take in what a line of the log says; let pass what would have passed."""
        if str(record.msg).startswith("Compiling %s with") and len(record.args) > 1:
            name, shapes = map(str, record.args[:2])
            self.see(name, re.findall(r"\w+\[[\d,]*\]", shapes))
        return record.levelno >= self._shown

    def everything_is_compiled(self) -> None:
        """From now on nothing should be compiled that has been before."""
        self._complete = True

    def see(self, name: str, shapes: list[str]) -> None:
        """A program is compiled for arguments of these shapes."""
        if _is_one_operation(name):
            return
        before = self._shapes.get(name)
        self._shapes[name] = shapes
        if self._complete and before is not None and name not in self._said:
            self._said.add(name)
            self._sentences.append(_compiled_again(name, before, shapes))

    def sentences(self) -> list[str]:
        """What there is to say since the last call, of each program once."""
        found, self._sentences = self._sentences, []
        return found


def _is_one_operation(name: str) -> bool:
    """Whether this is an operation outside of any program, which compiles in no time.

    Saving a checkpoint does a few, of every shape that there is.
    """
    function = re.sub(r"^jit\(_?(.*)\)$", r"\1", name)
    return hasattr(jax.lax, function) or hasattr(jax.numpy, function)


def _compiled_again(name: str, before: list[str], now: list[str]) -> str:
    if before == now:
        change = f"for the same shapes ({_some(now)})"
    else:
        pairs = list(zip(before, now, strict=False))
        new = [f"{b} instead of {a}" for a, b in pairs if a != b]
        change = f"for {_some(new or now)}"
    return (
        f"{name} was compiled again in the midst of the run, {change}, which costs "
        "more than a step each time: give it arguments of the same shapes and types, "
        "and keep the jitted function instead of making it anew."
    )


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
