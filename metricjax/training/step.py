"""The training step and its state, as pure functions of arrays.

Come here for what one step computes; `loop` calls it, `programs` compiles it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array

from metricjax.data import transforms
from metricjax.models.output import Output
from metricjax.models.pretrained import merge
from metricjax.objectives import objective
from metricjax.objectives.objective import Losses, ObjectiveConfig
from metricjax.training import microbatching

# Folded into the root key: independent random streams of a run.
_INIT, _STEP, _PROXIES = 0, 1, 2

# The parameter group that holds the parameters of the losses.
PROXIES = "proxies"


@struct.dataclass
class TrainState:
    """Everything that a run carries from one step to the next, and checkpoints.

    Attributes:
      step: int32 scalar, number of steps done.
      params: parameters by group (`backbone`, ...); the group `proxies` holds those of
        the losses, by loss.
      batch_stats: running statistics of the normalisation layers.
      opt_state: the optimizer's state.
      objective: the losses' state that is not trained, see `objective.Losses`.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    objective: Any = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables, as `module.apply` takes them."""
        return {"params": _model_params(self.params), "batch_stats": self.batch_stats}

    @property
    def trained(self) -> dict[str, Any]:
        """All that training changes: model variables and parameters of the losses."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def proxies(self) -> dict[str, dict[str, Array]]:
        """The parameters of the losses, by loss and name."""
        return self.params.get(PROXIES, {})

    def with_losses(self, proxies: Any, objective: Any) -> "TrainState":
        """A copy with the given parameters and state of the losses."""
        params = {**self.params, PROXIES: proxies} if proxies else self.params
        return self.replace(params=params, objective=objective)


def _model_params(params: dict[str, Any]) -> dict[str, Any]:
    return {group: leaves for group, leaves in params.items() if group != PROXIES}


def init_variables(model: nn.Module, shape: tuple[int, ...], key: Array) -> Any:
    """Random variables of the model for images of `shape` [h, w, c]."""
    images = jnp.zeros((1, *shape), jnp.float32)
    return model.init(jax.random.fold_in(key, _INIT), images)


def output_shapes(model: nn.Module, shape: tuple[int, ...], size: int) -> Output:
    """Shapes of the model's training output for a batch of `size` images."""

    def apply(key, images):
        variables = init_variables(model, shape, key)
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    images = jax.ShapeDtypeStruct((size, *shape), jnp.float32)
    return jax.eval_shape(apply, jax.random.key(0), images)


def init_params(
    model: nn.Module,
    shape: tuple[int, ...],
    key: Array,
    losses: Losses,
    pretrained: Any = None,
) -> tuple[Any, Any]:
    """(parameters of model and losses, running statistics of the model)."""
    variables = merge(init_variables(model, shape, key), pretrained or {})
    proxies = losses.init_proxies(jax.random.fold_in(key, _PROXIES))
    params = variables["params"] | ({PROXIES: proxies} if proxies else {})
    return params, variables.get("batch_stats", {})


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    shape: tuple[int, ...],
    key: Array,
    losses: Losses,
    pretrained: Any = None,
) -> TrainState:
    """The state before the first step.

    `pretrained` are variables of the model from `pretrained.load`; they replace the
    random ones.
    """
    params, batch_stats = init_params(model, shape, key, losses, pretrained)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        objective=losses.init_state(),
    )


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ObjectiveConfig,
    transform: transforms.TransformConfig,
    mesh: Mesh | None = None,
    parts: int = 1,
) -> Callable[[TrainState, dict[str, Array], Array], tuple[TrainState, dict]]:
    """`train_step(state, batch, root_key) -> (state, metrics)`, to be jitted.

    `batch` holds `images` uint8 [b, s, s, c] and `labels` int32 [b], the whole global
    batch; the randomness of step t depends on `root_key` and t alone.

    `metrics` are pairs (sum, count): those of `objective.objective`, `gradient_norm` in
    total and for each parameter group, and `finite`, whether loss, gradients and
    updates are. After a step t that is not finite, the state stays as it was before the
    step, except that `step` becomes -1 - t and all later steps change nothing.

    Args:
      model: the network.
      optimizer: updates the parameters.
      config: the losses.
      transform: normalization and flips of the images.
      mesh: the devices that the batch is split over; blocked losses split their anchors
        over them.
      parts: number of micro-batches, see `microbatching.gradients`; the losses see the
        whole batch.
    """

    differentiate = make_gradients(model, config, transform, mesh, parts)

    def train_step(state, batch, root_key):
        gradients, batch_stats, (metrics, carried) = differentiate(
            state, batch, root_key
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        after = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            objective=carried,
        )
        metrics |= _gradient_norms(gradients, state.objective)
        # A norm is finite only if all of its terms are: three scalars stand for all.
        norms = metrics["loss"][0], metrics["gradient_norm"][0]
        norms += (optax.tree.norm(updates),)
        # The host reads metrics some steps late. Steps issued meanwhile see step < 0
        # and keep the state as it was, so that the failing step can be repeated.
        finite = jnp.isfinite(jnp.stack(norms)).all() & (state.step >= 0)
        metrics["finite"] = (jnp.float32(finite), jnp.float32(1.0))
        stopped = state.replace(step=jnp.minimum(state.step, -1 - state.step))
        return jax.tree.map(partial(jnp.where, finite), after, stopped), metrics

    return train_step


def make_gradients(
    model: nn.Module,
    config: ObjectiveConfig,
    transform: transforms.TransformConfig,
    mesh: Mesh | None = None,
    parts: int = 1,
) -> Callable[[TrainState, dict[str, Array], Array], tuple[Any, Any, tuple]]:
    """`(state, batch, root_key) -> (gradients, batch_stats, (metrics, carried))`.

    The step before the optimizer: gradients by the parameters, updated statistics,
    metrics of `objective.objective` and the updated state of the losses. Arguments as
    for `make_train_step`.
    """

    def gradients(state, batch, root_key):
        images = flipped(state, batch, root_key, transform)

        def apply(params, images):
            output, updated = model.apply(
                {"params": _model_params(params), "batch_stats": state.batch_stats},
                transforms.normalize(images, transform),
                train=True,
                mutable=["batch_stats"],
            )
            # No loss uses the feature maps; dropping them frees their memory.
            output = output._replace(features=None)
            return output, updated.get("batch_stats", {})

        def loss_fn(params, output):
            value, metrics = objective.objective(
                config,
                output,
                batch["labels"],
                proxies=params.get(PROXIES),
                state=state.objective,
                step=state.step,
                mesh=mesh,
            )
            carried = objective.remember(
                config, output, batch["labels"], state.objective
            )
            return value, (metrics, carried)

        return microbatching.gradients(
            apply, loss_fn, state.params, images, parts, mesh
        )

    return gradients


def flipped(
    state: TrainState,
    batch: dict[str, Array],
    root_key: Array,
    transform: transforms.TransformConfig,
) -> Array:
    """Random horizontal flips of the images, for the step that follows `state`."""
    key = jax.random.fold_in(jax.random.fold_in(root_key, _STEP), state.step)
    return transforms.random_flip(batch["images"], key, transform)


def _gradient_norms(gradients, objective_state) -> dict[str, tuple[Array, Array]]:
    """Gradient norms: in total, of each group of the model, of each loss."""
    one = jnp.float32(1.0)
    norms = {"gradient_norm": (optax.tree.norm(gradients), one)}
    for group, tree in _model_params(gradients).items():
        norms[f"gradient_norm_{group}"] = (optax.tree.norm(tree), one)
    return norms | objective.gradient_norms(gradients.get(PROXIES, {}), objective_state)
