"""One step of training and one of embedding: pure functions of arrays."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float

from metricjax.data import transforms
from metricjax.objectives import ObjectiveConfig, objective

# Streams of randomness of a run, each folded into the root key.
_INIT, _STEP = 0, 1


@struct.dataclass
class TrainState:
    """All that a run carries from one step to the next.

    Attributes:
      step: int32 scalar, number of steps done.
      params: parameters by group (`backbone`, ...).
      batch_stats: running statistics of the normalisation layers.
      opt_state: the optimizer's state.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `module.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_variables(model: nn.Module, shape: tuple[int, ...], key: Array) -> Any:
    """The model's variables for images of `shape` [h, w, c]; a function of `key`."""
    images = jnp.zeros((1, *shape), jnp.float32)
    return model.init(jax.random.fold_in(key, _INIT), images)


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    shape: tuple[int, ...],
    key: Array,
) -> TrainState:
    """The state before the first step."""
    variables = init_variables(model, shape, key)
    params = variables["params"]
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
    )


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ObjectiveConfig,
    transform: transforms.TransformConfig,
) -> Callable[[TrainState, dict[str, Array], Array], tuple[TrainState, dict]]:
    """`train_step(state, batch, root_key) -> (state, metrics)`, to be jitted.

    `batch` holds `images` uint8 [b, s, s, c] and `labels` int32 [b], the whole global
    batch; what is random in step t depends on `root_key` and t alone. `metrics` are
    pairs (sum, count), those of `objectives.objective` and `gradient_norm`.
    """

    def train_step(state, batch, root_key):
        key = jax.random.fold_in(jax.random.fold_in(root_key, _STEP), state.step)
        images = transforms.normalize(batch["images"], transform)
        images = transforms.random_flip(images, key, transform)

        def loss(params):
            output, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            value, metrics = objective(config, output, batch["labels"])
            return value, (metrics, updated.get("batch_stats", {}))

        gradients, (metrics, batch_stats) = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        norm = optax.tree.norm(gradients)
        metrics["gradient_norm"] = (norm, jnp.float32(1.0))
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, metrics

    return train_step


def make_embed_step(
    model: nn.Module, transform: transforms.TransformConfig
) -> Callable[[Any, Array], Float[Array, "b d"]]:
    """`embed_step(variables, images uint8 [b, s, s, c]) -> embeddings [b, d]`."""

    def embed_step(variables, images):
        images = transforms.normalize(images, transform)
        return model.apply(variables, images, train=False).embedding

    return embed_step
