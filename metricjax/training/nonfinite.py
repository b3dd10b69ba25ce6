"""Which number of a step was the first that is not finite: the step is done again.

`step.make_train_step` leaves the state as it was before such a step, and what is random
in a step is a function of its number, so that the same step can be looked into.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from metricjax.config.schema import RunConfig
from metricjax.data import transforms
from metricjax.errors import InputError
from metricjax.runtime import mesh
from metricjax.training import microbatching, step
from metricjax.training.programs import TrainPrograms
from metricjax.training.step import TrainState

# In the order of the computation: what an array is called, and whether it is finite.
Named = Iterable[tuple[str, jax.Array]]
_SOWN = "finite"
_FROM_FILE = ("the parameter", "the statistic")


class NotFinite(InputError):
    """A step came to numbers that are not finite; its state is that before the step."""


def not_finite(
    programs: TrainPrograms, state: TrainState, batch: dict, saved: int
) -> NotFinite:
    """What to raise when a step was not finite; the same on all hosts.

    Args:
      programs: what is trained.
      state: as the step left it, its `step` being -1 - t.
      batch: `images` and `labels` of that step, this host's rows.
      saved: the step of the last checkpoint; 0 if there is none.
    """
    done = -int(mesh.to_host(state.step))
    culprit, first = None, "could not be found by doing it again"
    # To look takes more memory than a step, and the step is to be told in any case.
    with suppress(jax.errors.JaxRuntimeError):
        culprit = first_culprit(programs, state, batch)
        first = f"was {culprit}" if culprit else first
    kept = "nothing was saved before it"
    if saved:
        kept = f"the checkpoint of step {saved}, the last good one, is kept"
    pretrained = programs.config.model.pretrained
    if pretrained and culprit and culprit.startswith(_FROM_FILE):
        advice = f"see whether model.pretrained={pretrained} holds it, and take another"
    else:
        advice = f"try {_remedies(programs.config)}, in another --workdir"
    return NotFinite(
        f"Step {done} has numbers that are not finite, of which the first {first}; "
        f"{kept}: {advice}."
    )


def _remedies(config: RunConfig) -> str:
    """What may help and is not done yet."""
    rate = config.optimizer.learning_rate
    remedies = [f"a lower optimizer.learning_rate than {rate:g}"]
    if config.optimizer.clip_norm is None:
        remedies.append("optimizer.clip_norm=1.0")
    if not config.optimizer.warmup_steps:
        remedies.append("optimizer.warmup_steps")
    for name, dtype in (
        ("model.dtype", config.model.dtype),
        ("objective.matmul_dtype", config.objective.matmul_dtype),
    ):
        if dtype != "float32":
            remedies.append(f"{name}=float32")
    *others, last = remedies
    return f"{', '.join(others)} or {last}" if others else last


def first_culprit(
    programs: TrainPrograms, state: TrainState, batch: dict
) -> str | None:
    """The first of a step's tensors that is not finite; None if all are.

    In the order of the computation: images, parameters, what the model's modules give,
    the losses, gradients, updates. Arguments as for `not_finite`.
    """
    batch = mesh.global_batch(programs.mesh, batch)
    for stage in (_given, _forward, _backward):
        culprit = _first(programs, stage, state, batch)
        if culprit:
            return culprit
    return None


def _first(
    programs: TrainPrograms, stage: Callable[..., Named], state, batch
) -> str | None:
    """The first of what a stage finds that is not finite, worked out in one program."""
    names = []

    def check(state, batch, root_key):
        thawed = state.replace(step=-1 - state.step)
        found = list(stage(programs, thawed, batch, root_key))
        names.extend(name for name, _ in found)
        return jnp.stack([good for _, good in found])

    program = jax.jit(
        check,
        out_shardings=mesh.replicated(programs.mesh),
        compiler_options=mesh.compiler_options(),
    )
    good = np.asarray(mesh.to_host(program(state, batch, programs.root_key)))
    return None if good.all() else names[int(np.argmin(good))]


def _finite(tree: Any) -> jax.Array:
    numbers = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, np.inexact)]
    return jnp.stack([jnp.isfinite(x).all() for x in numbers] or [True]).all()


def _each(kind: str, tree: Any) -> Named:
    """The arrays of a tree, called by their path."""
    for path, array in jax.tree.leaves_with_path(tree):
        names = (str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
        yield f"the {kind} {'/'.join(names)}", _finite(array)


def _images(programs, state, batch, root_key):
    transform = programs.config.data.transform
    flipped = step.flipped(state, batch, root_key, transform)
    return transforms.normalize(flipped, transform)


def _given(programs, state, batch, root_key) -> Named:
    """What the step begins with."""
    yield "the images", _finite(_images(programs, state, batch, root_key))
    yield from _each("parameter", state.params)
    yield from _each("statistic", state.batch_stats)


def _forward(programs, state, batch, root_key) -> Named:
    """What the modules give, in the order in which they are done.

    A module sows whether its output is finite, which a transform such as `nn.remat`
    hands on. One that does not is looked into no further than its own output.
    """
    order = []

    def note(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            module = context.module
            if module.sow(_SOWN, _SOWN, _finite(output)):
                order.append(module.path)
        return output

    def of_part(images):
        with nn.intercept_methods(note):
            _, sown = programs.model.apply(
                state.variables, images, train=True, mutable=["batch_stats", _SOWN]
            )
        return sown[_SOWN]

    images, parts = _images(programs, state, batch, root_key), programs.config.parts
    if parts == 1:
        sown = of_part(images)
    else:
        sown = lax.map(of_part, microbatching.in_parts(images, parts, programs.mesh))
    for path in dict.fromkeys(order):
        of_module = sown
        for name in path:
            of_module = of_module[name]
        called = f"module {'/'.join(path)}" if path else "whole model"
        yield f"the output of the {called}", jnp.stack(of_module[_SOWN]).all()


def _backward(programs, state, batch, root_key) -> Named:
    """Losses, gradients, updates, and the norms that a step is judged by."""
    config = programs.config
    differentiate = step.make_gradients(
        programs.model,
        config.objective,
        config.data.transform,
        programs.mesh,
        config.parts,
    )
    gradients, _, (metrics, _) = differentiate(state, batch, root_key)
    for name, *_ in config.objective.losses():
        for term in (name, f"{name}_memory"):
            if term in metrics:
                yield f"the loss {term}", _finite(metrics[term][0])
    yield "the weighted sum of the losses", _finite(metrics["loss"][0])
    yield from _each("gradient of", gradients)
    yield "the norm of all gradients", _finite(optax.tree.norm(gradients))
    updates, _ = programs.optimizer.update(gradients, state.opt_state, state.params)
    yield from _each("update of", updates)
    yield "the norm of all updates", _finite(optax.tree.norm(updates))
